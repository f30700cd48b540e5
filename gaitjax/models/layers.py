"""What the models are built of: convolutions, batch norm, pooling, strip heads.

Arrays are channels-last. Parameters and statistics are float32; `dtype` is the type in
which a convolution computes. Batch norm and initialisation follow the conventions of
the field's PyTorch code, so that published weights mean the same here.
"""

import contextlib
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

BATCH_NORM_EPSILON = 1e-5
BATCH_NORM_MOMENTUM = 0.9

# ---------------------------------------------------------------- convolutions
#
# The one place that chooses how a convolution is computed. "stock" is XLA's own, right
# on GPU and TPU. On CPU XLA is slow at weight gradients and at 3-D convolutions:
# "matmul" takes the weight gradient as one matmul per kernel tap and builds 3-D
# convolutions from 2-D ones. Both give the same values and gradients (test_layers).

FORMULATIONS = ("stock", "matmul")
_override: list[str] = []


def formulation() -> str:
    """The formulation in use: by backend, or what `use_formulation` says."""
    if _override:
        return _override[-1]
    return "matmul" if jax.default_backend() == "cpu" else "stock"


@contextlib.contextmanager
def use_formulation(name: str):
    """Within it, functions traced for the first time use formulation `name`."""
    if name not in FORMULATIONS:
        raise ValueError(
            f"Unknown formulation {name!r}; choose from {', '.join(FORMULATIONS)}."
        )
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
        x = x[(slice(None), *(slice(None, None, s) for s in strides))]
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
    height, width, channels, features = kernel.shape
    rows, columns = cotangent.shape[1:3]
    padded = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    taps = [
        lax.slice(
            padded,
            (0, i, j, 0),
            (
                padded.shape[0],
                i + (rows - 1) * strides[0] + 1,
                j + (columns - 1) * strides[1] + 1,
                channels,
            ),
            (1, *strides, 1),
        ).reshape(-1, channels)  # [N*h*w C]
        for i in range(height)
        for j in range(width)
    ]
    flat = cotangent.reshape(-1, features)  # [N*h*w D]
    if channels <= 4:  # too thin for a matmul of its own
        gradient = jnp.concatenate(taps, axis=-1).T @ flat  # [kh*kw*C D]
    else:
        gradient = jnp.stack([tap.T @ flat for tap in taps])  # [kh*kw C D]
    return x_cotangent, gradient.reshape(kernel.shape)  # [kh kw C D]


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


# ---------------------------------------------------------------- batch norm


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
        every entry); what lies outside it counts in no statistic and gives an
        arbitrary, in training a finite, result there. Where nothing is valid the
        running statistics are used and kept.

    Returns [... C] in the type of x.
    """

    affine: bool = True

    @nn.compact
    def __call__(
        self, x: jax.Array, *, train: bool, valid: jax.Array | None = None
    ) -> jax.Array:
        channels = x.shape[-1]
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (channels,))
        running_var = self.variable("batch_stats", "var", jnp.ones, (channels,))
        mean, var = running_mean.value, running_var.value
        if train:
            if valid is not None:
                valid = _entries(valid, x)  # [.. 1..]
                x = jnp.where(valid, x, 0)  # garbage reaches no gradient either
            batch_mean, batch_var, count = _moments(x, valid)
            mean = jnp.where(count > 0, batch_mean, mean)
            var = jnp.where(count > 0, batch_var, var)
            if not self.is_initializing():
                unbiased = var * (count / jnp.maximum(count - 1, 1))
                unbiased = jnp.where(count > 0, unbiased, var)
                running_mean.value = _towards(running_mean.value, mean)
                running_var.value = _towards(running_var.value, unbiased)
        factor = lax.rsqrt(var + BATCH_NORM_EPSILON)  # [C]
        if self.affine:
            factor = factor * self.param("scale", _scale_init, (channels,))
        y = (x.astype(jnp.float32) - _last(mean, x)) * _last(factor, x)
        if self.affine:
            bias = self.param("bias", nn.initializers.zeros_init(), (channels,))
            y = y + _last(bias, x)
        return y.astype(x.dtype)


def _entries(valid, x):
    """valid as a mask that broadcasts against x."""
    if valid.shape != x.shape[: valid.ndim] or valid.ndim >= x.ndim:
        raise ValueError(
            f"BatchNorm: valid has shape {valid.shape}; expected a leading part of "
            f"{x.shape[:-1]}, the shape of x without channels."
        )
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


def _towards(old, new):
    new = lax.stop_gradient(new)
    return BATCH_NORM_MOMENTUM * old + (1 - BATCH_NORM_MOMENTUM) * new


def _last(vector, x):
    """[C] shaped to broadcast over the last axis of x."""
    return vector.reshape((1,) * (x.ndim - 1) + (-1,))


# ---------------------------------------------------------------- pooling


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def max_over(x: jax.Array, axis: int) -> jax.Array:
    """Maximum over one axis; the gradient goes to the first of equal maxima alone.

    jnp.max shares it among equals; PyTorch, like this, does not.
    """
    return jnp.max(x, axis)


def _top_and_place(x, axis):
    # Value and place in one reduction. Looking for x == max later is not safe: a
    # compiler that recomputes x in another fusion may round it differently, and then
    # no entry equals the maximum and the gradient is lost.
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


def horizontal_pool(x: jax.Array, num_strips: int) -> jax.Array:
    """Mean + maximum of equal horizontal bands: [B H W C] -> [B S C].

    Source: Fu et al., "Horizontal Pyramid Matching for Person Re-identification"
    (AAAI 2019), as used by GaitSet and its successors. ValueError where S does not
    divide H.
    """
    batch, height, width, channels = x.shape
    if height % num_strips:
        raise ValueError(
            f"horizontal_pool: {num_strips} strips do not divide the {height} rows of "
            "the feature map; choose num_strips (or the strides) so that they do."
        )
    x = x.reshape(batch, num_strips, height // num_strips * width, channels)
    return jnp.mean(x, axis=2) + max_over(x, 2)  # [B S C]


def horizontal_pyramid(x: jax.Array, bins: Sequence[int]) -> jax.Array:
    """horizontal_pool for each number of strips in turn: [B H W C] -> [B sum(bins) C].

    Source: Fu et al. (AAAI 2019), section "Horizontal Pyramid Pooling".
    """
    return jnp.concatenate([horizontal_pool(x, count) for count in bins], axis=1)


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


# ---------------------------------------------------------------- resizing


def _interpolation(size: int, new_size: int, align_corners: bool) -> jax.Array:
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
            matrix = _interpolation(old_size, new_size, align_corners).astype(x.dtype)
            names = "nhwc,oh->nowc" if axis == 1 else "nhwc,ow->nhoc"
            x = jnp.einsum(names, x, matrix)
    return x  # [N h w C]


# ---------------------------------------------------------------- heads


def _strip_init(key, shape, dtype=jnp.float32):
    """Xavier-uniform as PyTorch computes it of a [S C D] tensor as a whole.

    It takes fan_in = C*D and fan_out = S*D, not C and D: the bound is
    sqrt(6 / (C*D + S*D)), 0.0067 instead of 0.088 for (16, 512, 256). Published
    results were trained from there, so it is kept.
    """
    strips, channels, features = shape
    bound = (6 / (channels * features + strips * features)) ** 0.5
    return jax.random.uniform(key, shape, dtype, -bound, bound)


class SeparateDense(nn.Module):
    """One matrix per strip, no bias: [B S C] -> float32 [B S features].

    Initialised with the small bound that `_strip_init` explains.
    """

    features: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        strips, channels = x.shape[1:]
        kernel = self.param("kernel", _strip_init, (strips, channels, self.features))
        return jnp.einsum("bsc,scd->bsd", x.astype(jnp.float32), kernel)


def normalise(x: jax.Array, axis: int = -1) -> jax.Array:
    """x divided by its Euclidean norm over `axis` (at least 1e-12)."""
    squared = jnp.sum(jnp.square(x), axis, keepdims=True)
    return x * lax.rsqrt(jnp.maximum(squared, 1e-24))


class SeparateBNNeck(nn.Module):
    """Batch norm neck and cosine classifier per strip.

    Source: Luo et al., "Bag of Tricks and a Strong Baseline for Deep Person
    Re-identification" (CVPRW 2019), per strip as in OpenGait. One BatchNorm with
    affine parameters over all S*D values, L2 normalisation per strip, then the cosine
    with each identity's weight column.

    Returns normalised features [B S D] and logits [B S N] in [-1, 1], float32.
    """

    num_classes: int

    @nn.compact
    def __call__(
        self, x: jax.Array, *, train: bool, valid: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """x [B S D]; valid bool [B]: rows that count in the statistics."""
        batch, strips, features = x.shape
        flat = x.astype(jnp.float32).reshape(batch, strips * features)  # [B S*D]
        flat = BatchNorm(name="norm")(flat, train=train, valid=valid)
        embeddings = normalise(flat.reshape(x.shape))  # [B S D]
        kernel = self.param("kernel", _strip_init, (strips, features, self.num_classes))
        return embeddings, jnp.einsum("bsd,sdn->bsn", embeddings, normalise(kernel, 1))


class StripHead(nn.Module):
    """Temporal maximum, horizontal pooling, matrix per strip and BN neck.

    The head of GaitBase and of the models after it. Returns float32 embeddings [B S D]
    (before the neck: what retrieval uses) and logits [B S N].
    """

    num_classes: int
    num_strips: int
    embedding_size: int

    @nn.compact
    def __call__(
        self, x: jax.Array, valid: jax.Array, *, train: bool
    ) -> tuple[jax.Array, jax.Array]:
        """x [B T H W C], valid bool [B T]."""
        x = set_pool(x, valid).astype(jnp.float32)  # [B H W C]
        x = horizontal_pool(x, self.num_strips)  # [B S C]
        embeddings = SeparateDense(self.embedding_size, name="dense")(x)  # [B S D]
        _, logits = SeparateBNNeck(self.num_classes, name="neck")(
            embeddings, train=train, valid=jnp.any(valid, axis=1)
        )
        return embeddings, logits


# ---------------------------------------------------------------- images


def image_sequence(batch: dict[str, jax.Array], name: str) -> jax.Array:
    """batch[name] as float32 [B T H W C]: integers / 255, a channel axis if absent."""
    if name not in batch:
        raise ValueError(
            f"The model reads {name!r}, the batch has {', '.join(sorted(batch))}; set "
            "config.data.modalities accordingly."
        )
    images = batch[name]
    if jnp.issubdtype(images.dtype, jnp.integer):
        images = images.astype(jnp.float32) / 255
    images = images.astype(jnp.float32)
    return images[..., None] if images.ndim == 4 else images  # [B T H W C]


# of ImageNet, on the 0..255 scale
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
