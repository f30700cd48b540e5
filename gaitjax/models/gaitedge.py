"""GaitEdge: segmentation and recognition trained together, joined at the edges.

Paper: Liang et al., "GaitEdge: Beyond Plain End-to-end Gait Recognition for Better
Practicality" (ECCV 2022), section 3.
"""

import re

import jax
import jax.numpy as jnp
from flax import linen as nn

from gaitjax.engine.fields import Odd, Positive, Some
from gaitjax.engine.guards import require
from gaitjax.models.gaitgl import GaitGL, Halvings
from gaitjax.parts.layers import normalise_colours
from gaitjax.parts.model import Dtype, GaitModel, Size
from gaitjax.parts.output import GaitOutput
from gaitjax.parts.representation import dilate, erode
from gaitjax.parts.unet import UNet

MAX_SAMPLES = 16  # per output column, of a crop that is very narrow
ASPECT = 0.5  # width / height of frames that keep the person's aspect


def synthesise(probability: jax.Array, mask: jax.Array, size: int) -> jax.Array:
    """Predicted edge around the given interior (section 3.2): float32 [N H W].

    probability [N H W]; mask bool [N H W], the given silhouette. The edge is what a
    dilation by a size x size square adds and an erosion takes away.
    """
    interior = erode(mask, size)
    edge = dilate(mask, size) & ~interior
    return jnp.where(edge, probability, 0) + interior


def person_box(mask: jax.Array, ratios: jax.Array, size: tuple[int, int]):
    """The crop to align: (top, bottom, left, right), float32 [N] each.

    It reaches from the first to the last row with a set pixel; these rows become
    size[0]. Its columns are centred on the median column of the mask. Their number
    keeps the person's aspect, where `ratios` is width / height of the frame, and fills
    the size[1] columns of the output.
    """
    height, width = mask.shape[1:]
    occupied = jnp.any(mask, axis=2)  # [N H]
    top = jnp.argmax(occupied, axis=1)
    bottom = height - jnp.argmax(occupied[:, ::-1], axis=1)
    before = jnp.cumsum(jnp.sum(mask, axis=1, dtype=jnp.float32), axis=1)  # [N W]
    centre = jnp.sum(before < before[:, -1:] / 2, axis=1)
    frame_columns = ratios * size[0]  # of the output, for the whole width
    missing = nn.relu(size[1] - frame_columns) / 2
    half = (bottom - top) * width / height / 2 + missing * width / frame_columns
    top, bottom = top.astype(jnp.float32), bottom.astype(jnp.float32)
    return top, bottom, centre - half, centre + half


def sampling_weights(
    start: jax.Array,
    end: jax.Array,
    size_out: int,
    size_in: int,
    max_samples: int,
    *,
    clamp: bool,
) -> jax.Array:
    """RoIAlign along one axis: float32 [N size_out size_in].

    Each of size_out equal bins of start..end (in pixels, [N] each) averages bilinear
    samples, one per pixel of the bin's width, rounded up. clamp: samples near the
    border take the last pixel; else there are zeros beyond it.
    """
    step = jnp.maximum(end - start, 1.0).reshape(-1, 1, 1) / size_out  # [N 1 1]
    count = jnp.clip(jnp.ceil(step), 1, max_samples)
    sample = jnp.arange(max_samples).reshape(1, 1, -1)
    bins = jnp.arange(size_out).reshape(1, -1, 1)
    position = start.reshape(-1, 1, 1) + (bins + (sample + 0.5) / count) * step
    if clamp:
        position = jnp.clip(position, 0, size_in - 1)  # [N out K]
    taps = jnp.arange(size_in).reshape(1, 1, 1, -1)
    weights = nn.relu(1 - jnp.abs(position[..., None] - taps))  # [N out K in]
    weights = jnp.where((sample < count)[..., None], weights, 0)
    return jnp.sum(weights, axis=2) / count


def align(
    images: jax.Array, mask: jax.Array, ratios: jax.Array, size: tuple[int, int]
) -> jax.Array:
    """GaitAlign (section 3.3): the person of images [N H W], float32 [N *size].

    mask bool [N H W] says where the person is; ratios [N], width / height of what the
    frame shows. He Kaiming et al., "Mask R-CNN" (ICCV 2017), section 3: RoIAlign.
    """
    top, bottom, left, right = person_box(mask, ratios, size)
    height, width = images.shape[1:]
    most = -(-height // size[0])
    down = sampling_weights(top, bottom, size[0], height, most, clamp=True)
    across = sampling_weights(left, right, size[1], width, MAX_SAMPLES, clamp=False)
    return jnp.einsum("nyh,nhw,nxw->nyx", down, images.astype(jnp.float32), across)


class GaitEdge(GaitModel):
    """RGB -> U-Net -> silhouette with a predicted edge -> GaitAlign -> GaitGL.

    Phases: `warm_up` is the paper's first phase, the segmentation alone (with the loss
    "binary_cross_entropy"); then everything is trained together. The interior of the
    silhouette is that of the given masks, in evaluation too.

    Differences from the paper: none known. The paper trains GaitGL alone before the
    second phase; here that is optional. Frames must be consecutive and in order.
    """

    reads = ("frames", "masks")
    unseen = ("edge",)
    channels: Some[Positive] = (32, 64, 128)  # widths of GaitGL
    halvings: Halvings = 3  # how often GaitGL's maps are halved into strips
    unet_channels: Some[Positive] = (16, 32, 64, 128)
    kernel: Odd = 3  # size of the dilation and erosion that make the edge
    silhouette_size: Size = (64, 44)  # size of the aligned silhouettes
    freeze_encoder: bool = True  # the U-Net's encoder learns in the warm-up only
    # False: the recogniser reads the whole predicted silhouette, aligned by itself: the
    # plain end-to-end network that the paper compares with
    edge: bool = True
    dtype: Dtype = "float32"

    @nn.nowrap
    def check(self, config) -> None:
        size, divisor = config.data.image_size, 2 ** (len(self.unet_channels) - 1)
        require(
            not any(side % divisor for side in size),
            f"config.data.image_size must be multiples of {divisor} for the U-Net of "
            f"{len(self.unet_channels)} levels; got {tuple(size)}.",
        )
        recogniser = GaitGL(self.num_classes, self.channels, self.halvings)
        recogniser.check_rows(self.silhouette_size[0])
        require(
            self.freeze_encoder
            or re.search(config.train.trainable, "unet/down1/conv1/kernel"),
            "config.model.freeze_encoder=False asks for a U-Net whose encoder learns, "
            f"but config.train.trainable={config.train.trainable!r} holds it still. "
            "Add --config.train.trainable= (empty: everything learns).",
        )

    def setup(self):
        self.unet = UNet(self.unet_channels, self.dtype)
        self.recogniser = GaitGL(
            self.num_classes, self.channels, self.halvings, dtype=self.dtype
        )

    def __call__(self, batch: dict[str, jax.Array], *, train: bool) -> GaitOutput:
        """Embed a batch of walks.

        Args:
          batch: frames uint8 [B T H W 3] (or float, already normalised) and masks 0/1
            [B T H W], registered, sides multiples of 8; ratios float32 [B T], width /
            height of the person crop, read if frames are not twice as high as wide
            (squashed crops); valid bool [B T], valid frames first.

        Returns:
          embeddings [B S D], logits [B S N], aux as of `warm_up` and silhouettes
          [B T *silhouette_size].
        """
        aux = self._segment(batch, train, self.freeze_encoder)
        mask = aux["mask_target"] > 0
        height, width = mask.shape[2:]
        ratios = batch["ratios"].astype(jnp.float32)
        if width == height * ASPECT:
            ratios = jnp.full_like(ratios, ASPECT)
        flat = mask.reshape(-1, height, width)  # [N H W]
        probability = aux["mask_probability"].reshape(flat.shape)
        if self.edge:
            person = flat
            probability = synthesise(probability, flat, self.kernel)
        else:
            person = probability > 0.5
        size = self.silhouette_size
        x = align(probability, person, ratios.reshape(-1), size)  # [N 64 44]
        x = x.reshape(mask.shape[:2] + x.shape[1:])  # [B T 64 44]
        output = self.recogniser(
            {"silhouettes": x, "valid": batch["valid"]}, train=train
        )
        return output._replace(aux=aux | {"silhouettes": x})

    def warm_up(self, batch: dict[str, jax.Array], *, train: bool = True) -> GaitOutput:
        """The segmentation alone: same batch, embeddings are empty [B 0 0].

        aux: mask_probability, mask_target float32 [B T H W].
        """
        aux = self._segment(batch, train, False)
        empty = jnp.zeros((batch["valid"].shape[0], 0, 0), jnp.float32)
        return GaitOutput(empty, None, aux)

    def _segment(self, batch, train, freeze_encoder):
        frames, valid = batch["frames"], batch["valid"]
        probability = self.unet(
            normalise_colours(frames.reshape((-1,) + frames.shape[2:])),
            train=train,
            valid=valid.reshape(-1),
            freeze_encoder=freeze_encoder,
        )
        return {
            "mask_probability": probability.reshape(frames.shape[:4]),
            "mask_target": (batch["masks"] > 0.5).astype(jnp.float32),
        }
