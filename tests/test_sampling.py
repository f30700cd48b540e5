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


def test_no_frames():
    with pytest.raises(ValueError, match="no frames"):
        sampling.clip_indices(0, 6, ordered=True, rng=np.random.default_rng(0))


def test_length_bucket():
    assert sampling.length_bucket(24, multiple=24, limit=48) == (24, 24)
    assert sampling.length_bucket(25, multiple=24, limit=48) == (25, 48)
    assert sampling.length_bucket(500, multiple=24, limit=48) == (48, 48)


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
        "frames": np.random.default_rng(0).integers(0, 255, (3, 8, 4, 3)),
        "masks": np.arange(3 * 8 * 4).reshape(3, 8, 4),
        "ratios": np.ones(3),
    }
    never = np.random.default_rng(0)
    options = dict(colour_strength=0.0, rng=never)
    same = transforms.augment(arrays, flip_probability=0.0, **options)
    flipped = transforms.augment(arrays, flip_probability=1.0, **options)
    np.testing.assert_array_equal(same["frames"], arrays["frames"])
    np.testing.assert_array_equal(flipped["frames"], arrays["frames"][:, :, ::-1])
    np.testing.assert_array_equal(flipped["masks"], arrays["masks"][:, :, ::-1])
    np.testing.assert_array_equal(flipped["ratios"], arrays["ratios"])


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
