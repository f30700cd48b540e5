"""Parts of the pre-norm vision and text transformers: attention, MLP, block stack.

Numerics: parameters are float32; `dtype` is the type of matmuls and of the residual
stream; LayerNorm statistics and the softmax are float32 whatever `dtype` is.

Speed: on CPU, XLA is fastest with 2-D matmuls, explicit [B H N d] operands and one
matmul for query, key and value, and it uses a processor's bfloat16 units only for
products whose result is float32 (`result_type`). On GPU and TPU
`jax.nn.dot_product_attention` never writes the [N N] scores (on GPU, in half precision,
it is cuDNN's flash attention). Both agree (tests/parts); `attend` chooses by backend.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from gaitjax.parts import backend

HALF = (jnp.dtype(jnp.bfloat16), jnp.dtype(jnp.float16))
# Bytes of attention scores that are computed at once on CPU: CACHE, or MOST where those
# of a head are at most SMALL (a loop over heads of 129 tokens takes twice as long)
CACHE, SMALL, MOST = 2**22, 2**17, 2**28
UNKNOWN_BATCH = 64  # what a symbolic batch (of an export) counts as there


def quick_gelu(x: Array) -> Array:
    """x * sigmoid(1.702 x), CLIP's approximation of GELU; computed in float32."""
    wide = x.astype(jnp.float32)
    return (wide * jax.nn.sigmoid(1.702 * wide)).astype(x.dtype)


def gelu(x: Array) -> Array:
    """Exact GELU, x * Phi(x), computed in float32; any shape.

    Through erf, as PyTorch; `jax.nn.gelu` goes through erfc, which takes twice as long.
    """
    wide = x.astype(jnp.float32)
    return (0.5 * wide * (1 + jax.lax.erf(wide * 0.5**0.5))).astype(x.dtype)


def result_type(dtype: Any) -> Any:
    """Result type of a product of `dtype`, which is then rounded to `dtype`.

    On CPU float32: only then XLA uses the processor's bfloat16 units (AMX: six times as
    fast) instead of converting the factors to float32. None elsewhere.
    """
    half = jnp.dtype(dtype) in HALF
    return jnp.float32 if half and backend.current().platform == "cpu" else None


def dense(x: Array, kernel: Array, bias: Array | None = None) -> Array:
    """x [... I] times kernel [I O] plus bias [O] in the type of x, one 2-D matmul."""
    rows = x.reshape(-1, x.shape[-1])  # [R I]
    out = jnp.matmul(
        rows, kernel.astype(x.dtype), preferred_element_type=result_type(x.dtype)
    )  # [R O]
    if bias is not None:
        out = out + bias.astype(out.dtype)[None, :]
    return out.astype(x.dtype).reshape(*x.shape[:-1], kernel.shape[-1])  # [... O]


class DenseParameters(nn.Module):
    """Kernel [I O] and bias [O] of a Dense layer, so that several can be one matmul."""

    inputs: int
    features: int
    use_bias: bool = True

    @nn.compact
    def __call__(self) -> tuple[Array, Array | None]:
        kernel = self.param(
            "kernel", nn.initializers.lecun_normal(), (self.inputs, self.features)
        )
        if not self.use_bias:
            return kernel, None
        return kernel, self.param("bias", nn.initializers.zeros, (self.features,))


class Dense(nn.Module):
    """[... I] -> [... O] in the type of the input, parameters `kernel` and `bias`."""

    features: int
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: Array) -> Array:
        inputs = x.shape[-1]
        kernel = self.param(
            "kernel", nn.initializers.lecun_normal(), (inputs, self.features)
        )
        bias = None
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,))
        return dense(x, kernel, bias)


class LayerNorm(nn.Module):
    """LayerNorm over the last axis; float32 two-pass statistics, typed as the input."""

    epsilon: float

    @nn.compact
    def __call__(self, x: Array) -> Array:
        norm = nn.LayerNorm(
            epsilon=self.epsilon, use_fast_variance=False, dtype=x.dtype
        )
        nn.share_scope(self, norm)
        return norm(x)


def attention_formulation(dtype: Any, head_size: int, masked: bool) -> str:
    """What `attend` uses on this backend: "explicit", "xla" or "cudnn"."""
    traced_for = backend.current()
    if traced_for.platform == "cpu":
        return "explicit"
    # cuDNN's flash attention accepts these; with a mask it needs even lengths
    half = jnp.dtype(dtype) in HALF
    fits = half and head_size % 8 == 0 and head_size <= 128 and not masked
    return "cudnn" if traced_for.flash_attention and fits else "xla"


def attend(
    query: Array,
    key: Array,
    value: Array,
    *,
    causal: bool = False,
    valid: Array | None = None,
    formulation: str | None = None,
) -> Array:
    """Scaled dot-product attention.

    Args:
      query, key, value: [B N H d].
      causal: position i sees positions <= i only.
      valid: bool [B N], keys that may be seen; None means all.
      formulation: "explicit", "xla" or "cudnn"; None chooses by backend.

    Returns:
      [B N H d] in the type of `query`.
    """
    length, head_size = query.shape[1], query.shape[-1]
    if formulation is None:
        masked = valid is not None
        formulation = attention_formulation(query.dtype, head_size, masked)
    mask = None if valid is None else valid[:, None, None, :]  # [B 1 1 N]
    if formulation != "explicit":
        return jax.nn.dot_product_attention(
            query, key, value, mask=mask, is_causal=causal, implementation=formulation
        )
    heads = [
        jnp.transpose(x, (0, 2, 1, 3))  # [B H N d]
        for x in (query * head_size**-0.5, key, value)
    ]
    if valid is None:
        seen = jnp.ones((1, 1, length), bool) if causal else None
    else:
        seen = valid[:, None, :]  # [B 1 N]
    batch, num_heads = heads[0].shape[:2]
    rows = (batch if isinstance(batch, int) else UNKNOWN_BATCH) * num_heads
    limit = MOST if 4 * length**2 <= SMALL else CACHE
    if jax.device_count() > 1 or 4 * rows * length**2 <= limit:
        out = softmax_attention(*heads, seen, causal)  # [B H N d]
    else:  # a head at a time; on several devices the loop would gather the batch
        if seen is not None:
            seen = jnp.broadcast_to(seen, (batch, num_heads, length))  # [B H N]
        rows = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), (*heads, seen))
        out = jax.lax.map(lambda x: softmax_attention(*x, causal), rows)  # [B*H N d]
        out = out.reshape(heads[2].shape)  # [B H N d]
    return jnp.transpose(out, (0, 2, 1, 3))  # [B N H d]


def softmax_attention(
    query: Array, key: Array, value: Array, seen: Array | None, causal: bool
) -> Array:
    """softmax(query key^T) value with the scores written out, in float32.

    Args:
      query, key, value: [... N d], queries scaled already.
      seen: bool [... N], keys that may be seen; None means all and no `causal`.

    Returns:
      [... N d] in the type of `value`.
    """
    product = partial(jnp.einsum, preferred_element_type=jnp.float32)
    scores = product("...qd,...kd->...qk", query, key)  # [... N N]
    if seen is not None:
        mask = seen[..., None, :]  # [... 1 N]
        if causal:
            length = scores.shape[-1]
            triangle = jnp.tril(jnp.ones((length, length), bool))
            mask = mask & triangle.reshape((1,) * (mask.ndim - 2) + triangle.shape)
        scores = jnp.where(mask, scores, jnp.finfo(jnp.float32).min)
    # the softmax divides after the second matmul, which saves a pass over the scores
    largest = jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True))
    weights = jnp.exp(scores - largest)  # [... N N]
    total = jnp.sum(weights, axis=-1, keepdims=True)  # [... N 1]
    out = product("...qk,...kd->...qd", weights.astype(value.dtype), value)  # [... N d]
    return (out / total).astype(value.dtype)


def self_attention(
    x: Array,
    projections: Sequence[tuple[Array, Array | None]],
    num_heads: int,
    *,
    causal: bool = False,
    valid: Array | None = None,
) -> Array:
    """Multi-head self-attention before its output projection.

    Args:
      x: [B N D].
      projections: (kernel [D D], bias [D]) of query, key and value, fused into one
        matmul here while the parameters stay separate.

    Returns:
      [B N D].
    """
    batch, length, width = x.shape
    kernel = jnp.concatenate([kernel for kernel, _ in projections], axis=1)  # [D 3D]
    bias = jnp.concatenate([bias for _, bias in projections])  # [3D]
    fused = dense(x, kernel, bias)  # [B N 3D]
    fused = fused.reshape(batch, length, 3, num_heads, -1)  # [B N 3 H d]
    query, key, value = fused[:, :, 0], fused[:, :, 1], fused[:, :, 2]
    out = attend(query, key, value, causal=causal, valid=valid)  # [B N H d]
    return out.reshape(batch, length, width)  # [B N D]


class MLP(nn.Module):
    """fc2(activation(fc1(x))): [... D] -> [... D]."""

    hidden_size: int
    activation: Callable[[Array], Array]

    @nn.compact
    def __call__(self, x: Array) -> Array:
        hidden = self.activation(Dense(self.hidden_size, name="fc1")(x))
        return Dense(x.shape[-1], name="fc2")(hidden)


class CLIPAttention(nn.Module):
    """CLIP's self-attention: q_proj, k_proj, v_proj, out_proj. [B N D] -> [B N D]."""

    num_heads: int
    causal: bool

    @nn.compact
    def __call__(self, x: Array, valid: Array | None = None) -> Array:
        width = x.shape[-1]
        projections = [
            DenseParameters(width, width, name=f"{letter}_proj")() for letter in "qkv"
        ]
        out = self_attention(
            x, projections, self.num_heads, causal=self.causal, valid=valid
        )
        return Dense(width, name="out_proj")(out)


class CLIPBlock(nn.Module):
    """CLIP's pre-norm block (text and image towers): quick-GELU, LayerNorm eps 1e-5."""

    num_heads: int
    causal: bool

    @nn.compact
    def __call__(self, x: Array, valid: Array | None = None) -> Array:
        attention = CLIPAttention(self.num_heads, self.causal, name="self_attn")
        x = x + attention(LayerNorm(1e-5, name="layer_norm1")(x), valid)
        mlp = MLP(4 * x.shape[-1], quick_gelu, name="mlp")
        return x + mlp(LayerNorm(1e-5, name="layer_norm2")(x))


class Blocks(nn.Module):
    """Equal blocks named "0", "1", ..., one after the other."""

    block: Callable[..., nn.Module]
    num_layers: int

    @nn.compact
    def __call__(
        self,
        x: Array,
        *arguments: Any,
        keep: Sequence[int] = (),
        after_block: Callable[[int, Array], Array] | None = None,
    ) -> tuple[Array, dict[int, Array]]:
        """(result, {i: result of block i} for i in `keep`).

        arguments: of every block besides x. after_block(i, x) may replace each output.

        On TPU, where a program takes minutes to compile, equal blocks are a loop over
        their stacked parameters, unless something comes between them. Elsewhere a loop
        takes more memory and compiles no faster.
        """
        loop = after_block is None and backend.current().platform == "tpu"
        if loop and not self.is_initializing():
            return self._looped(x, arguments, keep)
        outputs = {}
        for index in range(self.num_layers):
            x = self.block(name=str(index))(x, *arguments)
            x = x if after_block is None else after_block(index, x)
            if index in keep:
                outputs[index] = x
        return x, outputs

    def _looped(self, x, arguments, keep):
        block = self.block(parent=None)
        parameters = self.variables["params"]
        layers = [parameters[str(index)] for index in range(self.num_layers)]
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers)

        def step(x, layer):
            x = block.apply({"params": layer}, x, *arguments)
            return x, x if keep else None

        x, outputs = jax.lax.scan(step, x, stacked)
        return x, {index: outputs[index] for index in keep}


def with_vectors(x: Array, vectors: Array | None, start: int) -> Array:
    """Tokens x [N L D] with vectors [k D] inserted at position `start`: [N L+k D]."""
    if vectors is None:
        return x
    vectors = jnp.broadcast_to(vectors.astype(x.dtype), (len(x), *vectors.shape))
    return jnp.concatenate([x[:, :start], vectors, x[:, start:]], axis=1)


class Encoder(nn.Module):
    """`Blocks` under the scope that transformers gives them ("layer" or "layers")."""

    block: Callable[..., nn.Module]
    num_layers: int
    blocks_name: str

    @nn.compact
    def __call__(self, x: Array, *arguments: Any, **options: Any):
        blocks = Blocks(self.block, self.num_layers, name=self.blocks_name)
        return blocks(x, *arguments, **options)


def patches(images: Array, patch_size: int) -> Array:
    """Images [N H W C] cut into flattened patches [N h*w p*p*C], row by row.

    Rows below and columns to the right of the last whole patch are left out, as by a
    strided convolution without padding.
    """
    frames, height, width, channels = images.shape
    rows, columns = height // patch_size, width // patch_size
    images = images[:, : rows * patch_size, : columns * patch_size]
    grid = images.reshape(
        frames, rows, patch_size, columns, patch_size, channels
    )  # [N h p w p C]
    grid = jnp.transpose(grid, (0, 1, 3, 2, 4, 5))  # [N h w p p C]
    return grid.reshape(frames, rows * columns, -1)  # [N h*w p*p*C]


class PatchEmbedding(nn.Module):
    """A strided convolution with stride = kernel = patch, as one matmul.

    Images [N H W C] -> [N h*w D] in `dtype`; parameters as the convolution's:
    kernel (p, p, C, D) and bias (D,).
    """

    features: int
    patch_size: int
    use_bias: bool
    dtype: Any

    @nn.compact
    def __call__(self, images: Array) -> Array:
        size = self.patch_size
        shape = (size, size, images.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
        bias = None
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,))
        kernel = kernel.reshape(-1, self.features)  # [p*p*C D]
        return dense(patches(images.astype(self.dtype), size), kernel, bias)
