"""The frame pipeline: small images with known results, and a real video."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from tfds_builders import frames

VIDEO = (
    Path(__file__).resolve().parents[2]
    / "../shared/data/video/one-by-one-person-detection.mp4"
)


def test_fit_crop_keeps_the_aspect_and_registers_the_mask():
    image = np.zeros((100, 200, 3), np.uint8)
    mask = np.zeros((100, 200), np.uint8)
    image[20:60, 90:100], mask[20:60, 90:100] = (200, 100, 50), 255
    crop = frames.fit_crop(image, mask, (90, 20, 100, 60), height=80)
    assert crop.image.shape == (80, 40, 3) and crop.mask.shape == (80, 40)
    assert crop.ratio == pytest.approx(0.25)
    # twice as large: 10 columns become 20, in the middle of 40
    np.testing.assert_array_equal(np.flatnonzero(crop.mask.any(0)), np.arange(10, 30))
    assert crop.mask.any(1).all()
    assert (crop.image[2:-2, 11:29] == (200, 100, 50)).all()
    assert not crop.image[:, :10].any() and not crop.image[:, 30:].any()
    # pixel (90, 20) covers crop pixels 10, 11 x 0, 1: its centre lands at 10.5, 0.5
    np.testing.assert_allclose(crop.transform @ [90, 20, 1], [10.5, 0.5])


def test_fit_crop_cuts_wide_boxes_and_shrinks_without_shift():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 255, (50, 50, 3), dtype=np.uint8)
    image = cv2.resize(image, (400, 400))
    mask = np.full((400, 400), 255, np.uint8)
    crop = frames.fit_crop(image, mask, (0, 0, 400, 400), height=100)
    assert crop.ratio == 1.0 and crop.image.shape == (100, 50, 3)
    assert (crop.mask == 255).all()
    smooth = cv2.resize(image, (100, 100), interpolation=cv2.INTER_AREA)[:, 25:75]
    inner = (slice(5, -5), slice(5, -5))
    score = np.corrcoef(crop.image[inner].ravel(), smooth[inner].ravel())[0, 1]
    assert score > 0.99


def test_normalised_silhouettes_are_centred_and_fill_the_height():
    mask = np.zeros((128, 200), np.uint8)
    mask[30:94, 150:170] = 255
    out = frames.normalise_silhouette(mask)
    assert out.shape == (64, 64) and out.dtype == np.uint8
    assert (out > 127).any(1).all()
    columns = np.flatnonzero((out > 127).any(0))
    # 64 rows stay 64 rows, 20 columns 20 columns: cumulative mass first exceeds half
    # in the 11th column, which becomes column 32
    np.testing.assert_array_equal(columns, np.arange(22, 42))
    assert frames.normalise_silhouette(mask, size=128).shape == (128, 128)
    moved = np.roll(mask, (-10, -100), (0, 1))
    np.testing.assert_array_equal(frames.normalise_silhouette(moved), out)
    assert frames.normalise_silhouette(np.zeros_like(mask)) is None
    many = frames.normalise_silhouettes(np.stack([mask, 0 * mask]))
    np.testing.assert_array_equal(many[0], out)
    assert not many[1].any()


def test_jpeg_round_trip_keeps_the_channel_order():
    image = np.full((16, 8, 3), (220, 60, 20), np.uint8)
    decoded = frames.decode_jpeg(frames.encode_jpeg(image))
    assert np.abs(decoded.astype(int) - image).max() < 6
    with pytest.raises(ValueError, match="3 bytes that cv2 cannot decode"):
        frames.decode_jpeg(b"abc")


def test_background_subtraction_finds_a_moving_box():
    rng = np.random.default_rng(0)
    scene = rng.integers(60, 120, (120, 160, 3), dtype=np.uint8)
    video = np.repeat(scene[None], 9, 0)
    for i in range(9):
        video[i, 30:100, 10 + 15 * i : 30 + 15 * i] = (250, 240, 230)
    background = frames.background_of(video)
    np.testing.assert_array_equal(background, scene)
    masks = frames.foreground_masks(video[4:5], background)
    (box, person), *others = frames.people_in(masks[0])
    assert not others
    np.testing.assert_allclose(box, (70, 30, 90, 100), atol=3)
    assert person[60, 80] == 255


def test_the_background_is_found_though_people_stand_there_most_of_the_time():
    rng = np.random.default_rng(1)
    scene = rng.integers(60, 120, (54, 96, 3), dtype=np.uint8)
    video = np.repeat(scene[None], 20, 0)
    for i in range(20):
        if i % 4:  # five people, each of them for a few frames, on one spot
            video[i, 10:50, 40:60] = 50 * (i // 4)
    np.testing.assert_array_equal(frames.background_of(video), scene)


@pytest.mark.skipif(not VIDEO.is_file(), reason="the real video is not at hand")
def test_real_video_through_the_frame_pipeline():
    capture = cv2.VideoCapture(str(VIDEO))
    sampled = []
    for i in range(1394):
        assert capture.grab(), f"the video ends at frame {i}"
        if i % 25 == 0:
            sampled.append(capture.retrieve()[1][..., ::-1])
    capture.release()
    background = frames.background_of(np.stack(sampled))
    crops = []
    for image in sampled:
        mask = frames.foreground_masks(image[None], background)[0]
        for box, person in frames.people_in(mask, min_height=0.4)[:1]:
            if box[0] > 2 and box[2] < image.shape[1] - 2:  # not entering or leaving
                crops.append(
                    frames.fit_crop(image, person, box, height=128, margin=0.02)
                )
    # people stand in half of the frames; the other half show the empty room
    assert 10 <= len(crops) <= 45
    for crop in crops:
        assert crop.image.shape == (128, 64, 3) and crop.mask.shape == (128, 64)
        assert 0.15 < crop.ratio < 1.0
        rows = np.flatnonzero(crop.mask.any(1))
        assert rows[0] <= 8 and rows[-1] >= 119  # box and mask agree
    silhouettes = frames.normalise_silhouettes(np.stack([c.mask for c in crops]))
    assert silhouettes.shape == (len(crops), 64, 64)
    filled = (silhouettes > 127).mean((1, 2))
    assert 0.15 < np.median(filled) < 0.6
    # the people stand upright: heads are narrower than shoulders
    widths = [(s[row] > 127).sum() for s in silhouettes for row in (4, 18)]
    head, shoulders = np.median(widths[::2]), np.median(widths[1::2])
    assert head < 0.8 * shoulders
