"""Losses on maps: silhouettes, edges and channels of BigGait, LMGait and GaitEdge.

Pure functions in float32. Frames outside `valid` change no value and no gradient.
"""

import math

import jax
import jax.numpy as jnp

from gaitjax.losses.numerics import magnitude, mean_where

# Added to a channel's share inside the logarithm of the diversity loss, as BigGait
# does: gradients stay finite if a channel is empty.
SHARE_EPSILON = 1e-6
REDUCTIONS = ("channel", "sum")  # of smoothness_loss


def binary_cross_entropy(
    probability: jax.Array, target: jax.Array, *, epsilon: float = 1e-7
) -> jax.Array:
    """Cross-entropy per pixel: probability and target in [0, 1] -> float32, same shape.

    epsilon keeps value and gradient finite at probabilities of exactly 0 and 1.
    Source: LMGait eq. 17 (silhouette supervision, with the mean over valid tokens).
    """
    probability = probability.astype(jnp.float32)
    target = target.astype(jnp.float32)
    right = target * jnp.log(probability + epsilon)
    return -(right + (1 - target) * jnp.log(1 - probability + epsilon))


def sobel_magnitude(maps: jax.Array) -> jax.Array:
    """|Sobel x| + |Sobel y|, zero padding: [N H W C] -> float32 [N H W C].

    Kernels are the integer ones (1 2 1) x (1 0 -1).
    """
    maps = maps.astype(jnp.float32)
    padded = jnp.pad(maps, ((0, 0), (1, 1), (1, 1), (0, 0)))
    rows = padded[:, :-2] + 2 * padded[:, 1:-1] + padded[:, 2:]  # [N H W+2 C]
    columns = padded[:, :, :-2] + 2 * padded[:, :, 1:-1] + padded[:, :, 2:]
    across = rows[:, :, :-2] - rows[:, :, 2:]  # [N H W C]
    down = columns[:, :-2] - columns[:, 2:]  # [N H W C]
    return magnitude(across) + magnitude(down)


def smoothness_loss(
    maps: jax.Array, valid: jax.Array | None = None, *, reduce: str = "channel"
) -> jax.Array:
    """Mean Sobel magnitude of feature maps (LMGait eq. 15).

    Args:
      maps: [N H W C].
      valid: bool [N], frames that count; None: all.
      reduce: one of REDUCTIONS. "channel": the mean over every channel's own
        magnitude, as printed. "sum": the magnitude of the sum over channels, divided
        by C. BigGait's released weights were trained with the sum over all denoised
        channels but the last; pass those.

    Returns a float32 scalar: sum / (frames * C * H * W).
    """
    channels = maps.shape[-1]
    if reduce == "sum":
        total = jnp.sum(maps.astype(jnp.float32), axis=-1, keepdims=True)
        edges = sobel_magnitude(total) / channels  # [N H W 1]
    else:
        edges = sobel_magnitude(maps)  # [N H W C]
    valid = jnp.ones(maps.shape[:1], bool) if valid is None else valid
    return mean_where(edges, valid)


def diversity_loss(maps: jax.Array, valid: jax.Array | None = None) -> jax.Array:
    """How unequally a frame's mass is spread over channels, in bits.

    q_k = share of channel k in the sum over the map; the loss is the mean over frames
    of log2 C - H2(q): 0 when all channels are used alike, log2 C when one holds
    everything or the map is empty.

    Args:
      maps: [N H W C], not negative.
      valid: bool [N], frames that count; None: all.

    Returns a float32 scalar. Source: BigGait (Ye et al., CVPR 2024), diversity loss.

    Differs from LMGait's eq. 16, a spatial entropy whose sign, with its weight of +5,
    would reward concentration; this is BigGait's bounded form.
    """
    mass = jnp.sum(maps.astype(jnp.float32), axis=(1, 2))  # [N C]
    total = jnp.sum(mass, axis=1, keepdims=True)  # [N 1]
    share = mass / jnp.where(total > 0, total, 1)  # [N C]
    # log2 C - H2(q) as a sum of terms >= 0: the mean over channels of
    # (1+e) ln(1+e) - e with e = C q - 1. Plain subtraction loses all digits near 0.
    channels = maps.shape[-1]
    excess = share * channels - 1  # [N C]
    logs = jnp.log1p(excess + channels * SHARE_EPSILON)
    terms = (1 + excess) * logs - excess  # [N C]
    nats = jnp.where(total[:, 0] > 0, jnp.mean(terms, axis=1), math.log(channels))
    unequal = nats / math.log(2)  # [N]
    valid = jnp.ones(maps.shape[:1], bool) if valid is None else valid
    return mean_where(unequal, valid)
