"""Faults of perception: each changes what it says, and nothing without a chance."""

import numpy as np
import pytest

from gaitjax.data.faults import Faults, disturb


@pytest.fixture
def walk():
    """A round head on a block, and key points, 6 frames."""
    row, column = np.mgrid[:64, :44]
    person = (row - 10) ** 2 + (column - 22) ** 2 < 64
    person |= (abs(column - 22) < 8) & (row > 14) & (row < 60)
    silhouettes = np.repeat((255 * person).astype(np.uint8)[None], 6, 0)
    points = np.random.default_rng(0).uniform(10, 50, (6, 17, 3)).astype(np.float32)
    points[:, 3] = 0  # an ear that was never found
    return {"silhouettes": silhouettes, "keypoints": points, "ratios": np.ones(6)}


def changed(walk, seed=0, **chances):
    return disturb(walk, Faults(**chances), np.random.default_rng(seed))


def test_without_faults_nothing_changes(walk):
    done = changed(walk)
    for name, value in walk.items():
        np.testing.assert_array_equal(done[name], value)


@pytest.mark.parametrize(
    "name", ["grow", "coarse", "stretch", "shake", "holes", "spurs", "blob", "feet"]
)
def test_outlines_keep_most_of_the_person(walk, name):
    before = walk["silhouettes"].copy()
    some = False
    for seed in range(4):
        done = changed(walk, seed, **{name: 1.0})
        image, clean = done["silhouettes"], walk["silhouettes"]
        assert image.shape == clean.shape and image.dtype == np.uint8
        both = ((image > 127) & (clean > 127)).sum((1, 2))
        either = ((image > 127) | (clean > 127)).sum((1, 2))
        assert (both / either > 0.4).all()
        some |= (image != clean).any()
        np.testing.assert_array_equal(done["keypoints"], walk["keypoints"])
        again = changed(walk, seed, **{name: 1.0})["silhouettes"]
        np.testing.assert_array_equal(image, again)
    assert some
    np.testing.assert_array_equal(walk["silhouettes"], before)  # not in place


def test_holes_take_away_and_spurs_add(walk):
    clean = walk["silhouettes"].astype(int).sum()
    assert changed(walk, holes=1.0)["silhouettes"].astype(int).sum() < clean
    assert changed(walk, spurs=1.0)["silhouettes"].astype(int).sum() > clean


def test_sequence_faults_are_alike_in_all_frames(walk):
    for name in ("grow", "stretch", "coarse"):
        image = changed(walk, 1, **{name: 1.0})["silhouettes"]
        np.testing.assert_array_equal(image, np.repeat(image[:1], 6, 0))


def test_key_points_tremble_and_stay_missing(walk):
    done = changed(walk, jitter=1.0, jitter_size=2.0)["keypoints"]
    shift = np.abs(done - walk["keypoints"])
    assert 0 < shift[..., :2].max() < 15 and not shift[..., 2].any()
    assert not done[:, 3].any()


def test_left_and_right_are_exchanged_in_some_frames(walk):
    done, clean = changed(walk, confuse=1.0)["keypoints"], walk["keypoints"]
    same = (done == clean).all(-1)
    assert same[:, :5].all() and 0.4 < same[:, 5:].mean() < 1
    swapped = np.argwhere(~same[:, 15])
    for (frame,) in swapped:
        np.testing.assert_array_equal(done[frame, 15], clean[frame, 16])


def test_missing_key_points_are_zero(walk):
    done = changed(walk, miss=1.0)["keypoints"]
    lost = (done == 0).all(-1)
    assert lost[:, 3].all() and 0 < lost[:, :3].mean() < 0.5
