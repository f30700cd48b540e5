"""Convolutions, and the choice of how they are computed.

Arrays are channels-last. Parameters are float32; `dtype` is the type in which a
convolution computes. "stock" is XLA's own, the fast one on GPU and TPU. On CPU XLA is
slow at weight gradients and at 3-D convolutions: "matmul" computes the weight gradient
as one matmul per image and builds 3-D convolutions from 2-D ones. Both give the same
values and gradients (tests/parts/test_layers.py).
"""

import contextlib
import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from gaitjax.parts import backend

_override: list[str] = []


def formulation() -> str:
    """The formulation in use: by backend, or what `use_formulation` says."""
    if _override:
        return _override[-1]
    return "matmul" if backend.current().platform == "cpu" else "stock"


@contextlib.contextmanager
def use_formulation(name: str):
    """Functions traced for the first time inside it use "stock" or "matmul"."""
    _override.append(name)
    try:
        yield
    finally:
        _override.pop()


def convolve(
    x: jax.Array,
    kernel: jax.Array,
    strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
) -> jax.Array:
    """N-dimensional convolution (2 or 3), in the formulation of this backend.

    Args:
      x: [N *space C].
      kernel: [*window C D].
      strides: one per space axis.
      padding: zeros before and after, one pair per space axis.

    Returns [N *space' D]. The matmul formulation has no forward-mode derivative.
    """
    strides, padding = tuple(strides), tuple(tuple(pair) for pair in padding)
    if formulation() == "stock":
        return _stock(x, kernel, strides, padding)
    window = kernel.shape[:-2]
    unpadded = all(pair == (0, 0) for pair in padding)
    if unpadded and all(size == 1 for size in window):
        x = lax.slice(x, (0,) * x.ndim, x.shape, (1, *strides, 1))
        return x @ kernel.reshape(kernel.shape[-2:])  # [N *space' D]
    if len(window) == 3:
        return _by_frames(x, kernel, strides, padding)
    return _with_matmul_gradient(x, kernel, strides, padding)


def _stock(x, kernel, strides, padding):
    axes = "DHW"[-len(strides) :]
    names = (f"N{axes}C", f"{axes}IO", f"N{axes}C")
    return lax.conv_general_dilated(
        x, kernel, strides, padding, dimension_numbers=names
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _with_matmul_gradient(x, kernel, strides, padding):
    return _stock(x, kernel, strides, padding)


def _forward(x, kernel, strides, padding):
    return _stock(x, kernel, strides, padding), (x, kernel)


def _backward(strides, padding, residuals, cotangent):
    x, kernel = residuals
    transpose = jax.linear_transpose(lambda x: _stock(x, kernel, strides, padding), x)
    (x_cotangent,) = transpose(cotangent)
    padded = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    return x_cotangent, _weight_gradient(padded, cotangent, kernel, strides)


def _weight_gradient(x, cotangent, kernel, strides):
    """x [N H W C] padded, cotangent [N h w D] -> [kh kw C D].

    A loop over the images with one matmul each, of the cotangent and of all windows
    side by side. Every device has a part of the batch and loops over its own images;
    the sums are added up after the loop.
    """
    height, width, channels, features = kernel.shape
    rows, columns = cotangent.shape[1:3]
    groups = math.gcd(len(x), backend.current().devices)
    x = x.reshape(groups, -1, *x.shape[1:])  # [G n H W C]
    cotangent = cotangent.reshape(groups, -1, rows * columns, features)  # [G n h*w D]

    tall, wide = (rows - 1) * strides[0] + 1, (columns - 1) * strides[1] + 1

    def add(total, number):
        image = lax.dynamic_index_in_dim(x, number, 1, keepdims=False)  # [G H W C]
        taps = [
            image[:, i : i + tall : strides[0], j : j + wide : strides[1]]
            for i in range(height)
            for j in range(width)
        ]  # each [G h w C]
        windows = jnp.concatenate(taps, axis=-1)  # [G h w kh*kw*C]
        windows = windows.reshape(groups, rows * columns, -1)
        other = lax.dynamic_index_in_dim(cotangent, number, 1, keepdims=False)
        return total + jnp.einsum(
            "gpd,gpc->gdc", other, windows, preferred_element_type=jnp.float32
        ), None

    zero = jnp.zeros((groups, features, height * width * channels), jnp.float32)
    total = lax.scan(add, zero, jnp.arange(x.shape[1]))[0]  # [G D kh*kw*C]
    return jnp.sum(total, axis=0).T.reshape(kernel.shape).astype(kernel.dtype)


_with_matmul_gradient.defvjp(_forward, _backward)


def _by_frames(x, kernel, strides, padding):
    """3-D as one 2-D convolution C -> depth*D of every frame, added up with shifts."""
    batch, frames = x.shape[:2]
    depth, height, width, channels, features = kernel.shape
    folded = x.reshape((batch * frames,) + x.shape[2:])  # [B*T H W C]
    wide = jnp.moveaxis(kernel, 0, 3).reshape(height, width, channels, depth * features)
    y = convolve(folded, wide, strides[1:], padding[1:])  # [B*T h w depth*D]
    rows, columns = y.shape[1:3]
    y = y.reshape(batch, frames, rows, columns, depth, features)
    y = jnp.pad(y, ((0, 0), padding[0], (0, 0), (0, 0), (0, 0), (0, 0)))
    steps = (y.shape[1] - depth) // strides[0] + 1
    stop = (steps - 1) * strides[0] + 1
    total = y[:, : stop : strides[0], :, :, 0]
    for tap in range(1, depth):
        total = total + y[:, tap : tap + stop : strides[0], :, :, tap]
    return total  # [B t h w D]


class Conv(nn.Module):
    """2-D convolution [N H W C] -> [N h w features], padded by kernel // 2.

    Xavier-uniform initialisation, as all convolutions of the reference models.
    """

    features: int
    kernel: int | tuple[int, int] = 3
    stride: int = 1
    use_bias: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        window = (
            (self.kernel,) * 2 if isinstance(self.kernel, int) else tuple(self.kernel)
        )
        return _convolution(
            self, x, window, (self.stride,) * 2, [(k // 2, k // 2) for k in window]
        )


class TemporalConv(nn.Module):
    """Convolution over axis 1: [B T *rest C] -> [B t *rest features].

    padding "same" (zeros, kernel // 2) or "valid". Computed as a 2-D convolution with
    window (kernel, 1), on every backend.
    """

    features: int
    kernel: int = 3
    stride: int = 1
    padding: str = "same"
    use_bias: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        margin = {"same": self.kernel // 2, "valid": 0}[self.padding]
        flat = x.reshape(x.shape[:2] + (-1, x.shape[-1]))  # [B T R C]
        y = _convolution(
            self, flat, (self.kernel, 1), (self.stride, 1), [(margin, margin), (0, 0)]
        )  # [B t R features]
        return y.reshape(y.shape[:2] + x.shape[2:-1] + (self.features,))


class Conv3D(nn.Module):
    """3-D convolution [B T H W C] -> [B t h w features], padded by kernel // 2."""

    features: int
    kernel: tuple[int, int, int] = (3, 3, 3)
    strides: tuple[int, int, int] = (1, 1, 1)
    use_bias: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return _convolution(
            self, x, self.kernel, self.strides, [(k // 2, k // 2) for k in self.kernel]
        )


def _convolution(module, x, window, strides, padding):
    kernel = module.param(
        "kernel",
        nn.initializers.xavier_uniform(),
        (*window, x.shape[-1], module.features),
        jnp.float32,
    )
    y = convolve(x.astype(module.dtype), kernel.astype(module.dtype), strides, padding)
    if module.use_bias:
        bias = module.param(
            "bias", nn.initializers.zeros_init(), (module.features,), jnp.float32
        )
        y = y + bias.astype(y.dtype).reshape((1,) * (y.ndim - 1) + (-1,))
    return y
