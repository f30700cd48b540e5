"""Who a walk is: distances to names, the decision, and the gallery's calibration."""

from collections.abc import Iterator
from typing import Literal, NamedTuple

import numpy as np

from gaitjax.engine.guards import require
from gaitjax.use import unknown
from gaitjax.use.index import Index
from gaitjax.use.recogniser import Recogniser, Sample
from gaitjax.use.walk_files import Contents, Row

PROBES = 1000  # walks of the gallery, at most, that calibrate it
SHORTLIST = 200  # walks that an index finds, to be compared exactly
AT_ONCE = 64  # probes that are compared at once


class Candidate(NamedTuple):
    """A name, the distance of its nearest walk, and that walk."""

    name: str
    distance: float
    row: Row


class Answer(NamedTuple):
    """Who a walk is.

    verdict: "known"; "unknown"; "nearest" if the gallery is not calibrated, so that the
    nearest name is all that can be said; "refused" if the walk is unfit; "empty" if
    nobody is enrolled. name: "" unless known or nearest. confidence: the share of
    strangers who would not come so near, None if not calibrated. nearest: the first
    names, with the probe's distance.
    """

    sample: Sample
    verdict: Literal["known", "unknown", "nearest", "refused", "empty"]
    name: str
    distance: float | None
    confidence: float | None
    nearest: tuple[Candidate, ...]


class Search(NamedTuple):
    """A gallery as it is searched. index: None for exact search."""

    contents: Contents
    recogniser: Recogniser
    index: Index | None

    def compared(self, probes: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(places of rows [K], distances float32 [q K]) of groups of probes [Q S D].

        All rows, or the index's shortlist of each probe.
        """
        contents = self.contents
        if self.index is None:
            everything = np.arange(len(contents.rows))
            for start in range(0, len(probes), AT_ONCE):
                some = probes[start : start + AT_ONCE]
                yield everything, self._distances(some, contents.embeddings)
            return
        for probe, ids in zip(probes, self.index.search(probes, SHORTLIST)):
            places = contents.places
            found = np.array([places[x] for x in ids if x in places], int)
            if len(found):
                yield found, self._distances(probe[None], contents.take(found))
            else:
                yield found, np.zeros((1, 0), np.float32)

    def _distances(self, probes, candidates) -> np.ndarray:
        model = self.recogniser
        between = model.distance(probes, candidates)
        return np.asarray(model.rerank(between, probes, candidates))

    def to_names(self, probes: np.ndarray) -> np.ndarray:
        """Distances float32 [Q names] to each name's nearest walk.

        With an index, names beyond its shortlist are at inf.
        """
        found = [self._by_name(*group) for group in self.compared(probes)]
        return np.concatenate(found)

    def _by_name(self, places, between) -> np.ndarray:
        distances = np.full(
            (len(between), len(self.contents.names)), np.inf, np.float32
        )
        if len(places):
            own = self.contents.own[places]
            order = np.argsort(own, kind="stable")
            names, starts = np.unique(own[order], return_index=True)
            least = np.minimum.reduceat(between[:, order], starts, axis=1)
            distances[:, names] = least
        return distances

    def nearest(self, probe: np.ndarray, top: int):
        """(the `top` nearest Candidates, distances [1 names]) of a probe [S D]."""
        ((places, between),) = self.compared(probe[None])
        distances = self._by_name(places, between)
        found, own = [], self.contents.own[places]
        for name in np.argsort(distances[0], kind="stable")[:top]:
            if np.isfinite(distances[0, name]):
                columns = np.flatnonzero(own == name)
                row = places[columns[between[0, columns].argmin()]]
                distance = float(distances[0, name])
                named = self.contents.names[name]
                found.append(Candidate(named, distance, self.contents.rows[row]))
        return tuple(found), distances

    def calibrate(self, least: int) -> unknown.Calibration | None:
        """The law of strangers' scores, from the gallery's own walks."""
        contents = self.contents
        if len(contents.names) < least:
            return None
        rng = np.random.default_rng(0)
        some = rng.permutation(len(contents.rows))[:PROBES]
        distances = self.to_names(contents.take(some))
        return unknown.calibrate(distances, contents.own[some], least=least)


def decide(
    sample: Sample, search: Search, law, fpir: float, threshold: float | None, top: int
) -> Answer:
    """Who a walk is. law: of `Search.calibrate`, None if there is none."""
    require(0 < fpir < 1, f"fpir={fpir} must lie between 0 and 1.")
    if sample.embedding is None:
        return Answer(sample, "refused", "", None, None, ())
    if not search.contents.rows:
        return Answer(sample, "empty", "", None, None, ())
    nearest, distances = search.nearest(sample.embedding, top)
    name, distance = nearest[0].name, nearest[0].distance
    score = float(unknown.scores(distances)[0])
    confidence = None if law is None else 1 - law.fpir(score)
    if threshold is not None:
        verdict = "known" if distance <= threshold else "unknown"
    elif law is None:
        verdict = "nearest"
    else:
        verdict = "known" if score <= law.threshold(fpir) else "unknown"
    name = "" if verdict == "unknown" else name
    return Answer(sample, verdict, name, distance, confidence, nearest)
