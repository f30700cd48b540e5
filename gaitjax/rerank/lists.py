"""Training data of a re-ranker: each sequence's nearest others, and triplets of them.

Pure numpy. A triplet batch is a function of (seed, step), so a resumed run draws the
triplets that an uninterrupted one would have drawn.
"""

from typing import NamedTuple

import numpy as np

from gaitjax.engine.guards import require


class RankingLists(NamedTuple):
    """The lists of n training sequences; rows are row numbers of the embeddings.

    anchor: int [n]. neighbours: int [n v], nearest first, the anchor itself removed.
    positive: bool [n v], neighbours of the anchor's identity. other_positive,
    other_negative: int [n], the sequence to use if a list has no positive (negative);
    -1: there is none, so that anchor is never drawn.
    """

    anchor: np.ndarray
    neighbours: np.ndarray
    positive: np.ndarray
    other_positive: np.ndarray
    other_negative: np.ndarray

    @property
    def usable(self) -> np.ndarray:
        """bool [n]: anchors with a positive and a negative to draw."""
        has_positive = self.positive.any(axis=1) | (self.other_positive >= 0)
        has_negative = (~self.positive).any(axis=1) | (self.other_negative >= 0)
        return has_positive & has_negative


class Triplets(NamedTuple):
    """Rows of the embeddings, int [B] each."""

    anchor: np.ndarray
    positive: np.ndarray
    negative: np.ndarray


def held_out_identities(subject: np.ndarray, *, share: float, seed: int) -> np.ndarray:
    """bool [n]: rows of the identities set apart for validation.

    `share` of the identities, at least two, chosen by `seed`.

    Raises:
      ValueError: fewer than two identities would be left to train on.
    """
    identities, member = np.unique(subject, return_inverse=True)
    count = max(round(share * len(identities)), 2)
    require(
        len(identities) - count >= 2,
        f"config.validation.share={share} sets {count} of {len(identities)} training "
        "identities apart; at least two must be left to train on. Lower it, or choose "
        "a base run with more training identities.",
    )
    chosen = np.random.default_rng(seed).permutation(len(identities))[:count]
    return np.isin(member, chosen)


def leave_out(neighbours: np.ndarray, out: np.ndarray, size: int) -> np.ndarray:
    """The first `size` of each row of int [n k] that are not in bool `out` [n k].

    Their order is kept. If a row has fewer left, all rows get that many.
    """
    size = min(size, out.shape[1] - out.sum(axis=1).max())
    order = np.argsort(out, axis=1, kind="stable")[:, :size]
    return np.take_along_axis(neighbours, order, axis=1)


def draw_triplets(lists: RankingLists, *, count: int, seed: int, step: int) -> Triplets:
    """`count` usable anchors, each with one positive and one negative of its list.

    Anchors are drawn without replacement (with replacement if there are fewer than
    `count`), their partners uniformly from the list.
    """
    rng = np.random.default_rng([seed, step])
    usable = np.flatnonzero(lists.usable)
    chosen = rng.choice(usable, count, replace=len(usable) < count)
    order = rng.random((2, count, lists.neighbours.shape[1]))
    positive = lists.positive[chosen]  # [B v]
    partners = []
    for priority, mask, other in (
        (order[0], positive, lists.other_positive),
        (order[1], ~positive, lists.other_negative),
    ):
        place = np.where(mask, priority, -1.0).argmax(axis=1)  # [B]
        listed = lists.neighbours[chosen, place]
        partners.append(np.where(mask.any(axis=1), listed, other[chosen]))
    return Triplets(lists.anchor[chosen], *partners)
