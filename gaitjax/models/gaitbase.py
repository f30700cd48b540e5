"""GaitBase: a residual network per frame with the usual strip head.

Paper: Fan et al., "OpenGait: Revisiting Gait Recognition Towards Better Practicality"
(CVPR 2023), section 4.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from gaitjax.parts.heads import StripHead
from gaitjax.parts.layers import image_sequence
from gaitjax.parts.output import GaitOutput
from gaitjax.parts.resnet import Stem, residual_stages


class GaitBase(nn.Module):
    """ResNet9 on each frame -> temporal maximum -> strips -> BN neck.

    Args:
      num_classes: training identities.
      channels, layers, strides: per stage its width, number of blocks, spatial stride.
      modality: which batch entry it reads: "silhouettes", "heatmaps" or "frames".

    Differences from the paper: none known; batch norm counts valid frames only, which
    is the same where there is no padding.
    """

    num_classes: int
    channels: tuple[int, ...] = (64, 128, 256, 512)
    layers: tuple[int, ...] = (1, 1, 1, 1)
    strides: tuple[int, ...] = (1, 2, 2, 1)
    num_strips: int = 16
    embedding_size: int = 256
    modality: str = "silhouettes"
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, batch: dict[str, jax.Array], *, train: bool) -> GaitOutput:
        """batch: images [B T H W (C)] (integers are divided by 255), valid bool [B T].

        Returns embeddings [B S D], logits [B S N]. aux is empty.
        """
        valid = batch["valid"]
        x = image_sequence(batch, self.modality)  # [B T H W C]
        x = Stem(self.channels[0], self.dtype, name="stem")(
            x, train=train, valid=valid
        )  # [B T H W C]
        kinds = ("2d",) * len(self.channels)
        shape = (self.channels, self.layers, self.strides)
        x = residual_stages(
            x, kinds, *shape, self.dtype, train=train, valid=valid
        )  # [B T h w C]
        embeddings, logits = StripHead(
            self.num_classes, self.num_strips, self.embedding_size, name="head"
        )(x, valid, train=train)
        return GaitOutput(embeddings, logits, {})


def create(config, num_classes: int) -> GaitBase:
    model = config.model
    return GaitBase(
        num_classes,
        channels=tuple(model.channels),
        layers=tuple(model.layers),
        strides=tuple(model.strides),
        num_strips=model.num_strips,
        embedding_size=model.embedding_size,
        modality=config.data.modalities[0],
        dtype=jnp.dtype(model.dtype),
    )
