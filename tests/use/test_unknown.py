"""Strangers' scores: the law, its threshold, and the share that comes below it."""

import numpy as np
import pytest

from gaitjax.use.unknown import COHORT, Calibration, calibrate, scores


def distances(people: int, walks: int, seed: int, strangers: int = 500):
    """(gallery's own distances [n names], own [n], strangers' [Q names])."""
    rng = np.random.default_rng(seed)
    gallery = rng.normal(size=(people, walks, 32))
    gallery = rng.normal(size=(people, 1, 32)) * 2 + gallery
    probes = rng.normal(size=(strangers, 32)) + 2 * rng.normal(size=(strangers, 32))

    def to(x):
        between = np.linalg.norm(x[:, None, None] - gallery[None], axis=-1)
        return between.min(2)

    flat = gallery.reshape(-1, 32)
    return to(flat), np.repeat(np.arange(people), walks), to(probes)


@pytest.mark.parametrize("fpir", [0.05, 0.2])
def test_the_threshold_keeps_the_stated_rate(fpir):
    kept = []
    for seed in range(10):
        own, names, strangers = distances(30, 4, seed)
        law = calibrate(own, names)
        assert law.people == 30 and law.walks == 120
        kept.append((scores(strangers) <= law.threshold(fpir)).mean())
    assert np.mean(kept) == pytest.approx(fpir, abs=0.4 * fpir)


def test_threshold_and_rate_are_inverse():
    law = Calibration(0.8, 0.1, 10, 10)
    for fpir in (1e-4, 0.05, 0.5):
        assert law.fpir(law.threshold(fpir)) == pytest.approx(fpir)
    assert law.fpir(1e6) == 1 and law.fpir(-1e6) == 0


def test_a_score_does_not_change_with_the_scale_of_distances():
    rows = np.random.default_rng(0).uniform(1, 2, (5, 40))
    np.testing.assert_allclose(scores(3 * rows), scores(rows))
    rows = np.sort(rows)
    expected = rows[:, 0] / rows[:, 1 : COHORT + 1].mean(1)
    np.testing.assert_allclose(scores(rows[:, ::-1]), expected)
    rows[:, COHORT + 1 :] = np.inf  # beyond an index's shortlist
    np.testing.assert_allclose(scores(rows), expected)
    assert scores(np.array([[2.0]])) == 2


def test_few_people_give_no_law():
    own, names, _ = distances(9, 3, 0)
    assert calibrate(own, names) is None
    assert calibrate(own, names, least=9) is not None
    own, names, _ = distances(3, 3, 0)
    assert calibrate(own, names, least=1) is None
