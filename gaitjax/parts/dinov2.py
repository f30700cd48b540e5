"""DINOv2 vision transformers (ViT-S/B/L/g, with and without registers).

Source: Oquab et al., "DINOv2: Learning Robust Visual Features without Supervision"
(arXiv 2304.07193); registers: Darcet et al., "Vision Transformers Need Registers"
(arXiv 2309.16588). Parameter names are those of transformers' FlaxDinov2Model, so its
`flax_model.msgpack` loads without renaming (see gaitjax/weights/encoders.py).

Positional interpolation. The released table is 37x37. Four rules are in use that map
it to another patch grid. They give different networks (up to 0.2 per entry on a trained
table), so the rule is a field:

| `position_interpolation` | used by | rule |
|---|---|---|
| "original" (default) | original repository without registers; BigGait | bicubic a=-0.75 by scale factor (n+0.1)/37, border clamped |
| "huggingface_torch" | transformers' Dinov2Model | bicubic a=-0.75 to the target size, border clamped |
| "registers" | original repository and transformers, register variants | bicubic a=-0.5 to the target size, antialiased, renormalised at the border |
| "huggingface_flax" | transformers' FlaxDinov2Model | Keys cubic a=-0.5 by scale factor (n+0.1)/37, renormalised at the border |

Under every rule a grid of the table's size is the table itself.

bfloat16 (`dtype`, float32 parameters): on one 448x224 image and full-rank random
weights of ViT-S/14, outputs differ from float32 by 0.7 % (block 2) to 0.9 % (block 11
and the final tokens) relative root mean square, 1 - cosine 4e-5 (on CPU).
"""  # noqa: E501

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array

from gaitjax.parts.transformer import (
    MLP,
    Dense,
    DenseParameters,
    Encoder,
    LayerNorm,
    PatchEmbedding,
    gelu,
    self_attention,
    with_vectors,
)

EPSILON = 1e-6  # of every LayerNorm

# released sizes: patch 14, positional table 37x37 (trained at 518x518)
DINOV2_SIZES = {
    "s": dict(hidden_size=384, num_layers=12, num_heads=6),
    "b": dict(hidden_size=768, num_layers=12, num_heads=12),
    "l": dict(hidden_size=1024, num_layers=24, num_heads=16),
    "g": dict(hidden_size=1536, num_layers=40, num_heads=24, swiglu=True),
}

# rule -> (cubic coefficient, offset added to the target size, antialias, border)
INTERPOLATIONS = {
    "original": (-0.75, 0.1, False, "clamp"),
    "huggingface_torch": (-0.75, 0.0, False, "clamp"),
    "registers": (-0.5, 0.0, True, "renormalise"),
    "huggingface_flax": (-0.5, 0.1, False, "renormalise"),
}


def interpolation_weights(size: int, target: int, rule: str) -> np.ndarray:
    """The matrix [target size] that resamples one axis of the positional table.

    Target i reads around source (i + 0.5) * size / (target + offset) - 0.5 with the
    cubic convolution kernel of Keys (1981); see INTERPOLATIONS.
    """
    a, offset, antialias, border = INTERPOLATIONS[rule]
    step = size / (target + offset)  # source positions per target position
    stretch = max(step, 1.0) if antialias else 1.0
    centre = (np.arange(target) + 0.5) * step - 0.5
    reach = int(np.ceil(2 * stretch)) + 1
    position = np.floor(centre)[:, None] + np.arange(-reach, reach + 1)[None, :]
    t = np.abs(position - centre[:, None]) / stretch
    near = ((a + 2) * t - (a + 3)) * t * t + 1
    far = ((a * t - 5 * a) * t + 8 * a) * t - 4 * a
    taps = np.where(t <= 1, near, np.where(t < 2, far, 0.0))  # [target reach]
    if border == "renormalise":
        taps = np.where((position >= 0) & (position < size), taps, 0.0)
    taps = taps / taps.sum(1, keepdims=True)
    columns = np.clip(position, 0, size - 1).astype(int)
    weights = np.zeros((target, size))
    np.add.at(weights, (np.arange(target)[:, None], columns), taps)
    return weights.astype(np.float32)


def interpolate_positions(table: Array, rows: int, columns: int, rule: str) -> Array:
    """A positional table [t t D] resampled to the patch grid [rows columns D]."""
    size = table.shape[0]
    if (rows, columns) == (size, size):
        return table
    down = jnp.asarray(interpolation_weights(size, rows, rule))
    across = jnp.asarray(interpolation_weights(size, columns, rule))
    resampled = jnp.einsum("rt,tsd->rsd", down, table, precision="highest")  # [h t D]
    return jnp.einsum("cs,rsd->rcd", across, resampled, precision="highest")  # [h w D]


class PatchProjection(nn.Module):
    """The scope `patch_embeddings` around the patch convolution."""

    features: int
    patch_size: int
    dtype: Any

    @nn.compact
    def __call__(self, images: Array) -> Array:
        return PatchEmbedding(
            self.features, self.patch_size, True, self.dtype, name="projection"
        )(images)


class Embeddings(nn.Module):
    """Class token, registers, patches with positions: [N H W 3] -> [N 1+R+h*w D]."""

    hidden_size: int
    patch_size: int
    table_size: int
    num_registers: int
    position_interpolation: str
    dtype: Any

    @nn.compact
    def __call__(self, images: Array) -> Array:
        width, side = self.hidden_size, self.table_size
        frames, height, image_width = images.shape[:3]
        normal = nn.initializers.normal(0.02)
        class_token = self.param("cls_token", normal, (1, 1, width))
        # only masked-image training reads it; kept so that the trees are equal
        self.param("mask_token", nn.initializers.zeros, (1, width))
        table = self.param("position_embeddings", normal, (1, 1 + side**2, width))
        project = PatchProjection(
            width, self.patch_size, self.dtype, name="patch_embeddings"
        )
        tokens = project(images)  # [N h*w D]
        positions = interpolate_positions(
            table[0, 1:].reshape(side, side, width),  # [t t D]
            height // self.patch_size,
            image_width // self.patch_size,
            self.position_interpolation,
        )
        positions = positions.reshape(1, -1, width)  # [1 h*w D]
        prefix = class_token + table[:, :1]  # [1 1 D]
        if self.num_registers:
            shape = (1, self.num_registers, width)
            registers = self.param("register_tokens", normal, shape)
            prefix = jnp.concatenate([prefix, registers], axis=1)  # [1 1+R D]
        prefix = jnp.broadcast_to(prefix, (frames, *prefix.shape[1:]))  # [N 1+R D]
        tokens = tokens + positions.astype(self.dtype)  # [N h*w D]
        return jnp.concatenate([prefix.astype(self.dtype), tokens], axis=1)


class Attention(nn.Module):
    """`attention/{query,key,value}` and `output/dense`: [N L D] -> [N L D]."""

    num_heads: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        projections = Projections(x.shape[-1], name="attention")()
        out = self_attention(x, projections, self.num_heads)
        return AttentionOutput(x.shape[-1], name="output")(out)


class Projections(nn.Module):
    """Kernel and bias of query, key and value."""

    width: int

    @nn.compact
    def __call__(self) -> list[tuple[Array, Array | None]]:
        return [
            DenseParameters(self.width, self.width, name=name)()
            for name in ("query", "key", "value")
        ]


class AttentionOutput(nn.Module):
    """The scope `output` around the projection `dense`."""

    width: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        return Dense(self.width, name="dense")(x)


class LayerScale(nn.Module):
    """x * lambda1 per channel (once: FlaxDinov2 also multiplies by the init value)."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        scale = self.param("lambda1", nn.initializers.ones, (x.shape[-1],))
        return x * scale.astype(x.dtype).reshape((1,) * (x.ndim - 1) + (-1,))


class SwiGLU(nn.Module):
    """weights_out(silu(x1) * x2), [x1 x2] = weights_in(x); hidden 2/3 of 4D, by 8s."""

    mlp_ratio: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        hidden = (int(x.shape[-1] * self.mlp_ratio * 2 / 3) + 7) // 8 * 8
        gate, up = jnp.split(Dense(2 * hidden, name="weights_in")(x), 2, axis=-1)
        return Dense(x.shape[-1], name="weights_out")(jax.nn.silu(gate) * up)


class Block(nn.Module):
    """Pre-norm attention and MLP, each with LayerScale: [N L D] -> [N L D]."""

    num_heads: int
    mlp_ratio: int
    swiglu: bool

    @nn.compact
    def __call__(self, x: Array) -> Array:
        attention = Attention(self.num_heads, name="attention")
        out = attention(LayerNorm(EPSILON, name="norm1")(x))
        x = x + LayerScale(name="layer_scale1")(out)
        if self.swiglu:
            mlp = SwiGLU(self.mlp_ratio, name="mlp")
        else:
            mlp = MLP(self.mlp_ratio * x.shape[-1], gelu, name="mlp")
        out = mlp(LayerNorm(EPSILON, name="norm2")(x))
        return x + LayerScale(name="layer_scale2")(out)


class DINOv2(nn.Module):
    """A DINOv2 encoder that returns patch tokens of any set of blocks.

    `DINOv2(**DINOV2_SIZES["s"])` is ViT-S/14. Any other size works too.

    Args (fields):
      table_size: side of the positional table (37 for every released weight).
      swiglu: SwiGLU instead of the GELU MLP (ViT-g).
      num_registers: register tokens between the class token and the patches (4 in the
        released variants, which also want `position_interpolation="registers"`).
      position_interpolation: see the module docstring.
      dtype: type of matmuls and residual stream; parameters stay float32.
      remat: recompute each block in the backward pass.
      frames_per_chunk: encode at most this many frames at a time (over all devices),
        one chunk after another, which bounds the memory; 0 = all at once. Frames stay
        sharded; a multiple of the number of devices needs no communication.
    """

    hidden_size: int
    num_layers: int
    num_heads: int
    patch_size: int = 14
    table_size: int = 37
    mlp_ratio: int = 4
    swiglu: bool = False
    num_registers: int = 0
    position_interpolation: str = "original"
    dtype: Any = jnp.float32
    remat: bool = False
    frames_per_chunk: int = 0

    def __call__(
        self,
        images: Array,
        blocks: Sequence[int] = (),
        prompts: Array | None = None,
    ) -> tuple[Array, tuple[Array, ...]]:
        """Encodes images that are already normalised (ImageNet mean and std).

        Args:
          images: float [N H W 3]. Rows and columns beyond the last whole patch are
            left out, as in transformers' Dinov2Model.
          blocks: 0-based ids of the blocks whose outputs are wanted.
          prompts: [k D], learned vectors beside the class token.

        Returns:
          (tokens after the final LayerNorm, block outputs in the order of `blocks`),
          each [N 1+R+k+h*w D] in `dtype`: class token, registers, prompts, patches row
          by row.
        """
        blocks = tuple(blocks)
        frames = images.shape[0]
        if not self.frames_per_chunk or frames <= self.frames_per_chunk:
            return self.encode(images, blocks, prompts)
        if self.is_initializing():
            return self.encode(images[:1], blocks, prompts)
        parameters = {"params": self.variables["params"]}
        whole = self.clone(frames_per_chunk=0, parent=None)
        chunks = -(-frames // self.frames_per_chunk)
        size = -(-frames // chunks)
        padding = [(0, chunks * size - frames)] + [(0, 0)] * (images.ndim - 1)
        images = jnp.pad(images, padding)
        # frame = position * chunks + chunk: positions stay sharded, chunks are a loop
        images = images.reshape(size, chunks, *images.shape[1:])  # [size chunks H W 3]
        images = jnp.swapaxes(images, 0, 1)  # [chunks size H W 3]
        outputs = jax.lax.map(
            lambda chunk: whole.apply(parameters, chunk, blocks, prompts), images
        )
        return jax.tree.map(
            lambda x: jnp.swapaxes(x, 0, 1).reshape(-1, *x.shape[2:])[:frames], outputs
        )  # each [N L D]

    @nn.compact
    def encode(
        self, images: Array, blocks: tuple[int, ...], prompts: Array | None = None
    ) -> tuple[Array, tuple[Array, ...]]:
        """`__call__` on all frames at once."""
        embeddings = Embeddings(
            self.hidden_size,
            self.patch_size,
            self.table_size,
            self.num_registers,
            self.position_interpolation,
            self.dtype,
            name="embeddings",
        )
        block = partial(
            nn.remat(Block) if self.remat else Block,
            self.num_heads,
            self.mlp_ratio,
            self.swiglu,
        )
        encoder = Encoder(block, self.num_layers, "layer", name="encoder")
        x = with_vectors(embeddings(images), prompts, start=1 + self.num_registers)
        tokens, outputs = encoder(x, keep=blocks)  # [N L D]
        tokens = LayerNorm(EPSILON, name="layernorm")(tokens)
        return tokens, tuple(outputs[index] for index in blocks)
