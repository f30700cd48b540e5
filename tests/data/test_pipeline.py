"""Batches from records: what is decoded, padded, shared between hosts, repeated."""

import cv2
import numpy as np
import pytest

from configs import lmgait
from gaitjax.data import pipeline
from gaitjax.data.clips import load_clip
from gaitjax.data.source import Index, Source, check_modalities
from gaitjax.engine import sharding

LENGTHS = (5, 9, 9, 3, 12, 4, 8, 6)


class Records:
    """Records as a data source returns them; counts what is read."""

    def __init__(self):
        rng = np.random.default_rng(0)
        self.rows = []
        for row, length in enumerate(LENGTHS):
            frames = rng.integers(0, 255, (length, 16, 8, 3)).astype(np.uint8)
            frames[:] = 10 * row + np.arange(length).reshape(-1, 1, 1, 1)  # its number
            encoded = [cv2.imencode(".png", frame)[1].tobytes() for frame in frames]
            self.rows.append(
                {
                    "frames": encoded,
                    "masks": np.full((length, 16, 8), 255, np.uint8),
                    "silhouettes": np.full((length, 64, 64), row, np.uint8),
                    "keypoints": np.zeros((0, 17, 3), np.float32),
                    "ratios": 0.1 * np.arange(length, dtype=np.float32),
                }
            )

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, row):
        return self.rows[row]


def make_source():
    records = Records()
    subjects = np.array(["a", "a", "b", "b", "c", "c", "d", "d"])
    keys = np.array([f"{s}/{i}" for i, s in enumerate(subjects)])
    blank = np.array([""] * len(keys))
    index = Index(subjects, blank, blank, keys, np.array(LENGTHS))
    return Source("fake", records, index, "f")


@pytest.fixture
def config():
    config = lmgait.get_config()
    config.data.update(ids_per_batch=3, seqs_per_id=2, num_frames=4, colour=0.0)
    config.data.image_size = (16, 8)
    config.evaluation.update(batch_size=2, frame_multiple=4, max_frames=9)
    return config


def train(config, start, stop):
    mesh = sharding.make_mesh(config.mesh)
    return list(
        pipeline.train_batches(
            make_source(), config, mesh, start_step=start, stop_step=stop
        )
    )


def test_train_batches_are_a_function_of_the_step(config):
    whole, tail = train(config, 0, 5), train(config, 3, 5)
    assert len(whole) == 5 and len(tail) == 2
    for expected, got in zip(whole[3:], tail):
        assert expected.keys() == got.keys()
        for name in expected:
            np.testing.assert_array_equal(expected[name], got[name], err_msg=name)
    assert any((whole[0]["frames"] != batch["frames"]).any() for batch in whole[1:])


def test_a_phase_with_other_sizes_reads_the_same_rows(config):
    config.data.update(ids_per_batch=2, num_frames=3)
    config.data.modalities = ("frames", "silhouettes")
    whole, tail = train(config, 0, 4), train(config, 2, 4)
    assert {batch["valid"].shape for batch in whole} == {(4, 3)}
    for step, batch in enumerate(whole):
        rows = pipeline.train_rows(make_source(), config, step)
        np.testing.assert_array_equal(batch["labels"], rows // 2)
        np.testing.assert_array_equal(batch["silhouettes"][:, 0, 0, 0], rows)
    for expected, got in zip(whole[2:], tail, strict=True):
        np.testing.assert_array_equal(expected["frames"], got["frames"])
    # the number of frames changes no choice of sequences
    config.data.num_frames = 5
    for one, other in zip(whole, train(config, 0, 4), strict=True):
        np.testing.assert_array_equal(one["labels"], other["labels"])
        assert other["valid"].shape == (4, 5)


def test_clips_may_differ_in_length(config):
    config.data.modalities = ("silhouettes",)
    whole = train(config, 0, 6)
    config.data.min_frames = 2
    batches = train(config, 0, 6)
    lengths = np.concatenate([np.sum(batch["valid"], 1) for batch in batches])
    assert set(lengths) == {2, 3, 4}
    for batch, other in zip(batches, whole):
        assert batch["silhouettes"].shape == other["silhouettes"].shape
        valid = np.asarray(batch["valid"])
        assert (valid[:, :-1] >= valid[:, 1:]).all()  # padding at the end
        rows = np.asarray(batch["silhouettes"][:, :, 0, 0])
        np.testing.assert_array_equal(rows, np.where(valid, rows[:, :1], 0))
        np.testing.assert_array_equal(batch["labels"], other["labels"])


def test_train_batch_contents(config):
    config.data.modalities = ("frames", "masks", "silhouettes")
    for batch in train(config, 0, 4):
        assert batch["frames"].shape == (6, 4, 16, 8, 3)
        assert batch["masks"].shape == (6, 4, 16, 8) and batch["masks"].max() == 1
        assert batch["silhouettes"].shape == (6, 4, 64, 44)
        assert batch["valid"].all() and batch["labels"].dtype == np.int32
        rows = np.asarray(batch["silhouettes"][:, 0, 0, 0])  # record number
        np.testing.assert_array_equal(batch["labels"], rows // 2)
        # frames, ratios and masks are of the same moments of the same record
        moment = np.asarray(batch["frames"][:, :, 0, 0, 0]) - 10 * rows[:, None]
        np.testing.assert_allclose(batch["ratios"], 0.1 * moment, rtol=1e-6)


@pytest.mark.parametrize("name", ["perspective", "rotate", "shift", "erasing"])
def test_augmentations_of_the_config_reach_the_batches(config, name):
    config.data.modalities = ("frames", "masks")
    config.data.flip = 0.0
    (plain,) = train(config, 0, 1)
    assert plain["masks"].min() == 1
    config.data[name] = 1.0
    (changed,) = train(config, 0, 1)
    masks, frames = (np.asarray(changed[m]) for m in ("masks", "frames"))
    np.testing.assert_array_equal(masks, masks[:, :1].repeat(4, 1))  # all frames alike
    np.testing.assert_array_equal(plain["labels"], changed["labels"])
    if name != "perspective":  # the others bring in black, to the image's edge
        assert (frames != plain["frames"]).any()
    if name == "erasing":  # the same rectangle of both, of a frame of one colour
        colour = frames[..., 0].max((2, 3), keepdims=True)
        seen = np.where(colour > 0, frames[..., 0] > 0, masks)
        np.testing.assert_array_equal(seen, masks)
        assert masks.min() == 0


def test_eval_batches_cover_every_row_once_in_buckets(config):
    source = make_source()
    mesh = sharding.make_mesh(config.mesh)
    rows, lengths = [], set()
    for batch, numbers in pipeline.eval_batches(
        source, np.arange(len(LENGTHS)), config, mesh
    ):
        assert len(numbers) == 2 and batch["frames"].shape[0] == 2
        assert "masks" not in batch  # only the training loss reads them
        lengths.add(batch["frames"].shape[1])
        for position, row in enumerate(numbers):
            valid = np.asarray(batch["valid"][position])
            if row < 0:
                assert not valid.any()
                continue
            used = min(LENGTHS[row], 9)
            np.testing.assert_array_equal(valid, np.arange(len(valid)) < used)
            seen = np.asarray(batch["frames"][position, :used, 0, 0, 0])
            np.testing.assert_array_equal(seen, 10 * row + np.arange(used))
            rows.append(int(row))
    assert sorted(rows) == list(range(len(LENGTHS)))
    assert lengths == {4, 8, 12}


def test_max_frames_0_reads_all_frames(config):
    config.evaluation.max_frames = 0
    mesh = sharding.make_mesh(config.mesh)
    batches = pipeline.eval_batches(make_source(), np.arange(8), config, mesh)
    used = {
        int(row): int(np.sum(batch["valid"][i]))
        for batch, rows in batches
        for i, row in enumerate(rows)
    }
    used.pop(-1, None)
    assert used == dict(enumerate(LENGTHS))


def test_missing_and_mismatched_modalities_are_named(config):
    source = make_source()
    with pytest.raises(ValueError, match="fake: sequence a/0 has no 'heatmaps'"):
        load_clip(source, 0, np.arange(2), ("heatmaps",))
    source.records.rows[1]["masks"] = source.records.rows[1]["masks"][:3]
    with pytest.raises(ValueError, match="a/1 has 3 masks but 9 ratios"):
        load_clip(source, 1, np.arange(2), ("masks",))


def test_a_sequence_without_a_modality_is_replaced(config):
    config.data.modalities = ("masks",)
    source, damaged = make_source(), {}
    source.records.rows[0]["masks"] = source.records.rows[0]["masks"][:0]
    batches = pipeline.host_batches(
        source, config, start_step=0, stop_step=6, damaged=damaged
    )
    shapes = {batch["masks"].shape for batch in batches}
    assert shapes == {(6, 4, 16, 8)} and list(damaged) == [0]
    assert "sequence a/0 has no 'masks'" in damaged[0]


def test_a_sequence_without_frames_is_replaced(config):
    config.data.modalities = ("silhouettes",)
    source, damaged = make_source(), {}
    source.index.num_frames[0] = 0
    batches = pipeline.host_batches(
        source, config, start_step=0, stop_step=6, damaged=damaged
    )
    assert {batch["silhouettes"].shape for batch in batches} == {(6, 4, 64, 44)}
    assert damaged == {0: "fake: sequence a/0 has no frames."}


def test_sequences_without_a_modality_are_named_before_any_is_read(config):
    has = np.array([True] * 5 + [False] * 2 + [True])
    source = make_source()._replace(records=None, present={"masks": has})
    config.data.modalities = config.evaluation.modalities = ("masks",)
    config.data.max_damaged = 1
    mesh = sharding.make_mesh(config.mesh)
    batches = (
        pipeline.host_batches(source, config, start_step=0, stop_step=1),
        pipeline.eval_batches(source, np.arange(8), config, mesh),
    )
    for made in batches:
        with pytest.raises(ValueError, match="2 of 8 sequences have no 'masks', the f"):
            next(iter(made))
    check_modalities(source, ("masks",), rows=np.arange(5))
    check_modalities(source, ("masks", "frames"), limit=2)  # frames: not known


@pytest.mark.parametrize(
    ("modality", "field", "found"),
    [
        ("silhouettes", "silhouette_size", "64x44 after the cut"),
        ("frames", "image_size", "16x8"),
        ("masks", "image_size", "16x8"),
    ],
)
def test_images_of_another_size_are_refused(config, modality, field, found):
    config.data.modalities = config.evaluation.modalities = (modality,)
    config.data[field] = (128, 88)
    mesh = sharding.make_mesh(config.mesh)
    batches = (
        pipeline.host_batches(make_source(), config, start_step=0, stop_step=1),
        pipeline.eval_batches(make_source(), np.arange(2), config, mesh),
    )
    for made in batches:
        with pytest.raises(ValueError, match=f"{modality} are {found}, .*{field}="):
            next(iter(made))


def test_a_damaged_frame_reaches_the_user_with_its_sequence(config):
    source = make_source()
    for record in source.records.rows:
        record["frames"] = [b"damaged"] * len(record["frames"])
    mesh = sharding.make_mesh(config.mesh)
    with pytest.raises(ValueError, match="Sequence ./.: frame 0 is not a decodable"):
        next(pipeline.train_batches(source, config, mesh, start_step=0, stop_step=1))


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_the_number_of_reading_threads_changes_nothing(workers):
    read = list(pipeline._prefetch(lambda number: np.array(number), range(5), workers))
    assert [int(number) for number in read] == [0, 1, 2, 3, 4]
