"""MultiGait++: what two modalities share and what is specific to each.

Paper: Jin et al., "Exploring More from Multiple Gait Modalities for Human
Identification" (AAAI 2025), section "C2Fusion".
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from gaitjax.engine.fields import Positive
from gaitjax.engine.guards import require
from gaitjax.parts.convolution import Conv
from gaitjax.parts.heads import StripHead
from gaitjax.parts.layers import BatchNorm, fold_frames, image_sequence, max_over
from gaitjax.parts.model import (
    Dtype,
    FourStages,
    GaitModel,
    Retrieve,
    ThreeStages,
    check_strips,
    image_rows,
    images_in,
)
from gaitjax.parts.output import GaitOutput
from gaitjax.parts.resnet import Stage, Stem

RANGE_EPSILON = 1e-6  # added to the range that the common map is divided by


class Attention(nn.Module):
    """A bottleneck of three convolutions 1x1: [N H W C] -> logits [N H W C]."""

    squeeze: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, valid: jax.Array) -> jax.Array:
        channels = x.shape[-1]

        def conv(x, features, name):
            return Conv(features, 1, dtype=self.dtype, name=name)(x)

        inner = channels // self.squeeze
        x = conv(x, inner, "reduce")
        x = nn.relu(BatchNorm(name="reduce_norm")(x, train=train, valid=valid))
        x = conv(x, inner, "mix")
        x = nn.relu(BatchNorm(name="mix_norm")(x, train=train, valid=valid))
        return conv(x, channels, "expand").astype(jnp.float32)


class CommonAndSpecific(nn.Module):
    """Splits two maps into what they share and what is specific to each.

    For every pixel and channel, the softmax of both maps' attention weighs one map
    against the other. Where neither prevails (the smaller weight is large, compared
    with the pixel's other channels) the feature is common to both.
    """

    squeeze: int = 16
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self, first: jax.Array, second: jax.Array, *, train: bool, valid: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """first, second [N H W C], valid bool [N].

        Returns the shared map and the weights of the features specific to the first
        and to the second map, [N H W C] each.
        """
        logits = [
            Attention(self.squeeze, self.dtype, name=name)(x, train=train, valid=valid)
            for name, x in (("attention1", first), ("attention2", second))
        ]
        own = nn.softmax(jnp.stack(logits), axis=0)  # [2 N H W C]
        common = jnp.where(own[0] < own[1], own[0], own[1])  # [N H W C]
        lowest = -max_over(-common, -1)[..., None]
        highest = max_over(common, -1)[..., None]
        common = (common - lowest) / (highest - lowest + RANGE_EPSILON)
        own = own * (1 - common)[None]
        mean = (first + second) / 2
        return mean * common.astype(mean.dtype), own[0], own[1]


class MultiGaitPP(GaitModel):
    """A stem and stage per modality -> common and specific maps -> two P3D stages each
    -> 1x1 convolution of the three -> P3D stage -> strip head.

    Differences from the paper: it fuses silhouettes, parsing and flow. Here it fuses
    the two of silhouettes, heat maps and frames that the batch holds, in this order
    (the published weights' input channels per modality are 2 and 3, 1 and 1 or 1 and
    3). Frames must be consecutive and in order.
    """

    images = 2
    channels: FourStages = (64, 128, 256, 512)
    layers: FourStages = (1, 1, 1, 1)  # blocks per stage; Gait3D, GREW: (1, 2, 2, 1)
    strides: ThreeStages = (2, 2, 1)  # of stages 2 to 4, space
    squeeze: Positive = 16  # the attention's bottlenecks: channels[0] / squeeze
    num_strips: Positive = 16
    embedding_size: Positive = 256
    retrieve: Retrieve = "before_neck"
    dtype: Dtype = "float32"

    @nn.nowrap
    def check(self, config) -> None:
        require(
            self.squeeze <= self.channels[0],
            f"config.model.squeeze={self.squeeze} leaves nothing of the "
            f"{self.channels[0]} channels of the first stage; choose at most that.",
        )
        check_strips(self.num_strips, image_rows(config), self.strides)

    @nn.compact
    def __call__(self, batch: dict[str, jax.Array], *, train: bool) -> GaitOutput:
        """batch: two of silhouettes [B T H W], heatmaps [B T H W 2], frames
        [B T H W 3] and parsing [B T H W], of one size; valid bool [B T].

        Returns embeddings [B S D], logits [B S N]. aux is empty.
        """
        valid = batch["valid"]

        def stage(x, index, name, kind="p3d"):
            stride = (1, *self.strides)[index]
            return Stage(
                kind,
                self.channels[index],
                self.layers[index],
                stride,
                self.dtype,
                name=f"{name}stage{index + 1}",
            )(x, train=train, valid=valid)

        def first_stage(modality, name):
            x = image_sequence(batch, modality)  # [B T H W C]
            x = x / 255 if modality == "parsing" else x  # as published
            x = Stem(self.channels[0], self.dtype, name=f"{name}stem")(
                x, train=train, valid=valid
            )
            return stage(x, 0, name, "2d")  # [B T H W 64]

        modality1, modality2 = images_in(batch)
        first = first_stage(modality1, "part1_")
        second = first_stage(modality2, "part2_")
        shared, own1, own2 = (
            x.reshape(first.shape)
            for x in CommonAndSpecific(self.squeeze, self.dtype, name="split")(
                fold_frames(first),
                fold_frames(second),
                train=train,
                valid=valid.reshape(-1),
            )
        )
        streams = {
            "part1_": first * own1.astype(first.dtype),
            "shared_": shared,
            "part2_": second * own2.astype(second.dtype),
        }
        for index in (1, 2):
            streams = {name: stage(x, index, name) for name, x in streams.items()}
        x = jnp.concatenate(list(streams.values()), axis=-1)  # [B T h w 3*256]
        x = Conv(self.channels[2], 1, dtype=self.dtype, name="fusion")(fold_frames(x))
        x = stage(x.reshape(valid.shape + x.shape[1:]), 3, "")  # [B T h w 512]
        head = (self.num_classes, self.num_strips, self.embedding_size, self.retrieve)
        embeddings, logits = StripHead(*head, name="head")(x, valid, train=train)
        return GaitOutput(embeddings, logits, {})
