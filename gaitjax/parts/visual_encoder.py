"""The image encoders that a model may name, and how they read a frame."""

from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from gaitjax.engine.fields import Natural, Positive, Some
from gaitjax.engine.guards import require
from gaitjax.parts.clip_image import CLIP_IMAGE_MEAN, CLIP_IMAGE_STD, CLIPImage
from gaitjax.parts.dinov2 import DINOv2
from gaitjax.parts.layers import COLOUR_MEAN, COLOUR_STD
from gaitjax.parts.model import check_patches

IMAGENET = (COLOUR_MEAN, COLOUR_STD)
# kind of visual encoder -> its module, and the mean and standard deviation of the
# colours (0 to 255) that it was trained with. The kinds of DINOv2 differ in how they
# resize the positional table (parts/dinov2.py)
VISUAL_ENCODERS = {
    # as in the original repository and in BigGait
    "dinov2": (DINOv2, *IMAGENET),
    # as in transformers
    "dinov2_huggingface": (
        partial(DINOv2, position_interpolation="huggingface_torch"),
        *IMAGENET,
    ),
    "dinov2_registers": (
        partial(DINOv2, num_registers=4, position_interpolation="registers"),
        *IMAGENET,
    ),
    "dinov2_giant": (partial(DINOv2, swiglu=True), *IMAGENET),
    # LMGait, Table 7
    "clip_image": (CLIPImage, CLIP_IMAGE_MEAN, CLIP_IMAGE_STD),
}


class VisualEncoder(NamedTuple):
    """The image encoder. The defaults are DINOv2 ViT-S/14, as published."""

    kind: Literal[*VISUAL_ENCODERS] = "dinov2"  # pyright: ignore
    hidden_size: Positive = 384
    num_layers: Positive = 12
    num_heads: Positive = 6
    patch_size: Positive = 14
    table_size: Positive = 37  # side of the positional table
    blocks: Some[Natural] = (2, 5, 8, 11)  # whose outputs are the middle features
    frozen: bool = True  # no gradient into it, except in the decoder's warm-up
    frames_per_chunk: Natural = 0  # that it sees at once; 0: all frames of a batch
    remat: bool = False  # compute its blocks again in the backward pass
    # image_size need be no multiple of patch_size: rows and columns beyond the last
    # whole patch are not seen
    cut_to_patches: bool = False


def check_encoder(options: VisualEncoder, image_size: tuple[int, int]) -> None:
    """Raises ValueError for options that do not fit each other or the images."""
    patches = options.patch_size, options.cut_to_patches
    check_patches(image_size, *patches, "visual_encoder.")
    require(
        max(options.blocks) < options.num_layers,
        f"config.model.visual_encoder.blocks {options.blocks} must lie below "
        f"config.model.visual_encoder.num_layers {options.num_layers}.",
    )
    check_heads("visual_encoder.hidden_size", options.hidden_size, options.num_heads)


def check_heads(field: str, width: int, heads: int) -> None:
    """The heads of attention must divide its width, config.model.`field`."""
    require(
        width % heads == 0,
        f"config.model.{field} {width} is not a multiple of {heads} heads.",
    )


def visual_encoder(options: VisualEncoder, dtype: str, initializing: bool) -> nn.Module:
    """The encoder that the options describe."""
    return VISUAL_ENCODERS[options.kind][0](
        hidden_size=options.hidden_size,
        num_layers=options.num_layers,
        num_heads=options.num_heads,
        patch_size=options.patch_size,
        table_size=options.table_size,
        remat=options.remat,
        # a loop over chunks would only slow down the tracing of init
        frames_per_chunk=0 if initializing else options.frames_per_chunk,
        dtype=dtype,
    )


def normalised(frames: jax.Array, kind: str) -> jax.Array:
    """uint8 [N H W 3] -> float32 with the colours that the encoder was trained with."""
    _, mean, std = VISUAL_ENCODERS[kind]
    mean, std = jnp.asarray([mean, std]).reshape(2, 1, 1, 1, 3)
    return (frames.astype(jnp.float32) - mean) / std
