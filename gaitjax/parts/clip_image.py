"""CLIP's image transformer, as a source of patch tokens (LMGait, Table 7).

Source: Radford et al., "Learning Transferable Visual Models From Natural Language
Supervision" (arXiv 2103.00020). Parameter names are those of transformers'
FlaxCLIPVisionModel.

Differences from the paper: images need not be square, the positional table is resized
to their patch grid (bicubic to the target size, as transformers does); the final
LayerNorm, which CLIP gives its class token only, is applied to every token.

bfloat16 (`dtype`, float32 parameters): with full-rank random weights of ViT-B/16 at
448x224, tokens differ from float32 by 0.9 % relative root mean square, 1 - cosine 4e-5
(on CPU).
"""

from functools import partial

import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from gaitjax.parts.clip_text import Table
from gaitjax.parts.dinov2 import DINOv2, interpolate_positions
from gaitjax.parts.transformer import (
    CLIPBlock,
    Encoder,
    LayerNorm,
    PatchEmbedding,
    with_vectors,
)

# mean and deviation of colours of the published towers, on the 0..255 scale
CLIP_IMAGE_MEAN = (122.7709383, 116.7460125, 104.09373615)
CLIP_IMAGE_STD = (68.5005327, 66.6321579, 70.32316305)
CLIP_IMAGE_SIZES = {
    "b32": dict(
        hidden_size=768, num_layers=12, num_heads=12, patch_size=32, table_size=7
    ),
    "b16": dict(
        hidden_size=768, num_layers=12, num_heads=12, patch_size=16, table_size=14
    ),
    "l14": dict(
        hidden_size=1024, num_layers=24, num_heads=16, patch_size=14, table_size=16
    ),
}


class ImageEmbeddings(nn.Module):
    """Class token and patches with positions: [N H W 3] -> [N 1+h*w D]."""

    width: int
    patch_size: int
    table_size: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, images: Array) -> Array:
        frames, height, across, _ = images.shape
        side, patch = self.table_size, self.patch_size
        token = self.param(
            "class_embedding", nn.initializers.normal(0.02), (self.width,)
        )
        table = Table(1 + side**2, self.width, name="position_embedding")()
        tokens = PatchEmbedding(
            self.width, patch, False, self.dtype, name="patch_embedding"
        )(images)  # [N h*w D]
        positions = interpolate_positions(
            table[1:].reshape(side, side, -1),  # [t t D]
            height // patch,
            across // patch,
            "huggingface_torch",
        ).reshape(1, -1, self.width)  # [1 h*w D]
        first = (token + table[0]).reshape(1, 1, -1)  # [1 1 D]
        first = jnp.broadcast_to(first, (frames, 1, self.width)).astype(self.dtype)
        return jnp.concatenate([first, tokens + positions.astype(self.dtype)], axis=1)


class VisionModel(nn.Module):
    """The scope `vision_model`; returns (final tokens, {block: its output})."""

    width: int
    num_layers: int
    num_heads: int
    patch_size: int
    table_size: int
    remat: bool
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, images: Array, blocks: tuple[int, ...], prompts: Array | None):
        x = ImageEmbeddings(
            self.width, self.patch_size, self.table_size, self.dtype, name="embeddings"
        )(images)
        x = LayerNorm(1e-5, name="pre_layrnorm")(x)  # [N 1+h*w D]
        x = with_vectors(x, prompts, start=1)
        block = nn.remat(CLIPBlock) if self.remat else CLIPBlock
        block = partial(block, self.num_heads, False)
        encoder = Encoder(block, self.num_layers, "layers", name="encoder")
        x, outputs = encoder(x, keep=blocks)
        return LayerNorm(1e-5, name="post_layernorm")(x), outputs


class CLIPImage(DINOv2):
    """CLIP's image tower behind DINOv2's call: same arguments, results and chunks.

    `CLIPImage(**CLIP_IMAGE_SIZES["b16"])` is that of ViT-B/16. It uses DINOv2's sizes,
    `remat`, `frames_per_chunk` and `dtype`, and ignores its other fields.
    """

    @nn.compact
    def encode(
        self, images: Array, blocks: tuple[int, ...], prompts: Array | None = None
    ):
        """`__call__` on all frames at once."""
        tokens, outputs = VisionModel(
            self.hidden_size,
            self.num_layers,
            self.num_heads,
            self.patch_size,
            self.table_size,
            self.remat,
            self.dtype,
            name="vision_model",
        )(images, blocks, prompts)
        return tokens, tuple(outputs[index] for index in blocks)
