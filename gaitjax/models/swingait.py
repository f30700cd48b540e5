"""SwinGait-3D: convolutional stages, then a video Swin transformer.

Papers: Fan et al., "Exploring Deep Models for Practical Gait Recognition" (2023),
section 4.3; Liu et al., "Video Swin Transformer" (CVPR 2022), section 3.
"""

import math
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from gaitjax.engine.fields import Between, Positive
from gaitjax.engine.guards import require
from gaitjax.parts.heads import (
    SeparateBNNeck,
    SeparateDense,
    choose_embedding,
    horizontal_pool,
)
from gaitjax.parts.layers import (
    fold_frames,
    image_sequence,
    mask_frames,
    resize_bilinear,
    set_pool,
)
from gaitjax.parts.model import Dtype, FourStages, GaitModel, Retrieve
from gaitjax.parts.output import GaitOutput
from gaitjax.parts.resnet import Stage, Stem
from gaitjax.parts.transformer import LayerNorm, PatchEmbedding, dense, gelu

EPSILON = 1e-5  # of every LayerNorm
PATCH = 2
Pair = tuple[Positive, Positive]
Size = tuple[Positive, Positive, Positive]


class Linear(nn.Module):
    """Dense layer initialised with a truncated normal of 0.02: [... I] -> [... O]."""

    features: int
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.param(
            "kernel",
            nn.initializers.truncated_normal(0.02),
            (x.shape[-1], self.features),
        )
        if not self.use_bias:
            return dense(x, kernel)
        return dense(
            x, kernel, self.param("bias", nn.initializers.zeros, (self.features,))
        )


def relative_positions(window: Size, used: Size) -> np.ndarray:
    """int [N N]: row of the bias table of `window` for each pair of tokens.

    used: the size of the window, which is smaller than `window` on a smaller map.
    """
    spans = [2 * size - 1 for size in window]
    axes = np.meshgrid(*(np.arange(size) for size in used), indexing="ij")
    place = np.stack([axis.reshape(-1) for axis in axes])  # [3 N]
    offset = place[:, :, None] - place[:, None, :]  # [3 N N]
    offset += np.asarray(window).reshape(3, 1, 1) - 1
    return (offset[0] * spans[1] + offset[1]) * spans[2] + offset[2]


def same_region(size: int, window: int, shift: int) -> np.ndarray:
    """bool [windows window window]: which pairs along one axis may attend to each other
    after a cyclic shift of a map of length `size`, a multiple of `window`."""
    region = np.zeros(size, int)
    if shift:
        region[size - window : size - shift] = 1
        region[size - shift :] = 2
    region = region.reshape(-1, window)
    return region[:, :, None] == region[:, None, :]


class WindowAttention(nn.Module):
    """Multi-head attention within windows with a learnable bias per relative position.

    Args of the call:
      x: [M N C], M windows of N = prod(used) tokens.
      allowed: bool, broadcasts against [M N N]; which tokens each one may see.
      used: the size of these windows, at most `window`.
    """

    window: Size
    heads: int

    @nn.compact
    def __call__(self, x: jax.Array, allowed: jax.Array, used: Size) -> jax.Array:
        count, tokens, channels = x.shape
        rows = math.prod(2 * size - 1 for size in self.window)
        table = self.param(
            "relative_position_bias_table",
            nn.initializers.truncated_normal(0.02),
            (rows, self.heads),
        )
        bias = table[relative_positions(self.window, used)]  # [N N heads]
        x = Linear(3 * channels, name="qkv")(x)
        x = x.reshape(count, tokens, 3, self.heads, -1)  # [M N 3 heads d]
        query, key, value = x[:, :, 0], x[:, :, 1], x[:, :, 2]
        query = query * query.shape[-1] ** -0.5
        scores = jnp.einsum("mnhd,mkhd->mhnk", query, key).astype(jnp.float32)
        scores = scores + jnp.moveaxis(bias, -1, 0)[None]
        scores = jnp.where(allowed[:, None], scores, jnp.finfo(jnp.float32).min)
        weights = nn.softmax(scores, axis=-1).astype(value.dtype)
        x = jnp.einsum("mhnk,mkhd->mnhd", weights, value)
        return Linear(channels, name="proj")(x.reshape(count, tokens, channels))


class SwinBlock(nn.Module):
    """Pre-norm window attention and MLP.

    shift: tokens by which the windows move along (time, height, width), on the axes
    that are longer than their window. As in Video Swin, a sequence is padded with zeros
    up to a whole number of windows, and not at all if it fits in one. Time is shifted
    by padding at its start instead of cyclically, so that a sequence gives the same
    result in a batch of any length.
    """

    window: Size
    shift: Size
    heads: int
    drop_path: float = 0.0

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, valid: jax.Array) -> jax.Array:
        """x [B T H W C], valid bool [B T] with valid frames first -> [B T H W C]."""
        y = LayerNorm(EPSILON, name="norm1")(x)
        y = self._attend(mask_frames(y, valid), valid)
        x = x + self._drop(y, train)
        y = LayerNorm(EPSILON, name="norm2")(x)
        y = gelu(Linear(4 * x.shape[-1], name="fc1")(y))
        return x + self._drop(Linear(x.shape[-1], name="fc2")(y), train)

    def _attend(self, x, valid):
        batch, frames, *space, channels = x.shape
        span = self.window[0]
        # time: after `start` empty places, a whole number of windows
        lengths = jnp.sum(valid, axis=1)  # [B]
        long = lengths > span
        front = span - self.shift[0] if self.shift[0] and frames > span else 0
        total = -(-(front + frames) // span) * span  # places F
        start = jnp.where(long, front, 0)  # [B]

        def place(first):
            last = total - first - frames
            return jnp.pad(x, ((0, 0), (first, last), (0, 0), (0, 0), (0, 0)))

        moved = long.reshape(-1, 1, 1, 1, 1)
        x = jnp.where(moved, place(front), place(0)) if front else place(0)
        time = jnp.arange(total)[None] - start[:, None]  # [B F]
        end = jnp.where(long, -(-lengths // span) * span, lengths)  # [B]
        present = (time >= 0) & (time < end[:, None])  # [B F]
        # space: zeros up to a whole number of windows, cyclic shift
        window = (span, *(min(w, size) for w, size in zip(self.window[1:], space)))
        padded = [-(-size // w) * w for size, w in zip(space, window[1:])]
        shift = [
            s if size > w else 0
            for s, size, w in zip(self.shift[1:], space, self.window[1:])
        ]
        margin = [(0, p - size) for p, size in zip(padded, space)]
        x = jnp.pad(x, ((0, 0), (0, 0), *margin, (0, 0)))
        x = jnp.roll(x, [-s for s in shift], axis=(2, 3))
        # windows
        grid = (total // span, padded[0] // window[1], padded[1] // window[2])
        split = (batch, grid[0], span, grid[1], window[1], grid[2], window[2], channels)
        x = x.reshape(split).transpose(0, 1, 3, 5, 2, 4, 6, 7)  # [B t h w wt wh ww C]
        arranged = x.shape
        x = x.reshape(-1, math.prod(window), channels)  # [M N C]
        x = WindowAttention(self.window, self.heads, name="attn")(
            x, self._allowed(present, padded, window, shift, grid), window
        )
        # and back
        x = x.reshape(arranged).transpose(0, 1, 4, 2, 5, 3, 6, 7)
        x = x.reshape(batch, total, *padded, channels)
        x = jnp.roll(x, shift, axis=(2, 3))[:, :, : space[0], : space[1]]
        plain = x[:, :frames]
        if not front:
            return plain
        return jnp.where(moved, x[:, front : front + frames], plain)

    def _allowed(self, present, padded, window, shift, grid):
        """bool [M N N]: the key is present and in the same region as the query."""
        rows, columns = (
            jnp.asarray(same_region(size, w, s))
            for size, w, s in zip(padded, window[1:], shift)
        )
        space = (
            rows[:, None, :, None, :, None] & columns[None, :, None, :, None, :]
        )  # [h w wh ww wh ww]
        spots = window[1] * window[2]
        space = space.reshape(1, 1, grid[1], grid[2], 1, spots, 1, spots)
        keys = present.reshape(present.shape[0], grid[0], 1, 1, 1, 1, window[0], 1)
        shape = (present.shape[0], *grid, window[0], spots, window[0], spots)
        allowed = jnp.broadcast_to(space & keys, shape)
        tokens = math.prod(window)
        return allowed.reshape(-1, tokens, tokens)

    def _drop(self, y, train):
        """Stochastic depth: a whole sequence's update is left out in training."""
        if not train or self.drop_path == 0:
            return y
        keep = 1 - self.drop_path
        kept = jax.random.bernoulli(self.make_rng("dropout"), keep, (y.shape[0],))
        return jnp.where(kept.reshape(-1, 1, 1, 1, 1), y / keep, 0)


class SwinGait(GaitModel):
    """DeepGaitV2's stages 0 to 2 -> two Swin stages -> strips -> BN neck.

    Differences from the paper: the neck sees the last strip twice, as in the published
    weights, so that those of DeepGaitV2's 16-strip head can be loaded. Frames must be
    consecutive and in order.
    """

    reads = ("silhouettes",)
    channels: Pair = (64, 128)  # of stem and stage 1; of stage 2 (P3D, stride 2)
    # blocks of stages 1 and 2 and of the two Swin stages; CCPG, SUSTech1K: (1, 1, 2, 2)
    layers: FourStages = (1, 4, 4, 2)
    widths: Pair = (256, 512)  # of the Swin stages
    heads: Pair = (16, 32)  # attention heads of the Swin stages
    window: Size = (3, 3, 5)  # tokens along time, height, width; odd blocks shift it
    # maps are resized to 2 x 2 pixels per token; the rows of tokens are the strips
    token_grid: Pair = (15, 10)
    drop_path: Annotated[float, Between(0, 0.9)] = (
        0.1  # stochastic depth of the last block, rising from 0
    )
    embedding_size: Positive = 256
    retrieve: Retrieve = "before_neck"
    dtype: Dtype = "float32"

    @nn.nowrap
    def check(self, config) -> None:
        require(
            not any(width % heads for width, heads in zip(self.widths, self.heads)),
            f"config.model.widths must be multiples of config.model.heads, "
            f"{self.heads}; got {self.widths}.",
        )

    @nn.compact
    def __call__(self, batch: dict[str, jax.Array], *, train: bool) -> GaitOutput:
        """batch: silhouettes [B T H W], valid bool [B T] with valid frames first.

        Returns embeddings [B S D], logits [B S N], S = token_grid[0]. aux is empty.
        Training uses the rng "dropout".
        """
        valid = batch["valid"]
        x = image_sequence(batch, "silhouettes")  # [B T H W 1]
        x = Stem(self.channels[0], self.dtype, name="stem")(x, train=train, valid=valid)
        for index, (kind, stride) in enumerate((("2d", 1), ("p3d", 2))):
            x = Stage(
                kind,
                self.channels[index],
                self.layers[index],
                stride,
                self.dtype,
                name=f"stage{index + 1}",
            )(x, train=train, valid=valid)  # [B T h w C]
        x = self._tokens(x)  # [B T h w 256]
        x = self._transform(x, train, valid)  # [B T h w 512]
        strips = horizontal_pool(
            set_pool(x, valid).astype(jnp.float32), self.token_grid[0]
        )  # [B S 512]
        last = jax.lax.stop_gradient(strips[:, -1:])
        strips = jnp.concatenate([strips, last], axis=1)  # [B S+1 512]
        before = SeparateDense(self.embedding_size, name="dense")(strips)
        after, logits = SeparateBNNeck(self.num_classes, name="neck")(
            before, train=train, valid=jnp.any(valid, axis=1)
        )
        embeddings = choose_embedding(before, after, self.retrieve, train)
        return GaitOutput(embeddings[:, :-1], logits[:, :-1], {})

    def _tokens(self, x):
        """Maps [B T h w C] -> tokens [B T *token_grid widths[0]]."""
        leading, grid = x.shape[:2], self.token_grid
        size = (PATCH * grid[0], PATCH * grid[1])
        x = resize_bilinear(fold_frames(x), size, align_corners=True)
        x = PatchEmbedding(self.widths[0], PATCH, True, self.dtype, name="patches")(x)
        x = LayerNorm(EPSILON, name="patches_norm")(x)
        return x.reshape(*leading, *grid, -1)

    def _transform(self, x, train, valid):
        depths = self.layers[2:]
        rates = np.linspace(0, self.drop_path, sum(depths))
        shift = tuple(size // 2 for size in self.window)
        block = 0
        for stage, (depth, width, heads) in enumerate(
            zip(depths, self.widths, self.heads)
        ):
            if stage > 0:
                x = LayerNorm(EPSILON, name=f"widen{stage}_norm")(x)
                x = Linear(width, use_bias=False, name=f"widen{stage}")(x)
            for index in range(depth):
                x = SwinBlock(
                    self.window,
                    shift if index % 2 else (0, 0, 0),
                    heads,
                    float(rates[block]),
                    name=f"swin{stage}_block{index}",
                )(x, train=train, valid=valid)
                block += 1
        return LayerNorm(EPSILON, name="norm")(x)
