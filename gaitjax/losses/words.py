"""Losses between what frames show and what texts name (models/pocket_encoders.py)."""

import jax
import jax.numpy as jnp
import optax

from gaitjax.losses.numerics import mean_where


def balanced_cross_entropy(
    scores: jax.Array, share: jax.Array, where: jax.Array
) -> jax.Array:
    """Cross-entropy of sigmoid(scores) with `share`, both [N K] -> float32 [K].

    where: bool [N], the rows that count.

    Column k (a phrase) is the mean over what shows it, weighted by its share, plus the
    mean over the rest: a hand counts as much as a wall. A phrase that nothing shows has
    the second mean alone.
    """
    scores = jnp.where(where[:, None], scores.astype(jnp.float32), 0.0)
    share, where = share.astype(jnp.float32), where[:, None].astype(jnp.float32)

    def mean(values, weights):
        total = jnp.sum(weights, axis=0)
        return jnp.sum(values * weights, axis=0) / jnp.maximum(total, 1e-6)

    there = mean(jax.nn.softplus(-scores), share * where)
    return there + mean(jax.nn.softplus(scores), (1.0 - share) * where)


def soft_cross_entropy(logits: jax.Array, share: jax.Array) -> jax.Array:
    """Cross-entropy of a softmax over the last axis with a distribution, [...]."""
    return optax.softmax_cross_entropy(logits.astype(jnp.float32), share)


JOINT_CHOICE = 0.05  # weight of the choice of the patch, beside image heights


def joint_loss(places, targets, logits, patches, seen) -> jax.Array:
    """How far joints are from where they should be, and in the right patch.

    places, targets: [N J 2]. logits: [N P J] over the patches, patches: int [N J], the
    right ones. seen: bool [N J], the joints that count. Returns the mean of
    |x| + |y| + JOINT_CHOICE cross-entropy.
    """
    apart = jnp.sum(jnp.abs(places - targets), axis=-1)
    chances = jax.nn.log_softmax(logits.astype(jnp.float32), axis=1)
    chosen = jnp.take_along_axis(chances, patches[:, None], axis=1)[:, 0]  # [N J]
    each = apart - JOINT_CHOICE * chosen
    return jnp.sum(jnp.where(seen, each, 0.0)) / jnp.maximum(jnp.sum(seen), 1)


def caption_loss(
    images: jax.Array,
    captions: jax.Array,
    same: jax.Array,
    temperature: float,
    where: jax.Array,
) -> jax.Array:
    """CLIP's loss over unit vectors [N D], where same bool [N N] names the right pairs.

    The mean of both directions; several right captions share the probability. where:
    bool [N], the rows that count.
    """
    pairs = where[:, None] & where[None]
    logits = jnp.where(pairs, images @ captions.T / temperature, -1e9)
    right = (same & pairs).astype(jnp.float32)
    right = right / jnp.maximum(jnp.sum(right, axis=1, keepdims=True), 1.0)
    rows = soft_cross_entropy(logits, right)
    columns = soft_cross_entropy(logits.T, right)  # `same` is symmetric
    return mean_where((rows + columns) / 2, where)
