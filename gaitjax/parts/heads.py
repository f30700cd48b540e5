"""From feature maps to logits: horizontal strips, a matrix per strip, BN neck.

Initialisation follows the conventions of the field's PyTorch code, so that published
weights and schedules mean the same here.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from gaitjax.parts.layers import BatchNorm, max_over, set_pool


def horizontal_pool(x: jax.Array, num_strips: int) -> jax.Array:
    """Mean + maximum of equal horizontal bands: [B H W C] -> [B S C].

    Source: Fu et al., "Horizontal Pyramid Matching for Person Re-identification"
    (AAAI 2019), as used by GaitSet and its successors. S must divide H.
    """
    batch, height, width, channels = x.shape
    x = x.reshape(batch, num_strips, height // num_strips * width, channels)
    return jnp.mean(x, axis=2) + max_over(x, 2)  # [B S C]


def horizontal_pyramid(x: jax.Array, bins: Sequence[int]) -> jax.Array:
    """horizontal_pool for each number of strips in turn: [B H W C] -> [B sum(bins) C].

    Source: Fu et al. (AAAI 2019), section "Horizontal Pyramid Pooling".
    """
    return jnp.concatenate([horizontal_pool(x, count) for count in bins], axis=1)


def _strip_init(key, shape, dtype=jnp.float32):
    """Xavier-uniform as PyTorch computes it for a whole [S C D] tensor.

    It takes fan_in = C*D and fan_out = S*D, not C and D: the bound is
    sqrt(6 / (C*D + S*D)), 0.0067 instead of 0.088 for (16, 512, 256). The published
    models were trained from this initialisation.
    """
    strips, channels, features = shape
    bound = (6 / (channels * features + strips * features)) ** 0.5
    return jax.random.uniform(key, shape, dtype, -bound, bound)


class SeparateDense(nn.Module):
    """One matrix per strip, no bias: [B S C] -> float32 [B S features].

    Initialised with the small bound that `_strip_init` explains.
    """

    features: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        strips, channels = x.shape[1:]
        kernel = self.param("kernel", _strip_init, (strips, channels, self.features))
        return jnp.einsum("bsc,scd->bsd", x.astype(jnp.float32), kernel)


def normalise(x: jax.Array, axis: int = -1) -> jax.Array:
    """x divided by its Euclidean norm over `axis` (at least 1e-12)."""
    squared = jnp.sum(jnp.square(x), axis, keepdims=True)
    return x * lax.rsqrt(jnp.maximum(squared, 1e-24))


class SeparateBNNeck(nn.Module):
    """Batch norm neck and cosine classifier per strip.

    Source: Luo et al., "Bag of Tricks and a Strong Baseline for Deep Person
    Re-identification" (CVPRW 2019), per strip as in OpenGait. One BatchNorm with
    affine parameters over all S*D values, L2 normalisation per strip, then the cosine
    with each identity's weight column.

    Returns normalised features [B S D] and logits [B S N] in [-1, 1], float32.
    """

    num_classes: int

    @nn.compact
    def __call__(
        self, x: jax.Array, *, train: bool, valid: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """x [B S D]; valid bool [B]: rows that count in the statistics."""
        batch, strips, features = x.shape
        flat = x.astype(jnp.float32).reshape(batch, strips * features)  # [B S*D]
        flat = BatchNorm(name="norm")(flat, train=train, valid=valid)
        embeddings = normalise(flat.reshape(x.shape))  # [B S D]
        kernel = self.param("kernel", _strip_init, (strips, features, self.num_classes))
        return embeddings, jnp.einsum("bsd,sdn->bsn", embeddings, normalise(kernel, 1))


def choose_embedding(before, after, retrieve: str, train: bool) -> jax.Array:
    """The embedding that a model returns, of those before and after its BN neck.

    Losses need the one before it, so `retrieve` counts in evaluation only.
    """
    return after if retrieve == "after_neck" and not train else before


class StripHead(nn.Module):
    """Temporal maximum, horizontal pooling, matrix per strip and BN neck.

    The head of GaitBase and of models based on it. Returns float32 embeddings [B S D]
    (`choose_embedding` says which) and logits [B S N].
    """

    num_classes: int
    num_strips: int
    embedding_size: int
    retrieve: str = "before_neck"

    @nn.compact
    def __call__(
        self, x: jax.Array, valid: jax.Array, *, train: bool
    ) -> tuple[jax.Array, jax.Array]:
        """x [B T H W C], valid bool [B T]."""
        x = set_pool(x, valid).astype(jnp.float32)  # [B H W C]
        x = horizontal_pool(x, self.num_strips)  # [B S C]
        before = SeparateDense(self.embedding_size, name="dense")(x)  # [B S D]
        after, logits = SeparateBNNeck(self.num_classes, name="neck")(
            before, train=train, valid=jnp.any(valid, axis=1)
        )
        return choose_embedding(before, after, self.retrieve, train), logits
