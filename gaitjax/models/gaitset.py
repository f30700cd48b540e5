"""GaitSet: gait as a set of silhouettes.

Paper: Chao et al., "GaitSet: Regarding Gait as a Set for Cross-View Gait Recognition"
(AAAI 2019; TPAMI 2021).
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from gaitjax.engine.fields import Positive, Some
from gaitjax.parts.convolution import Conv
from gaitjax.parts.heads import SeparateDense, horizontal_pyramid
from gaitjax.parts.layers import (
    fold_frames,
    image_sequence,
    leaky_relu,
    max_pool,
    set_pool,
)
from gaitjax.parts.model import Dtype, GaitModel, ThreeStages, check_strips, image_rows
from gaitjax.parts.output import GaitOutput


class ConvPair(nn.Module):
    """Two convolutions with leaky ReLU, then a 2x2 maximum if asked."""

    features: int
    kernel: int = 3
    pool: bool = True
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[N H W C] -> [N h w features]."""
        x = Conv(self.features, kernel=self.kernel, dtype=self.dtype, name="conv1")(x)
        x = leaky_relu(x)
        x = leaky_relu(Conv(self.features, dtype=self.dtype, name="conv2")(x))
        return max_pool(x) if self.pool else x


class GaitSet(GaitModel):
    """Frame-level convolutions, set pooling at three depths, horizontal pyramid.

    Differences from the paper: set pooling is the maximum alone (its best single
    choice), and the strips of both streams are trained by the triplet loss only.
    """

    reads = ("silhouettes",)
    # widths of the three blocks; OU-MVLP, GREW: (64, 128, 256)
    channels: ThreeStages = (32, 64, 128)
    bins: Some[Positive] = (16, 8, 4, 2, 1)  # strips per level of both pyramids
    embedding_size: Positive = 256
    dtype: Dtype = "float32"

    @nn.nowrap
    def check(self, config) -> None:
        for strips in self.bins:
            check_strips(strips, image_rows(config) // 4, (), "bins")

    @nn.compact
    def __call__(self, batch: dict[str, jax.Array], *, train: bool) -> GaitOutput:
        """batch: silhouettes [B T H W], valid bool [B T].

        Returns embeddings [B 62 D]; no logits, empty aux.
        """
        valid = batch["valid"]
        x = fold_frames(image_sequence(batch, "silhouettes"))  # [B*T H W 1]

        def pooled(frames):
            """[B*T h w C] -> [B h w C]."""
            return set_pool(frames.reshape(valid.shape + frames.shape[1:]), valid)

        first, second, third = self.channels
        x = ConvPair(first, kernel=5, dtype=self.dtype, name="frame1")(x)
        globally = ConvPair(second, dtype=self.dtype, name="set2")(pooled(x))
        x = ConvPair(second, dtype=self.dtype, name="frame2")(x)
        globally = ConvPair(third, pool=False, dtype=self.dtype, name="set3")(
            globally + pooled(x)
        )  # [B h w C]
        x = ConvPair(third, pool=False, dtype=self.dtype, name="frame3")(x)
        x = pooled(x)  # [B h w C]
        strips = [
            horizontal_pyramid(stream.astype(jnp.float32), self.bins)
            for stream in (x, globally + x)
        ]
        strips = jnp.concatenate(strips, axis=1)  # [B 62 C]
        embeddings = SeparateDense(self.embedding_size, name="dense")(strips)
        return GaitOutput(embeddings, None, {})
