"""GaitTR: temporal convolutions and attention between joints.

Paper: Zhang et al., "Spatial Transformer Network on Skeleton-based Gait Recognition"
(Expert Systems 2023), section 3; the attention of each frame over its joints is that of
Plizzari et al., "Skeleton-based Action Recognition via Spatial and Temporal Transformer
Networks" (CVIU 2021), section 3.1.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from gaitjax.engine.fields import Positive, Share, Some
from gaitjax.engine.guards import require
from gaitjax.parts import skeleton
from gaitjax.parts.convolution import Conv, TemporalConv
from gaitjax.parts.layers import BatchNorm, mask_frames
from gaitjax.parts.model import Dtype, GaitModel
from gaitjax.parts.output import GaitOutput
from gaitjax.parts.transformer import attend

FEATURES = 10  # channels
WINDOW = 9  # frames of a temporal convolution


def mish(x: jax.Array) -> jax.Array:
    """x tanh(softplus(x)) (Misra, BMVC 2020); any shape."""
    return x * jnp.tanh(jax.nn.softplus(x))


def input_features(
    keypoints: jax.Array, valid: jax.Array, body: skeleton.Skeleton = skeleton.COCO
) -> jax.Array:
    """[B T V 3], bool [B T] -> [B T V 10]: position, position relative to the centre
    joint, velocity over one and over two frames, bone; x and y of each (section 3.1).
    """
    p = skeleton.parts(keypoints, valid, body)
    names = ("xy", "relative", "velocity", "velocity2", "bone")
    return jnp.concatenate([p[name] for name in names], axis=-1)


class JointNorm(nn.Module):
    """Batch norm with statistics per joint and channel: [B T V C] -> [B T V C].

    Its parameters are ordered joint by joint or, with channel_major, channel by
    channel, as the published weights are.
    """

    channel_major: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, valid: jax.Array) -> jax.Array:
        if self.channel_major:
            x = jnp.swapaxes(x, 2, 3)  # [B T C V]
        flat = x.reshape(x.shape[:2] + (-1,))  # [B T V*C]
        flat = BatchNorm(name="norm")(flat, train=train, valid=valid)
        x = flat.reshape(x.shape)
        return jnp.swapaxes(x, 2, 3) if self.channel_major else x


class JointAttention(nn.Module):
    """Each frame's joints attend to each other: [B T V C] -> [B T V features].

    Values have `features` channels, queries and keys a quarter of them.
    """

    features: int
    heads: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        leading, joints = x.shape[:2], x.shape[2]
        keys = self.features // 4
        x = Conv(
            2 * keys + self.features, 1, use_bias=True, dtype=self.dtype, name="qkv"
        )(x)
        x = x.reshape(-1, joints, x.shape[-1])  # [B*T V 2k+D]
        query, key, value = (
            part.reshape(part.shape[:2] + (self.heads, -1))  # [B*T V H d]
            for part in jnp.split(x, (keys, 2 * keys), axis=-1)
        )
        x = attend(query, key, value, formulation="explicit")  # [B*T V H d]
        x = x.reshape(leading + (joints, self.features))
        return Conv(self.features, 1, use_bias=True, dtype=self.dtype, name="out")(x)


class Block(nn.Module):
    """Temporal convolution, then attention between joints, both with residuals.

    Every operation is followed by Mish, then by batch norm.
    """

    features: int
    heads: int
    dropout: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, valid: jax.Array) -> jax.Array:
        """x [B T V C], valid bool [B T] -> [B T V features]."""

        def norm(x, name):
            return BatchNorm(name=name)(x, train=train, valid=valid)

        def conv1x1(x, name):
            return Conv(self.features, 1, use_bias=True, dtype=self.dtype, name=name)(x)

        channels = x.shape[-1]
        y = nn.Dropout(self.dropout, deterministic=not train)(x)
        y = TemporalConv(
            channels, WINDOW, use_bias=True, dtype=self.dtype, name="temporal"
        )(mask_frames(y, valid))
        y = norm(mish(y), "temporal_norm") + x.astype(y.dtype)
        z = JointNorm(True, name="spatial_input")(y, train=train, valid=valid)
        z = JointAttention(self.features, self.heads, self.dtype, name="attention")(z)
        z = norm(mish(z), "spatial_norm")
        if channels != self.features:
            y = norm(conv1x1(y, "residual"), "residual_norm")
            x = norm(mish(conv1x1(x, "shortcut")), "shortcut_norm")
        return z + y.astype(z.dtype) + x.astype(z.dtype)


class GaitTR(GaitModel):
    """Blocks of temporal convolution and joint attention -> mean -> dense.

    Differences from the paper: the embedding of a whole sequence in evaluation. Frames
    must be consecutive and in order.
    """

    reads = ("keypoints",)
    channels: Some[Positive] = (64, 64, 128, 256)  # width of each block
    heads: Positive = 8  # a quarter of each width must be a multiple of it
    dropout: Share = 0.1  # before each temporal convolution, in training
    embedding_size: Positive = 128
    joint_format: skeleton.JointFormat = "coco"  # CCPG, OU-MVLP: "alphapose"
    dtype: Dtype = "float32"

    @nn.nowrap
    def check(self, config) -> None:
        require(
            not any(width % (4 * self.heads) for width in self.channels),
            f"config.model.channels must be multiples of 4 * config.model.heads = "
            f"{4 * self.heads}; got {self.channels}.",
        )

    @nn.compact
    def __call__(self, batch: dict[str, jax.Array], *, train: bool) -> GaitOutput:
        """batch: keypoints [B T V 3] (x and y in pixels, confidence) or their
        features [B T 10 V], valid bool [B T] with valid frames first.

        Returns embeddings [B 1 D]; no logits. Training uses the rng "dropout".
        """
        valid, body = batch["valid"], skeleton.SKELETONS[self.joint_format]
        x = batch["keypoints"].astype(jnp.float32)
        if x.shape[2:] == (FEATURES, body.joints):
            x = jnp.swapaxes(x, 2, 3)
        else:
            x = input_features(x, valid, body)
        x = JointNorm(name="input")(x, train=train, valid=valid)  # [B T V 10]
        for index, width in enumerate(self.channels):
            x = Block(
                width, self.heads, self.dropout, self.dtype, name=f"block{index}"
            )(x, train=train, valid=valid)  # [B T V C]
        x = skeleton.mean_over_body(x, valid)  # [B C]
        x = nn.Dense(self.embedding_size, name="project")(x)  # [B D]
        return GaitOutput(x[:, None], None, {})
