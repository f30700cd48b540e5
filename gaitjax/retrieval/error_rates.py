"""Error rates where some persons are unknown: verification and open-set search.

Terms of ISO/IEC 19795-1. FMR, FNMR: how often a pair of two persons counts as one, and
a pair of one person as two. FPIR: how often a search for somebody who is not in the
gallery returns a name. FNIR: how often a search for somebody who is in it does not
return theirs first. Each depends on the distance up to which a pair is accepted.
"""

from typing import NamedTuple

import numpy as np


class Scores(NamedTuple):
    """Distances of a retrieval task, at most those of its pairs that count.

    genuine, impostor: [n] of pairs of one person and of two persons.
    mated: [Q] of each search to its own person; inf if somebody else is nearer.
    stranger: [Q] of each search to the nearest other person: what the search would
      return if its own person were not in the gallery.
    Searches without their person in the gallery are in neither of the last two.
    """

    genuine: np.ndarray
    impostor: np.ndarray
    mated: np.ndarray
    stranger: np.ndarray


def scores(distance, probe_ids, gallery_ids, excluded=None) -> Scores:
    """`Scores` of distances [Q G]. excluded: bool [Q G], pairs that do not count."""
    distance = np.asarray(distance, np.float32)
    kept = np.isfinite(distance)
    if excluded is not None:
        kept &= ~np.asarray(excluded)
    same = np.asarray(probe_ids)[:, None] == np.asarray(gallery_ids)[None, :]
    own = np.where(same & kept, distance, np.inf).min(axis=1, initial=np.inf)
    other = np.where(~same & kept, distance, np.inf).min(axis=1, initial=np.inf)
    searched = np.isfinite(own) & np.isfinite(other)
    mated = np.where(own <= other, own, np.inf)
    return Scores(
        distance[same & kept],
        distance[~same & kept],
        mated[searched],
        other[searched],
    )


def equal_error_rate(genuine, impostor) -> tuple[float, float]:
    """(rate, distance) where FMR and FNMR are equal, or the nearest to it; NaN if one
    of the two is empty."""
    if not len(genuine) or not len(impostor):
        return float("nan"), float("nan")
    at = np.unique(np.concatenate([genuine, impostor]))
    false_match = share_up_to(impostor, at)
    false_non_match = 1 - share_up_to(genuine, at)
    best = np.argmin(np.abs(false_match - false_non_match))
    return float((false_match + false_non_match)[best] / 2), float(at[best])


def open_set_rates(found: Scores) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(distance, FPIR, FNIR) [n] at every distance where FPIR changes, ascending."""
    at = np.unique(found.stranger)
    return at, share_up_to(found.stranger, at), 1 - share_up_to(found.mated, at)


def fnir_at(found: Scores, fpir: float) -> tuple[float, float]:
    """(FNIR, distance) at the largest distance whose FPIR is at most `fpir`.

    If no distance has so small a rate, nothing is accepted: FNIR 1 at distance 0.
    """
    at, false_names, missed = open_set_rates(found)
    allowed = np.flatnonzero(false_names <= fpir)
    if not len(allowed):
        return 1.0, 0.0
    return float(missed[allowed[-1]]), float(at[allowed[-1]])


def share_up_to(values, at) -> np.ndarray:
    """Share of `values` [n] that are at most each of `at` [m]: [m]."""
    return np.searchsorted(np.sort(values), at, side="right") / max(len(values), 1)
