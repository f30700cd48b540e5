"""Batches and clips are pure functions of (seed, step)."""

import numpy as np
import pytest

from gaitjax.data import sampling, transforms

SUBJECTS = np.array(["c"] * 3 + ["a"] * 5 + ["b"] * 1 + ["d"] * 4)


def batch(step=0, seed=0, ids=3, seqs=4):
    return sampling.identity_batch(
        SUBJECTS, ids_per_batch=ids, seqs_per_id=seqs, seed=seed, step=step
    )


def test_identity_batch_is_grouped_distinct_and_reproducible():
    for step in range(20):
        rows = batch(step)
        groups = SUBJECTS[rows].reshape(3, 4)
        assert (groups == groups[:, :1]).all()
        assert len(set(groups[:, 0])) == 3
        for name, own in zip(groups[:, 0], rows.reshape(3, 4)):
            if (name == SUBJECTS).sum() >= 4:  # without replacement where it can be
                assert len(set(own)) == 4
        np.testing.assert_array_equal(rows, batch(step))
    assert any((batch(0) != batch(s)).any() for s in range(1, 5))
    assert any((batch(0, seed=0) != batch(0, seed=s)).any() for s in range(1, 5))


def test_every_row_is_reached():
    seen = {int(row) for step in range(60) for row in batch(step)}
    assert seen == set(range(len(SUBJECTS)))


def test_too_few_identities():
    with pytest.raises(ValueError, match="5 identities was asked for, the split has 4"):
        batch(ids=5)


@pytest.mark.parametrize("num_frames", [1, 3, 6, 7, 30])
def test_ordered_window(num_frames):
    starts = set()
    for seed in range(200):
        rng = np.random.default_rng(seed)
        frames = sampling.clip_indices(num_frames, 6, ordered=True, rng=rng)
        assert frames.shape == (6,)
        assert (np.diff(frames) % num_frames == 1 % num_frames).all()
        if num_frames >= 6:
            assert (np.diff(frames) == 1).all()
        starts.add(int(frames[0]))
    last_start = num_frames - 6 if num_frames >= 6 else num_frames - 1
    assert starts == set(range(last_start + 1))


def test_skip_drops_frames_but_keeps_order():
    rng = np.random.default_rng(0)
    clips = [
        sampling.clip_indices(40, 6, ordered=True, skip=4, rng=rng) for _ in range(200)
    ]
    assert all((np.diff(clip) > 0).all() and np.ptp(clip) <= 9 for clip in clips)
    assert any(np.ptp(clip) > 5 for clip in clips)
    assert max(clip.max() for clip in clips) == 39
    short = sampling.clip_indices(3, 6, ordered=True, skip=4, rng=rng)
    assert set(short) <= {0, 1, 2} and len(short) == 6


def test_unordered_has_no_repeats_where_it_can():
    rng = np.random.default_rng(0)
    assert len(set(sampling.clip_indices(9, 6, ordered=False, rng=rng))) == 6
    assert len(sampling.clip_indices(2, 6, ordered=False, rng=rng)) == 6


def test_length_bucket():
    num_frames = np.array([24, 25, 500])
    used, padded = sampling.length_bucket(num_frames, multiple=24, limit=48)
    assert used.tolist() == [24, 25, 48] and padded.tolist() == [24, 48, 48]
    used, padded = sampling.length_bucket(num_frames, multiple=24, limit=0)  # no limit
    assert used.tolist() == [24, 25, 500] and padded.tolist() == [24, 48, 504]


def test_cut_takes_the_central_columns_and_is_never_done_twice():
    columns = np.broadcast_to(np.arange(64), (2, 64, 64)).astype(np.uint8)
    cut = transforms.cut_silhouettes(columns, "key")
    assert cut.shape == (2, 64, 44)
    np.testing.assert_array_equal(cut[0, 0], np.arange(10, 54))
    assert transforms.cut_silhouettes(np.zeros((1, 128, 128)), "").shape == (1, 128, 88)
    for shape in [(2, 64, 44), (2, 128, 88), (2, 50, 50)]:
        with pytest.raises(ValueError, match=r"Sequence key: silhouettes are \d+x\d+"):
            transforms.cut_silhouettes(np.zeros(shape), "key")


def test_flip_mirrors_all_modalities_of_a_sequence():
    arrays = {
        "frames": np.random.default_rng(0).integers(0, 255, (3, 8, 4, 3), np.uint8),
        "masks": np.arange(3 * 8 * 4, dtype=np.uint8).reshape(3, 8, 4),
        "ratios": np.ones(3),
    }
    never = np.random.default_rng(0)
    options = dict(colour_strength=0.0, rng=never)
    same = transforms.augment(arrays, flip_probability=0.0, **options)
    copies = {name: value.copy() for name, value in arrays.items()}  # changed in place
    flipped = transforms.augment(copies, flip_probability=1.0, **options)
    np.testing.assert_array_equal(same["frames"], arrays["frames"])
    np.testing.assert_array_equal(flipped["frames"], arrays["frames"][:, :, ::-1])
    np.testing.assert_array_equal(flipped["masks"], arrays["masks"][:, :, ::-1])
    np.testing.assert_array_equal(flipped["ratios"], arrays["ratios"])


def square_at(row, column, size=(64, 44), side=8):
    """[2 H W]: a white square whose centre is at (row, column), twice."""
    image = np.zeros((2, *size), np.uint8)
    half = side // 2
    image[:, row - half : row + half, column - half : column + half] = 255
    return image


def centre_of(image):
    rows, columns = np.nonzero(image > 127)
    return rows.mean(), columns.mean()


def test_warps_move_images_of_all_sizes_and_keypoints_alike():
    arrays = {
        "frames": np.repeat(square_at(64, 32, (256, 128))[..., None], 3, -1),
        "silhouettes": square_at(16, 11),
        "heatmaps": np.repeat(square_at(16, 11)[..., None], 2, -1),
        "masks": square_at(64, 32, (256, 128)) // 255,
        "keypoints": np.tile(np.float32([31.5, 63.5, 0.5]), (2, 17, 1)),
        "ratios": np.ones(2),
    }
    change = transforms.Warp((0.1, 0.0, 0.0, 0.05), 7.0, (0.05, -0.02))
    warped = transforms.warp(arrays, change, (256, 128))
    assert {k: v.shape for k, v in warped.items()} == {
        k: v.shape for k, v in arrays.items()
    }
    row, column = centre_of(warped["frames"][0, ..., 0])
    x, y, confidence = warped["keypoints"][1, 3]
    np.testing.assert_allclose((x, y, confidence), (column, row, 0.5), atol=0.5)
    assert set(np.unique(warped["masks"])) == {0, 1}
    mask = centre_of(255 * warped["masks"][1])
    np.testing.assert_allclose(mask, (row, column), atol=0.5)
    # both frames of a sequence are treated alike, and both channels of a heat map
    for name in ("frames", "silhouettes", "heatmaps", "masks"):
        np.testing.assert_array_equal(warped[name][0], warped[name][1])
    np.testing.assert_array_equal(
        warped["heatmaps"][..., 0], warped["heatmaps"][..., 1]
    )
    differ = np.abs(np.int16(warped["heatmaps"][..., 0]) - warped["silhouettes"])
    assert differ.max() <= 8  # cv2 rounds by the number of channels


def test_rotation_is_about_the_centre_and_shifts_by_shares_of_the_height():
    middle = {"silhouettes": square_at(32, 22)}
    turned = transforms.warp(middle, transforms.Warp(degrees=10.0))
    np.testing.assert_allclose(centre_of(turned["silhouettes"][0]), (31.5, 21.5), 0.01)
    up = transforms.warp({"s": 0, "silhouettes": square_at(8, 22)},
                         transforms.Warp(degrees=10.0))  # fmt: skip
    row, column = centre_of(up["silhouettes"][0])
    # (0, -24) from the centre, turned counter-clockwise by 10 degrees
    np.testing.assert_allclose(column - 21.5, -24 * np.sin(np.deg2rad(10)), atol=0.3)
    moved = transforms.warp(middle, transforms.Warp(shift=(10 / 64, -4 / 64)))
    np.testing.assert_allclose(centre_of(moved["silhouettes"][0]), (27.5, 31.5))


def test_perspective_pulls_the_drawn_columns_to_the_edges():
    columns = np.broadcast_to(np.arange(44, dtype=np.uint8) * 5, (1, 64, 44))
    change = transforms.Warp(corners=(8 / 44, 0.0, 4 / 44, 0.0))
    warped = transforms.warp({"silhouettes": columns}, change)["silhouettes"][0]
    assert warped[0, 0] == 5 * 8 and warped[0, 43] == 5 * (43 - 4)
    assert warped[63, 0] == 0 and warped[63, 43] == 5 * 43


def test_erasing_blackens_one_rectangle_of_the_right_area_in_all_frames():
    for seed in range(30):
        arrays = {
            "frames": np.full((2, 256, 128, 3), 9, np.uint8),
            "silhouettes": np.full((2, 64, 44), 9, np.uint8),
        }
        erased = transforms.augment(
            arrays, rng=np.random.default_rng(seed), erasing=1.0
        )
        shares = []
        for value in erased.values():
            image = value.reshape(*value.shape[:3], -1)[..., 0]
            np.testing.assert_array_equal(image[0], image[1])
            black = image[0] == 0
            rows, columns = black.any(1), black.any(0)
            assert black.sum() == rows.sum() * columns.sum()  # one rectangle
            shares.append(black.mean())
        assert 0.04 < shares[0] < 0.21 and abs(shares[0] - shares[1]) < 0.03
        assert (arrays["frames"] == 9).all()  # the input is not written to


@pytest.mark.parametrize("size", [(320, 220), (384, 192)])  # as 64 x 44 and frames
def test_erased_rectangles_have_the_fields_aspects_in_pixels(size):
    arrays = {"silhouettes": np.ones((1, *size), np.uint8)}  # large: sides are rounded
    aspects, areas = [], []
    for seed in range(300):
        image = transforms.erase(arrays, np.random.default_rng(seed))["silhouettes"][0]
        height, width = (image == 0).any(1).sum(), (image == 0).any(0).sum()
        aspects.append(height / width)
        areas.append(height * width / image.size)
    assert 0.29 < min(aspects) < 0.4 and 3.1 < max(aspects) < 3.34
    assert 0.049 < min(areas) < 0.052 and 0.19 < max(areas) < 0.202


def test_augmentation_is_off_by_default_and_follows_its_probabilities():
    arrays = {"silhouettes": square_at(16, 11)}
    same = transforms.augment(arrays, rng=np.random.default_rng(0))
    assert same["silhouettes"] is arrays["silhouettes"]
    changed = 0
    for seed in range(200):
        out = transforms.augment(arrays, rng=np.random.default_rng(seed), rotate=0.3)
        changed += out["silhouettes"] is not arrays["silhouettes"]
    assert 40 < changed < 80
    limits = [
        transforms.draw_warp(np.random.default_rng(s), perspective=1, rotate=1, shift=1)
        for s in range(100)
    ]
    assert 9 < max(abs(w.degrees) for w in limits) <= 10
    assert 9 / 44 < max(max(w.corners) for w in limits) <= 10 / 44
    assert min(min(w.corners) for w in limits) >= 0


def test_flipped_keypoints_exchange_left_and_right():
    points = np.zeros((1, 17, 3), np.float32)
    points[0, 5] = (10, 7, 1)  # left shoulder
    flipped = transforms.flip({"keypoints": points}, 64)["keypoints"]
    np.testing.assert_array_equal(flipped[0, 6], (53, 7, 1))
    np.testing.assert_array_equal(
        transforms.flip({"keypoints": flipped}, 64)["keypoints"], points
    )
    found = (flipped != 0).any(-1)
    assert found.sum() == 1  # what was missing, (0, 0, 0), is still
    change = transforms.Warp(degrees=7.0, shift=(0.1, 0.0))
    warped = transforms.warp({"keypoints": points}, change, (128, 64))["keypoints"]
    np.testing.assert_array_equal((warped != 0).any(-1), (points != 0).any(-1))
    points[0, 0] = (70, 7, 0)  # a place outside the frame is no missing one
    flipped = transforms.flip({"keypoints": points}, 64)["keypoints"]
    np.testing.assert_array_equal(flipped[0, 0], (-7, 7, 0))


def test_damaged_frames_are_named():
    with pytest.raises(ValueError, match="Sequence 001/x: frame 0 is not a decodable"):
        transforms.decode_frames([b"no image"], "001/x")


def test_recolour_treats_all_frames_alike_and_keeps_grey_shapes():
    rng = np.random.default_rng(0)
    frames = np.tile(rng.integers(0, 255, (1, 8, 4, 3)), (3, 1, 1, 1)).astype(np.uint8)
    np.testing.assert_array_equal(transforms.recolour(frames, 0.0, rng), frames)
    changed = transforms.recolour(frames, 1.0, rng)
    assert changed.dtype == np.uint8 and (changed != frames).mean() > 0.5
    np.testing.assert_array_equal(changed[0], changed[2])
    grey = np.full((1, 1, 2, 3), 100, np.uint8)  # equal pixels stay equal
    assert (np.diff(transforms.recolour(grey, 1.0, rng).astype(int), axis=2) == 0).all()
