"""Losses on pairs of embeddings or distances: contrastive, ranking, batch-hard."""

import jax
import jax.numpy as jnp

from gaitjax.losses.metric import pairwise_distances
from gaitjax.losses.numerics import mean_where, safe_sqrt


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
    above 0.

    Source: Teepe et al., "Towards a Deeper Understanding of Skeleton-based Gait
    Recognition" (GaitGraph2, CVPRW 2022), section 3.3. Differs from the paper:
    distances in place of dot products, and the mean over terms above 0, as in the
    public code that made its numbers.
    """
    x = embeddings.astype(jnp.float32)
    squared = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
    x = x * jax.lax.rsqrt(jnp.maximum(squared, 1e-24))  # [B D]
    # differences first: the temperature magnifies the rounding of |x|^2+|y|^2-2xy
    squared = jnp.sum(jnp.square(x[:, None] - x[None]), axis=-1)  # [B B]
    scores = -safe_sqrt(squared) / temperature
    terms, has_term = supervised_contrastive(scores, labels, valid)
    return mean_where(terms, has_term & (terms > 0))


def ranking_loss(
    positive: jax.Array, negative: jax.Array, *, easy_weight: float
) -> jax.Array:
    """CarGait's pairwise ranking loss: -log sigmoid(d_negative - d_positive).

    positive, negative: [B], new distances from a probe to a positive and a negative.
    easy_weight: beta, the weight of triplets that are already in the right order.
    Returns float32 [B].

    Source: Habib et al., "CarGait: Cross-Attention based Re-ranking for Gait
    Recognition" (2025), training loss; Rendle et al., "BPR" (UAI 2009).
    """
    gap = positive.astype(jnp.float32) - negative.astype(jnp.float32)
    weight = jnp.where(gap < 0, easy_weight, 1.0)
    return weight * jax.nn.softplus(gap)


def batch_hard_triplet(
    embeddings: jax.Array,
    labels: jax.Array,
    *,
    margin: float,
    valid: jax.Array | None = None,
) -> jax.Array:
    """Batch-hard triplet loss, rows in any order: [B S D], int [B] -> float32 [S].

    Per anchor: the furthest row of its identity (itself counts) against the nearest of
    another; the mean over the non-zero hinges, 0 if there are none.

    valid: bool [B], rows that count; None: all. Source: Hermans et al., "In Defense of
    the Triplet Loss for Person Re-Identification" (2017), eq. 5, per strip; it takes
    the mean over all anchors.
    """
    rows = jnp.ones(labels.shape, bool) if valid is None else valid
    both = rows[:, None] & rows[None, :]
    same = labels[:, None] == labels[None, :]
    distance = pairwise_distances(embeddings)  # [S B B]
    positive = jnp.max(jnp.where((both & same)[None], distance, 0), 2)
    negative = jnp.min(jnp.where((both & ~same)[None], distance, jnp.inf), 2)  # [S B]
    some = jnp.any(both & ~same, axis=1)[None]  # [1 B]
    hinge = positive - jnp.where(some, negative, 0) + margin
    hinge = jax.nn.relu(jnp.where(some, hinge, 0))
    nonzero = jnp.sum(hinge > 0, axis=1)
    return jnp.sum(hinge, axis=1) / jnp.maximum(nonzero, 1)
