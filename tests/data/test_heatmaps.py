"""Skeleton maps of key points, by hand and on a rendered walk."""

import numpy as np
import pytest

from gaitjax.data import heatmaps
from gaitjax.data.clips import load_clip
from gaitjax.data.source import Index, Source


def standing(confidence=1.0):
    """[17 3]: an upright person 170 pixels high, hips at (100, 200)."""
    rows = {0: (0, -85), 1: (3, -88), 2: (-3, -88), 3: (6, -85), 4: (-6, -85),
            5: (20, -60), 6: (-20, -60), 7: (25, -30), 8: (-25, -30), 9: (25, 0),
            10: (-25, 0), 11: (12, 0), 12: (-12, 0), 13: (12, 40), 14: (-12, 40),
            15: (12, 82), 16: (-12, 82)}  # fmt: skip
    points = np.array([(100 + x, 200 + y, confidence) for x, y in rows.values()])
    return points.astype(np.float32)


def naive(points):
    """Limb and joint maps on the canvas, every pixel against every segment."""
    scale = 85 / np.ptp(points[:, 1])
    xy = (points[:, :2] - (points[11, :2] + points[12, :2]) / 2) * scale + 64
    maps = np.zeros((128, 128, 2))
    grid = np.stack(np.meshgrid(np.arange(128), np.arange(128)), -1)  # [row column xy]
    for channel, pairs in ((0, heatmaps.LIMBS), (1, [(i, i) for i in range(17)])):
        for i, j in pairs:
            d = xy[j] - xy[i]
            s = np.clip((grid - xy[i]) @ d / max(d @ d, 1e-9), 0, 1)[..., None]
            squares = ((grid - xy[i] - s * d) ** 2).sum(-1)
            value = min(points[i, 2], points[j, 2]) * np.exp(-squares / 128)
            maps[..., channel] = np.maximum(maps[..., channel], value)
    return (255 * maps).astype(np.uint8)


def test_maps_equal_a_plain_loop_over_pixels():
    import cv2

    points = standing(0.8)
    image = naive(points)
    rows = np.flatnonzero(image.any((1, 2)))
    top, low = rows[0], rows[-1] + 1
    half = (low - top) / 2
    person = image[top:low, max(round(64 - half), 0) : round(64 + half)]
    missing = (low - top) - person.shape[1]
    person = np.pad(person, ((0, 0), (missing // 2, missing - missing // 2), (0, 0)))
    expected = cv2.resize(person, (64, 64), interpolation=cv2.INTER_AREA)
    got = heatmaps.skeleton_maps(points[None])[0]
    assert got.shape == (64, 64, 2) and got.dtype == np.uint8
    assert np.abs(got.astype(int) - expected).max() <= 2
    assert 195 <= got.max() <= 204  # confidence 0.8


def test_maps_do_not_depend_on_place_and_scale():
    points = standing()
    moved = points * np.float32([3.0, 3.0, 1.0]) + np.float32([40, -500, 0])
    one, two = heatmaps.skeleton_maps(np.stack([points, moved]))
    assert np.abs(one.astype(int) - two).max() <= 1
    assert not heatmaps.skeleton_maps(np.zeros((1, 17, 3))).any()


def test_a_missing_hip_does_not_shift_the_map():
    whole, one, none = standing(), standing(), standing()
    one[heatmaps.LEFT_HIP] = 0
    none[[heatmaps.LEFT_HIP, heatmaps.RIGHT_HIP]] = 0
    maps = heatmaps.skeleton_maps(np.stack([whole, one, none])).astype(float)
    columns = (maps.sum((1, 3)) @ np.arange(64)) / maps.sum((1, 2, 3))
    # the other hip is 12 points off: 6 of the canvas's 128 columns, 3 of the map's 64
    np.testing.assert_allclose(columns, columns[0], atol=3.1)


def test_missing_key_points_come_from_the_nearest_frames():
    walk = np.stack([standing() + np.float32([t, 0, 0]) for t in range(8)])
    holes = walk.copy()
    holes[3, 9] = 0
    filled = heatmaps.impute(holes)
    # frames 2 and 4 are at distance 1, 1 and 5 at distance 2: weights 1, 1, 1/2, 1/2
    np.testing.assert_allclose(filled[3, 9], walk[3, 9], atol=1e-4)
    np.testing.assert_array_equal(np.delete(filled, 3, 0), np.delete(walk, 3, 0))
    holes[:, 9] = 0
    assert not heatmaps.impute(holes)[:, 9].any()


def make_source(keypoints):
    record = {"keypoints": keypoints, "ratios": np.ones(len(keypoints), np.float32)}
    index = Index(*(np.array([text]) for text in ("a", "", "", "a/0")),
                  np.array([len(keypoints)]))  # fmt: skip
    fields = dict.fromkeys(Source._fields, ())
    fields |= {"name": "fake", "records": [record], "index": index, "fingerprint": ""}
    return Source(**fields)


def test_heatmaps_are_read_from_keypoints_and_cut_like_silhouettes():
    walk = np.stack([standing() + np.float32([t, 0, 0]) for t in range(4)])
    walk[2, 0] = 0
    clip = load_clip(make_source(walk), 0, np.array([2, 3]), ("heatmaps",))
    assert clip["heatmaps"].shape == (2, 64, 44, 2)
    whole = heatmaps.skeleton_maps(heatmaps.impute(walk))
    np.testing.assert_array_equal(clip["heatmaps"], whole[2:, :, 10:54])
    with pytest.raises(ValueError, match="has no 'heatmaps'"):
        load_clip(make_source(walk[:0]), 0, np.arange(0), ("heatmaps",))
    points = load_clip(make_source(walk), 0, np.array([1]), ("keypoints",))
    np.testing.assert_array_equal(points["keypoints"], walk[1:2])
