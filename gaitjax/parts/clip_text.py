"""CLIP's text transformer, with a hook after each block.

Source: Radford et al., "Learning Transferable Visual Models From Natural Language
Supervision" (arXiv 2103.00020), section 2.4. Parameter names are those of
transformers' FlaxCLIPTextModel, so its weights load without renaming.

Differences from the paper: `positions="sinusoidal"` (LMGait, eq. 3) replaces CLIP's
learned table; the published weights were trained with the learned one.

bfloat16 (`dtype`, float32 parameters): with full-rank random weights of the B/16 tower,
tokens and end-of-text token of the shipped prompts differ from float32 by 1.0 %
relative root mean square, 1 - cosine 5e-5 (on CPU).
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array

from gaitjax.parts.transformer import (
    CLIPBlock,
    Dense,
    Encoder,
    LayerNorm,
    with_vectors,
)

# text towers of the released CLIP models
CLIP_TEXT_SIZES = {
    "b32": dict(width=512, num_layers=12, num_heads=8),
    "b16": dict(width=512, num_layers=12, num_heads=8),
    "l14": dict(width=768, num_layers=12, num_heads=12),
}


def sinusoidal_positions(length: int, width: int) -> np.ndarray:
    """LMGait eq. 3: [length width], sine at even and cosine at odd channels."""
    rate = 10000.0 ** (-np.arange(0, width, 2) / width)
    angle = np.arange(length)[:, None] * rate[None, :]  # [L D/2]
    table = np.stack([np.sin(angle), np.cos(angle)], axis=-1)  # [L D/2 2]
    return table.reshape(length, -1)[:, :width].astype(np.float32)  # [L D]


def end_position(token_ids: Array, end_token: int | None) -> Array:
    """Where a prompt's end-of-text token is: int [P] for ids int [P L].

    end_token None: OpenAI's rule, the first position of the largest id, which is right
    for both paddings in use (0 and 49407). An id: transformers' newer rule, the first
    position of that id.
    """
    if end_token is None:
        return jnp.argmax(token_ids, axis=-1)
    return jnp.argmax(token_ids == end_token, axis=-1)


class Table(nn.Module):
    """An embedding table, parameter `embedding` [rows D]."""

    rows: int
    features: int

    @nn.compact
    def __call__(self) -> Array:
        shape = (self.rows, self.features)
        return self.param("embedding", nn.initializers.normal(0.02), shape)


class TextEmbeddings(nn.Module):
    """Token plus position embedding: int [P L] -> [P L D], or [P L+k D] with vectors
    [k D], which stand after the start token."""

    width: int
    vocabulary_size: int
    context_length: int
    positions: str
    dtype: Any

    @nn.compact
    def __call__(self, token_ids: Array, vectors: Array | None) -> Array:
        table = Table(self.vocabulary_size, self.width, name="token_embedding")()
        tokens = with_vectors(table[token_ids], vectors, start=1)  # [P L+k D]
        if self.positions == "learned":
            table = Table(self.context_length, self.width, name="position_embedding")()
        else:
            table = jnp.asarray(sinusoidal_positions(self.context_length, self.width))
        return (tokens + table[None, : tokens.shape[1]]).astype(self.dtype)


class TextModel(nn.Module):
    """The scope `text_model`: int [P L] -> [P L D] after the final LayerNorm."""

    width: int
    num_layers: int
    num_heads: int
    vocabulary_size: int
    context_length: int
    positions: str
    dtype: Any

    @nn.compact
    def __call__(
        self,
        token_ids: Array,
        valid: Array | None,
        after_block: Callable[[int, Array], Array] | None,
        vectors: Array | None,
    ) -> Array:
        embeddings = TextEmbeddings(
            self.width,
            self.vocabulary_size,
            self.context_length,
            self.positions,
            self.dtype,
            name="embeddings",
        )
        block = partial(CLIPBlock, self.num_heads, True)
        encoder = Encoder(block, self.num_layers, "layers", name="encoder")
        x = embeddings(token_ids, vectors)
        x, _ = encoder(x, valid, after_block=after_block)  # [P L D]
        return LayerNorm(1e-5, name="final_layer_norm")(x)


class CLIPText(nn.Module):
    """CLIP's text tower. `CLIPText(**CLIP_TEXT_SIZES["b16"])` is that of ViT-B/16.

    Args (fields):
      positions: "learned" (CLIP) or "sinusoidal" (LMGait eq. 3; no position table).
      projection_size: features of `text_projection` on the pooled token (512 or 768 in
        the released models); 0 = none, the pooled token stays as it is.
      end_token: see `end_position`.
      dtype: type of matmuls and residual stream; parameters stay float32.
    """

    width: int
    num_layers: int
    num_heads: int
    vocabulary_size: int = 49408
    context_length: int = 77
    positions: str = "learned"
    projection_size: int = 0
    end_token: int | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        token_ids: Array,
        after_block: Callable[[int, Array], Array] | None = None,
        valid: Array | None = None,
        vectors: Array | None = None,
    ) -> tuple[Array, Array]:
        """Encodes prompts under a causal mask.

        Args:
          token_ids: int [P L], L <= context_length, with start and end token.
          after_block: called as `after_block(i, x [P L D]) -> [P L D]` after block i
            (0-based); its result feeds the next block. It runs inside this module's
            scopes, so modules it uses must exist before (in the caller's `setup`, or
            constructed and bound before the call).
          valid: bool [P L], tokens that may be attended; None means all (with the
            causal mask, padding after the end token changes nothing before it).
          vectors: [k D], learned vectors between the start token and the words; L is
            then L + k below and must not exceed context_length, `valid` must be None.

        Returns:
          (tokens after the final LayerNorm [P L D], end-of-text token [P D], projected
          to [P projection_size] if that is set), in `dtype`.
        """
        text_model = TextModel(
            self.width,
            self.num_layers,
            self.num_heads,
            self.vocabulary_size,
            self.context_length,
            self.positions,
            self.dtype,
            name="text_model",
        )
        tokens = text_model(token_ids, valid, after_block, vectors)
        end = end_position(token_ids, self.end_token)  # [P]
        end = end + tokens.shape[1] - token_ids.shape[1]
        pooled = jnp.take_along_axis(tokens, end[:, None, None], axis=1)[:, 0]  # [P D]
        if self.projection_size:
            projection = Dense(self.projection_size, False, name="text_projection")
            pooled = projection(pooled)  # [P projection_size]
        return tokens, pooled
