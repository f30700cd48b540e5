"""Second stages under one contract: permute the first K of each ranking, no more.

A re-ranker takes base distances [Q G] and the embeddings behind them and returns
distances [Q G] of the same meaning for `rank_metrics` (smaller is nearer). `rerank`
reorders only the `shortlist` nearest of each probe by any score function, CarGait's
pair distance among them; what follows keeps its place *and* its value. The methods of
`RERANKERS` that look at all sequences together re-score everything unless a shortlist
is given, too.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from gaitjax.rerank import graph_methods as graph_rerank
from gaitjax.retrieval.distance import pairwise_distance

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
      shortlist: K; above G it means G.
      chunk: B, probes per call.

    Returns:
      float32 [Q G]: a row's values are those of `distance`, dealt out in the new order,
      lowered by the least possible float where the base had ties.

    Raises:
      ValueError: K < 1, shapes that do not fit, NaN distances or scores.
    """
    rows = first(distance, shortlist)
    scores = score(rows, probe, gallery, score_fn, chunk=chunk)
    return permute(distance, rows, scores)


def cascade(
    distance, probe, gallery, stages: Sequence[tuple[ScoreFunction, int]], *, chunk=64
) -> np.ndarray:
    """Several `rerank`s in a row, wide to narrow.

    stages: (score_fn, shortlist) pairs, for example `local_blurring`, 50 and then
    CarGait's, 10.
    """
    sizes = [size for _, size in stages]
    if sizes != sorted(sizes, reverse=True):
        raise ValueError(
            f"A cascade narrows: shortlists must not grow from stage to stage; {sizes}."
        )
    for score_fn, size in stages:
        distance = rerank(
            distance, probe, gallery, score_fn, shortlist=size, chunk=chunk
        )
    return distance


def first(distance, k: int) -> np.ndarray:
    """Gallery rows int32 [Q min(k, G)] of each probe's nearest, ties by gallery order.

    (Where a [Q G] matrix is too much, `distance.nearest` gives the same rows.)
    """
    distance = np.asarray(distance, np.float32)
    if distance.ndim != 2 or k < 1:
        raise ValueError(
            f"A shortlist needs distances [Q G], K >= 1; got {distance.shape}, K={k}."
        )
    if np.isnan(distance).any():
        raise ValueError("NaN distances have no order; look for NaN in the embeddings.")
    k = min(k, distance.shape[1])
    if not distance.size:
        return np.zeros((distance.shape[0], k), np.int32)
    return np.asarray(_smallest(distance, k))


def score(rows, probe, gallery, score_fn: ScoreFunction, *, chunk: int) -> np.ndarray:
    """score_fn of each probe and its candidates gallery[rows]: float32 [Q K].

    The last chunk is filled up with repetitions, so that score_fn sees one shape.
    """
    rows = np.asarray(rows)
    if len(rows) != len(probe):
        raise ValueError(f"{len(rows)} shortlists for {len(probe)} probes.")
    scores = np.empty(rows.shape, np.float32)
    for start in range(0, len(rows), chunk):
        some = np.arange(start, start + chunk).clip(max=len(rows) - 1)
        found = np.asarray(score_fn(probe[some], gallery[rows[some]]))
        if found.shape != (len(some), rows.shape[1]):
            raise ValueError(
                f"score_fn returned {found.shape}, expected [B K] = "
                f"{(len(some), rows.shape[1])}."
            )
        scores[start : start + chunk] = found[: len(rows) - start]
    if np.isnan(scores).any():
        raise ValueError("score_fn returned NaN: the re-ranker or its input is broken.")
    return scores


def permute(distance, rows, scores) -> np.ndarray:
    """The contract itself: `rows` [Q K] (of `first`) in the order of `scores` [Q K]."""
    out = np.array(distance, np.float32)
    if not out.size:
        return out
    values = np.take_along_axis(out, rows, axis=1)  # [Q K], ascending
    unreachable = np.isinf(values) & (values > 0)
    order = np.argsort(
        np.where(unreachable, np.inf, scores), axis=1, kind="stable"
    )  # [Q K]
    rows = np.take_along_axis(rows, order, axis=1)
    # strictly ascending, and strictly before the tail, else gallery order would decide
    outside = np.ones(out.shape, bool)
    np.put_along_axis(outside, rows, False, axis=1)
    limit = np.min(out, axis=1, initial=np.inf, where=outside)  # [Q]
    tiny = np.finfo(np.float32).tiny  # below it devices see zeros
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
    """`rescored` [Q G] confined to the first `shortlist` of each row; None: as it is.

    Pairs at distance +inf stay there.
    """
    if shortlist is None:
        return np.where(np.isposinf(distance), np.float32(np.inf), rescored)
    rows = first(distance, shortlist)
    return permute(distance, rows, np.take_along_axis(rescored, rows, axis=1))


def kr(distance, probe, gallery, *, shortlist=None, metric="euclidean", **options):
    """`graph_rerank.k_reciprocal` on the all-against-all matrix of the base metric."""
    distance = np.asarray(distance)
    across = distance
    if not np.isfinite(across).all():
        across = pairwise_distance(probe, gallery, metric=metric)
    within = [pairwise_distance(x, x, metric=metric) for x in (probe, gallery)]
    for square in within:
        np.fill_diagonal(square, 0)
    everything = np.block([[within[0], across], [across.T, within[1]]])
    everything = np.maximum(everything, 0)  # a cosine distance may round below 0
    rescored = graph_rerank.k_reciprocal(everything, len(probe), **options)
    return within_shortlist(distance, rescored, shortlist)


def lbr(distance, probe, gallery, *, shortlist=100, temperature=0.3, chunk=64):
    """`graph_rerank.local_blurring` of the `shortlist` nearest (None: of all)."""
    return rerank(
        distance,
        np.asarray(graph_rerank.features(probe)),  # once, not once per shortlist
        np.asarray(graph_rerank.features(gallery)),
        lambda some, candidates: _blurred(some, candidates, temperature),
        shortlist=shortlist or np.shape(distance)[1],
        chunk=chunk,
    )


def gcr(distance, probe, gallery, *, views=None, shortlist=None, **options):
    """`graph_rerank.graph_convolution`; `views` = (of probes [Q], of gallery [G])."""
    rescored = graph_rerank.graph_convolution(probe, gallery, views=views, **options)
    return within_shortlist(distance, rescored, shortlist)


def gnn(distance, probe, gallery, *, shortlist=None, **options):
    """`graph_rerank.graph_network`."""
    rescored = graph_rerank.graph_network(probe, gallery, **options)
    return within_shortlist(distance, rescored, shortlist)


def qe(distance, probe, gallery, *, shortlist=None, **options):
    """`graph_rerank.query_expansion`."""
    rescored = graph_rerank.query_expansion(probe, gallery, **options)
    return within_shortlist(distance, rescored, shortlist)


# name -> f(distance [Q G], probe [Q S D], gallery [G S D], *, shortlist, ...) -> [Q G];
# CarGait is trained, so it is made by whoever holds its parameters: `rerank(...)`.
RERANKERS: dict[str, Callable[..., np.ndarray]] = {
    "kr": kr,
    "lbr": lbr,
    "gcr": gcr,
    "gnn": gnn,
    "qe": qe,
}


def find(name: str) -> Callable[..., np.ndarray]:
    """RERANKERS[name], or a ValueError that lists the names."""
    if name not in RERANKERS:
        raise ValueError(
            f"Unknown re-ranker {name!r}; choose from {', '.join(RERANKERS)}."
        )
    return RERANKERS[name]


@jax.jit
def _blurred(probe, candidates, temperature):
    return graph_rerank.local_blurring(probe, candidates, temperature=temperature)


@functools.partial(jax.jit, static_argnums=1)
def _smallest(distance, k: int):
    """lax.top_k puts the earlier of equal values first (0 - x: no negative zeros)."""
    return jax.lax.top_k(0 - distance, k)[1]
