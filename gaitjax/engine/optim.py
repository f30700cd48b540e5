"""Optimizers and schedules of the published recipes, through Optax.

Weight decay follows the recipe's own framework: for `sgd` and `adam` it is added to the
gradient before momentum (PyTorch's L2), for `adamw` it is decoupled.
"""

import re
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import optax
from flax import traverse_util

Schedule = Callable[[jax.Array | int], jax.Array]


def _constant(config, total_steps: int) -> Schedule:
    return optax.constant_schedule(config.learning_rate)


def _milestones(config, total_steps: int) -> Schedule:
    drops = {int(step): config.gamma for step in config.milestones}
    return optax.piecewise_constant_schedule(config.learning_rate, drops)


def _cosine(config, total_steps: int) -> Schedule:
    share = config.final_learning_rate / config.learning_rate
    steps = config.decay_steps or total_steps
    return optax.cosine_decay_schedule(config.learning_rate, steps, alpha=share)


def _onecycle(config, total_steps: int) -> Schedule:
    rate, final = config.learning_rate, config.final_learning_rate
    return optax.warmup_cosine_decay_schedule(
        rate / 25, rate, config.rise_steps, total_steps, end_value=final
    )


SCHEDULES = {
    "constant": _constant,
    "milestones": _milestones,
    "cosine": _cosine,
    "onecycle": _onecycle,
}


def make_schedule(config, total_steps: int) -> Schedule:
    """Learning rate of each of `total_steps` steps (config: config.optimizer).

    constant: config.learning_rate throughout.
    milestones: x config.gamma at each of config.milestones.
    cosine: to config.final_learning_rate at config.decay_steps (0: total_steps), then
    constant.
    onecycle: linear rise over the first `rise_steps`, then cosine to the final rate.
    """
    return SCHEDULES[config.schedule](config, total_steps)


# name -> (the chain before the learning rate, given the step that adds weight decay)
OPTIMIZERS = {
    "sgd": lambda config, decay: [decay, optax.trace(config.momentum)],
    "adam": lambda config, decay: [decay, optax.scale_by_adam()],
    "adamw": lambda config, decay: [optax.scale_by_adam(), decay],
}


def make_optimizer(
    config, schedule: Schedule, no_decay: Sequence[str] = ()
) -> optax.GradientTransformation:
    """The chain of config.optimizer.

    `no_decay`: regexes of undecayed parameters, to which the argument adds the model's
    own. `rates`: (regex, factor) pairs; the first that matches scales a parameter's
    learning rate.
    """
    make, undecayed = OPTIMIZERS[config.name], (*config.no_decay, *no_decay)

    def decayed(params):
        return jax.tree_util.tree_map_with_path(
            lambda path, _: not _matches(undecayed, path), params
        )

    def scaled(updates, params=None):
        def scale(path, update):
            factors = [f for pattern, f in config.rates if _matches((pattern,), path)]
            return update * factors[0] if factors else update

        return jax.tree_util.tree_map_with_path(scale, updates)

    decay = optax.add_decayed_weights(config.weight_decay, mask=decayed)
    clip = [optax.clip_by_global_norm(config.clip_norm)] if config.clip_norm else []
    own_rates = [optax.stateless(scaled)] if config.rates else []
    rate = optax.scale_by_learning_rate(schedule)
    return optax.chain(*clip, *make(config, decay), *own_rates, rate)


def _matches(patterns, path) -> bool:
    """Whether a regex is found in the "a/b/c" of a key path."""
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    return any(re.search(pattern, name) for pattern in patterns)


def hold_others(pattern: str, new, old):
    """The training state `new`, but `old` where a parameter's path has no match.

    The optimizer state of such parameters is `old`'s, too. "": `new` as it is.
    """
    if not pattern:
        return new
    names = traverse_util.flatten_dict(old.params, sep="/")
    held = {name for name in names if not re.search(pattern, name)}

    def pick(path, new_leaf, old_leaf):
        parts = jax.tree_util.keystr(path, simple=True, separator="/").split("/")
        tails = ("/".join(parts[i:]) for i in range(len(parts)))
        return old_leaf if any(tail in held for tail in tails) else new_leaf

    return new._replace(
        params=jax.tree_util.tree_map_with_path(pick, new.params, old.params),
        opt_state=jax.tree_util.tree_map_with_path(pick, new.opt_state, old.opt_state),
    )


def split_parts(batch, parts: int, devices: int = 1):
    """Batch arrays [B ...] -> [parts B/parts ...], the parts of a step.

    The rows are ordered [device, part, row], so that every device keeps its own rows
    and nothing is sent; each part becomes [device and row].
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

    This differs from a step on the whole batch: batch normalisation and triplets see
    one part at a time, as where PyTorch accumulates over forward passes.
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
