"""The segmentation network of GaitEdge: a small U-Net.

Paper: Ronneberger et al., "U-Net: Convolutional Networks for Biomedical Image
Segmentation" (MICCAI 2015), figure 1, with batch norm and padded convolutions.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn

from gaitjax.parts.convolution import Conv
from gaitjax.parts.layers import BatchNorm, max_pool


class ConvNorm(nn.Module):
    """3x3 convolution, batch norm, ReLU, `times` times: [N H W C] -> [N H W D]."""

    features: int
    times: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, valid: jax.Array) -> jax.Array:
        for index in range(1, self.times + 1):
            x = Conv(
                self.features, use_bias=True, dtype=self.dtype, name=f"conv{index}"
            )(x)
            x = nn.relu(BatchNorm(name=f"norm{index}")(x, train=train, valid=valid))
        return x


class UNet(nn.Module):
    """Foreground probability of each pixel.

    Four levels, halved by 2x2 maxima and doubled by repetition. Each level of the
    decoder reads the encoder's map of its size and the output of the level below.
    """

    channels: Sequence[int] = (16, 32, 64, 128)
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self,
        images: jax.Array,
        *,
        train: bool,
        valid: jax.Array,
        freeze_encoder: bool = False,
    ) -> jax.Array:
        """images [N H W C], valid bool [N] -> float32 [N H W].

        H and W must be multiples of 2 ** (len(channels) - 1).
        freeze_encoder: no gradient reaches the encoder; its batch statistics move.
        """

        def convolve(x, features, times, name):
            return ConvNorm(features, times, self.dtype, name=name)(
                x, train=train, valid=valid
            )

        x, skips = images, []
        for level, features in enumerate(self.channels, 1):
            x = convolve(max_pool(x) if level > 1 else x, features, 2, f"down{level}")
            skips.append(x)
        if freeze_encoder:
            skips = jax.lax.stop_gradient(skips)
        x = skips.pop()
        for level in range(len(skips), 0, -1):
            features = self.channels[level - 1]
            x = jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
            x = convolve(x, features, 1, f"double{level + 1}")
            x = jnp.concatenate([skips.pop(), x], axis=-1)
            x = convolve(x, features, 2, f"up{level + 1}")
        x = Conv(1, 1, use_bias=True, dtype=self.dtype, name="classify")(x)
        return nn.sigmoid(x[..., 0].astype(jnp.float32))
