"""LMGait's recognition network: GaitBase with two stems and attention fusion.

Papers: BigGait (Ye et al., CVPR 2024), section 3.4; Fan et al., "OpenGait: Revisiting
Gait Recognition Towards Better Practicality" (CVPR 2023) for GaitBase.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from gaitjax.parts.convolution import Conv
from gaitjax.parts.heads import StripHead
from gaitjax.parts.layers import BatchNorm, fold_frames, lean
from gaitjax.parts.resnet import AttentionFusion, BasicBlock


class Stem(nn.Module):
    """3x3 convolution, BN, ReLU and one BasicBlock at full resolution."""

    features: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, valid: jax.Array) -> jax.Array:
        """x [N H W C], valid bool [N] -> [N H W features]."""
        x = Conv(self.features, dtype=self.dtype, name="conv")(x)
        x = nn.relu(BatchNorm(name="norm")(x, train=train, valid=valid))
        block = BasicBlock(self.features, stride=1, dtype=self.dtype, name="block")
        return block(x, train=train, valid=valid)


class GaitNetwork(nn.Module):
    """Two stems, fusion, a residual trunk per frame, temporal max, strips, BN neck."""

    num_classes: int
    stem: int  # width of both stems
    squeeze: int  # the fusion's bottleneck has stem / squeeze channels
    channels: tuple[int, ...]  # of the blocks
    strides: tuple[int, ...]
    num_strips: int
    embedding_size: int
    retrieve: str
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self,
        denoised: jax.Array,
        appearance: jax.Array,
        valid: jax.Array,
        *,
        train: bool,
    ) -> tuple[jax.Array, jax.Array]:
        """denoised, appearance [B T h w C], valid bool [B T].

        Returns float32 embeddings [B S D] and logits [B S N].
        """

        def trunk(module, denoised, appearance, valid):
            flat = valid.reshape(-1)  # [N]

            def stem(x, name):
                x = fold_frames(x)  # [N h w C]
                stem = Stem(self.stem, dtype=self.dtype, name=name)
                return stem(x, train=train, valid=flat)

            x = AttentionFusion(self.squeeze, True, self.dtype, name="fusion")(
                stem(denoised, "stem_denoised"),
                stem(appearance, "stem_appearance"),
                train=train,
                valid=flat,
            )
            sizes = zip(self.channels, self.strides, strict=True)
            for index, (features, stride) in enumerate(sizes, start=1):
                block = BasicBlock(features, stride, self.dtype, name=f"block{index}")
                x = block(x, train=train, valid=flat)
            return x.reshape(valid.shape + x.shape[1:])  # [B T h/4 w/4 512]

        x = lean(trunk, train)(self, denoised, appearance, valid)
        head = (self.num_classes, self.num_strips, self.embedding_size, self.retrieve)
        return StripHead(*head, name="head")(x, valid, train=train)  # [B S D], [B S N]
