"""Gait energy image: the baseline without learning.

Paper: Han and Bhanu, "Individual Recognition Using Gait Energy Image", TPAMI 2006: the
mean of a sequence's normalised, centred silhouettes. Differences from the paper: the
mean runs over all frames instead of whole gait cycles, and the image itself is the
embedding (no PCA + MDA, no synthetic templates), so nothing is trained.
"""

import jax.numpy as jnp
from flax import linen as nn

from gaitjax.parts.model import GaitModel
from gaitjax.parts.output import GaitOutput


class GEI(GaitModel):
    """batch silhouettes [B T H W], valid [B T] -> embeddings f32 [B 1 H*W]."""

    reads = ("silhouettes",)

    @nn.compact
    def __call__(self, batch, *, train: bool) -> GaitOutput:
        silhouettes = batch["silhouettes"]
        scale = 255.0 if jnp.issubdtype(silhouettes.dtype, jnp.integer) else 1.0
        weight = batch["valid"].astype(jnp.float32)
        image = jnp.einsum("bthw,bt->bhw", silhouettes.astype(jnp.float32), weight)
        frames = jnp.maximum(weight.sum(1), 1.0)[:, None, None]
        image = image / (scale * frames)  # [B H W]
        return GaitOutput(image.reshape(image.shape[0], 1, -1), None, {"energy": image})
