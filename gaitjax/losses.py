"""Training losses: pure functions, and the dict that configs choose them from.

Every loss is float32. Sequences and frames outside `valid` never change a value or a
gradient. An adapter in `LOSSES` takes (output, batch, fields of that loss in the
config) and returns a scalar.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from gaitjax.parts.output import GaitOutput

# Triplet terms held at once; above it anchors are taken in chunks and recomputed in
# the backward pass.
TRIPLET_CHUNK = 2**24
# Added to a channel's share inside the logarithm of the diversity loss, as BigGait
# does: finite gradients where a channel is empty.
SHARE_EPSILON = 1e-6


def _mean_where(values: jax.Array, mask: jax.Array) -> jax.Array:
    """Mean of values where mask (its shape a leading part of theirs), 0 if nowhere."""
    trailing = values.size // max(mask.size, 1)
    mask = mask.reshape(mask.shape + (1,) * (values.ndim - mask.ndim))
    count = jnp.maximum(jnp.sum(mask, dtype=jnp.float32), 1) * trailing
    return jnp.sum(jnp.where(mask, values, 0)) / count


def _safe_sqrt(squared: jax.Array) -> jax.Array:
    """Square root with value and gradient 0 at 0 (and below, from rounding)."""
    positive = squared > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, squared, 1)), 0)


def _magnitude(x: jax.Array) -> jax.Array:
    """|x| with gradient 0 at 0, which flat background meets (jnp.abs has 1 there)."""
    return x * jax.lax.stop_gradient(jnp.sign(x))


# ---------------------------------------------------------------- metric learning


def pairwise_distances(embeddings: jax.Array) -> jax.Array:
    """Euclidean distances within a batch, per strip: [B S D] -> float32 [S B B].

    The diagonal is exactly 0; the gradient of a zero distance is 0.
    """
    x = jnp.swapaxes(embeddings.astype(jnp.float32), 0, 1)  # [S B D]
    inner = jnp.einsum("sbd,scd->sbc", x, x, precision=jax.lax.Precision.HIGHEST)
    norms = jnp.sum(jnp.square(x), axis=-1)  # [S B]
    squared = norms[:, :, None] + norms[:, None, :] - 2 * inner  # [S B B]
    other = ~jnp.eye(x.shape[1], dtype=bool)[None]
    return _safe_sqrt(jnp.where(other, squared, 0))


def _mean_hinge(positive, positive_mask, negative, negative_mask, margin):
    """Mean non-zero hinge per strip.

    positive f32 [B S J]: distances of each anchor to J candidates for a positive, mask
    [B J]; negative f32 [B S B], mask [B B]. Returns (mean [S], non-zero terms [S]).
    """

    def of_anchor(arguments):
        positive, positive_mask, negative, negative_mask = arguments
        hinge = positive[:, :, None] - negative[:, None, :] + margin  # [S J B]
        counts = positive_mask[:, None] & negative_mask[None, :]  # [J B]
        hinge = jax.nn.relu(jnp.where(counts[None], hinge, 0))
        nonzero = jnp.sum(hinge > 0, (1, 2), dtype=jnp.float32)
        return jnp.sum(hinge, (1, 2)), nonzero  # [S], [S]

    arguments = (positive, positive_mask, negative, negative_mask)
    anchors, strips, candidates = positive.shape
    terms = strips * candidates * anchors
    if anchors * terms <= TRIPLET_CHUNK:
        sums, nonzero = jax.vmap(of_anchor)(arguments)  # [B S] each
    else:
        sums, nonzero = jax.lax.map(
            jax.checkpoint(of_anchor),
            arguments,
            batch_size=max(TRIPLET_CHUNK // terms, 1),
        )  # [B S] each
    nonzero = jnp.sum(nonzero, axis=0)  # [S]
    return jnp.sum(sums, axis=0) / (nonzero + 1e-9), nonzero


def batch_all_triplet(
    embeddings: jax.Array,
    *,
    seqs_per_id: int,
    margin: float,
    valid: jax.Array | None = None,
) -> jax.Array:
    """Batch-all triplet loss of an identity-grouped batch, per strip.

    loss_s = mean over the non-zero max(0, d(a,p) - d(a,n) + margin), 0 if there are
    none: every anchor a, every p of its identity, every n of another one.

    Args:
      embeddings: [B S D], rows grouped by identity: B = P * seqs_per_id.
      seqs_per_id: K; [P K] gives B*K*B terms per strip, never B*B*B.
      margin: m.
      valid: bool [B], rows that count; None: all.

    Returns float32 [S].

    Source: Hermans et al., "In Defense of the Triplet Loss for Person
    Re-Identification" (2017), eq. 5-6, as the field uses it per strip.

    Differences from the paper: the anchor counts as its own positive (at distance 0),
    as in the public gait code; published results rest on it. LMGait prints eq. 13 with
    positive and negative swapped.
    """
    batch, strips, _ = embeddings.shape
    if batch % seqs_per_id:
        raise ValueError(
            f"batch_all_triplet: a batch of {batch} sequences is not a multiple of "
            f"seqs_per_id={seqs_per_id}; group it, or use batch_all_triplet_by_label."
        )
    rows = jnp.ones(batch, bool) if valid is None else valid
    ids = batch // seqs_per_id
    distance = pairwise_distances(embeddings)  # [S B B]
    blocks = distance.reshape(strips, ids, seqs_per_id, ids, seqs_per_id)
    positive = jnp.einsum("spkpj->pksj", blocks).reshape(
        batch, strips, seqs_per_id
    )  # [B S K]
    group = jnp.arange(batch) // seqs_per_id
    loss, _ = _mean_hinge(
        positive,
        rows[:, None] & rows.reshape(ids, seqs_per_id)[group],
        jnp.swapaxes(distance, 0, 1),  # [B S B]
        rows[None, :] & (group[:, None] != group[None, :]),
        margin,
    )
    return loss


def batch_all_triplet_by_label(
    embeddings: jax.Array,
    labels: jax.Array,
    *,
    margin: float,
    valid: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """`batch_all_triplet` of any batch: order and group sizes are free.

    Args:
      embeddings: [B S D].
      labels: int [B].
      margin: m.
      valid: bool [B], rows that count; None: all.

    Returns (loss float32 [S], number of non-zero terms float32 [S]). B*B*B terms per
    strip, in chunks of anchors where they are many.
    """
    rows = jnp.ones(labels.shape, bool) if valid is None else valid
    both = rows[:, None] & rows[None, :]
    same = labels[:, None] == labels[None, :]
    distance = jnp.swapaxes(pairwise_distances(embeddings), 0, 1)  # [B S B]
    return _mean_hinge(distance, both & same, distance, both & ~same, margin)


def strip_cross_entropy(
    logits: jax.Array, labels: jax.Array, *, scale: float, smoothing: float
) -> jax.Array:
    """Cross-entropy per sequence and strip: [B S N], int [B] -> float32 [B S].

    logits are multiplied by `scale`; `smoothing` is spread over all N identities
    (Szegedy et al., "Rethinking the Inception Architecture", CVPR 2016, section 7).
    """
    scaled = logits.astype(jnp.float32) * scale
    log_partition = jax.nn.logsumexp(scaled, axis=-1)  # [B S]
    right = jnp.take_along_axis(scaled, labels[:, None, None], axis=-1)[..., 0]
    target = (1 - smoothing) * right + smoothing * jnp.mean(scaled, axis=-1)
    return log_partition - target  # [B S]


def supervised_contrastive(
    scores: jax.Array, labels: jax.Array, valid: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """Supervised contrastive terms: scores [B B], int [B] -> (float32 [B], bool [B]).

    term_i = -mean over positives p != i of log softmax(scores_i over all but i)_p.
    The second result says which anchors have a term: valid ones with a positive.

    Source: Khosla et al., "Supervised Contrastive Learning" (NeurIPS 2020), eq. 2.
    """
    scores = scores.astype(jnp.float32)
    rows = jnp.ones(labels.shape, bool) if valid is None else valid
    others = rows[:, None] & rows[None, :] & ~jnp.eye(len(labels), dtype=bool)
    positives = others & (labels[:, None] == labels[None, :])
    lowest = jnp.finfo(jnp.float32).min
    masked = jnp.where(others, scores, lowest)
    log_partition = jax.nn.logsumexp(masked, axis=1, keepdims=True)  # [B 1]
    log_share = jnp.where(positives, scores - log_partition, 0)  # [B B]
    count = jnp.sum(positives, axis=1)  # [B]
    return -jnp.sum(log_share, axis=1) / jnp.maximum(count, 1), count > 0


def supcon_loss(
    embeddings: jax.Array,
    labels: jax.Array,
    *,
    temperature: float,
    valid: jax.Array | None = None,
) -> jax.Array:
    """SupCon on Euclidean distances of L2-normalised embeddings: [B D] -> scalar.

    Scores are -distance / temperature; the mean is over the anchors whose term is
    above 0. Source: Teepe et al., "Towards a Deeper Understanding of Skeleton-based
    Gait Recognition" (GaitGraph2, CVPRW 2022), section 3.3.

    Differences from the paper: distances in place of dot products, and the mean over
    terms above 0, as in the public code that made its numbers.
    """
    x = embeddings.astype(jnp.float32)
    squared = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
    x = x * jax.lax.rsqrt(jnp.maximum(squared, 1e-24))  # [B D]
    # differences first: the temperature magnifies the rounding of |x|^2+|y|^2-2xy
    squared = jnp.sum(jnp.square(x[:, None] - x[None]), axis=-1)  # [B B]
    scores = -_safe_sqrt(squared) / temperature
    terms, has_term = supervised_contrastive(scores, labels, valid)
    return _mean_where(terms, has_term & (terms > 0))


def ranking_loss(
    positive: jax.Array, negative: jax.Array, *, easy_weight: float
) -> jax.Array:
    """CarGait's pairwise ranking loss: -log sigmoid(d_negative - d_positive).

    Args:
      positive, negative: [B] new distances from a probe to a positive and a negative.
      easy_weight: beta, the weight of triplets that are already in the right order.

    Returns float32 [B].

    Source: Habib et al., "CarGait: Cross-Attention based Re-ranking for Gait
    Recognition" (2025), training loss; Rendle et al., "BPR" (UAI 2009).
    """
    gap = positive.astype(jnp.float32) - negative.astype(jnp.float32)
    weight = jnp.where(gap < 0, easy_weight, 1.0)
    return weight * jax.nn.softplus(gap)


# ---------------------------------------------------------------- maps


def binary_cross_entropy(
    probability: jax.Array, target: jax.Array, *, epsilon: float = 1e-7
) -> jax.Array:
    """Cross-entropy per pixel: probability and target in [0, 1] -> float32, same shape.

    epsilon keeps value and gradient finite at probabilities of exactly 0 and 1.
    Source: LMGait eq. 17 (silhouette supervision, with the mean over valid tokens).
    """
    probability = probability.astype(jnp.float32)
    target = target.astype(jnp.float32)
    right = target * jnp.log(probability + epsilon)
    return -(right + (1 - target) * jnp.log(1 - probability + epsilon))


def sobel_magnitude(maps: jax.Array) -> jax.Array:
    """|Sobel x| + |Sobel y|, zero padding: [N H W C] -> float32 [N H W C].

    Kernels are the integer ones (1 2 1) x (1 0 -1).
    """
    maps = maps.astype(jnp.float32)
    padded = jnp.pad(maps, ((0, 0), (1, 1), (1, 1), (0, 0)))
    rows = padded[:, :-2] + 2 * padded[:, 1:-1] + padded[:, 2:]  # [N H W+2 C]
    columns = padded[:, :, :-2] + 2 * padded[:, :, 1:-1] + padded[:, :, 2:]
    across = rows[:, :, :-2] - rows[:, :, 2:]  # [N H W C]
    down = columns[:, :-2] - columns[:, 2:]  # [N H W C]
    return _magnitude(across) + _magnitude(down)


def smoothness_loss(
    maps: jax.Array, valid: jax.Array | None = None, *, reduce: str = "channel"
) -> jax.Array:
    """Mean Sobel magnitude of feature maps (LMGait eq. 15).

    Args:
      maps: [N H W C].
      valid: bool [N], frames that count; None: all.
      reduce: "channel": mean over every channel's own magnitude, as printed.
        "sum": the magnitude of the sum over channels, divided by C, as BigGait's
        released weights were trained (they sum all denoised channels but the last:
        pass those).

    Returns a float32 scalar: sum / (frames * C * H * W).
    """
    channels = maps.shape[-1]
    if reduce == "channel":
        magnitude = sobel_magnitude(maps)  # [N H W C]
    elif reduce == "sum":
        total = jnp.sum(maps.astype(jnp.float32), axis=-1, keepdims=True)
        magnitude = sobel_magnitude(total) / channels  # [N H W 1]
    else:
        raise ValueError(
            f"loss.smoothness.reduce must be 'channel' or 'sum'; got {reduce!r}."
        )
    valid = jnp.ones(maps.shape[:1], bool) if valid is None else valid
    return _mean_where(magnitude, valid)


def diversity_loss(maps: jax.Array, valid: jax.Array | None = None) -> jax.Array:
    """How unequally a frame's mass is spread over channels, in bits.

    q_k = share of channel k in the sum over the map; the loss is the mean over frames
    of log2 C - H2(q): 0 when all channels are used alike, log2 C when one holds
    everything or the map is empty.

    Args:
      maps: [N H W C], not negative.
      valid: bool [N], frames that count; None: all.

    Returns a float32 scalar. Source: BigGait (Ye et al., CVPR 2024), diversity loss.

    Differences from the paper: LMGait eq. 16 prints a spatial entropy whose sign, with
    its weight of +5, would reward concentration; this is BigGait's bounded form.
    """
    mass = jnp.sum(maps.astype(jnp.float32), axis=(1, 2))  # [N C]
    total = jnp.sum(mass, axis=1, keepdims=True)  # [N 1]
    share = mass / jnp.where(total > 0, total, 1)  # [N C]
    # log2 C - H2(q) as a sum of terms that are not negative: the mean over channels of
    # (1+e) ln(1+e) - e, e = C q - 1. Plain subtraction loses all digits near 0.
    channels = maps.shape[-1]
    excess = share * channels - 1  # [N C]
    logs = jnp.log1p(excess + channels * SHARE_EPSILON)
    terms = (1 + excess) * logs - excess  # [N C]
    nats = jnp.where(total[:, 0] > 0, jnp.mean(terms, axis=1), math.log(channels))
    unequal = nats / math.log(2)  # [N]
    valid = jnp.ones(maps.shape[:1], bool) if valid is None else valid
    return _mean_where(unequal, valid)


# ---------------------------------------------------------------- adapters


def _rows(batch):
    """bool [B]: sequences with at least one valid frame."""
    return jnp.any(batch["valid"], axis=1)


def _aux(output, name, loss):
    if name not in output.aux:
        raise ValueError(
            f"Loss {loss!r} reads aux[{name!r}], which this model does not give (it "
            f"gives {', '.join(sorted(output.aux)) or 'nothing'}); remove "
            f"config.loss.{loss} or switch on the branch that makes it."
        )
    return output.aux[name]


def _triplet(output, batch, config):
    """config["seqs_per_id"], where the batch is known to be grouped, saves memory."""
    x, margin, rows = output.embeddings, config["margin"], _rows(batch)
    if seqs_per_id := config.get("seqs_per_id"):
        per_strip = batch_all_triplet(
            x, seqs_per_id=seqs_per_id, margin=margin, valid=rows
        )
    else:
        per_strip, _ = batch_all_triplet_by_label(
            x, batch["labels"], margin=margin, valid=rows
        )
    return jnp.mean(per_strip)


def _cross_entropy(output, batch, config):
    if output.logits is None:
        raise ValueError(
            "Loss 'cross_entropy' needs logits, which this model does not give; remove "
            "config.loss.cross_entropy."
        )
    rows = _rows(batch)
    per_strip = strip_cross_entropy(
        output.logits,
        jnp.where(rows, batch["labels"], 0),
        scale=config["scale"],
        smoothing=config["smoothing"],
    )
    return _mean_where(per_strip, rows)


def _supcon(output, batch, config):
    flat = output.embeddings.reshape(output.embeddings.shape[0], -1)  # [B S*D]
    return supcon_loss(
        flat, batch["labels"], temperature=config["temperature"], valid=_rows(batch)
    )


def _silhouette(output, batch, config):
    per_token = binary_cross_entropy(
        _aux(output, "foreground_probability", "silhouette"),
        _aux(output, "silhouette_target", "silhouette"),
    )  # [B T h w]
    return _mean_where(per_token, _aux(output, "token_valid", "silhouette"))


def _reconstruction(output, batch, config):
    rebuilt = _aux(output, "reconstruction", "reconstruction").astype(jnp.float32)
    target = _aux(output, "reconstruction_target", "reconstruction")
    squared = jnp.square(rebuilt - target.astype(jnp.float32))  # [B T h w C]
    return _mean_where(squared, _aux(output, "token_valid", "reconstruction"))


def _smoothness(output, batch, config):
    maps = _aux(output, "denoised", "smoothness")  # [B T h w C]
    maps = maps.reshape((-1,) + maps.shape[2:])  # [B*T h w C]
    if config["reduce"] == "sum":
        maps = maps[..., :-1]
    return smoothness_loss(maps, batch["valid"].reshape(-1), reduce=config["reduce"])


def _diversity(output, batch, config):
    maps = _aux(output, "denoised", "diversity")  # [B T h w C]
    maps = maps.reshape((-1,) + maps.shape[2:])  # [B*T h w C]
    return diversity_loss(maps, batch["valid"].reshape(-1))


def _binary_cross_entropy(output, batch, config):
    per_pixel = binary_cross_entropy(
        _aux(output, "mask_probability", "binary_cross_entropy"),
        _aux(output, "mask_target", "binary_cross_entropy"),
    )  # [B T H W]
    return _mean_where(per_pixel, batch["valid"])


# name -> loss(output, batch, its fields in config.loss) -> scalar
LOSSES: dict[str, Callable[[GaitOutput, Mapping, Mapping], jax.Array]] = {
    "triplet": _triplet,  # margin, seqs_per_id
    "cross_entropy": _cross_entropy,  # scale, smoothing
    "supcon": _supcon,  # temperature
    "silhouette": _silhouette,
    "reconstruction": _reconstruction,
    "smoothness": _smoothness,  # reduce
    "diversity": _diversity,
    "binary_cross_entropy": _binary_cross_entropy,
}


def total_loss(
    output: GaitOutput,
    batch: Mapping[str, jax.Array],
    config_losses: Mapping[str, Mapping[str, Any]],
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Weighted sum of the losses that the config names (LMGait eq. 18).

    Args:
      output: of the model, in training mode.
      batch: valid bool [B T], labels int [B] and what the model read.
      config_losses: name -> {"weight": w, fields of that loss}.

    Returns (float32 scalar, {name: unweighted value, "total": the sum}). ValueError for
    an unknown name, listing the choices.
    """
    terms = {}
    total = jnp.float32(0)
    for name, config in config_losses.items():
        if name not in LOSSES:
            raise ValueError(
                f"Unknown loss {name!r} (config.loss); choose from "
                f"{', '.join(sorted(LOSSES))}."
            )
        terms[name] = LOSSES[name](output, batch, config)
        total = total + config["weight"] * terms[name]
    return total, {**terms, "total": total}
