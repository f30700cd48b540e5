"""Rank-k, mAP and mINP from a distance matrix: pure NumPy, exact, never NaN.

Of two equally distant gallery sequences the earlier one ranks first. A probe without
any match in its gallery has no rank: `rank_metrics` leaves it out, and `protocols`
counts it as a miss if the benchmark does so.
"""

from typing import NamedTuple

import numpy as np

from gaitjax.engine.guards import require

RANKS = (1, 5, 10)


class Outcomes(NamedTuple):
    """The result of each probe; arrays [Q], or of equal leading shape.

    first_match: int, rank (from 1) of the nearest true match; 0 = no match in gallery.
    average_precision: mean over true matches of (matches so far) / rank; 0 without.
    inverse_penalty: (number of matches) / (rank of the hardest match); 0 without.
      Source of both: Ye et al., "Deep Learning for Person Re-identification", TPAMI
      2021, section 2.5 (INP).
    """

    first_match: np.ndarray
    average_precision: np.ndarray
    inverse_penalty: np.ndarray

    def rows(self, selection) -> "Outcomes":
        return Outcomes(*(column[selection] for column in self))


def probe_outcomes(distance, probe_ids, gallery_ids, excluded=None) -> Outcomes:
    """`Outcomes` [Q] from the ranks of all true matches of each probe.

    For speed, only values are sorted, and all matches are looked up in them at once.
    Rows where a match ties with another sequence are ranked again by a stable sort.

    Args:
      distance: float [Q G]; +-inf is allowed.
      probe_ids: [Q], gallery_ids: [G], of one comparable type.
      excluded: bool [Q G], pairs that do not exist for this evaluation; None = none.

    Raises:
      ValueError: a distance is NaN.
    """
    distance = np.asarray(distance)
    broken = np.isnan(distance).any(axis=1)
    require(
        not broken.any(),
        f"NaN distances for {broken.sum()} of {len(broken)} probes, the first is probe "
        f"{np.argmax(broken) if len(broken) else 0}. Look for NaN in the embeddings: "
        "the model may have diverged, or a sequence may have no valid frames.",
    )
    code = np.unique(np.concatenate([probe_ids, gallery_ids]), return_inverse=True)[1]
    match = code[: len(probe_ids), None] == code[None, len(probe_ids) :]  # [Q G]
    if excluded is not None:
        match &= ~excluded
        distance = np.where(excluded, np.float32(np.inf), distance)
    ordered = np.sort(distance, axis=1)  # [Q G]
    row, column = np.nonzero(match)  # [N], N pairs of a probe and a true match
    value = distance[row, column]
    rank = _count(ordered, row, value, np.less_equal)  # of a match without ties
    tied = rank - _count(ordered, row, value, np.less) > 1
    bounds = np.searchsorted(row, np.arange(len(match) + 1))  # pairs of each probe
    for r in np.unique(row[tied]):
        present = slice(None) if excluded is None else ~excluded[r]
        order = np.argsort(distance[r, present], kind="stable")
        found = np.flatnonzero(match[r, present][order])
        rank[bounds[r] : bounds[r + 1]] = found + 1

    rank = rank[np.lexsort((rank, row))]
    start, count = bounds[:-1], np.diff(bounds)  # [Q]
    matched = count > 0
    first_match = np.zeros(len(match), np.int64)
    first_match[matched] = rank[start[matched]]
    precision = (np.arange(len(row)) - start[row] + 1) / rank  # [N]
    total = np.bincount(row, precision, minlength=len(match))  # [Q]
    inverse_penalty = np.zeros(len(match))
    hardest = rank[(start + count - 1)[matched]]
    inverse_penalty[matched] = count[matched] / hardest
    return Outcomes(first_match, total / np.maximum(count, 1), inverse_penalty)


def _count(ordered, row, value, before) -> np.ndarray:
    """How many entries of ordered[row] come before each value: int [N].

    ordered: sorted rows [Q G]. before: np.less or np.less_equal. One binary search runs
    for all N values together.
    """
    low = np.zeros(len(row), np.int64)
    high = np.full(len(row), ordered.shape[1], np.int64)
    for _ in range(int(ordered.shape[1]).bit_length()):
        middle = (low + high) // 2
        # where the search has ended, middle may be one past the row
        probe = ordered[row, np.minimum(middle, ordered.shape[1] - 1)]
        right = before(probe, value) & (low < high)
        low = np.where(right, middle + 1, low)
        high = np.where(right, high, middle)
    return low


def rank_metrics(
    distance, probe_ids, gallery_ids, excluded=None, ranks=RANKS
) -> dict[str, float]:
    """Rank-k, mAP, mINP in percent over the probes that have a match in the gallery.

    In a gallery of fewer than k sequences, Rank-k is the share of probes with a match
    anywhere in it.

    Args:
      distance: float [Q G]. probe_ids: [Q]. gallery_ids: [G].
      excluded: bool [Q G], pairs that do not exist for this evaluation; None = none.
      ranks: the k of Rank-k.

    Returns:
      {"rank1": ..., "mAP": ..., "mINP": ..., "probes": all probes,
      "probes_without_match": those left out of the percentages}. If no probe has a
      match, only the two counts are returned.

    Raises:
      ValueError: a distance is NaN.
    """
    return summarise(probe_outcomes(distance, probe_ids, gallery_ids, excluded), ranks)


def summarise(outcomes: Outcomes, ranks=RANKS) -> dict[str, float]:
    """The dict of `rank_metrics` from per-probe outcomes."""
    matched = outcomes.first_match > 0
    result = {}
    if matched.any():
        kept = outcomes.rows(matched)
        for k in ranks:
            result[f"rank{k}"] = 100 * float(np.mean(kept.first_match <= k))
        result["mAP"] = 100 * float(np.mean(kept.average_precision))
        result["mINP"] = 100 * float(np.mean(kept.inverse_penalty))
    result["probes"] = len(matched)
    result["probes_without_match"] = int(np.sum(~matched))
    return result
