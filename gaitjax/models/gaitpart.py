"""GaitPart: focal convolutions and micro-motion per part.

Paper: Fan et al., "GaitPart: Temporal Part-based Model for Gait Recognition" (CVPR
2020).
"""

from typing import Annotated

import jax
import jax.numpy as jnp
from flax import linen as nn

from gaitjax.engine.fields import Between, Positive, Some
from gaitjax.engine.guards import require
from gaitjax.parts.convolution import Conv
from gaitjax.parts.heads import SeparateDense, horizontal_pool
from gaitjax.parts.layers import (
    fold_frames,
    image_sequence,
    leaky_relu,
    mask_frames,
    max_pool,
    set_pool,
)
from gaitjax.parts.model import (
    Dtype,
    GaitModel,
    check_stages,
    check_strips,
    image_rows,
)
from gaitjax.parts.output import GaitOutput


class FocalConv(nn.Module):
    """Convolution that does not look beyond its horizontal strip, leaky ReLU.

    The map is cut into 2 ** halvings equal strips that share one kernel and are padded
    with zeros (section 3.2, FConv).
    """

    features: int
    halvings: int = 0
    kernel: int = 3
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[N H W C] -> [N H W features]."""
        count, height, width, channels = x.shape
        strips = 2**self.halvings
        x = x.reshape(count * strips, height // strips, width, channels)
        x = Conv(self.features, kernel=self.kernel, dtype=self.dtype, name="conv")(x)
        return leaky_relu(x).reshape(count, height, width, self.features)


class StripTemporalConv(nn.Module):
    """Convolution over time, one kernel per strip: [B T S C] -> [B T S features]."""

    features: int
    kernel: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        frames, strips, channels = x.shape[1:]
        initializer = nn.initializers.variance_scaling(
            1.0, "fan_avg", "uniform", batch_axis=0
        )  # Xavier-uniform of each strip's kernel
        kernel = self.param(
            "kernel", initializer, (strips, self.kernel, channels, self.features)
        )
        margin = self.kernel // 2
        padded = jnp.pad(x, ((0, 0), (margin, margin), (0, 0), (0, 0)))
        taps = [padded[:, tap : tap + frames] for tap in range(self.kernel)]
        stacked = jnp.concatenate(taps, axis=-1).astype(self.dtype)  # [B T S k*C]
        kernel = kernel.reshape(strips, -1, self.features).astype(self.dtype)
        return jnp.einsum("btsc,scd->btsd", stacked, kernel)


class MicroMotion(nn.Module):
    """Attention over short windows of time, per strip (section 3.3, MCM).

    For windows of 3 and 5 frames: average + maximum over the window, weighted by a
    sigmoid of two temporal convolutions (the second of kernel 1 and 3); the two
    branches are added and the maximum over time is taken.
    """

    squeeze: int = 4
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, valid: jax.Array) -> jax.Array:
        """x [B T S C], valid bool [B T] -> [B S C]."""
        frames, _, channels = x.shape[1:]
        x = mask_frames(x, valid)

        def windows(window, fill):
            """All frames of the window around each frame: list of [B T S C]."""
            margin = window // 2
            outside = valid[:, :, None, None]
            padded = jnp.pad(
                jnp.where(outside, x, fill),
                ((0, 0), (margin, margin), (0, 0), (0, 0)),
                constant_values=fill,
            )
            return [padded[:, tap : tap + frames] for tap in range(window)]

        def branch(name, window, last_kernel):
            hidden = StripTemporalConv(
                channels // self.squeeze, 3, self.dtype, name=f"{name}_squeeze"
            )(x)
            hidden = mask_frames(leaky_relu(hidden), valid)
            scores = StripTemporalConv(
                channels, last_kernel, self.dtype, name=f"{name}_expand"
            )(hidden)  # [B T S C]
            average = sum(windows(window, 0.0)) / window
            # as in the published code: the average counts zeros beyond the ends
            top = windows(window, jnp.finfo(x.dtype).min)
            highest = top[0]
            for other in top[1:]:
                highest = jnp.where(other > highest, other, highest)
            return nn.sigmoid(scores) * (average + highest).astype(scores.dtype)

        motion = branch("short", 3, 1) + branch("long", 5, 3)  # [B T S C]
        return set_pool(motion, valid)  # [B S C]


class GaitPart(GaitModel):
    """Focal convolutions per frame -> strips -> micro-motion -> matrix per strip.

    A 2x2 maximum follows the first and the second pair of convolutions.

    Differences from the paper: horizontal pooling adds mean and maximum, as the
    published models do. Frames must be consecutive and in order.
    """

    reads = ("silhouettes",)
    # per pair of convolutions; OU-MVLP, GREW: (32, 64, 128, 256)
    channels: Some[Positive] = (32, 64, 128)
    # how often each pair's maps are halved into strips; OU-MVLP, GREW: (0, 0, 3, 3)
    halvings: Some[Annotated[int, Between(0, 16)]] = (0, 2, 3)
    num_strips: Positive = 16
    embedding_size: Positive = 128
    squeeze: Positive = 4  # the attention over time is channels[-1] / squeeze wide
    dtype: Dtype = "float32"

    @nn.nowrap
    def check(self, config) -> None:
        check_stages(len(self.channels), halvings=self.halvings)
        rows = image_rows(config)
        for pair, halvings in enumerate(self.halvings):
            check_strips(2**halvings, rows, (), f"halvings[{pair}]: 2**{halvings}")
            rows = rows // 2 if pair < 2 else rows
        check_strips(self.num_strips, rows, ())
        require(
            self.squeeze <= self.channels[-1],
            f"config.model.squeeze={self.squeeze} leaves nothing of the "
            f"{self.channels[-1]} channels; choose at most so many.",
        )

    @nn.compact
    def __call__(self, batch: dict[str, jax.Array], *, train: bool) -> GaitOutput:
        """batch: silhouettes [B T H W], valid bool [B T].

        Returns embeddings [B S D]; no logits, empty aux.
        """
        valid = batch["valid"]
        x = fold_frames(image_sequence(batch, "silhouettes"))  # [B*T H W 1]
        for pair, (features, halvings) in enumerate(
            zip(self.channels, self.halvings, strict=True)
        ):
            for index in range(2):
                kernel = 5 if pair == index == 0 else 3
                x = FocalConv(
                    features, halvings, kernel, self.dtype, name=f"pair{pair}_{index}"
                )(x)
            if pair < 2:
                x = max_pool(x)
        strips = horizontal_pool(x, self.num_strips)  # [B*T S C]
        strips = strips.reshape(valid.shape + strips.shape[1:])  # [B T S C]
        strips = MicroMotion(self.squeeze, self.dtype, name="motion")(strips, valid)
        embeddings = SeparateDense(self.embedding_size, name="dense")(strips)
        return GaitOutput(embeddings, None, {})
