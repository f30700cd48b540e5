"""GaitGL: global and local 3-D convolutions.

Paper: Lin et al., "Gait Recognition via Effective Global-Local Feature Representation
and Local Temporal Aggregation" (ICCV 2021; extended: "GaitGL: Learning Discriminative
Global-Local Feature Representations for Gait Recognition", 2022).
"""

from typing import Annotated, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from gaitjax.engine.fields import Between, Positive, Some
from gaitjax.engine.guards import require
from gaitjax.parts.convolution import Conv3D, TemporalConv
from gaitjax.parts.heads import SeparateBNNeck, SeparateDense, choose_embedding
from gaitjax.parts.layers import (
    BatchNorm,
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
    Retrieve,
    check_strips,
    image_rows,
)
from gaitjax.parts.output import GaitOutput

Halvings = Annotated[int, Between(0, 16)]  # of a map's rows into 2**n strips
AGGREGATED = 3  # frames that one step of local temporal aggregation joins


class GLConv(nn.Module):
    """A 3-D convolution of the whole map plus one of its strips (section 3.3).

    The map is cut into 2 ** halvings strips that share a kernel. concatenate: the two
    results follow each other along the height (GLConvB) instead of being added.
    """

    features: int
    halvings: int
    concatenate: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, valid: jax.Array) -> jax.Array:
        """x [B T H W C], valid bool [B T] -> [B T H (or 2H) W features]."""
        batch, frames, height, width, channels = x.shape
        strips = 2**self.halvings
        x = mask_frames(x, valid)
        whole = Conv3D(self.features, dtype=self.dtype, name="global")(x)
        x = x.reshape(batch, frames, strips, height // strips, width, channels)
        x = jnp.moveaxis(x, 2, 1).reshape((-1,) + x.shape[1:2] + x.shape[3:])
        local = Conv3D(self.features, dtype=self.dtype, name="local")(x)
        local = local.reshape((batch, strips) + local.shape[1:])
        local = jnp.moveaxis(local, 1, 2).reshape(whole.shape)  # [B T H W features]
        if self.concatenate:
            return leaky_relu(jnp.concatenate([whole, local], axis=2))
        return leaky_relu(whole) + leaky_relu(local)


class GeM(nn.Module):
    """Generalised mean over the width, with a learnable exponent.

    Source: Radenovic et al., "Fine-tuning CNN Image Retrieval with No Human
    Annotation" (TPAMI 2019), eq. 3. Values are clamped at 1e-6. They are divided by
    their maximum before the power, as 1e-6 ** 6.5 is too small for float32.
    """

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B H W C] -> float32 [B H C]."""
        power = self.param("p", nn.initializers.constant(6.5), (1,))
        x = x.astype(jnp.float32)
        x = jnp.where(x > 1e-6, x, 1e-6)
        top = jax.lax.stop_gradient(jnp.max(x, axis=2))  # [B H C]
        mean = jnp.mean((x / top[:, :, None]) ** power.reshape(1, 1, 1, 1), axis=2)
        return top * mean ** (1 / power.reshape(1, 1, 1))


def repeat_short(x: jax.Array, valid: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Repeats sequences of 1 or 2 frames so that the aggregation has its 3.

    One frame is taken three times, two are taken twice (a b a b); longer sequences
    stay. x [B T *rest], valid bool [B T], valid frames first.
    """
    missing = max(0, AGGREGATED + 1 - x.shape[1])  # 0 first: 4 - t > 0 is decidable
    x = jnp.pad(x, ((0, 0), (0, missing)) + ((0, 0),) * (x.ndim - 2))
    frames = jnp.sum(valid, axis=1, keepdims=True)  # [B 1]
    length = jnp.where(frames == 1, 3, jnp.where(frames == 2, 4, frames))
    time = jnp.arange(x.shape[1])[None]  # [1 T]
    repeated = jnp.where(frames < AGGREGATED, time % jnp.maximum(frames, 1), time)
    x = jnp.take_along_axis(
        x, repeated.reshape(repeated.shape + (1,) * (x.ndim - 2)), 1
    )
    return x, time < length


class GaitGL(GaitModel):
    """Global-local 3-D convolutions with temporal aggregation, a row per strip.

    Differences from the paper: sequences of one or two frames are repeated (see
    repeat_short). Frames must be consecutive and in order.
    """

    reads = ("silhouettes",)
    # 3 widths, or 4 (OU-MVLP, GREW) with two convolutions per stage
    channels: Some[Positive] = (32, 64, 128)
    halvings: Halvings = 3  # how often maps are halved into strips; large network: 1
    # "original": batch norm over channels, shared by strips; its output is the
    # embedding, and a matrix per strip gives the logits. "bnneck": a BN neck
    head: Literal["original", "bnneck"] = "original"
    retrieve: Retrieve = "before_neck"  # of the BN neck
    dtype: Dtype = "float32"

    @nn.nowrap
    def check(self, config) -> None:
        self.check_rows(image_rows(config))
        require(
            self.head == "bnneck" or self.retrieve == "before_neck",
            'config.model.retrieve="after_neck" needs config.model.head="bnneck"; the '
            f"head {self.head!r} has no BN neck.",
        )

    @nn.nowrap
    def check_rows(self, rows: int) -> None:
        """`check` for silhouettes of this height."""
        require(
            len(self.channels) in (3, 4),
            f"config.model.channels must have 3 or 4 entries; got {self.channels}.",
        )
        for size in (rows, rows // 2):
            check_strips(2**self.halvings, size, (), f"halvings: 2**{self.halvings}")

    @nn.compact
    def __call__(self, batch: dict[str, jax.Array], *, train: bool) -> GaitOutput:
        """batch: silhouettes [B T H W], valid bool [B T], valid frames first.

        Returns embeddings [B H C] (64 strips of 64 rows), logits [B H N].
        """
        large = len(self.channels) == 4
        x, valid = repeat_short(image_sequence(batch, "silhouettes"), batch["valid"])
        stem, *widths = self.channels
        if not large:
            widths.append(widths[-1])
        repeats = 2 if large else 1
        for index in range(repeats):
            x = Conv3D(stem, dtype=self.dtype, name=f"stem{index}")(
                mask_frames(x, valid)
            )
            x = leaky_relu(x)
        x = TemporalConv(
            stem,
            kernel=AGGREGATED,
            stride=AGGREGATED,
            padding="valid",
            dtype=self.dtype,
            name="aggregate",
        )(mask_frames(x, valid))
        x = leaky_relu(x)  # [B T/3 H W C]
        valid = lax.slice_in_dim(valid, AGGREGATED - 1, None, AGGREGATED, 1)  # [B T/3]
        for stage, features in enumerate(widths):
            for index in range(repeats):
                last = stage == len(widths) - 1 and index == repeats - 1
                name = f"block{stage}_{index}" if large else f"block{stage}"
                x = GLConv(features, self.halvings, last, self.dtype, name=name)(
                    x, valid
                )
            if stage == 0:
                pooled = max_pool(fold_frames(x))
                x = pooled.reshape(x.shape[:2] + pooled.shape[1:])  # [B T/3 H/2 W/2 C]
        x = GeM(name="gem")(set_pool(x, valid))  # [B H C]
        x = SeparateDense(x.shape[-1], name="dense")(x)  # [B S C]
        rows = jnp.any(valid, axis=1)  # [B]
        if self.head == "bnneck":
            after, logits = SeparateBNNeck(self.num_classes, name="neck")(
                x, train=train, valid=rows
            )
            x = choose_embedding(x, after, self.retrieve, train)
        else:
            x = BatchNorm(name="norm")(x, train=train, valid=rows)
            logits = SeparateDense(self.num_classes, name="classifier")(x)
        return GaitOutput(x, logits, {})
