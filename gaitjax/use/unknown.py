"""Known or unknown: how near is near enough, told by the gallery itself.

Each enrolled walk, compared with everybody else in the gallery, is a stranger to them.
How near such strangers come says how near an unknown person will come. Smallest
distances follow an extreme-value law, whose tail is fitted, so that few people suffice
for a small rate of false names (Gumbel, "Statistics of Extremes", 1958).

A score is the distance of the nearest name as a share of the mean distance of the next
names, the cohort: a probe from another camera is far from everybody, which changes its
distances and hardly its score (cohort normalisation, as in Auckenthaler et al., "Score
normalization for text-independent speaker verification systems", 2000, of which the
variant with a standard deviation needs more people than a small gallery has).
"""

from typing import NamedTuple

import numpy as np

PEOPLE = 10  # fewer people than this say too little about strangers
COHORT = 20  # names, at most, whose distances a score is a share of
EULER = 0.5772156649015329


class Calibration(NamedTuple):
    """The law of strangers' scores: location and scale of a Gumbel law of minima.

    people, walks: from how many it was fitted.
    """

    location: float
    scale: float
    people: int
    walks: int

    def threshold(self, fpir: float) -> float:
        """The score below which a share `fpir` of strangers comes, 0 < fpir < 1."""
        return self.location + self.scale * float(np.log(-np.log1p(-fpir)))

    def fpir(self, score: float) -> float:
        """The share of strangers whose score is at most `score`."""
        z = min((score - self.location) / self.scale, 30.0)
        return float(-np.expm1(-np.exp(z)))


def scores(distances: np.ndarray) -> np.ndarray:
    """Scores [Q] of the nearest of n names, from distances [Q n]; small is near.

    The cohort is the COHORT names after the nearest. inf: a name that does not count.
    Without a cohort it is the distance itself.
    """
    ordered = np.sort(np.asarray(distances, np.float64), axis=1)[:, : COHORT + 1]
    best, cohort = ordered[:, 0], ordered[:, 1:]
    counted = np.isfinite(cohort)
    mean = np.where(counted, cohort, 0.0).sum(1) / np.maximum(counted.sum(1), 1)
    return best / np.where(mean > 0, mean, 1.0)


def calibrate(
    distances: np.ndarray, own: np.ndarray, *, least: int = PEOPLE
) -> Calibration | None:
    """Fits the law to the gallery's own walks; None if there are under `least` people.

    distances: [n names], of each enrolled walk to the nearest walk of each name.
    own: int [n], which name is the walk's own. Each person counts the same, however
    many walks they have.
    """
    people = len(np.unique(own))
    if people < max(least, 4):
        return None
    others = np.array(distances, np.float64)
    others[np.arange(len(own)), own] = np.inf
    found = scores(others)
    weights = 1 / np.bincount(own)[own]
    mean = np.average(found, weights=weights)
    spread = np.sqrt(np.average((found - mean) ** 2, weights=weights))
    scale = max(float(spread) * np.sqrt(6) / np.pi, 1e-9)
    return Calibration(float(mean) + EULER * scale, float(scale), people, len(own))
