"""GaitGraph2: a residual graph convolutional network on skeleton sequences.

Papers: Teepe et al., "Towards a Deeper Understanding of Skeleton-based Gait
Recognition" (CVPRW 2022); its network is ResGCN: Song et al., "Stronger, Faster and
More Explainable: A Graph Convolutional Baseline for Skeleton-based Action Recognition"
(ACM MM 2020), section 3.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from gaitjax.engine.fields import Positive, Some
from gaitjax.engine.guards import require
from gaitjax.parts import skeleton
from gaitjax.parts.convolution import Conv, TemporalConv
from gaitjax.parts.layers import BatchNorm, mask_frames
from gaitjax.parts.model import Dtype, GaitModel
from gaitjax.parts.output import GaitOutput

MAX_HOP = 3  # the adjacency counts neighbours up to this many links away
HOPS = 3  # hops 0, 1 and 2 have weights
WINDOW = 9  # frames of a temporal convolution


def branch_features(
    keypoints: jax.Array, valid: jax.Array, body: skeleton.Skeleton = skeleton.COCO
) -> jax.Array:
    """Joints, velocities and bones: [B T V 3], bool [B T] -> [B T V 3 5].

    These are the features that the published weights were trained with, which differ
    from the paper: the confidence replaces the horizontal velocity over two frames and
    the bone's angle to the horizontal axis, and channel 2 of both branches is zero.
    """
    p = skeleton.parts(keypoints, valid, body)
    confidence, bone = p["confidence"], p["bone"]
    zero = jnp.zeros_like(confidence)
    squared = jnp.sum(jnp.square(bone), axis=-1, keepdims=True)  # [B T V 1]
    safe = jnp.where(squared > 0, squared, 1)
    length = jnp.where(squared > 0, jnp.sqrt(safe), 0)
    angle = jnp.arccos(bone[..., 1:] / (length + 1e-4))
    branches = (
        (p["xy"], confidence, p["relative"]),
        (p["velocity"], zero, confidence, p["velocity2"][..., 1:]),
        (bone, zero, confidence, angle),
    )
    return jnp.stack([jnp.concatenate(b, axis=-1) for b in branches], axis=-2)


class GraphConv(nn.Module):
    """A 1x1 convolution per hop, summed over the joints that many links away."""

    features: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, graph: jax.Array) -> jax.Array:
        """x [B T V C], graph [HOPS V V] -> [B T V features]."""
        x = Conv(HOPS * self.features, 1, use_bias=True, dtype=self.dtype, name="gcn")(
            x
        )
        x = x.reshape(x.shape[:3] + (HOPS, self.features))
        return jnp.einsum("btvkf,kvw->btwf", x, graph.astype(x.dtype))


class Unit(nn.Module):
    """A graph or a temporal convolution with batch norm and ReLU.

    inner: 0, or the width of a bottleneck: 1x1 -> the convolution -> 1x1, with a
    residual around them.
    """

    features: int
    inner: int
    stride: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x, graph=None, *, train: bool, valid: jax.Array) -> jax.Array:
        """x [B T V C], graph [HOPS V V] or None (temporal), valid bool [B T].

        Returns [B t V features].
        """
        after = lax.slice_in_dim(valid, 0, None, self.stride, axis=1)  # [B t]

        def normed(x, name, valid):
            return BatchNorm(name=name)(x, train=train, valid=valid)

        def conv1x1(x, features, name, stride=1):
            return TemporalConv(
                features, 1, stride, use_bias=True, dtype=self.dtype, name=name
            )(x)

        y, middle = x, self.features
        if self.inner:
            middle = self.inner
            y = nn.relu(normed(conv1x1(y, middle, "down"), "down_norm", valid))
        if graph is not None:
            y = GraphConv(middle, self.dtype, name="conv")(y, graph)
        else:
            y = TemporalConv(
                middle,
                WINDOW,
                self.stride,
                use_bias=True,
                dtype=self.dtype,
                name="conv",
            )(mask_frames(y, valid))
        y = nn.relu(normed(y, "norm", after))
        if not self.inner:
            return y
        y = normed(conv1x1(y, self.features, "up"), "up_norm", after)
        if x.shape[-1] != self.features or self.stride != 1:
            x = conv1x1(x, self.features, "residual", self.stride)
            x = normed(x, "residual_norm", after)
        return nn.relu(y + x.astype(y.dtype))


class GraphBlock(nn.Module):
    """Spatial then temporal convolution; a learnable weight per edge and hop.

    reduction: of the bottlenecks' inner width; 0: plain convolutions, no residual.
    """

    features: int
    reduction: int
    body: skeleton.Skeleton
    stride: int = 1
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x, *, train: bool, valid: jax.Array):
        """x [B T V C], valid bool [B T] -> ([B t V features], valid [B t])."""
        links, joints = self.body.links, self.body.joints
        graph = jnp.asarray(skeleton.adjacency(MAX_HOP, links, joints))  # [hops V V]
        edge = self.param("edge", nn.initializers.ones, graph.shape)
        graph = (graph * edge)[:HOPS]
        inner = self.features // self.reduction if self.reduction else 0
        spatial = Unit(self.features, inner, 1, self.dtype, name="spatial")
        x = spatial(x, graph, train=train, valid=valid)
        temporal = Unit(self.features, inner, self.stride, self.dtype, name="temporal")
        x = temporal(x, train=train, valid=valid)
        return x, lax.slice_in_dim(valid, 0, None, self.stride, axis=1)


class GaitGraph2(GaitModel):
    """Three branches (joints, velocities, bones) -> main stream -> mean -> dense.

    Differences from the paper: the embedding of a whole sequence instead of a random
    window of 60 frames, so evaluation is deterministic. Retrieval wants the cosine
    metric. Frames must be consecutive and in order.
    """

    reads = ("keypoints",)
    # widths of a branch's blocks; the first block has no bottleneck
    branch_channels: Some[Positive] = (64, 32)
    # widths of the main stream's blocks; where the width grows, time is halved
    channels: Some[Positive] = (128, 256)
    reduction: Positive = 8  # bottlenecks are channels / reduction wide
    embedding_size: Positive = 128
    joint_format: skeleton.JointFormat = "coco"  # CCPG, OU-MVLP: "alphapose"
    # in evaluation the embedding joins those of the sequence, of the sequence reversed
    # in time and of the sequence with left and right joints swapped
    test_time_augmentation: bool = True
    dtype: Dtype = "float32"

    @nn.nowrap
    def check(self, config) -> None:
        narrowest = min(*self.branch_channels[1:], *self.channels, self.channels[0])
        require(
            self.reduction <= narrowest,
            f"config.model.reduction={self.reduction} leaves nothing of a block of "
            f"{narrowest} channels; choose at most that number.",
        )

    @nn.compact
    def __call__(self, batch: dict[str, jax.Array], *, train: bool) -> GaitOutput:
        """batch: keypoints [B T V 3] (x and y in pixels, confidence) or their
        features [B T V 3 5], valid bool [B T] with valid frames first.

        Returns embeddings [B 1 D], D tripled by test-time augmentation; no logits.
        """
        valid, body = batch["valid"], skeleton.SKELETONS[self.joint_format]
        x = batch["keypoints"].astype(jnp.float32)
        features = x if x.ndim == 5 else branch_features(x, valid, body)  # [B T V 3 5]
        copies = 1
        if self.test_time_augmentation and not train:
            copies = 3
            keypoints = x[..., 0, :3] if x.ndim == 5 else x  # [B T V 3]
            backwards = skeleton.reverse_time(keypoints, valid)
            swapped = keypoints[:, :, body.mirror, :]
            copied = [branch_features(k, valid, body) for k in (backwards, swapped)]
            features = jnp.concatenate([features, *copied])  # [3B T V 3 5]
            valid = jnp.tile(valid, (3, 1))
        branches = [
            self._branch(features[..., index, :], f"branch{index}", train, valid)
            for index in range(features.shape[-2])
        ]
        x = jnp.concatenate(branches, axis=-1)  # [B T V 3C]
        width = self.branch_channels[-1]
        for index, channels in enumerate(self.channels):
            x, valid = GraphBlock(
                channels,
                self.reduction,
                body,
                1 if channels == width else 2,
                self.dtype,
                name=f"layer{index}",
            )(x, train=train, valid=valid)  # [B t V C]
            width = channels
        x = skeleton.mean_over_body(x, valid)  # [B C]
        x = nn.Dense(self.embedding_size, name="project")(x)  # [B D]
        x = jnp.concatenate(jnp.split(x, copies), axis=-1)  # [B 3D]
        return GaitOutput(x[:, None], None, {})

    def _branch(self, x, name, train, valid):
        """[B T V 5] -> [B T V C]."""
        x = BatchNorm(name=f"{name}_norm")(x, train=train, valid=valid)
        for index, channels in enumerate(self.branch_channels):
            x, _ = GraphBlock(
                channels,
                0 if index == 0 else self.reduction,
                skeleton.SKELETONS[self.joint_format],
                dtype=self.dtype,
                name=f"{name}_layer{index}",
            )(x, train=train, valid=valid)
        return x
