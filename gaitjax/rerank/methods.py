"""Re-rankers under one contract: base distances in, new distances out.

A re-ranker takes base distances [Q G] and the embeddings they come from and returns
distances [Q G] that `rank_metrics` ranks in the same way (smaller is nearer). `rerank`
reorders only the `shortlist` nearest of each probe, by any score function (for instance
CarGait's pair distance); all others keep their places and values. The methods of
`RERANKERS` that look at all sequences together give the whole gallery a new order,
unless they are given a shortlist.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from gaitjax.engine.guards import require
from gaitjax.rerank import graph_methods
from gaitjax.rerank.k_reciprocal import k_reciprocal
from gaitjax.retrieval.distance import pairwise_distance
from gaitjax.retrieval.metrics import rank_metrics

NEIGHBOURS = (5, 10, 20, 50, 100)  # of LBR, to choose from; 100 is published

# (probe [B S D], candidates [B K S D]) -> [B K], smaller is nearer
ScoreFunction = Callable[[Any, Any], Any]


def rerank(
    distance,
    probe,
    gallery,
    score_fn: ScoreFunction,
    *,
    shortlist: int,
    chunk: int = 64,
) -> np.ndarray:
    """Base distances with the first `shortlist` of each row in the order of score_fn.

    Equal scores keep the base order. A candidate at distance +inf (a pair that does not
    count, see `protocols.evaluate_tasks`) is never moved forward.

    Args:
      distance: [Q G], the base ranking, taken as float32.
      probe: [Q S D]. gallery: [G S D], numpy or jax.
      score_fn: (probe [B S D], candidates [B K S D]) -> [B K], jitted by the caller
        (shapes are always the same); smaller is nearer.
      shortlist: K, at least 1; above G it means G.
      chunk: B, probes per call.

    Returns:
      float32 [Q G]: the values of `distance`, reassigned within each row to give the
      new order; base ties are separated by the smallest possible amounts.

    Raises:
      ValueError: a score is NaN.
    """
    rows = first(distance, shortlist)
    scores = score(rows, probe, gallery, score_fn, chunk=chunk)
    return permute(distance, rows, scores)


def first(distance, k: int) -> np.ndarray:
    """Gallery rows int32 [Q min(k, G)] of each probe's nearest, ties by gallery order.

    If a [Q G] matrix does not fit into memory, `distance.nearest` gives the same rows.
    """
    distance = np.asarray(distance, np.float32)
    k = min(k, distance.shape[1])
    if not distance.size:
        return np.zeros((distance.shape[0], k), np.int32)
    return np.asarray(_smallest(distance, k))


def score(rows, probe, gallery, score_fn: ScoreFunction, *, chunk: int) -> np.ndarray:
    """score_fn of each probe and its candidates gallery[rows]: float32 [Q K].

    The last chunk is filled up with repetitions, so score_fn always sees one shape.
    Raises ValueError if a score is NaN.
    """
    rows = np.asarray(rows)
    scores = np.empty(rows.shape, np.float32)
    for start in range(0, len(rows), chunk):
        some = np.arange(start, start + chunk).clip(max=len(rows) - 1)
        found = np.asarray(score_fn(probe[some], gallery[rows[some]]))
        scores[start : start + chunk] = found[: len(rows) - start]
    require(
        not np.isnan(scores).any(),
        "score_fn returned NaN. Look for NaN in the embeddings and in the parameters "
        "of the re-ranker: its training may have diverged.",
    )
    return scores


def permute(distance, rows, scores) -> np.ndarray:
    """distance [Q G] with `rows` [Q K] (of `first`) in the order of `scores` [Q K]."""
    out = np.array(distance, np.float32)
    if not out.size:
        return out
    values = np.take_along_axis(out, rows, axis=1)  # [Q K], ascending
    unreachable = np.isinf(values) & (values > 0)
    order = np.argsort(
        np.where(unreachable, np.inf, scores), axis=1, kind="stable"
    )  # [Q K]
    rows = np.take_along_axis(rows, order, axis=1)
    # Make values strictly ascending and smaller than the tail: equal values would be
    # ranked by gallery order.
    outside = np.ones(out.shape, bool)
    np.put_along_axis(outside, rows, False, axis=1)
    limit = np.min(out, axis=1, initial=np.inf, where=outside)  # [Q]
    tiny = np.finfo(np.float32).tiny  # devices treat smaller numbers as zero
    for k in range(rows.shape[1] - 1, -1, -1):
        below = np.nextafter(limit, np.float32(-np.inf), dtype=np.float32)
        below = np.where(np.abs(below) < tiny, -tiny, below)
        values[:, k] = np.where(
            unreachable[:, k], np.inf, np.minimum(values[:, k], below)
        )
        limit = np.where(unreachable[:, k], limit, values[:, k])
    np.put_along_axis(out, rows, values, axis=1)
    return out


def within_shortlist(distance, rescored, shortlist: int | None) -> np.ndarray:
    """distance [Q G], its first `shortlist` in the order of `rescored` (None: all).

    Pairs at distance +inf stay there.
    """
    if shortlist is None:
        return np.where(np.isposinf(distance), np.float32(np.inf), rescored)
    rows = first(distance, shortlist)
    return permute(distance, rows, np.take_along_axis(rescored, rows, axis=1))


def kr(distance, probe, gallery, *, shortlist=None, metric="euclidean", **options):
    """`k_reciprocal` on the all-against-all matrix of the base metric."""
    distance = np.asarray(distance)
    across = distance
    if not np.isfinite(across).all():
        across = pairwise_distance(probe, gallery, metric=metric)
    within = [pairwise_distance(x, x, metric=metric) for x in (probe, gallery)]
    for square in within:
        np.fill_diagonal(square, 0)
    everything = np.block([[within[0], across], [across.T, within[1]]])
    everything = np.maximum(everything, 0)  # a cosine distance may round below 0
    rescored = k_reciprocal(everything, len(probe), **options)
    return within_shortlist(distance, rescored, shortlist)


def lbr(distance, probe, gallery, *, shortlist=100, temperature=0.3, chunk=64):
    """`graph_methods.local_blurring` of the `shortlist` nearest (None: of all)."""
    return rerank(
        distance,
        np.asarray(graph_methods.features(probe)),  # once, not once per shortlist
        np.asarray(graph_methods.features(gallery)),
        lambda some, candidates: _blurred(some, candidates, temperature),
        shortlist=shortlist or np.shape(distance)[1],
        chunk=chunk,
    )


def choose_neighbours(embeddings, subject, view, metric: str) -> tuple[int, dict]:
    """LBR's shortlist for small galleries: of NEIGHBOURS, the one of the highest mAP.

    LBR mixes the embeddings of a whole shortlist; where a gallery is not much larger
    than that, it mixes everybody. Each of the given sequences [n S D] is once the probe
    and is compared with all others, except those of its identity and view. They should
    be of identities that no test sees. Returns the number and {number: mAP}; without
    identities that repeat, the published number.
    """
    same = subject[:, None] == subject[None, :]
    out = same & (view[:, None] == view[None, :])
    np.fill_diagonal(out, True)
    distance = pairwise_distance(embeddings, embeddings, metric=metric)
    distance = np.where(out, np.float32(np.inf), distance)
    found = {}
    for number in [k for k in NEIGHBOURS if k < len(subject)]:
        blurred = lbr(distance, embeddings, embeddings, shortlist=number)
        metrics = rank_metrics(blurred, subject, subject, out)
        found[number] = metrics.get("mAP", 0.0)
    best = max(found, key=found.get) if any(found.values()) else NEIGHBOURS[-1]
    return best, found


def gcr(distance, probe, gallery, *, views=None, shortlist=None, **options):
    """`graph_methods.graph_convolution`; `views` = (of probes [Q], of gallery [G])."""
    rescored = graph_methods.graph_convolution(probe, gallery, views=views, **options)
    return within_shortlist(distance, rescored, shortlist)


def gnn(distance, probe, gallery, *, shortlist=None, **options):
    """`graph_methods.graph_network`."""
    rescored = graph_methods.graph_network(probe, gallery, **options)
    return within_shortlist(distance, rescored, shortlist)


def qe(distance, probe, gallery, *, shortlist=None, **options):
    """`graph_methods.query_expansion`."""
    rescored = graph_methods.query_expansion(probe, gallery, **options)
    return within_shortlist(distance, rescored, shortlist)


# name -> f(distance [Q G], probe [Q S D], gallery [G S D], *, shortlist, ...) -> [Q G].
# CarGait needs trained parameters, so it is not here: see `compare.trained_method`.
RERANKERS: dict[str, Callable[..., np.ndarray]] = {
    "kr": kr,
    "lbr": lbr,
    "gcr": gcr,
    "gnn": gnn,
    "qe": qe,
}


@jax.jit
def _blurred(probe, candidates, temperature):
    return graph_methods.local_blurring(probe, candidates, temperature=temperature)


@functools.partial(jax.jit, static_argnums=1)
def _smallest(distance, k: int):
    """Columns of the k smallest values; of equal values the earlier ones come first."""
    return jax.lax.top_k(0 - distance, k)[1]  # 0 - x: no negative zeros
