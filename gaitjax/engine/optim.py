"""Optimizers and schedules of the published recipes, through Optax.

Weight decay follows the recipe's own framework: for `sgd` and `adam` it is added to the
gradient before momentum (PyTorch's L2), for `adamw` it is decoupled.
"""

import re
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

Schedule = Callable[[jax.Array | int], jax.Array]
SCHEDULES = ("constant", "milestones", "cosine", "onecycle")
OPTIMIZERS = ("sgd", "adam", "adamw")


def make_schedule(config, total_steps: int) -> Schedule:
    """Learning rate of each of `total_steps` steps (config: config.optimizer).

    constant: config.learning_rate throughout.
    milestones: x config.gamma at each of config.milestones.
    cosine: to config.final_learning_rate at config.decay_steps (0: total_steps), then
    constant.
    onecycle: linear rise over the first `rise_steps`, then cosine to the final rate.
    """
    rate, final = config.learning_rate, config.final_learning_rate
    if config.schedule == "constant":
        return optax.constant_schedule(rate)
    if config.schedule == "milestones":
        drops = {int(step): config.gamma for step in config.milestones}
        return optax.piecewise_constant_schedule(rate, drops)
    if config.schedule == "cosine":
        steps = config.decay_steps or total_steps
        return optax.cosine_decay_schedule(rate, steps, alpha=final / rate)
    if config.schedule == "onecycle":
        if not config.rise_steps < total_steps:
            raise ValueError(
                f"config.optimizer.rise_steps ({config.rise_steps}) must be below "
                f"config.train.steps ({total_steps})."
            )
        return optax.warmup_cosine_decay_schedule(
            rate / 25, rate, config.rise_steps, total_steps, end_value=final
        )
    raise ValueError(
        f"Unknown schedule {config.schedule!r} (config.optimizer.schedule); "
        f"choose from {', '.join(SCHEDULES)}."
    )


def make_warm_up_schedule(config, warmup) -> Schedule:
    """Learning rate of the decoder's warm-up (config.warmup), which comes first.

    Constant; with "cosine" and "onecycle" a linear rise over a twentieth of the steps,
    then a cosine to zero. Its rate is warmup.learning_rate, config's where that is 0.
    """
    rate = warmup.learning_rate or config.learning_rate
    if config.schedule not in ("cosine", "onecycle") or warmup.steps < 2:
        return optax.constant_schedule(rate)
    rise = warmup.steps // 20
    return optax.warmup_cosine_decay_schedule(rate / 25, rate, rise, warmup.steps)


def make_optimizer(config, schedule: Schedule) -> optax.GradientTransformation:
    """The chain of config.optimizer.

    `no_decay`: regexes of undecayed parameters. `rates`: (regex, factor) pairs; the
    first that matches scales a parameter's learning rate.
    """

    def decayed(params):
        return jax.tree_util.tree_map_with_path(
            lambda path, _: not _matches(config.no_decay, path), params
        )

    def scaled(updates, params=None):
        def scale(path, update):
            factors = [f for pattern, f in config.rates if _matches((pattern,), path)]
            return update * factors[0] if factors else update

        return jax.tree_util.tree_map_with_path(scale, updates)

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
    own_rates = [optax.stateless(scaled)] if config.rates else []
    rate = optax.scale_by_learning_rate(schedule)
    return optax.chain(*clip, *core, *own_rates, rate)


def _matches(patterns, path) -> bool:
    """Whether a regex is found in the "a/b/c" of a key path."""
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    return any(re.search(pattern, name) for pattern in patterns)


def split_parts(batch, parts: int, devices: int = 1):
    """Batch arrays [B ...] -> [parts B/parts ...], the parts of a step.

    Rows lie as `data.pipeline.part_order` has put them, so that every device keeps its
    rows and nothing is sent: [device, part, row] -> [part, device and row].
    """

    def split(x):
        x = x.reshape(devices, parts, -1, *x.shape[1:])
        return x.swapaxes(0, 1).reshape(parts, -1, *x.shape[3:])

    return jax.tree.map(split, batch)


def accumulate(part_gradients, parts, batch_stats):
    """Means of gradients and metrics over the parts of a step, one after another.

    part_gradients(part, batch_stats, number) -> (gradients, (metrics, batch_stats)).
    parts: pytree of arrays [n ...]. Memory for activations is that of one part; batch
    statistics go from part to part. Returns what part_gradients returns.

    This is not the step on the whole batch: batch normalisation and triplets see one
    part at a time (as in PyTorch, where gradients are accumulated over forward passes).
    """
    count = jax.tree.leaves(parts)[0].shape[0]

    def add(carry, numbered):
        (sums, statistics), (number, part) = carry, numbered
        gradients, (metrics, statistics) = part_gradients(part, statistics, number)
        sums = jax.tree.map(jnp.add, sums, (gradients, metrics))
        return (sums, statistics), None

    first = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), parts)
    shapes = jax.eval_shape(part_gradients, first, batch_stats, 0)
    zeros = jax.tree.map(
        lambda x: jnp.zeros(x.shape, x.dtype), (shapes[0], shapes[1][0])
    )
    (sums, statistics), _ = jax.lax.scan(
        add, (zeros, batch_stats), (jnp.arange(count), parts)
    )
    gradients, metrics = jax.tree.map(lambda x: x / count, sums)
    return gradients, (metrics, statistics)
