"""Optimizers and schedules of the published recipes, through Optax.

Weight decay follows the recipe's own framework: for `sgd` and `adam` it is added to the
gradient before momentum (PyTorch's L2), for `adamw` and `muon` it is decoupled.
"""

import re
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import optax
import optax.contrib
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


def _scale_by_muon(config) -> optax.GradientTransformation:
    """Muon for kernels, Adam for vectors and for `adam_for`, at one learning rate.

    The kernel of a convolution counts as a matrix [rest, outputs], one with three axes
    as a stack of matrices. Sources: Jordan et al., "Muon" (2024), momentum whose
    singular values are made about equal; its size is brought to Adam's as in Liu et
    al., "Muon is Scalable for LLM Training" (2025), equation 4.
    """

    def kinds(params):
        def kind(path, x):
            return "adam" if x.ndim < 2 or _matches(config.adam_for, path) else "muon"

        return jax.tree_util.tree_map_with_path(kind, params)

    def axes(updates):
        def of(x):
            rows = range(1, 2) if x.ndim == 3 else range(x.ndim - 1)
            return optax.contrib.MuonDimensionNumbers(tuple(rows), x.ndim - 1)

        return jax.tree.map(of, updates)

    def like_adam(updates, params=None):
        def scale(x):
            rows = x.shape[1] if x.ndim == 3 else x.size // x.shape[-1]
            return 0.2 * max(rows, x.shape[-1]) ** 0.5 * x

        return jax.tree.map(scale, updates)

    levelled = optax.contrib.scale_by_muon(weight_dimension_numbers=axes)
    muon = optax.chain(levelled, optax.stateless(like_adam))
    return optax.partition({"muon": muon, "adam": optax.scale_by_adam()}, kinds)


# name -> (the chain before the learning rate, given the step that adds weight decay)
OPTIMIZERS = {
    "sgd": lambda config, decay: [decay, optax.trace(config.momentum)],
    "adam": lambda config, decay: [decay, optax.scale_by_adam()],
    "adamw": lambda config, decay: [optax.scale_by_adam(), decay],
    "muon": lambda config, decay: [_scale_by_muon(config), decay],
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
        rows = len(x) // (devices * parts)
        x = x.reshape(devices, parts, rows, *x.shape[1:])
        return x.swapaxes(0, 1).reshape(parts, devices * rows, *x.shape[3:])

    return jax.tree.map(split, batch)


def join_parts(outputs, devices: int = 1):
    """The inverse of `split_parts`; of scalars [parts], one a part, the mean."""

    def join(x):
        if x.ndim == 1:
            return jnp.mean(x)
        parts, rows = len(x), x.shape[1] // devices
        x = x.reshape(parts, devices, rows, *x.shape[2:])
        return x.swapaxes(0, 1).reshape(devices * parts * rows, *x.shape[3:])

    return jax.tree.map(join, outputs)


def accumulate(
    apply, loss, params, batch, batch_stats, *, parts: int, devices: int = 1
):
    """Gradients of a loss over the whole batch, with activations of one part at a time.

    apply(params, part, batch_stats, number) -> (outputs, batch_stats), a pure function:
    it is called twice for each part. outputs: arrays [rows ...], or scalars.
    loss(outputs) -> (f32 scalar, metrics): outputs are those of the whole batch, rows
    as in `batch`, scalars the means over parts. batch: pytree of arrays [B ...], rows
    as `split_parts` expects them.
    Returns (gradients, (metrics, batch_stats)).

    The first pass computes all outputs and keeps nothing else; the loss is
    differentiated with respect to them; the second pass computes each part again and
    takes its rows of that gradient back to the parameters. Batch statistics go from
    part to part, in both passes alike.

    Source: Gao et al., "Scaling Deep Contrastive Learning Batch Size under Memory
    Limited Setup" (RepL4NLP 2021), section 3 (GradCache).
    """
    numbered = jnp.arange(parts), split_parts(batch, parts, devices)

    def forward(statistics, numbered):
        number, part = numbered
        outputs, statistics = apply(params, part, statistics, number)
        return statistics, outputs

    _, outputs = jax.lax.scan(forward, batch_stats, numbered)
    leaves, tree = jax.tree.flatten(join_parts(outputs, devices))
    moving = _differentiable(lambda leaves: loss(tree.unflatten(leaves)), leaves)

    def of_moving(values):
        whole = list(leaves)
        for i, value in zip(moving, values):
            whole[i] = value
        return loss(tree.unflatten(whole))

    values = [leaves[i] for i in moving]
    wanted, metrics = jax.grad(of_moving, has_aux=True)(values)

    def backward(carry, numbered):
        (gradients, statistics), (number, part, wanted) = carry, numbered

        def forward(params):
            outputs, new = apply(params, part, statistics, number)
            outputs = jax.tree.leaves(outputs)
            return [outputs[i] for i in moving], new

        _, pull, statistics = jax.vjp(forward, params, has_aux=True)
        gradients = jax.tree.map(jnp.add, gradients, *pull(wanted))
        return (gradients, statistics), None

    zeros = jax.tree.map(jnp.zeros_like, params)
    (gradients, batch_stats), _ = jax.lax.scan(
        backward, (zeros, batch_stats), (*numbered, split_parts(wanted, parts, devices))
    )
    return gradients, (metrics, batch_stats)


def _differentiable(function, leaves) -> list[int]:
    """Which arrays of a list `function` reads and has a gradient for.

    For the others the whole batch need not be kept.
    """
    traced = jax.make_jaxpr(function)(leaves).jaxpr
    read = {id(x) for equation in traced.eqns for x in equation.invars}
    return [
        i
        for i, (leaf, x) in enumerate(zip(leaves, traced.invars))
        if id(x) in read and leaf.ndim and jnp.issubdtype(leaf.dtype, jnp.floating)
    ]
