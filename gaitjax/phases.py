"""The phases of a training, each with a config of its own.

`train.loop_phases` turns them into the phases that engine/loop.py runs.
"""

from typing import NamedTuple

from ml_collections import ConfigDict

from gaitjax.engine.guards import require, require_regex


class PhaseConfig(NamedTuple):
    """Steps first .. last - 1. method: of the model, run in place of __call__. section:
    of the run's config, where the fields of the phase are."""

    name: str
    first: int
    last: int
    config: ConfigDict
    method: str | None
    section: str


def phases_of(config) -> list[PhaseConfig]:
    """The decoder's warm-up, if the config has one, and the training itself."""
    warm, found, first = config.get("warmup"), [], 0
    if warm and warm.steps:
        first = warm.steps
        own = _warm_up(config)
        found.append(PhaseConfig("warm-up", 0, first, own, "warm_up", "warmup"))
    last = first + config.train.steps
    return [*found, PhaseConfig("training", first, last, config, None, "train")]


def _warm_up(config) -> ConfigDict:
    """The run's config with what config.warmup changes.

    The learning rate is constant; with the schedules "cosine" and "onecycle" it rises
    over a twentieth of the steps and falls to zero.
    """
    own, warm = config.warmup, config.copy_and_resolve_references()
    require_regex(own.trainable, "config.warmup.trainable")
    unknown = [name for name in own.losses if name not in config.loss]
    require(
        not unknown,
        f"config.warmup.losses names {', '.join(map(repr, unknown))}, config.loss has "
        f"{', '.join(sorted(config.loss)) or 'none'}.",
    )
    with warm.unlocked():
        warm.loss = {name: config.loss[name] for name in own.losses}
    for size in ("ids_per_batch", "num_frames"):
        warm.data[size] = own[size] or config.data[size]
    cycle = config.optimizer.schedule in ("cosine", "onecycle") and own.steps > 1
    warm.optimizer.update(
        schedule="onecycle" if cycle else "constant", rise_steps=own.steps // 20,
        learning_rate=own.learning_rate or config.optimizer.learning_rate,
        final_learning_rate=0.0,
    )  # fmt: skip
    warm.train.update(steps=own.steps, trainable=own.trainable)
    return warm
