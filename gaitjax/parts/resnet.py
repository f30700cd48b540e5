"""Residual blocks per frame, pseudo-3-D and 3-D; stages of them; fusion of two maps.

All blocks pad spatially by kernel // 2, have no biases before batch norm, and count
valid frames only in batch statistics.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn

from gaitjax.parts.convolution import Conv, Conv3D, TemporalConv
from gaitjax.parts.layers import BatchNorm, fold_frames, lean, mask_frames


class Shortcut(nn.Module):
    """1x1 convolution and batch norm if the shape changes, else the identity."""

    features: int
    stride: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, valid) -> jax.Array:
        """x [N H W C], valid bool [N] -> [N h w features]."""
        if self.stride == 1 and x.shape[-1] == self.features:
            return x
        x = Conv(
            self.features, kernel=1, stride=self.stride, dtype=self.dtype, name="conv"
        )(x)
        return BatchNorm(name="norm")(x, train=train, valid=valid)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut.

    Source: He et al., "Deep Residual Learning for Image Recognition" (CVPR 2016),
    figure 5 left.
    """

    features: int
    stride: int = 1
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self, x: jax.Array, *, train: bool, valid: jax.Array | None = None
    ) -> jax.Array:
        """x [N H W C], valid bool [N] -> [N h w features]."""
        y = Conv(self.features, stride=self.stride, dtype=self.dtype, name="conv1")(x)
        y = nn.relu(BatchNorm(name="norm1")(y, train=train, valid=valid))
        y = Conv(self.features, dtype=self.dtype, name="conv2")(y)
        y = BatchNorm(name="norm2")(y, train=train, valid=valid)
        shortcut = Shortcut(self.features, self.stride, self.dtype, name="shortcut")
        return nn.relu(y + shortcut(x, train=train, valid=valid).astype(y.dtype))


class BasicBlockP3D(nn.Module):
    """BasicBlock with a residual temporal convolution after the first 3x3.

    Sources: Qiu et al., "Learning Spatio-Temporal Representation with Pseudo-3D
    Residual Networks" (ICCV 2017); Fan et al., "Exploring Deep Models for Practical
    Gait Recognition" (DeepGaitV2, 2023), figure 4.
    """

    features: int
    stride: int = 1
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, valid: jax.Array) -> jax.Array:
        """x [B T H W C], valid bool [B T] -> [B T h w features]."""
        flat = valid.reshape(-1)  # [B*T]
        frames = fold_frames(x)  # [B*T H W C]
        y = Conv(self.features, stride=self.stride, dtype=self.dtype, name="conv1")(
            frames
        )
        y = nn.relu(BatchNorm(name="norm1")(y, train=train, valid=flat))
        y = y.reshape(x.shape[:2] + y.shape[1:])  # [B T h w features]
        motion = TemporalConv(self.features, dtype=self.dtype, name="temporal_conv")(
            mask_frames(y, valid)
        )
        motion = BatchNorm(name="temporal_norm")(motion, train=train, valid=valid)
        y = fold_frames(nn.relu(y + motion))  # [B*T h w features]
        y = Conv(self.features, dtype=self.dtype, name="conv2")(y)
        y = BatchNorm(name="norm2")(y, train=train, valid=flat)
        shortcut = Shortcut(self.features, self.stride, self.dtype, name="shortcut")
        y = nn.relu(y + shortcut(frames, train=train, valid=flat).astype(y.dtype))
        return y.reshape(x.shape[:2] + y.shape[1:])  # [B T h w features]


class BasicBlock3D(nn.Module):
    """Two 3x3x3 convolutions around a shortcut, temporal stride 1.

    Source: Tran et al., "A Closer Look at Spatiotemporal Convolutions for Action
    Recognition" (CVPR 2018), R3D.
    """

    features: int
    stride: int = 1
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, valid: jax.Array) -> jax.Array:
        """x [B T H W C], valid bool [B T] -> [B T h w features]."""
        strides = (1, self.stride, self.stride)
        y = Conv3D(self.features, strides=strides, dtype=self.dtype, name="conv1")(
            mask_frames(x, valid)
        )
        y = nn.relu(BatchNorm(name="norm1")(y, train=train, valid=valid))
        y = Conv3D(self.features, dtype=self.dtype, name="conv2")(mask_frames(y, valid))
        y = BatchNorm(name="norm2")(y, train=train, valid=valid)
        shortcut = Shortcut(self.features, self.stride, self.dtype, name="shortcut")(
            fold_frames(x), train=train, valid=valid.reshape(-1)
        )  # [B*T h w features]
        return nn.relu(y + shortcut.reshape(y.shape).astype(y.dtype))


class Stage(nn.Module):
    """Blocks of one kind and width, the first with the stride: [B T H W C] in and out.

    kind: "2d" (BasicBlock on each frame), "p3d" or "3d".
    """

    kind: str
    features: int
    blocks: int
    stride: int = 1
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, valid: jax.Array) -> jax.Array:
        """x [B T H W C], valid bool [B T] -> [B T h w features]."""
        leading, flat = x.shape[:2], valid.reshape(-1)
        for index in range(self.blocks):
            options = dict(
                features=self.features,
                stride=self.stride if index == 0 else 1,
                dtype=self.dtype,
                name=f"block{index}_{self.kind}",
            )
            if self.kind == "2d":
                y = BasicBlock(**options)(fold_frames(x), train=train, valid=flat)
                x = y.reshape(leading + y.shape[1:])  # [B T h w features]
            elif self.kind == "p3d":
                x = BasicBlockP3D(**options)(x, train=train, valid=valid)
            else:
                x = BasicBlock3D(**options)(x, train=train, valid=valid)
        return x


def residual_stages(
    module: nn.Module,
    x: jax.Array,
    kinds: Sequence[str],
    channels: Sequence[int],
    layers: Sequence[int],
    strides: Sequence[int],
    dtype: jnp.dtype,
    *,
    train: bool,
    valid: jax.Array,
    first: int = 1,
) -> jax.Array:
    """Stages one after the other: x [B T H W C], valid bool [B T] -> [B T h w C'].

    kinds, channels, layers (blocks), strides: one entry per stage. The stages become
    submodules "stage1", "stage2", ... of `module`, from `first` on. Of their results
    only those of convolutions are kept for the backward pass (`lean`).
    """
    stages = list(zip(kinds, channels, layers, strides, strict=True))

    def call(module, x, valid):
        for index, (kind, features, blocks, stride) in enumerate(stages, first):
            stage = Stage(kind, features, blocks, stride, dtype, name=f"stage{index}")
            x = stage(x, train=train, valid=valid)
        return x

    return lean(call, train)(module, x, valid)


class AttentionFusion(nn.Module):
    """Mixes two maps with weights per pixel and channel that sum to 1.

    Source: Fan et al., "SkeletonGait" (AAAI 2024), section 3.3; BigGait (Ye et al.,
    CVPR 2024), section 3.4. One bottleneck of 1x1, 3x3 and 1x1 convolutions, which is
    C / squeeze wide, gives the softmax logits of both maps. Its output channel
    s * C + c weighs channel c of map s; if interleaved (BigGait), channel 2 * c + s
    does.
    """

    squeeze: int = 16
    interleaved: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self, first: jax.Array, second: jax.Array, *, train: bool, valid: jax.Array
    ) -> jax.Array:
        """first, second [N H W C], valid bool [N] -> [N H W C]."""
        channels = first.shape[-1]
        inner = max(channels // self.squeeze, 1)

        def conv(x, features, kernel, name):
            return Conv(features, kernel=kernel, dtype=self.dtype, name=name)(x)

        x = jnp.concatenate([first, second], axis=-1)  # [N H W 2C]
        x = conv(x, inner, 1, "reduce")
        x = nn.relu(BatchNorm(name="reduce_norm")(x, train=train, valid=valid))
        x = conv(x, inner, 3, "mix")
        x = nn.relu(BatchNorm(name="mix_norm")(x, train=train, valid=valid))
        x = conv(x, 2 * channels, 1, "expand")
        axis = -1 if self.interleaved else -2
        pair = (channels, 2) if self.interleaved else (2, channels)
        one, other = jnp.moveaxis(x.reshape(x.shape[:-1] + pair), axis, 0)
        # softmax over the two, [N H W C]
        weight = nn.sigmoid(one.astype(jnp.float32) - other.astype(jnp.float32))
        return first * weight + second * (1 - weight)  # [N H W C]


def stem_pool(x: jax.Array) -> jax.Array:
    """3x3 maximum with stride 2 of each frame: [B T H W C] -> [B T H/2 W/2 C].

    What a ResNet has between its stem and its stages (He et al., CVPR 2016, table 1);
    odd sizes are rounded up.
    """
    y = nn.max_pool(fold_frames(x), (3, 3), (2, 2), ((1, 1), (1, 1)))
    return y.reshape(x.shape[:2] + y.shape[1:])


class Stem(nn.Module):
    """3x3 convolution, batch norm and ReLU of each frame, no pooling."""

    features: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, valid: jax.Array) -> jax.Array:
        """x [B T H W C], valid bool [B T] -> [B T H W features]."""

        def call(module, x, valid):
            y = Conv(self.features, dtype=self.dtype, name="conv")(x)
            return nn.relu(BatchNorm(name="norm")(y, train=train, valid=valid))

        # x is thin: the backward pass computes the convolution again
        call = nn.remat(call) if train else call
        y = call(self, fold_frames(x), valid.reshape(-1))
        return y.reshape(x.shape[:2] + y.shape[1:])  # [B T H W features]
