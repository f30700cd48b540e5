"""DeepGaitV2: deep residual networks, 2-D, pseudo-3-D or 3-D; also SkeletonGait.

Papers: Fan et al., "Exploring Deep Models for Practical Gait Recognition" (2023).
SkeletonGait, the P3D network on skeleton heat maps: Fan et al., "SkeletonGait: Gait
Recognition Using Skeleton Maps" (AAAI 2024).
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from gaitjax.parts.heads import StripHead
from gaitjax.parts.layers import image_sequence
from gaitjax.parts.output import GaitOutput
from gaitjax.parts.resnet import Stem, residual_stages


class DeepGaitV2(nn.Module):
    """Stem, one 2-D stage, three stages of the kind asked for, the usual strip head.

    Args:
      kind: "2d", "p3d" or "3d", of the blocks in stages 2 to 4.
      layers: blocks per stage: (1, 1, 1, 1) or (1, 4, 4, 1).
      strides: spatial strides of stages 2 to 4; time is never strided.
      modality: the batch entry it reads, "silhouettes" or "heatmaps" (SkeletonGait).

    Differences from the paper: none known. With "p3d" and "3d" frames must be
    consecutive and in order; frames beyond a sequence's end act as zeros.
    """

    num_classes: int
    kind: str = "p3d"
    channels: tuple[int, int, int, int] = (64, 128, 256, 512)
    layers: tuple[int, int, int, int] = (1, 1, 1, 1)
    strides: tuple[int, int, int] = (2, 2, 1)
    num_strips: int = 16
    embedding_size: int = 256
    modality: str = "silhouettes"
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, batch: dict[str, jax.Array], *, train: bool) -> GaitOutput:
        """batch: silhouettes [B T H W] or heatmaps [B T H W 2], valid bool [B T].

        Returns embeddings [B S D], logits [B S N]. aux is empty.
        """
        valid = batch["valid"]
        x = image_sequence(batch, self.modality)  # [B T H W C]
        x = Stem(self.channels[0], self.dtype, name="stem")(
            x, train=train, valid=valid
        )  # [B T H W 64]
        kinds = ("2d", self.kind, self.kind, self.kind)
        shape = (self.channels, self.layers, (1, *self.strides))
        x = residual_stages(
            x, kinds, *shape, self.dtype, train=train, valid=valid
        )  # [B T h w C]
        embeddings, logits = StripHead(
            self.num_classes, self.num_strips, self.embedding_size, name="head"
        )(x, valid, train=train)
        return GaitOutput(embeddings, logits, {})


def create(config, num_classes: int) -> DeepGaitV2:
    model = config.model
    return DeepGaitV2(
        num_classes,
        kind=model.kind,
        channels=tuple(model.channels),
        layers=tuple(model.layers),
        strides=tuple(model.strides),
        num_strips=model.num_strips,
        embedding_size=model.embedding_size,
        modality=config.data.modalities[0],
        dtype=jnp.dtype(model.dtype),
    )
