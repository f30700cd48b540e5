"""Parts of most models: batch norm, pooling over frames, resizing, images.

Arrays are channels-last; statistics are float32. Batch norm follows the conventions of
the field's PyTorch code, so that published weights mean the same here.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

BATCH_NORM_EPSILON = 1e-5
BATCH_NORM_MOMENTUM = 0.9

# ---------------- batch norm


def _scale_init(key, shape, dtype=jnp.float32):
    return 1.0 + 0.02 * jax.random.normal(key, shape, dtype)


class BatchNorm(nn.Module):
    """Batch norm over valid entries only, with PyTorch's conventions.

    Normalises over all axes but the last. eps 1e-5; running statistics move by 0.1 of
    the new value, the variance being the unbiased one, while normalisation in training
    uses the biased one. Statistics are float32, taken in two passes, over the global
    batch (arrays are global under jit). The scale starts at N(1, 0.02), the bias at 0.

    Args of the call:
      x: [... C].
      train: batch statistics (and an update of `batch_stats`), else running ones.
      valid: bool, its shape a leading part of x.shape[:-1] (frames [N] of [N H W C], or
        every entry). Other entries count in no statistic; their results are arbitrary,
        in training finite. If nothing is valid, the running statistics are used and
        kept.

    Returns [... C] in the type of x.
    """

    affine: bool = True

    @nn.compact
    def __call__(
        self, x: jax.Array, *, train: bool, valid: jax.Array | None = None
    ) -> jax.Array:
        channels, batch = x.shape[-1], None
        if train:
            if valid is not None:
                valid = _entries(valid, x)  # [.. 1..]
                x = jnp.where(valid, x, 0)  # invalid entries reach no gradient
            batch = jax.lax.stop_gradient(_moments(x, valid))
        mean, var = running_norm(self, channels, batch)
        scale, bias = jnp.ones(channels), jnp.zeros(channels)
        if self.affine:
            scale = self.param("scale", _scale_init, (channels,))
            bias = self.param("bias", nn.initializers.zeros_init(), (channels,))
        if batch is None:
            return _affine(x, mean, scale * lax.rsqrt(var + BATCH_NORM_EPSILON), bias)
        return _normalised(x, mean, var, batch[2], scale, bias)


def running_norm(module: nn.Module, channels: int, batch):
    """Mean and variance [C] that a batch norm applies; moves its running ones.

    batch: (mean [C], biased variance [C], count) of a training batch, or None: the
    running ones. To be called where `module` is compact.
    """
    running_mean = module.variable("batch_stats", "mean", jnp.zeros, (channels,))
    running_var = module.variable("batch_stats", "var", jnp.ones, (channels,))
    mean, var = running_mean.value, running_var.value
    if batch is not None:
        batch_mean, batch_var, count = batch
        mean = jnp.where(count > 0, batch_mean, mean)
        var = jnp.where(count > 0, batch_var, var)
        if not module.is_initializing():
            unbiased = var * (count / jnp.maximum(count - 1, 1))
            unbiased = jnp.where(count > 0, unbiased, var)
            running_mean.value = _towards(running_mean.value, mean)
            running_var.value = _towards(running_var.value, unbiased)
    return mean, var


class RunningNorm(nn.Module):
    """Mean and 1 / deviation [C], with the variables of a BatchNorm(affine=False)."""

    @nn.compact
    def __call__(self, channels: int, batch) -> tuple[jax.Array, jax.Array]:
        mean, var = running_norm(self, channels, batch)
        return mean, lax.rsqrt(var + BATCH_NORM_EPSILON)


def _affine(x, mean, factor, bias):
    """(x - mean) factor + bias, computed in float32, in the type of x."""
    y = (x.astype(jnp.float32) - _last(mean, x)) * _last(factor, x)
    return (y + _last(bias, x)).astype(x.dtype)


@jax.custom_vjp
def _normalised(x, mean, var, count, scale, bias):
    """Batch norm of x by its own moments: mean, var [C] of `count` entries.

    The gradient goes through the moments as if they were computed here, where the
    entries of x that they do not count are constants. The backward pass reads x and the
    cotangent twice and keeps nothing else. If count is 0, the moments are not x's own.
    """
    return _affine(x, mean, scale * lax.rsqrt(var + BATCH_NORM_EPSILON), bias)


def _norm_forward(x, mean, var, count, scale, bias):
    kept = x, mean, var, count, scale
    return _normalised(*kept, bias), kept


def _norm_backward(kept, cotangent):
    x, mean, var, count, scale = kept
    deviation = lax.rsqrt(var + BATCH_NORM_EPSILON)  # its inverse, [C]
    factor, axes = scale * deviation, tuple(range(x.ndim - 1))
    wide = cotangent.astype(jnp.float32)
    centred = x.astype(jnp.float32) - _last(mean, x)
    total = jnp.sum(wide, axes)  # [C], of all entries: they all read the moments
    product = jnp.sum(wide * centred, axes)  # [C]
    share = jnp.where(count > 0, 1 / jnp.maximum(count, 1), 0)
    through_mean = total * share  # [C]
    through_var = product * jnp.square(deviation) * share  # [C]
    found = wide - _last(through_mean, x) - centred * _last(through_var, x)
    found = (found * _last(factor, x)).astype(x.dtype)
    return found, None, None, None, product * deviation, total


_normalised.defvjp(_norm_forward, _norm_backward)


def _entries(valid, x):
    """valid as a mask that broadcasts against x."""
    return valid.reshape(valid.shape + (1,) * (x.ndim - valid.ndim))


def _moments(x, valid):
    """Mean [C], biased variance [C] and number of entries, over valid ones.

    x is zero outside valid.
    """
    axes = tuple(range(x.ndim - 1))
    x = x.astype(jnp.float32)
    entries = x.size // x.shape[-1]
    if valid is None:
        mean = jnp.mean(x, axes, keepdims=True)  # [1.. C]
        var = jnp.mean(jnp.square(x - mean), axes)  # [C]
        return mean.reshape(-1), var, jnp.float32(entries)
    count = jnp.sum(valid, dtype=jnp.float32) * (entries // valid.size)
    some = jnp.maximum(count, 1)
    mean = jnp.sum(x, axes, keepdims=True) / some  # [1.. C]
    var = jnp.sum(jnp.where(valid, jnp.square(x - mean), 0), axes) / some  # [C]
    return mean.reshape(-1), var, count


# what a compiler fuses into its neighbours: primitives that cost a pass over memory at
# most, and none where their operands are read anyway
_CHEAP = frozenset(
    "abs add and broadcast_in_dim convert_element_type copy div eq erf exp ge gt "
    "integer_pow le log logistic lt max min mul ne neg not or reshape rsqrt select_n "
    "sign slice sqrt square squeeze sub tanh".split()
)


def lean(function: Callable, train: bool) -> Callable:
    """function(module, *arrays), of whose elementwise results training keeps none.

    The backward pass computes batch norms, activations, masks and sums again, from
    what convolutions, matmuls and reductions gave. Of a residual network that is half
    of what it keeps otherwise, or less.
    """

    return nn.remat(function, policy=_is_costly) if train else function


def _is_costly(primitive, *_, **parameters):
    inner = parameters.get("call_jaxpr") or parameters.get("jaxpr")  # of a function
    if inner is None:
        return primitive.name not in _CHEAP
    return any(_is_costly(x.primitive, **x.params) for x in inner.jaxpr.eqns)


def _towards(old, new):
    new = lax.stop_gradient(new)
    return BATCH_NORM_MOMENTUM * old + (1 - BATCH_NORM_MOMENTUM) * new


def _last(vector, x):
    """[C] shaped to broadcast over the last axis of x."""
    return vector.reshape((1,) * (x.ndim - 1) + (-1,))


# ---------------- pooling


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def max_over(x: jax.Array, axis: int) -> jax.Array:
    """Maximum over one axis; the gradient goes to the first of equal maxima alone.

    jnp.max shares it among equals; PyTorch, like this, does not.
    """
    return jnp.max(x, axis)


def _top_and_place(x, axis):
    # One reduction finds value and place. Searching for x == max afterwards is not
    # safe: the compiler may recompute x with other rounding, and then no entry equals
    # the maximum and the gradient is lost.
    axis = axis % x.ndim
    places = lax.broadcasted_iota(jnp.int32, x.shape, axis)

    def larger(one, other):
        (value, place), (other_value, other_place) = one, other
        first = (value > other_value) | jnp.isnan(value)
        first |= (value == other_value) & (place < other_place)
        return (
            jnp.where(first, value, other_value),
            jnp.where(first, place, other_place),
        )

    lowest = (jnp.array(-jnp.inf, x.dtype), jnp.array(x.shape[axis], jnp.int32))
    return lax.reduce((x, places), lowest, larger, (axis,))


def _max_forward(x, axis):
    top, place = _top_and_place(x, axis)
    return top, (place, x.shape[axis])


def _max_backward(axis, residuals, cotangent):
    place, size = residuals
    axis = axis % (place.ndim + 1)
    shape = place.shape[:axis] + (size,) + place.shape[axis:]
    positions = lax.broadcasted_iota(jnp.int32, shape, axis)
    chosen = positions == jnp.expand_dims(place, axis)
    return (jnp.where(chosen, jnp.expand_dims(cotangent, axis), 0),)


max_over.defvjp(_max_forward, _max_backward)


def set_pool(x: jax.Array, valid: jax.Array) -> jax.Array:
    """Maximum over valid frames: [B T *rest], bool [B T] -> [B *rest].

    The gradient goes to one frame. A sequence without a valid frame (a padding row)
    gives zeros.
    """
    mask = valid.reshape(valid.shape + (1,) * (x.ndim - 2))  # [B T 1..]
    top = max_over(jnp.where(mask, x, jnp.finfo(x.dtype).min), 1)  # [B *rest]
    return jnp.where(jnp.any(mask, axis=1), top, 0)


def max_pool(x: jax.Array) -> jax.Array:
    """2x2 maximum with stride 2, odd ends dropped: [N H W C] -> [N H/2 W/2 C]."""
    count, height, width, channels = x.shape
    x = x[:, : height // 2 * 2, : width // 2 * 2]
    x = x.reshape(count, height // 2, 2, width // 2, 2, channels)
    x = jnp.where(x[:, :, 0] >= x[:, :, 1], x[:, :, 0], x[:, :, 1])  # [N H/2 W/2 2 C]
    return jnp.where(x[..., 0, :] >= x[..., 1, :], x[..., 0, :], x[..., 1, :])


def mask_frames(x: jax.Array, valid: jax.Array) -> jax.Array:
    """x [B T *rest] with frames outside valid [B T] set to zero.

    Before an operation over time it makes padding look like the zeros beyond the end.
    """
    return jnp.where(valid.reshape(valid.shape + (1,) * (x.ndim - 2)), x, 0)


def fold_frames(x: jax.Array) -> jax.Array:
    """[B T *rest] -> [B*T *rest]: frames become a batch of images."""
    return x.reshape((-1,) + x.shape[2:])


def leaky_relu(x: jax.Array) -> jax.Array:
    """Slope 0.01 below 0."""
    return nn.leaky_relu(x, 0.01)


# ---------------- resizing


def interpolation(size: int, new_size: int, align_corners: bool = False) -> jax.Array:
    """Matrix [new_size size] of linear interpolation."""
    if align_corners:
        source = jnp.arange(new_size) * ((size - 1) / max(new_size - 1, 1))
    else:
        source = (jnp.arange(new_size) + 0.5) * (size / new_size) - 0.5
    source = jnp.clip(source, 0, size - 1)  # [new_size]
    distance = jnp.abs(source[:, None] - jnp.arange(size)[None, :])
    return jnp.maximum(1 - distance, 0)  # [new_size size]


def _double(x: jax.Array, axis: int) -> jax.Array:
    """Linear interpolation to twice the size of `axis`."""
    size = x.shape[axis]
    cut = functools.partial(lax.slice_in_dim, x, axis=axis)
    before = jnp.concatenate([cut(0, 1), cut(0, size - 1)], axis)
    after = jnp.concatenate([cut(1, size), cut(size - 1, size)], axis)
    pairs = jnp.stack([0.25 * before + 0.75 * x, 0.75 * x + 0.25 * after], axis + 1)
    return pairs.reshape(x.shape[:axis] + (2 * size,) + x.shape[axis + 1 :])


def resize_bilinear(
    x: jax.Array, size: tuple[int, int], *, align_corners: bool = False
) -> jax.Array:
    """[N H W C] -> [N h w C]: half-pixel centres, edges clamped, no antialias.

    align_corners: corner pixels keep their places instead. The same as
    torch.nn.functional.interpolate(mode="bilinear", align_corners=align_corners).
    """
    for axis, new_size in zip((1, 2), size, strict=True):
        old_size = x.shape[axis]
        if new_size == 2 * old_size and not align_corners:
            x = _double(x, axis)
        elif new_size != old_size:
            matrix = interpolation(old_size, new_size, align_corners).astype(x.dtype)
            names = "nhwc,oh->nowc" if axis == 1 else "nhwc,ow->nhoc"
            x = jnp.einsum(names, x, matrix)
    return x  # [N h w C]


# ---------------- images


def image_sequence(batch: dict[str, jax.Array], name: str) -> jax.Array:
    """batch[name] as float32 [B T H W C]: integers / 255, a channel axis if absent.

    Parsing stays the number of a class, which is what published models read.
    """
    images = batch[name]
    if name != "parsing" and jnp.issubdtype(images.dtype, jnp.integer):
        images = images.astype(jnp.float32) / 255
    images = images.astype(jnp.float32)
    return images[..., None] if images.ndim == 4 else images  # [B T H W C]


# mean and deviation of ImageNet's colours, on the 0..255 scale
COLOUR_MEAN = (123.675, 116.28, 103.53)
COLOUR_STD = (58.395, 57.12, 57.375)


def normalise_colours(images: jax.Array) -> jax.Array:
    """RGB [N H W 3] minus ImageNet's mean, divided by its deviation, as float32.

    Images that are not of an integer type count as normalised already.
    """
    if not jnp.issubdtype(images.dtype, jnp.integer):
        return images.astype(jnp.float32)
    mean, std = jnp.asarray([COLOUR_MEAN, COLOUR_STD]).reshape(2, 1, 1, 1, 3)
    return (images.astype(jnp.float32) - mean) / std
