"""Error rates of verification and of open-set search, against counting by hand."""

import numpy as np
import pytest

from gaitjax.retrieval import error_rates

IDS = np.array(["a", "b", "c"])
# rows: probes of a, b, c and of d, who is not in the gallery
DISTANCE = np.array([[1.0, 4, 5], [2, 3, 6], [7, 8, 2], [1, 9, 9]])
PROBES = np.array(["a", "b", "c", "d"])


def test_scores_of_pairs_and_searches():
    found = error_rates.scores(DISTANCE, PROBES, IDS)
    assert sorted(found.genuine) == [1, 2, 3]
    assert sorted(found.impostor) == [1, 2, 4, 5, 6, 7, 8, 9, 9]
    # b's nearest is a: no distance finds b; d is in neither
    assert found.mated.tolist() == [1, np.inf, 2]
    assert found.stranger.tolist() == [4, 2, 7]


def test_pairs_that_do_not_count_are_in_no_score():
    excluded = np.zeros(DISTANCE.shape, bool)
    excluded[1, 0] = excluded[2, 2] = True
    found = error_rates.scores(DISTANCE, PROBES, IDS, excluded)
    assert found.mated.tolist() == [1, 3] and found.stranger.tolist() == [4, 6]
    assert len(found.genuine) == 2 and len(found.impostor) == 8


def test_open_set_rates_are_shares_of_the_searches():
    found = error_rates.scores(DISTANCE, PROBES, IDS)
    at, false_names, missed = error_rates.open_set_rates(found)
    assert at.tolist() == [2, 4, 7]
    np.testing.assert_allclose(false_names, [1 / 3, 2 / 3, 1])
    np.testing.assert_allclose(missed, [1 / 3, 1 / 3, 1 / 3])
    assert error_rates.fnir_at(found, 0.5) == pytest.approx((1 / 3, 2))
    assert error_rates.fnir_at(found, 0.01) == (1.0, 0.0)


@pytest.mark.parametrize(
    "genuine, impostor, expected",
    [([1, 2], [3, 4], 0.0), ([1, 3], [2, 4], 0.5), ([3, 4], [1, 2], 1.0)],
)
def test_equal_error_rate(genuine, impostor, expected):
    rate, at = error_rates.equal_error_rate(np.array(genuine), np.array(impostor))
    assert rate == expected and 1 <= at <= 4


def test_equal_error_rate_of_two_normal_laws():
    rng = np.random.default_rng(0)
    genuine, impostor = rng.normal(0, 1, 20_000), rng.normal(2, 1, 20_000)
    rate, at = error_rates.equal_error_rate(genuine, impostor)
    assert rate == pytest.approx(0.1587, abs=0.01)  # Phi(-1)
    assert at == pytest.approx(1, abs=0.1)


def test_nothing_to_compare_is_no_rate():
    assert np.isnan(error_rates.equal_error_rate(np.array([1.0]), np.zeros(0))).all()
