"""GPGait and GPGait++: graph convolutions on joints, bones and angles, by part.

Papers: Fu et al., "GPGait: Generalized Pose-based Gait Recognition" (ICCV 2023),
section 3.4; Meng et al., "FastPoseGait" (2023), whose published code and configs this
follows; GPGait++ (TPAMI 2025).
"""

from typing import Annotated, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from gaitjax.engine.fields import AtLeast, Positive, Share, Some
from gaitjax.engine.guards import require
from gaitjax.parts import human_oriented as human
from gaitjax.parts import skeleton
from gaitjax.parts.convolution import Conv, TemporalConv
from gaitjax.parts.heads import SeparateBNNeck, SeparateDense, choose_embedding
from gaitjax.parts.layers import BatchNorm, mask_frames, max_over, set_pool
from gaitjax.parts.model import Dtype, GaitModel, Retrieve
from gaitjax.parts.output import GaitOutput

MAX_HOP = 2  # the adjacency's slices are hops 0, 1 and 2
WINDOW = 9  # frames of a temporal convolution

Parts = tuple[tuple[int, ...], ...]  # joints of each


class Body(NamedTuple):
    """joints; links of the graph; limbs: the parts that the shared blocks look at;
    stacks: name -> parts, in the order of the embedding's strips."""

    joints: int
    links: Parts
    limbs: Parts
    stacks: dict[str, Parts]


def span(first: int, last: int) -> tuple[int, ...]:
    return tuple(range(first, last + 1))


BODY = Body(
    17,
    skeleton.COCO.links,
    ((5, 7, 9), (6, 8, 10), (11, 13, 15), (12, 14, 16), span(0, 4)),
    {
        "halves": (span(0, 10), span(11, 16)),
        "trunk": (span(5, 10), span(11, 16) + span(0, 4)),
        "thirds": (span(5, 10), span(11, 16), span(0, 4)),
        "whole": (span(0, 16),),
    },
)
HEADLESS = Body(  # without nose, eyes and ears
    12,
    tuple((a - 5, b - 5) for a, b in skeleton.COCO.links if min(a, b) > 4),
    ((0, 2, 4), (1, 3, 5), (6, 8, 10), (7, 9, 11)),
    {"halves": (span(0, 5), span(6, 11)), "whole": (span(0, 11),)},
)
# branch -> its channels of the features, its joints
BRANCHES = {
    "pose": (slice(0, 2), BODY),
    "bone": (slice(2, 4), BODY),
    "angle": (slice(4, 5), HEADLESS),
}


def same_part(parts: Parts, joints: int) -> np.ndarray:
    """float32 [V V]: 1 where one part holds both joints."""
    member = np.asarray([[joint in part for joint in range(joints)] for part in parts])
    return (member.T.astype(int) @ member > 0).astype(np.float32)


def mish(x: jax.Array) -> jax.Array:
    """x tanh(softplus(x)) (Misra, BMVC 2020); any shape."""
    return x * jnp.tanh(jax.nn.softplus(x))


class PartAwareConv(nn.Module):
    """Graph convolution whose edges are hops, learned weights and attention (PAGCN).

    Attention between joints is one map per frame, or one per sequence. Edges between
    joints of different parts are cut after the softmax.
    """

    features: int
    per_frame: bool
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x, graph, mask, *, train: bool, valid: jax.Array) -> jax.Array:
        """x [B T V C], graph [H V V], mask [V V], valid bool [B T].

        Returns [B T V features].
        """
        inner = self.features // 4
        adaptive = self.param("adaptive", nn.initializers.constant(1e-6), graph.shape)
        frames = jnp.maximum(jnp.sum(valid, axis=1), 1)[:, None, None, None]

        def conv(x, features, name, dtype=jnp.float32):
            return Conv(features, 1, use_bias=True, dtype=dtype, name=name)(x)

        total = 0
        for hop in range(len(graph)):
            query, key = (
                mask_frames(conv(x, inner, f"{name}{hop}"), valid)
                for name in ("query", "key")
            )  # [B T V c]
            scores = jnp.einsum("btic,btjc->btij", query, key) / inner
            if not self.per_frame:
                scores = jnp.sum(scores, axis=1, keepdims=True) / frames  # [B 1 V V]
            fixed = (graph[hop] + adaptive[hop])[None, None]
            edges = (nn.softmax(scores, axis=-2) + fixed) * mask[None, None]
            edges = jnp.broadcast_to(edges, x.shape[:2] + mask.shape)
            mixed = jnp.einsum("btic,btij->btjc", x, edges.astype(x.dtype))
            total = total + conv(mixed, self.features, f"value{hop}", self.dtype)
        return mish(BatchNorm(name="norm")(total, train=train, valid=valid))


class Block(nn.Module):
    """PartAwareConv with a shortcut; GPGait++ adds a convolution over time.

    plus: GPGait++'s block, which concatenates what GPGait's adds up.
    """

    features: int
    plus: bool
    dropout: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x, graph, mask, *, train: bool, valid: jax.Array) -> jax.Array:
        """x [B T V C], graph [H V V], mask [V V], valid bool [B T].

        Returns [B T V features].
        """

        def norm(x, name):
            return BatchNorm(name=name)(x, train=train, valid=valid)

        def conv(x, features, name):
            return Conv(features, 1, use_bias=True, dtype=self.dtype, name=name)(x)

        width = self.features // 2 if self.plus else self.features
        spatial = PartAwareConv(width, self.plus, self.dtype, name="graph")
        y = spatial(x, graph, mask, train=train, valid=valid)
        if not self.plus:
            if x.shape[-1] != self.features:
                x = norm(conv(x, self.features, "shortcut"), "shortcut_norm")
            return y + x.astype(y.dtype)
        rest = norm(conv(x, self.features - width, "shortcut"), "shortcut_norm")
        y = jnp.concatenate([y, rest], axis=-1)
        third = self.features // 3
        motion = nn.Dropout(self.dropout, deterministic=not train)(y)
        motion = TemporalConv(
            third + 1, WINDOW, use_bias=True, dtype=self.dtype, name="temporal"
        )(mask_frames(motion, valid))
        streams = [
            norm(mish(motion), "temporal_norm"),
            norm(conv(y, third, "middle"), "middle_norm"),
            norm(mish(conv(x, self.features - 2 * third - 1, "down")), "down_norm"),
        ]
        return jnp.concatenate(streams, axis=-1)


class PartPool(nn.Module):
    """Maximum over time, then mean + maximum over the joints of each part."""

    parts: Parts

    @nn.compact
    def __call__(self, x: jax.Array, valid: jax.Array) -> jax.Array:
        """x [B T V C], valid bool [B T] -> float32 [B P C]."""
        x = set_pool(x, valid).astype(jnp.float32)  # [B V C]
        parts = [x[:, list(part)] for part in self.parts]
        pooled = [jnp.mean(part, axis=1) + max_over(part, 1) for part in parts]
        return jnp.stack(pooled, axis=1)


class GPGait(GaitModel):
    """Branches of joints, bones and angles -> a stack of blocks per partition -> parts.

    Frames meet in the attention, one map per sequence, and in the final maximum only.

    Differences from the paper: those of the published code.
    """

    reads = ("keypoints",)
    unseen = ("straighten", "part_masks")
    plus: ClassVar[bool] = False  # GPGait++'s blocks
    channels: Some[Positive] = (64, 64, 128, 256)  # of a branch's blocks
    shared: Positive = 3  # blocks before the stacks
    part_masks: bool = True  # edges between parts are cut
    # the hip is brought below the neck; "sheared": as the published models do
    straighten: human.Straighten = "none"
    # in training: probability of swapping left and right in a frame; deviation of one
    # offset per joint and sequence, of a person 225 high
    swap: Share = 0.0
    noise: Annotated[float, AtLeast(0)] = 0.0
    dropout: Share = 0.1  # of GPGait++, before convolutions over time
    joint_format: skeleton.JointFormat = "coco"  # "alphapose": 17 of them are taken
    embedding_size: Positive = 256
    retrieve: Retrieve = "after_neck"
    dtype: Dtype = "float32"

    @nn.nowrap
    def check(self, config) -> None:
        require(
            self.shared < len(self.channels),
            f"config.model.shared={self.shared} leaves none of the {len(self.channels)}"
            " blocks of config.model.channels to the stacks; choose fewer.",
        )

    @nn.compact
    def __call__(self, batch: dict[str, jax.Array], *, train: bool) -> GaitOutput:
        """batch: keypoints [B T V 3] (x and y in pixels, confidence) or their features
        [B T 17 5], valid bool [B T].

        Returns embeddings [B 19 D], logits [B 19 N]. Training uses the rngs "dropout"
        and "augment".
        """
        valid = batch["valid"]
        x = batch["keypoints"].astype(jnp.float32)
        x = x if x.shape[-1] > 3 else self._features(x[..., :2], train)  # [B T 17 5]
        parts = []
        for name, (channels, body) in BRANCHES.items():
            y = x[:, :, -body.joints :, channels]  # [B T V C]
            parts += self._branch(y, body, name, train, valid)
        x = jnp.concatenate(parts, axis=1)  # [B 19 C]
        before = SeparateDense(self.embedding_size, name="dense")(x)
        after, logits = SeparateBNNeck(self.num_classes, name="neck")(
            before, train=train, valid=jnp.any(valid, axis=1)
        )
        embeddings = choose_embedding(before, after, self.retrieve, train)
        return GaitOutput(embeddings, logits, {})

    def _features(self, points, train):
        """[B T V 2] -> [B T 17 5]."""
        if self.joint_format == "alphapose":
            points = points[:, :, human.FROM_ALPHAPOSE]
        points = human.rescale(human.straighten(points, self.straighten))
        if train and (self.swap or self.noise):
            swap, noise = jax.random.split(self.make_rng("augment"))
            swapped = jax.random.bernoulli(swap, self.swap, points.shape[:2])
            mirrored = points[:, :, skeleton.COCO.mirror]
            points = jnp.where(swapped[:, :, None, None], mirrored, points)
            offset = jax.random.normal(noise, (len(points), 1, *points.shape[2:]))
            points = points + self.noise * offset
        return human.descriptors(points)

    def _branch(self, x, body, name, train, valid):
        """[B T V C] -> a list of [B P C'], one per stack."""
        graph = jnp.asarray(skeleton.adjacency(MAX_HOP, body.links, body.joints))

        def blocks(x, parts, widths, name):
            mask = jnp.ones(graph.shape[1:])
            if self.part_masks:
                mask = jnp.asarray(same_part(parts, body.joints))
            for index, width in enumerate(widths):
                x = Block(
                    width,
                    self.plus,
                    self.dropout,
                    self.dtype,
                    name=f"{name}{index}",
                )(x, graph, mask, train=train, valid=valid)
            return x

        flat = x.reshape(x.shape[:2] + (-1,))  # [B T V*C]
        flat = BatchNorm(name=f"{name}_norm")(flat, train=train, valid=valid)
        x = blocks(
            flat.reshape(x.shape), body.limbs, self.channels[: self.shared],
            f"{name}_shared",
        )  # fmt: skip
        pooled = []
        for stack, parts in body.stacks.items():
            y = blocks(x, parts, self.channels[self.shared :], f"{name}_{stack}")
            pooled.append(PartPool(parts, name=f"{name}_{stack}_pool")(y, valid))
        return pooled


class GPGaitPlusPlus(GPGait):
    """GPGait with attention per frame and convolutions over time.

    Differences from the paper: those of the published code, which shares 3 blocks
    whatever its configs say; most of those cut no edges between parts. Frames must be
    consecutive and in order.
    """

    plus: ClassVar[bool] = True
