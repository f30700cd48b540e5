"""Triplet loss and cross-entropy per strip: what most gait models are trained with.

Pure functions in float32. Rows outside `valid` change no value and no gradient.
"""

import jax
import jax.numpy as jnp

from gaitjax.losses.numerics import safe_sqrt

# Triplet terms held at once. Where there are more, anchors are taken in chunks and
# recomputed in the backward pass.
TRIPLET_CHUNK = 2**24


def pairwise_distances(embeddings: jax.Array) -> jax.Array:
    """Euclidean distances within a batch, per strip: [B S D] -> float32 [S B B].

    The diagonal is exactly 0; the gradient of a zero distance is 0.
    """
    x = jnp.swapaxes(embeddings.astype(jnp.float32), 0, 1)  # [S B D]
    inner = jnp.einsum("sbd,scd->sbc", x, x, precision=jax.lax.Precision.HIGHEST)
    norms = jnp.sum(jnp.square(x), axis=-1)  # [S B]
    squared = norms[:, :, None] + norms[:, None, :] - 2 * inner  # [S B B]
    other = ~jnp.eye(x.shape[1], dtype=bool)[None]
    return safe_sqrt(jnp.where(other, squared, 0))


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
    terms = strips * candidates * anchors  # of one anchor
    if anchors * terms <= TRIPLET_CHUNK:
        sums, nonzero = jax.vmap(of_anchor)(arguments)  # [B S] each
    else:
        size = max(TRIPLET_CHUNK // terms, 1)
        of_anchor = jax.checkpoint(of_anchor)
        sums, nonzero = jax.lax.map(of_anchor, arguments, batch_size=size)
    nonzero = jnp.sum(nonzero, axis=0)  # [S]
    return jnp.sum(sums, axis=0) / (nonzero + 1e-9), nonzero


def batch_all_triplet(
    embeddings: jax.Array,
    *,
    seqs_per_id: int,
    margin: float,
    valid: jax.Array | None = None,
) -> jax.Array:
    """Batch-all triplet loss of an identity-grouped batch: [B S D] -> float32 [S].

    loss_s = mean over the non-zero max(0, d(a,p) - d(a,n) + margin), 0 if there are
    none: every anchor a, every p of its identity, every n of another one.

    embeddings: rows grouped by identity, B = P * seqs_per_id, so that there are only
    B*K*B terms per strip. valid: bool [B], rows that count; None: all.

    Source: Hermans et al., "In Defense of the Triplet Loss for Person
    Re-Identification" (2017), eq. 5-6, per strip. Differs from the paper: the anchor
    counts as its own positive (distance 0), as in the code behind published results.
    LMGait's eq. 13 prints positive and negative swapped.
    """
    batch, strips, _ = embeddings.shape
    rows = jnp.ones(batch, bool) if valid is None else valid
    ids = batch // seqs_per_id
    distance = pairwise_distances(embeddings)  # [S B B]
    blocks = distance.reshape(strips, ids, seqs_per_id, ids, seqs_per_id)
    positive = jnp.einsum("spkpj->pksj", blocks)
    group = jnp.arange(batch) // seqs_per_id
    loss, _ = _mean_hinge(
        positive.reshape(batch, strips, seqs_per_id),
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
    """`batch_all_triplet` of rows in any order: [B S D], int [B] -> (loss, count).

    Both are float32 [S]; count is the number of non-zero terms. Groups may differ in
    size. There are B*B*B terms per strip.
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
