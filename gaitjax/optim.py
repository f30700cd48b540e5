"""Optimizers and schedules of the published recipes, through Optax.

Weight decay follows the recipe's own framework: for `sgd` and `adam` it is added to the
gradient before momentum (PyTorch's L2), for `adamw` it is decoupled.
"""

import re
from collections.abc import Callable

import jax
import optax

Schedule = Callable[[jax.Array | int], jax.Array]
SCHEDULES = ("constant", "milestones", "cosine", "onecycle")
OPTIMIZERS = ("sgd", "adam", "adamw")


def make_schedule(config, total_steps: int, start_step: int = 0) -> Schedule:
    """Learning rate of a global step; `start_step` steps of decoder warm-up come first.

    constant: config.learning_rate throughout.
    milestones: x config.gamma at each of config.milestones (steps after start_step).
    cosine: to config.final_learning_rate at total_steps, then constant.
    onecycle: linear rise over the first `rise_steps`, then cosine to the final rate.
    During the first start_step steps the rate is config.learning_rate.
    """
    rate, final = config.learning_rate, config.final_learning_rate
    if config.schedule == "constant":
        schedule = optax.constant_schedule(rate)
    elif config.schedule == "milestones":
        drops = {int(step): config.gamma for step in config.milestones}
        schedule = optax.piecewise_constant_schedule(rate, drops)
    elif config.schedule == "cosine":
        schedule = optax.cosine_decay_schedule(rate, total_steps, alpha=final / rate)
    elif config.schedule == "onecycle":
        if not config.rise_steps < total_steps:
            raise ValueError(
                f"config.optimizer.rise_steps ({config.rise_steps}) must be below "
                f"config.train.steps ({total_steps})."
            )
        schedule = optax.warmup_cosine_decay_schedule(
            rate / 25, rate, config.rise_steps, total_steps, end_value=final
        )
    else:
        raise ValueError(
            f"Unknown schedule {config.schedule!r} (config.optimizer.schedule); "
            f"choose from {', '.join(SCHEDULES)}."
        )
    if start_step == 0:
        return schedule
    return optax.join_schedules(
        [optax.constant_schedule(rate), schedule], boundaries=[start_step]
    )


def make_optimizer(config, schedule: Schedule) -> optax.GradientTransformation:
    """The chain of config.optimizer; `no_decay` regexes name undecayed parameters."""

    def decayed(params):
        return jax.tree_util.tree_map_with_path(
            lambda path, _: (
                not any(
                    re.search(
                        pattern, jax.tree_util.keystr(path, simple=True, separator="/")
                    )
                    for pattern in config.no_decay
                )
            ),
            params,
        )

    decay = optax.add_decayed_weights(config.weight_decay, mask=decayed)
    if config.name == "sgd":
        core = [decay, optax.trace(config.momentum)]
    elif config.name == "adam":
        core = [decay, optax.scale_by_adam()]
    elif config.name == "adamw":
        core = [optax.scale_by_adam(), decay]
    else:
        raise ValueError(
            f"Unknown optimizer {config.name!r} (config.optimizer.name); choose from "
            f"{', '.join(OPTIMIZERS)}."
        )
    clip = [optax.clip_by_global_norm(config.clip_norm)] if config.clip_norm else []
    return optax.chain(*clip, *core, optax.scale_by_learning_rate(schedule))
