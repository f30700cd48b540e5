"""Rank-k, mAP and mINP by hand, against a plain loop, and at every edge."""

import numpy as np
import pytest

from gaitjax.retrieval import metrics
from gaitjax.retrieval.metrics import probe_outcomes, rank_metrics


def loop(distance, probe_ids, gallery_ids, excluded):
    """Textbook definition, one probe at a time: (first match, AP, INP) or None."""
    rows = []
    for q, identity in enumerate(probe_ids):
        kept = [g for g in range(len(gallery_ids)) if not excluded[q, g]]
        ranked = sorted(kept, key=lambda g: distance[q, g])  # stable
        ranks = [r + 1 for r, g in enumerate(ranked) if gallery_ids[g] == identity]
        if not ranks:
            rows.append((0, 0.0, 0.0))
            continue
        precision = [(i + 1) / rank for i, rank in enumerate(ranks)]
        rows.append((ranks[0], sum(precision) / len(ranks), len(ranks) / ranks[-1]))
    return [np.array(column) for column in zip(*rows)]


@pytest.mark.parametrize("levels", [None, 2, 5], ids=["distinct", "ties2", "ties5"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_outcomes_equal_a_plain_loop(seed, levels):
    rng = np.random.default_rng(seed)
    probe_ids = rng.integers(0, 6, 40).astype(str)
    gallery_ids = rng.integers(0, 5, 33).astype(str)  # identity 5 has no match
    distance = rng.random((40, 33)).astype(np.float32)
    if levels:
        distance = np.floor(distance * levels)
    excluded = rng.random((40, 33)) < 0.3
    ours = probe_outcomes(distance, probe_ids, gallery_ids, excluded)
    for column, expected in zip(ours, loop(distance, probe_ids, gallery_ids, excluded)):
        np.testing.assert_allclose(column, expected, rtol=1e-12)


def test_by_hand():
    """Ranks of the matches: probe a: 1 and 3; probe b: 2; probe c: none."""
    distance = np.array([[1, 2, 3, 4], [1, 2, 3, 4], [4, 3, 2, 1]], float)
    result = rank_metrics(distance, ["a", "b", "c"], ["a", "b", "a", "d"], ranks=(1, 2))
    assert result == {
        "rank1": 50.0,
        "rank2": 100.0,
        "mAP": pytest.approx(100 * ((1 / 1 + 2 / 3) / 2 + 1 / 2) / 2),
        "mINP": pytest.approx(100 * (2 / 3 + 1 / 2) / 2),
        "probes": 3,
        "probes_without_match": 1,
    }


def test_ties_go_to_the_earlier_gallery_sequence():
    distance = np.zeros((2, 3))
    first = probe_outcomes(distance, ["a", "c"], ["a", "b", "c"]).first_match
    assert first.tolist() == [1, 3]
    # an excluded sequence takes no place, not even where all are infinitely far
    excluded = np.array([[False, True, False], [True, False, False]])
    far = np.full((2, 3), np.inf)
    for tied in (distance, far):
        first = probe_outcomes(tied, ["c", "c"], ["a", "b", "c"], excluded).first_match
        assert first.tolist() == [2, 2]


def test_gallery_smaller_than_k():
    result = rank_metrics(np.array([[2.0, 1.0]]), ["a"], ["a", "b"], ranks=(1, 5, 10))
    assert (result["rank1"], result["rank5"], result["rank10"]) == (0, 100, 100)


@pytest.mark.parametrize("shape", [(0, 3), (2, 0), (0, 0), (2, 3)])
def test_nothing_to_average_is_reported_and_never_nan(shape):
    probes, gallery = shape
    ids = ["x"] * probes, ["y"] * gallery
    assert rank_metrics(np.zeros(shape), *ids) == {
        "probes": probes,
        "probes_without_match": probes,
    }


def test_inf_excluded_by_the_caller_changes_nothing():
    """Pictures pass +inf where `excluded` is set; both ways are one ranking."""
    rng = np.random.default_rng(1)
    distance, excluded = rng.random((20, 15)), rng.random((20, 15)) < 0.4
    ids = rng.integers(0, 4, 20), rng.integers(0, 4, 15)
    expected = rank_metrics(distance, *ids, excluded)
    assert (
        rank_metrics(np.where(excluded, np.inf, distance), *ids, excluded) == expected
    )


def test_broken_distances_name_the_probe():
    distance = np.zeros((2, 3))
    distance[1, 0] = np.nan
    with pytest.raises(ValueError, match=r"NaN distances for 1 of 2 .*probe 1"):
        rank_metrics(distance, ["a", "b"], ["a", "b", "c"])
    assert metrics.RANKS == (1, 5, 10)
