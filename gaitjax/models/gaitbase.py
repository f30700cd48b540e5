"""GaitBase: a residual network per frame with the usual strip head.

Paper: Fan et al., "OpenGait: Revisiting Gait Recognition Towards Better Practicality"
(CVPR 2023), section 4.
"""

import jax
from flax import linen as nn

from gaitjax.engine.fields import Positive, Some
from gaitjax.parts.heads import StripHead
from gaitjax.parts.layers import image_sequence
from gaitjax.parts.model import (
    Dtype,
    GaitModel,
    Retrieve,
    check_stages,
    check_strips,
    image_rows,
    images_in,
)
from gaitjax.parts.output import GaitOutput
from gaitjax.parts.resnet import Stem, residual_stages, stem_pool


class GaitBase(GaitModel):
    """ResNet9 on each frame -> temporal maximum -> strips -> BN neck.

    It reads the silhouettes, the heat maps or the frames, whichever the batch holds.

    Differences from the paper: none known. Batch norm counts valid frames only, which
    makes no difference without padding.
    """

    images = 1
    unseen = ("max_pool",)
    channels: Some[Positive] = (64, 128, 256, 512)  # per stage
    layers: Some[Positive] = (1, 1, 1, 1)  # blocks per stage
    strides: Some[Positive] = (1, 2, 2, 1)  # per stage, in space
    max_pool: bool = False  # between stem and stages, as in a ResNet
    num_strips: Positive = 16
    embedding_size: Positive = 256
    retrieve: Retrieve = "before_neck"
    dtype: Dtype = "float32"

    @nn.nowrap
    def check(self, config) -> None:
        check_stages(len(self.channels), layers=self.layers, strides=self.strides)
        strides = (1 + self.max_pool, *self.strides)
        check_strips(self.num_strips, image_rows(config), strides)

    @nn.compact
    def __call__(self, batch: dict[str, jax.Array], *, train: bool) -> GaitOutput:
        """batch: images [B T H W (C)] (integers are divided by 255), valid bool [B T].

        Returns embeddings [B S D], logits [B S N]. aux is empty.
        """
        valid = batch["valid"]
        (name,) = images_in(batch)
        x = image_sequence(batch, name)  # [B T H W C]
        x = Stem(self.channels[0], self.dtype, name="stem")(
            x, train=train, valid=valid
        )  # [B T H W C]
        x = stem_pool(x) if self.max_pool else x
        shape = (("2d",) * len(self.channels), self.channels, self.layers, self.strides)
        x = residual_stages(self, x, *shape, self.dtype, train=train, valid=valid)
        head = (self.num_classes, self.num_strips, self.embedding_size, self.retrieve)
        embeddings, logits = StripHead(*head, name="head")(x, valid, train=train)
        return GaitOutput(embeddings, logits, {})
