"""SkeletonGait++: silhouettes and skeleton heat maps, fused after the first stage.

Paper: Fan et al., "SkeletonGait: Gait Recognition Using Skeleton Maps" (AAAI 2024),
section 3.3.
"""

import jax
from flax import linen as nn

from gaitjax.engine.fields import Positive
from gaitjax.parts.heads import StripHead
from gaitjax.parts.layers import fold_frames, image_sequence
from gaitjax.parts.model import (
    Dtype,
    FourStages,
    GaitModel,
    Retrieve,
    ThreeStages,
    check_strips,
    image_rows,
)
from gaitjax.parts.output import GaitOutput
from gaitjax.parts.resnet import AttentionFusion, Stage, Stem, residual_stages


class SkeletonGaitPP(GaitModel):
    """A stem and stage per modality -> attention fusion -> P3D stages -> strip head.

    Differences from the paper: none known. Frames must be consecutive and in order.
    """

    reads = ("silhouettes", "heatmaps")
    unseen = ("retrieve",)
    channels: FourStages = (64, 128, 256, 512)
    layers: FourStages = (1, 1, 1, 1)  # blocks per stage; Gait3D, GREW: (1, 4, 4, 1)
    strides: ThreeStages = (2, 2, 1)  # of stages 2 to 4, space
    squeeze: Positive = 16  # the fusion's bottleneck has channels[0] / squeeze channels
    num_strips: Positive = 16
    embedding_size: Positive = 256
    retrieve: Retrieve = "before_neck"
    dtype: Dtype = "float32"

    @nn.nowrap
    def check(self, config) -> None:
        check_strips(self.num_strips, image_rows(config), self.strides)

    @nn.compact
    def __call__(self, batch: dict[str, jax.Array], *, train: bool) -> GaitOutput:
        """batch: silhouettes [B T H W], heatmaps [B T H W 2], valid bool [B T].

        Returns embeddings [B S D], logits [B S N]. aux is empty.
        """
        valid = batch["valid"]

        def first_stage(modality, name):
            x = image_sequence(batch, modality)  # [B T H W C]
            x = Stem(self.channels[0], self.dtype, name=f"{name}_stem")(
                x, train=train, valid=valid
            )
            stage = Stage(
                "2d",
                self.channels[0],
                self.layers[0],
                dtype=self.dtype,
                name=f"{name}_stage1",
            )
            return fold_frames(stage(x, train=train, valid=valid))  # [B*T H W 64]

        x = AttentionFusion(self.squeeze, dtype=self.dtype, name="fusion")(
            first_stage("silhouettes", "silhouette"),
            first_stage("heatmaps", "map"),
            train=train,
            valid=valid.reshape(-1),
        )
        x = x.reshape(valid.shape + x.shape[1:])  # [B T H W 64]
        x = residual_stages(
            self,
            x,
            ("p3d",) * 3,
            self.channels[1:],
            self.layers[1:],
            self.strides,
            self.dtype,
            train=train,
            valid=valid,
            first=2,
        )  # [B T h w C]
        head = (self.num_classes, self.num_strips, self.embedding_size, self.retrieve)
        embeddings, logits = StripHead(*head, name="head")(x, valid, train=train)
        return GaitOutput(embeddings, logits, {})
