"""LMGait's Representation Extractor: where the person is, and two maps of it.

Papers: LMGait (Wu et al.), section 3.4; BigGait (Ye et al., CVPR 2024, "Learning Gait
Representation You Want by Large Vision Models"), whose three branches it keeps.
Every batch norm here is affine-free and sees valid tokens only.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from gaitjax.parts import token_grid
from gaitjax.parts.layers import BatchNorm, RunningNorm
from gaitjax.parts.token_grid import Features, Hidden, weigh
from gaitjax.parts.transformer import DenseParameters, dense

FEW = 2  # outputs that are sums over channels, not a matmul
EDGE_ROWS = 5  # outermost rows, above and below, that tell the background


def person_columns(ratios: jax.Array, height: int, width: int):
    """Where a crop of width/height `ratios` [N] lies in a height x width frame.

    Returns (offset, columns), int32 [N]: the crop is int(height * ratio) columns wide
    and centred; a negative offset means that its sides are cut off.
    """
    columns = jnp.floor(ratios.astype(jnp.float32) * height).astype(jnp.int32)
    columns = jnp.maximum(columns, 1)
    return (width - columns) // 2, columns


def inside_columns(ratios: jax.Array, height: int, width: int) -> jax.Array:
    """bool [N width]: the valid columns, which hold the person crop."""
    offset, columns = person_columns(ratios, height, width)
    position = jnp.arange(width)[None, :] - offset[:, None]  # [N W]
    return (position >= 0) & (position < columns[:, None])


def unsquash(images: jax.Array, ratios: jax.Array, height: int, width: int):
    """Undo a square resize: [N H W C] -> [N height width C], zeros beside the crop.

    Bilinear to height x int(height * ratio), then padded or cropped to `width` about
    the centre. Benchmarks that have squashed frames give the `ratios` [N].
    """
    offset, columns = person_columns(ratios, height, width)
    inside = inside_columns(ratios, height, width)  # [N width]
    rows = _bilinear_weights(jnp.arange(height), images.shape[1], jnp.asarray(height))
    position = jnp.arange(width)[None, :] - offset[:, None]  # [N width]
    across = _bilinear_weights(position, images.shape[2], columns[:, None])
    across = across * inside[:, :, None]  # [N width W]
    images = jnp.einsum("yh,nhwc->nywc", rows, images)  # [N height W C]
    return jnp.einsum("nxw,nywc->nyxc", across, images)  # [N height width C]


def _bilinear_weights(position, size_in, size_out):
    """Half-pixel bilinear weights [... size_in] of output `position` [...]."""
    source = (position + 0.5) * (size_in / size_out) - 0.5
    source = jnp.clip(source, 0.0, size_in - 1.0)[..., None]
    taps = jnp.arange(size_in).reshape((1,) * position.ndim + (size_in,))
    return jnp.maximum(0.0, 1.0 - jnp.abs(source - taps))


def layer_norm(x: jax.Array, eps: float = 1e-6) -> jax.Array:
    """Parameter-free LayerNorm over the last axis, in float32."""
    x = x.astype(jnp.float32)
    mean = jnp.mean(x, axis=-1, keepdims=True)
    variance = jnp.mean(jnp.square(x - mean), axis=-1, keepdims=True)
    return (x - mean) * jax.lax.rsqrt(variance + eps)


def text_attention(
    features: Features, vectors: jax.Array, inside: jax.Array, fusion: str
) -> jax.Array:
    """Semantic attention of each position to the prompts: float32 [N h w].

    Args:
      features: visual features; their gain is not applied.
      vectors: [P d], each tau times a unit text vector, so that the product with a unit
        feature is tau * cos(F, z). The masks of the P prompts are averaged.
      inside: bool [N h w], the valid columns.
      fusion: "mask" and "gate": sigmoid; "softmax": softmax over the positions in
        `inside`, times their number (mean 1), and 0 elsewhere.
    """
    scores = token_grid.dot(features, vectors)  # tau * |F| * cos
    scores = scores / token_grid.length(features)[..., None]  # [N h w P]
    if fusion == "softmax":
        weights = _softmax_inside(scores, inside[..., None])
    else:
        weights = nn.sigmoid(scores)
    return jnp.mean(weights, axis=-1)  # [N h w]


def _softmax_inside(scores, inside):
    """Softmax over axes 1 and 2 of [N h w P] within `inside`, times its positions."""
    scores = jnp.where(inside, scores, jnp.finfo(scores.dtype).min)
    weights = jax.nn.softmax(scores, axis=(1, 2))  # of a frame without any: all equal
    weights = jnp.where(inside, weights, 0.0)
    return weights * jnp.sum(inside, axis=(1, 2), keepdims=True)


def text_gain(attention: jax.Array, fusion: str) -> jax.Array:
    """The factor of the features: 1 + a, or a for fusion "gate"; float32 [N h w]."""
    return attention if fusion == "gate" else 1.0 + attention


def mask_statistics(
    attention: jax.Array, person: jax.Array, inside: jax.Array
) -> dict[str, jax.Array]:
    """Mean of the text mask on the person and beside, and its deviation; [N h w] each.

    person: bool. Only positions in `inside` (bool) count. A mask that does not tell
    the person from the background has equal means, and one that does nothing a
    deviation of 0.
    """

    def mean(x, where):
        return jnp.sum(jnp.where(where, x, 0.0)) / jnp.maximum(jnp.sum(where), 1)

    centred = jnp.square(attention - mean(attention, inside))
    return {
        "text_mask/foreground": mean(attention, inside & person),
        "text_mask/background": mean(attention, inside & ~person),
        "text_mask/deviation": jnp.sqrt(mean(centred, inside)),
    }


def norm_dense(x: Features, where, features: int, name: str, dtype, train, dropout=0.0):
    """BN -> Dense `name` of the features, in a compact scope: [N h w features].

    where: bool [N h w], the positions that count in the norm's statistics. dropout: of
    the features, which only the direct way has.
    """
    if not x.direct:
        return _norm_dense_on_grid(
            x, where, features, name, dtype, train
        ).interpolated()
    y = weigh(x.interpolated(), x.before)
    y = nn.Dropout(dropout, deterministic=not train)(y)
    y = BatchNorm(affine=False, name="norm")(y, train=train, valid=where)
    y = weigh(y, x.after)
    if features > FEW:
        return nn.Dense(features, dtype=dtype, name=name)(y)
    kernel, bias = DenseParameters(y.shape[-1], features, name=name)()
    y = y.astype(jnp.float32)
    # no matmul: y would be written for it, and once more for its gradient
    columns = [jnp.sum(y * row.reshape(1, 1, 1, -1), axis=-1) for row in kernel.T]
    return jnp.stack(columns, axis=-1) + bias.reshape(1, 1, 1, -1)


def _norm_dense_on_grid(x: Features, where, features, name, dtype, train) -> Hidden:
    size, batch = x.tokens.shape[-1], None
    if train:
        batch = token_grid.moments(x.tokens, x.before, where, x.size)
    norm = RunningNorm(name="norm")(size, batch)
    parameters = DenseParameters(size, features, name=name)()
    return token_grid.normed_dense(x, norm, *parameters, dtype)


class Decoder(nn.Module):
    """The mask branch: features -> probabilities of (foreground, background).

    dropout -> BN -> Dense 2 -> softmax; with supervision "reconstruction" (BigGait) an
    autoencoder: a further Dense rebuilds the features from the two probabilities.
    """

    supervision: str = "silhouette"
    dropout: float = 0.5
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, features: Features, valid: jax.Array, *, train: bool):
        """valid: bool [N h w].

        Returns probabilities [N h w 2], zero outside `valid`, and the reconstruction
        [N h w d] or None.
        """
        if train and self.dropout > 0:
            features = features.replace(direct=True)

        def classify(module, features, valid):
            options = 2, "classify", self.dtype, train, self.dropout
            return norm_dense(features, valid, *options)

        # computed again in the backward pass: two logits, for which dropout and norm
        # would keep arrays of all d channels
        classify = nn.remat(classify) if train else classify
        logits = classify(self, features, valid)
        probabilities = nn.softmax(logits.astype(jnp.float32), axis=-1)  # [N h w 2]
        reconstruction = None
        if self.supervision == "reconstruction":
            reconstruction = nn.Dense(
                features.tokens.shape[-1], dtype=self.dtype, name="reconstruct"
            )(probabilities).astype(jnp.float32)  # [N h w d]
        return jnp.where(valid[..., None], probabilities, 0.0), reconstruction


def dilate(mask: jax.Array, size: int) -> jax.Array:
    """bool [N h w] dilated by a size x size square."""
    window = (1, size, size)
    largest = jax.lax.reduce_window(  # of numbers, which ONNX has and of bits not
        mask.astype(jnp.float32), -jnp.inf, jax.lax.max, window, (1, 1, 1), "SAME"
    )
    return largest > 0


def erode(mask: jax.Array, size: int) -> jax.Array:
    """bool [N h w] eroded by a size x size square; the image border does not erode."""
    return ~dilate(~mask, size)


def background_first(probabilities: jax.Array, rule: str) -> jax.Array:
    """BigGait's edge rule: the frames whose channel 0 is the background, bool [N].

    An unsupervised decoder may put the person into either channel. In the outermost
    5 + 5 rows there is more background than person, so channel 0 is the background if
    it is above 0.5 in more than half of these pixels.

    probabilities: [N h w 2], zero outside the valid columns.
    rule: "valid": half of the pixels in valid columns. "published": of all columns, so
      that a crop narrower than half of the frame is never found; for published weights.
      Both agree where every column is valid.
    """
    both = jnp.concatenate(
        [probabilities[:, :EDGE_ROWS], probabilities[:, -EDGE_ROWS:]], axis=1
    )  # [N 10 w 2]
    inside = jnp.sum(both, axis=-1) > 0.5  # [N 10 w]
    if rule == "published":
        inside = jnp.ones_like(inside)
    first = jnp.sum(both[..., 0] > 0.5, axis=(1, 2))  # [N]
    return 2 * first > jnp.sum(inside, axis=(1, 2))


def foreground_support(chosen: jax.Array, dilation: int = 3) -> jax.Array:
    """The pixels that the maps are computed on: bool [N h w], no gradient.

    chosen: probability of the foreground [N h w], zero outside the valid columns. It is
    binarised at 0.5 and dilated by a dilation x dilation square. Pixels that this adds
    outside the valid columns are kept only if they survive an erosion by a square that
    is 2 wider.

    dilation: odd. The papers have 3 on a 64x32 grid; 1 is none. On a coarse grid, where
    a pixel is wide, a dilation would cover the outline.
    """
    dilated = dilate(chosen > 0.5, dilation)
    return (dilated & (chosen > 0)) | erode(dilated, dilation + 2)


class Denoising(nn.Module):
    """The denoising ("ResNet") branch: a soft part label per foreground token.

    BN -> Dense -> BN -> GELU -> Dense -> softmax over channels, zero elsewhere.
    """

    channels: int = 16
    hidden: int = 768
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, features: Features, support: jax.Array, *, train: bool):
        """support: bool [N h w]; float32 [N h w channels]."""
        first = (features, support, self.hidden, "expand", self.dtype, train)
        if features.direct:
            x = norm_dense(*first)
            norm = BatchNorm(affine=False, name="hidden_norm")
            x = nn.gelu(norm(x, train=train, valid=support), approximate=False)
            x = nn.Dense(self.channels, dtype=self.dtype, name="project")(x)
        else:
            hidden = _norm_dense_on_grid(*first)
            batch = hidden.moments(support) if train else None
            norm = RunningNorm(name="hidden_norm")(self.hidden, batch)
            project = DenseParameters(self.hidden, self.channels, name="project")()

            def finish(x):
                x = nn.gelu(x.astype(self.dtype), approximate=False)
                return dense(x, *project)

            x = hidden.mapped(finish, *norm)
        parts = nn.softmax(x.astype(jnp.float32), axis=-1)
        return jnp.where(support[..., None], parts, 0.0)  # [N h w channels]


class Appearance(nn.Module):
    """The appearance branch: BN -> Dense -> BN -> sigmoid, zero off the foreground."""

    channels: int = 16
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, features: Features, support: jax.Array, *, train: bool):
        """support: bool [N h w]; float32 [N h w channels]."""
        x = norm_dense(features, support, self.channels, "project", self.dtype, train)
        x = BatchNorm(affine=False, name="project_norm")(x, train=train, valid=support)
        x = nn.sigmoid(x.astype(jnp.float32))
        return jnp.where(support[..., None], x, 0.0)  # [N h w channels]


def blacken(
    denoised: jax.Array, appearance: jax.Array, share: float, rng: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """BigGait's "black" augmentation: in round(share * B) of the sequences, chosen at
    random, one of the two maps [B T h w C], chosen at random, becomes zero."""
    batch = denoised.shape[0]
    order_rng, which_rng = jax.random.split(rng)
    chosen = jax.random.permutation(order_rng, batch) < round(share * batch)  # [B]
    first = jax.random.bernoulli(which_rng, 0.5, (batch,))
    shape = (batch,) + (1,) * (denoised.ndim - 1)
    denoised = jnp.where((chosen & first).reshape(shape), 0.0, denoised)
    appearance = jnp.where((chosen & ~first).reshape(shape), 0.0, appearance)
    return denoised, appearance
