"""Training data of a re-ranker: each sequence's nearest others, and triplets of them.

A triplet batch is a function of (seed, step), so a resumed run draws the
triplets that an uninterrupted one would have drawn.
"""

from collections import Counter
from typing import NamedTuple

import numpy as np
from absl import logging

from gaitjax.engine.guards import require
from gaitjax.retrieval import distance

WITHOUT_NEGATIVE = ("skip", "nearest")
FULL = 0.05  # share of lists without a negative from which on a warning is given


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


def build_lists(table, rows: np.ndarray, config, mesh) -> RankingLists:
    """Top-v lists of the sequences `rows` of `table` (base_run.Table) among themselves.

    config: `lists` of the run: size (v); same_view: False leaves out what protocols do
    not count, sequences of the anchor's identity from the anchor's view;
    without_negative: "skip" leaves out anchors whose whole list is of their own
    identity, "nearest" gives them the nearest sequence of another one. A list without a
    positive gets the nearest positive of all.

    Raises ValueError if no anchor is left to draw.
    """
    embeddings, subject = np.asarray(table.embeddings[rows]), table.subject[rows]
    place = np.arange(len(rows))
    # if the own view counts, each sequence is a view of its own
    view = place if config.same_view else table.view[rows]

    def no_pair(one, other):
        return (subject[one] == subject[other]) & (view[one] == view[other])

    ((_, most),) = Counter(zip(subject.tolist(), view.tolist())).most_common(1)
    _, near = distance.nearest(
        embeddings, embeddings, k=config.size + most, metric=table.metric, mesh=mesh
    )
    out = no_pair(place[:, None], near)
    near = leave_out(near, out, config.size)  # [n v]
    positive = subject[near] == subject[:, None]  # [n v]
    other_positive, other_negative = np.full((2, len(rows)), -1)

    def nearest_of(row: int, allowed: np.ndarray) -> int:
        found = distance.pairwise_distance(
            embeddings[[row]], embeddings[allowed], metric=table.metric
        )
        return rows[allowed[found[0].argmin()]]

    for row in np.flatnonzero(~positive.any(axis=1)):
        own = np.flatnonzero((subject == subject[row]) & ~no_pair(row, place))
        if len(own):
            other_positive[row] = nearest_of(row, own)
    if config.without_negative == "nearest":
        for row in np.flatnonzero(positive.all(axis=1)):
            other = np.flatnonzero(subject != subject[row])
            other_negative[row] = nearest_of(row, other)
    lists = RankingLists(rows, rows[near], positive, other_positive, other_negative)
    require(
        positive.any() or (other_positive >= 0).any(),
        f"None of {len(rows)} sequences has another one of its identity"
        f"{'' if config.same_view else ' from another view'} to learn from. Choose a "
        "data set with several sequences of an identity"
        f"{'.' if config.same_view else ' or set --config.lists.same_view=True.'}",
    )
    require(
        lists.usable.any(),
        f"None of {len(rows)} lists of the {config.size} nearest sequences holds a "
        "sequence of another identity: the base model ranks its training data "
        "perfectly. Raise config.lists.size or set "
        "--config.lists.without_negative=nearest.",
    )
    return lists


def warn_of_full_lists(lists: RankingLists, config) -> None:
    """A warning where many lists hold sequences of the anchor's identity alone.

    That happens where an identity has more training sequences than a list is long
    (CCPG, CASIA-B) and the base model ranks them well.
    """
    share = float(lists.positive.all(axis=1).mean())
    if share < FULL:
        return
    fate = {
        "skip": "these anchors are never drawn",
        "nearest": "the nearest sequence of another identity is their only negative",
    }[config.without_negative]
    logging.warning(
        "%.0f %% of the lists of the %d nearest sequences hold no negative, so %s. A "
        "larger --config.lists.size gives them some; --config.lists.without_negative="
        "nearest gives each one.",
        100 * share, lists.neighbours.shape[1], fate,
    )  # fmt: skip


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
