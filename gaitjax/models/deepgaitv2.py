"""DeepGaitV2: deep residual networks, 2-D, pseudo-3-D or 3-D; also SkeletonGait.

Papers: Fan et al., "Exploring Deep Models for Practical Gait Recognition" (2023).
SkeletonGait, the P3D network on skeleton heat maps: Fan et al., "SkeletonGait: Gait
Recognition Using Skeleton Maps" (AAAI 2024).
"""

from typing import Literal

import jax
from flax import linen as nn

from gaitjax.engine.fields import Positive
from gaitjax.parts.heads import StripHead
from gaitjax.parts.layers import image_sequence
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
from gaitjax.parts.resnet import Stem, residual_stages


class DeepGaitV2(GaitModel):
    """Stem, one 2-D stage, three stages of the kind asked for, the usual strip head.

    It reads the silhouettes or the heat maps (SkeletonGait), whichever the batch holds.

    Differences from the paper: none known. With "p3d" and "3d" frames must be
    consecutive and in order; frames beyond a sequence's end act as zeros.
    """

    images = 1
    unseen = ("retrieve",)
    kind: Literal["2d", "p3d", "3d"] = "p3d"  # blocks of stages 2 to 4
    channels: FourStages = (64, 128, 256, 512)
    layers: FourStages = (1, 1, 1, 1)  # blocks per stage; published deep: (1, 4, 4, 1)
    strides: ThreeStages = (2, 2, 1)  # of stages 2 to 4, space
    num_strips: Positive = 16
    embedding_size: Positive = 256
    retrieve: Retrieve = "before_neck"
    dtype: Dtype = "float32"

    @nn.nowrap
    def check(self, config) -> None:
        check_strips(self.num_strips, image_rows(config), self.strides)

    @nn.compact
    def __call__(self, batch: dict[str, jax.Array], *, train: bool) -> GaitOutput:
        """batch: silhouettes [B T H W] or heatmaps [B T H W 2], valid bool [B T].

        Returns embeddings [B S D], logits [B S N]. aux is empty.
        """
        valid = batch["valid"]
        (name,) = images_in(batch)
        x = image_sequence(batch, name)  # [B T H W C]
        x = Stem(self.channels[0], self.dtype, name="stem")(
            x, train=train, valid=valid
        )  # [B T H W 64]
        kinds = ("2d", self.kind, self.kind, self.kind)
        shape = (self.channels, self.layers, (1, *self.strides))
        x = residual_stages(
            self, x, kinds, *shape, self.dtype, train=train, valid=valid
        )  # [B T h w C]
        head = (self.num_classes, self.num_strips, self.embedding_size, self.retrieve)
        embeddings, logits = StripHead(*head, name="head")(x, valid, train=train)
        return GaitOutput(embeddings, logits, {})
