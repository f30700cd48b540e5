"""PocketGait: silhouettes and key points of real video, in a megabyte.

Not a published model. It reads energy images of a walk at a quarter of the resolution
(Han and Bhanu, "Individual Recognition Using Gait Energy Image", TPAMI 2006: the mean
of the silhouettes; their deviation; and means over the frames with the legs together,
between and apart) with plain matrices and with a network of one hidden layer, and the
poses with a small set network. Averages over a walk forgive the errors of single
frames, which real segmentation has many of; fine detail is where rendered and real
people differ most.
"""

from typing import Annotated

import jax
import jax.numpy as jnp
from flax import linen as nn

from gaitjax.engine.fields import AtLeast, Positive
from gaitjax.engine.guards import require
from gaitjax.parts.heads import SeparateBNNeck
from gaitjax.parts.layers import BatchNorm, image_sequence, set_pool
from gaitjax.parts.model import Dtype, GaitModel
from gaitjax.parts.output import GaitOutput
from gaitjax.parts.skeleton import COCO

SHRUNK = 4  # pixels of a silhouette in one of the energy images, each way
NOSE, EARS, SHOULDERS, HIPS = 0, (3, 4), (5, 6), (11, 12)
PAIRS = ((5, 6), (7, 8), (9, 10), (11, 12), (13, 14), (15, 16))  # left, right
BENDS = ((11, 13, 15), (12, 14, 16), (5, 7, 9), (6, 8, 10))  # knees, elbows


def mean_over(x: jax.Array, weight: jax.Array) -> jax.Array:
    """Weighted mean over frames: [B T *rest], [B T] -> [B *rest]; 0 without weight."""
    share = weight / jnp.maximum(weight.sum(1, keepdims=True), 1e-6)
    return jnp.einsum("bt...,bt->b...", x, share)


def faces_left(points: jax.Array, valid: jax.Array) -> jax.Array:
    """bool [B]: whether the nose is left of the ears. points [B T 17 3]."""
    ahead = points[..., NOSE, 0] - points[..., EARS, 0].mean(-1)  # [B T]
    there = (points[..., (NOSE, *EARS), :] != 0).any(-1).all(-1)
    return mean_over(ahead, (valid & there).astype(jnp.float32)) < 0


def energy_images(images: jax.Array, valid: jax.Array) -> jax.Array:
    """Silhouettes [B T H W], 0..1, of whom everyone walks right -> [B H W 5].

    Mean, deviation, and the means over the frames with the legs together, between and
    apart: a frame counts by the rank of its spread, the deviation of the columns of the
    lower third.
    """
    weight = valid.astype(jnp.float32)
    mean = mean_over(images, weight)
    deviation = jnp.sqrt(mean_over((images - mean[:, None]) ** 2, weight) + 1e-6)
    height, width = images.shape[2:]
    legs = images[:, :, -(height * 3 // 8) :].sum(2)  # [B T W]
    mass = jnp.maximum(legs.sum(-1), 1e-6)
    place = jnp.arange(width, dtype=jnp.float32)
    centre = (legs @ place) / mass
    offset = place[None, None] - centre[..., None]
    spread = (legs * offset**2).sum(-1) / mass  # [B T]
    below = (spread[:, None, :] < spread[:, :, None]) & valid[:, None, :]
    rank = below.sum(-1) / jnp.maximum(weight.sum(1, keepdims=True) - 1, 1)  # 0..1
    parts = [
        mean_over(images, weight * jnp.maximum(1 - 2 * jnp.abs(rank - at), 0))
        for at in (0.0, 0.5, 1.0)
    ]
    return jnp.stack([mean, deviation, *parts], -1)


def shrunk(images: jax.Array, factor: int) -> jax.Array:
    """Means of factor x factor pixels: [B H W C] -> [B H/factor W/factor C]."""
    batch, height, width, channels = images.shape
    shape = (batch, height // factor, factor, width // factor, factor, channels)
    return images.reshape(shape).mean((2, 4))


def pose_features(points: jax.Array, valid: jax.Array) -> jax.Array:
    """Key points [B T 17 3] of whom everyone walks right -> [B T F].

    Relative to the middle of the hips, in lengths of the trunk (its median over the
    walk), and the same if left and right are exchanged, which estimators do from the
    side: of each pair of joints the middle and the distance, of the bends the mean and
    the difference.
    """
    xy = points[..., :2]
    hips = xy[..., HIPS, :].mean(-2, keepdims=True)
    trunk = jnp.linalg.norm(xy[..., SHOULDERS, :].mean(-2) - hips[..., 0, :], axis=-1)
    scale = jnp.nanmedian(jnp.where(valid, trunk, jnp.nan), axis=1)
    scale = jnp.where(jnp.isnan(scale), 1, jnp.maximum(scale, 1e-3))  # [B]
    xy = (xy - hips) / scale[:, None, None, None]
    xy = jnp.clip(xy, -4, 4)
    first, second = (xy[..., [pair[i] for pair in PAIRS], :] for i in (0, 1))
    head = xy[..., :5, :].mean(-2, keepdims=True)
    parts = [xy[..., :1, :], head, (first + second) / 2, jnp.abs(first - second)]
    a, b, c = (xy[..., [bend[i] for bend in BENDS], :] for i in range(3))
    u, v = a - b, c - b
    cross = u[..., 0] * v[..., 1] - u[..., 1] * v[..., 0]
    length = jnp.linalg.norm(u, axis=-1) * jnp.linalg.norm(v, axis=-1) + 1e-3
    bend = jnp.stack([cross / length, (u * v).sum(-1) / length], -1)  # [B T 4 2]
    parts += [(bend[..., ::2, :] + bend[..., 1::2, :]) / 2]
    parts += [jnp.abs(bend[..., ::2, :] - bend[..., 1::2, :])]
    flat = jnp.concatenate([part.reshape(*valid.shape, -1) for part in parts], -1)
    return jnp.where(valid[..., None], flat, 0)


Weight = Annotated[float, AtLeast(0)]


def steadiness(points: jax.Array, valid: jax.Array) -> jax.Array:
    """How much the key points tremble: [B T 17 3], [B T] -> [B], in trunk lengths.

    The trunk and the way from shoulders to head hardly change while a person walks, so
    their deviation over a walk (the geometric mean of both) is the estimator's error:
    0.005 to 0.013 for exact key points, more for those of a person model.
    """
    features = pose_features(points, valid)[..., 2:6]  # head and shoulders
    weight = valid.astype(jnp.float32)
    logs = 0.0
    for part in (features[..., 2:], features[..., :2] - features[..., 2:]):
        length = jnp.sqrt(jnp.sum(part**2, -1) + 1e-12)  # [B T]
        offset = (length - mean_over(length, weight)[:, None]) ** 2
        logs += jnp.log(mean_over(offset, weight) + 1e-12) / 4
    return jnp.exp(logs)


class PocketGait(GaitModel):
    """Three kinds of strips, all of one size, side by side in the embedding.

    Energy images -> a matrix each for the whole, the upper and lower half and the mean;
    energy images -> hidden layer -> strips; poses -> set network -> strips.
    """

    reads = ("silhouettes", "keypoints")
    embedding_size: Positive = 64
    hidden_size: Positive = 256
    shape_strips: Positive = 4  # of the hidden layer on energy images
    pose_strips: Positive = 4
    pose_size: Positive = 128  # of the network on poses
    # in evaluation: what the strips count in a distance. Where the key points tremble
    # (`steadiness` above `steady`), the pose counts nothing and the matrices 1; where
    # they are steady, the matrices count as little as the hidden layer's strips
    shape_weight: Weight = 0.3
    pose_weight: Weight = 1.0
    steady: Weight = 0.0125
    dtype: Dtype = "float32"

    @nn.nowrap
    def check(self, config) -> None:
        rows, columns = config.data.silhouette_size
        require(
            rows % (2 * SHRUNK) == 0 and columns % SHRUNK == 0,
            f"config.data.silhouette_size={(rows, columns)}: expected multiples of "
            f"{2 * SHRUNK} and {SHRUNK}.",
        )

    @nn.compact
    def __call__(self, batch: dict[str, jax.Array], *, train: bool) -> GaitOutput:
        """batch: silhouettes [B T H W], keypoints [B T 17 3], valid bool [B T].

        Returns embeddings [B S D], logits [B S N]. aux: energy [B H W 5].
        """
        valid, points = batch["valid"], batch["keypoints"].astype(jnp.float32)
        images = image_sequence(batch, "silhouettes")[..., 0]
        left = faces_left(points, valid)[:, None, None, None]
        images = jnp.where(left, images[..., ::-1], images)
        x, rest = points[..., COCO.mirror, :1], points[..., COCO.mirror, 1:]
        points = jnp.where(left, jnp.concatenate([-x, rest], -1), points)
        energy = energy_images(images, valid)
        some = valid.any(1)
        low = shrunk(energy, SHRUNK)
        strips = [
            self._regions(low),
            self._shape(low, some, train),
            self._pose(points, valid, train),
        ]
        before = jnp.concatenate(strips, 1)  # [B S D]
        after, logits = SeparateBNNeck(self.num_classes, name="neck")(
            before, train=train, valid=some
        )
        # no exact switch, so that rounding decides nothing
        gap = jnp.log(self.steady + 1e-9) - jnp.log(steadiness(points, valid) + 1e-9)
        trust = jax.nn.sigmoid(gap / 0.02)  # [B]
        weights = (
            1 - (1 - self.shape_weight) * trust,
            jnp.full_like(trust, self.shape_weight),
            self.pose_weight * trust,
        )
        counts = [part.shape[1] * [x] for part, x in zip(strips, weights)]
        after = after * jnp.stack(sum(counts, []), 1)[..., None]
        return GaitOutput(before if train else after, logits, {"energy": energy})

    def _regions(self, x):
        """[B h w 5] -> [B 4 D]."""
        half = x.shape[1] // 2
        regions = {
            "whole": x, "upper": x[:, :half], "lower": x[:, half:], "mean": x[..., :1],
        }  # fmt: skip
        strips = [
            self._dense(
                part.reshape(part.shape[0], -1), self.embedding_size, f"region_{name}",
                use_bias=False,
            )
            for name, part in regions.items()
        ]  # fmt: skip
        return jnp.stack(strips, 1)

    def _dense(self, x, size: int, name: str, use_bias: bool = True):
        """float32 [... size], computed in `dtype`."""
        dense = nn.Dense(size, use_bias=use_bias, dtype=self.dtype, name=name)
        return dense(x).astype(jnp.float32)

    def _shape(self, x, some, train):
        """[B h w 5] -> [B shape_strips D]."""
        x = self._dense(x.reshape(x.shape[0], -1), self.hidden_size, "shape_hidden")
        x = nn.relu(BatchNorm(name="shape_norm")(x, train=train, valid=some))
        return self._strips(x, self.shape_strips, "shape_strips")

    def _strips(self, x, count: int, name: str):
        x = self._dense(x, count * self.embedding_size, name)
        return x.reshape(x.shape[0], count, self.embedding_size)

    def _pose(self, points, valid, train):
        """[B T 17 3] -> [B pose_strips D]."""
        some = valid.any(1)
        features = pose_features(points, valid)
        x = BatchNorm(name="pose_norm")(features, train=train, valid=valid)
        weight = valid.astype(jnp.float32)
        mean = mean_over(x, weight)
        square = mean_over((x - mean[:, None]) ** 2, weight)
        for i in range(2):
            x = self._dense(x, self.pose_size, f"pose_frame{i + 1}")
            norm = BatchNorm(name=f"pose_frame_norm{i + 1}")
            x = nn.relu(norm(x, train=train, valid=valid))
        pooled = [mean, jnp.sqrt(square + 1e-6), set_pool(x, valid)]
        x = jnp.concatenate([*pooled, mean_over(x, weight)], -1)
        x = self._dense(x, 2 * self.pose_size, "pose_walk")
        x = nn.relu(BatchNorm(name="pose_walk_norm")(x, train=train, valid=some))
        return self._strips(x, self.pose_strips, "pose_strips")
