"""Features on a finer grid than their tokens, computed on the tokens' own grid.

Bilinear interpolation U from the token grid [h' w'] to a finer one [h w] is linear, the
same in every channel, and keeps constants. So for tokens t, a gain g per position, a
kernel W and a batch norm without scale and bias (mean m, factor f per channel),

    ((g U(t) - m) f) W  =  g U(t (f W)) - m (f W),

and the matmul runs over the tokens. What depends on squares of U(t), its length and its
moments over a region, is a weighted sum of products of neighbouring tokens: each
interpolated position lies between at most 2 x 2 tokens. Nothing of size [h w d] is
made, and the backward pass keeps the tokens alone.
"""

import functools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

from gaitjax.parts.layers import interpolation, resize_bilinear
from gaitjax.parts.transformer import dense

Size = tuple[int, int]


@struct.dataclass
class Features:
    """Features [N h w d] as tokens [N h' w' d] and their gain on the finer grid.

    before, after: gain [N h w] of the features, and of what a batch norm makes of them,
    or None. size: (h, w). direct: interpolate first, the plain way. chunk: frames whose
    hidden features are made at once; 0: all.
    """

    tokens: jax.Array
    before: jax.Array | None = None
    after: jax.Array | None = None
    size: Size = struct.field(pytree_node=False, default=(64, 32))
    direct: bool = struct.field(pytree_node=False, default=False)
    chunk: int = struct.field(pytree_node=False, default=0)

    def interpolated(self) -> jax.Array:
        """U(t), [N h w d], without the gain."""
        return resize_bilinear(self.tokens, self.size)


@struct.dataclass
class Hidden:
    """gain U(tokens) + shift, float32 [N h w C], not yet interpolated.

    tokens: [N h' w' C], in the type of the matmul that made them. gain: [N h w] or
    None. shift: [C]. size, chunk: of `Features`.
    """

    tokens: jax.Array
    gain: jax.Array | None
    shift: jax.Array
    size: Size = struct.field(pytree_node=False)
    chunk: int = struct.field(pytree_node=False)

    def interpolated(self) -> jax.Array:
        x = resize_bilinear(self.tokens.astype(jnp.float32), self.size)
        return weigh(x, self.gain) + _row(self.shift)

    def moments(self, where: jax.Array) -> "Moments":
        found = moments(self.tokens, self.gain, where, self.size)
        return found._replace(mean=found.mean + self.shift)

    def mapped(
        self,
        function: Callable[[jax.Array], jax.Array],
        mean: jax.Array,
        factor: jax.Array,
    ) -> jax.Array:
        """function((interpolated - mean) factor), `chunk` frames at a time; [C] each.

        Nothing but the tokens is kept for the backward pass.
        """

        def call(tokens, gain):
            x = self.replace(tokens=tokens, gain=gain).interpolated()
            return function((x - _row(mean)) * _row(factor))

        return in_chunks(call, (self.tokens, self.gain), self.chunk)


class Moments(NamedTuple):
    """Mean and biased variance, float32 [C], of `count` positions."""

    mean: jax.Array
    variance: jax.Array
    count: jax.Array


def weigh(x: jax.Array, gain: jax.Array | None) -> jax.Array:
    """x [N h w C] times gain [N h w], multiplied in float32; x where gain is None.

    In bfloat16, 1 + a would be rounded to steps of 1/128.
    """
    if gain is None:
        return x
    return (x.astype(jnp.float32) * gain[..., None]).astype(x.dtype)


def normed_dense(
    features: Features,
    norm: tuple[jax.Array, jax.Array],
    kernel: jax.Array,
    bias: jax.Array,
    dtype,
) -> Hidden:
    """Batch norm (mean [d], factor [d]) and Dense (kernel [d C], bias [C]) of features.

    dtype: of the matmul.
    """
    mean, factor = norm
    folded = (kernel * factor[:, None]).astype(dtype)
    tokens = features.tokens.astype(dtype)
    # in `dtype`: a cotangent in float32 would take the tokens to float32 with it
    hidden = dense(tokens, folded)  # [N h' w' C]
    # by the rounded kernel, as if the features had been centred before the matmul
    offset = jnp.matmul(
        mean, folded.astype(jnp.float32), precision=jax.lax.Precision.HIGHEST
    )
    if features.after is None:
        gain, shift = features.before, bias - offset
    else:
        hidden = (hidden - _row(offset)).astype(dtype)
        gain, shift = features.after, bias
    return Hidden(hidden, gain, shift, features.size, features.chunk)


def dot(features: Features, vectors: jax.Array) -> jax.Array:
    """U(t) times vectors [P d]: float32 [N h w P]."""
    if features.direct:
        x = features.interpolated().astype(jnp.float32)
        return jnp.einsum("nhwd,pd->nhwp", x, vectors)
    tokens = features.tokens.astype(jnp.float32)
    # no matmul: it would write the tokens in float32
    products = [jnp.sum(tokens * _row(vector), axis=-1) for vector in vectors]
    return resize_bilinear(jnp.stack(products, axis=-1), features.size)


def length(features: Features) -> jax.Array:
    """|U(t)|, float32 [N h w]."""
    if features.direct:
        x = features.interpolated().astype(jnp.float32)
        return jnp.sqrt(jnp.sum(jnp.square(x), axis=-1) + 1e-12)
    total = jnp.zeros((), jnp.float32)
    tokens = features.tokens.astype(jnp.float32)
    for rows, columns, products in _neighbours(tokens, features.size):
        total = total + _apply(rows, jnp.sum(products(), axis=-1), columns)
    return jnp.sqrt(jnp.maximum(total, 0) + 1e-12)


@functools.partial(jax.checkpoint, static_argnums=3)
def moments(
    tokens: jax.Array, gain: jax.Array | None, where: jax.Array, size: Size
) -> Moments:
    """Moments of gain U(tokens) over `where`, a bool [N h w]; gain [N h w] or None.

    The tokens are centred first, so that no difference of large numbers is taken.
    """
    tokens = tokens.astype(jnp.float32)
    centre = jax.lax.stop_gradient(jnp.mean(tokens, axis=(0, 1, 2)))  # [C], any will do
    tokens = tokens - _row(centre)
    where = where.astype(jnp.float32)
    count = jnp.sum(where)
    some = jnp.maximum(count, 1)
    rows, columns = (interpolation(*x) for x in zip(tokens.shape[1:3], size))

    def linear(weight):  # sum of weight U(tokens), [C]
        weight = _apply(rows.T, weight, columns.T)  # [N h' w']
        return jnp.sum(weight[..., None] * tokens, axis=(0, 1, 2))

    def square(weight):  # sum of weight U(tokens)^2, [C]
        return sum(
            jnp.sum(_apply(y.T, weight, x.T)[..., None] * products(), axis=(0, 1, 2))
            for y, x, products in _neighbours(tokens, size)
        )

    gain = jnp.ones_like(where) if gain is None else gain
    weight = where * gain
    mean_gain = jnp.sum(weight) / some
    spread = gain - mean_gain
    mean = linear(weight) / some  # of gain U(tokens - centre)
    # gain U - mean = centre (gain - mean gain) + (gain U(tokens - centre) - its mean)
    variance = jnp.square(centre) * jnp.sum(where * jnp.square(spread))
    variance = variance + 2 * centre * linear(weight * spread) + square(weight * gain)
    variance = jnp.maximum(variance / some - jnp.square(mean), 0)
    return Moments(centre * mean_gain + mean, variance, count)


def in_chunks(
    function: Callable[..., jax.Array], arrays: tuple, chunk: int
) -> jax.Array:
    """function(*arrays) for `chunk` frames at a time; arrays: [N ...] or None.

    chunk 0: all frames at once. The backward pass computes each chunk again.
    """
    function, frames = jax.checkpoint(function), arrays[0].shape[0]
    if not chunk or frames <= chunk:
        return function(*arrays)
    chunks = -(-frames // chunk)
    size = -(-frames // chunks)

    # frame = position * chunks + chunk: positions stay sharded, chunks are a loop
    def split(x):
        x = jnp.pad(x, [(0, chunks * size - frames)] + [(0, 0)] * (x.ndim - 1))
        return jnp.swapaxes(x.reshape(size, chunks, *x.shape[1:]), 0, 1)

    out = jax.lax.map(lambda part: function(*part), jax.tree.map(split, arrays))
    return jnp.swapaxes(out, 0, 1).reshape(-1, *out.shape[2:])[:frames]


def _row(vector):
    """[C] -> [1 1 1 C]."""
    return vector.reshape(1, 1, 1, -1)


def _apply(rows, x, columns):
    """rows [a h] x [N h w] columns [b w] -> [N a b], in full float32 on any device."""
    highest = jax.lax.Precision.HIGHEST
    return jnp.einsum("ah,nhw,bw->nab", rows, x, columns, precision=highest)


def _neighbours(tokens: jax.Array, size: Size) -> Iterator[tuple]:
    """(rows [h h'], columns [w w'], function that makes products [N h' w' C]), of which
    U(tokens)^2 is the sum of rows x products x columns."""
    down, right = (functools.partial(_following, axis=axis) for axis in (1, 2))
    (near_y, cross_y), (near_x, cross_x) = (
        _squares(old, new) for old, new in zip(tokens.shape[1:3], size)
    )
    yield near_y, near_x, lambda: jnp.square(tokens)
    below = tokens.shape[1] != size[0]
    beside = tokens.shape[2] != size[1]
    if beside:
        yield near_y, 2 * cross_x, lambda: tokens * right(tokens)
    if below:
        yield 2 * cross_y, near_x, lambda: tokens * down(tokens)
    if below and beside:
        yield (
            2 * cross_y,
            cross_x,
            lambda: tokens * down(right(tokens)) + right(tokens) * down(tokens),
        )


def _squares(size, new_size):
    """Squares of interpolation weights, and products of two neighbouring ones."""
    weights = interpolation(size, new_size)  # [new_size size]
    return jnp.square(weights), weights * _following(weights, axis=1)


def _following(x, axis):
    """x moved by one towards the start of `axis`; zeros at its end."""
    moved = jax.lax.slice_in_dim(x, 1, None, axis=axis)
    return jnp.pad(moved, [(0, int(a == axis)) for a in range(x.ndim)])
