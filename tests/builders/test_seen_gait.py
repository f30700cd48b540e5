"""Rendered people as a person model sees them; here a model that sees exactly."""

import numpy as np
import pytest

from tfds_builders import walker
from tfds_builders.cmu_walk import cmu_walk_dataset_builder as cmu
from tfds_builders.frames import normalise_silhouette
from tfds_builders.seen_gait import seen_gait_dataset_builder as builder
from tfds_builders.seen_gait import sequences
from tfds_builders.synthetic_gait import gait
from tfds_builders.synthetic_gait import synthetic_gait_dataset_builder as synthetic

TASK = sequences.Task(15_001, 3)


@pytest.fixture
def drawn(monkeypatch):
    """The images that the eyes were given."""
    given = []

    def eyes(images, box):
        given.append((images, box))
        count = len(images) - len(given)  # each time one more frame is unusable
        mask = np.zeros((100, 60), np.uint8)
        mask[10:90, 20:40] = 255
        silhouettes = np.stack([normalise_silhouette(mask)] * count)
        return silhouettes, np.ones((count, 17, 3), np.float32), np.ones(count)

    monkeypatch.setattr(sequences, "_eyes", lambda: eyes)
    return given


def test_an_identity_has_seen_and_exact_walks(drawn):
    records = dict(sequences.records(TASK))
    kinds = [key.split("/")[1] for key in records]
    assert len(kinds) == 8 and sum(kind.endswith("seen") for kind in kinds) == 4
    assert {kind[:13] for kind in kinds} == {
        "day0-outfit0-", "day1-outfit1-", "day1-outfit2-",
    }  # fmt: skip
    lengths = [len(r["ratios"]) for k, r in records.items() if k.split("-")[-1][0]]
    assert sorted(set(lengths)) == [10, 11, 12, 13, 14]
    for images, box in drawn:
        side = sequences.PAD
        assert images.shape == (14, 128 + 2 * side, 96 + 2 * side, 3)
        assert side <= box[0] < box[2] <= 96 + side and box[3] - box[1] > 60


def test_the_same_task_gives_the_same_walk_and_clothes_change_with_the_day(drawn):
    one, two = (sequences.draw(TASK, 0, False).painted for _ in range(2))
    np.testing.assert_array_equal(one.images, two.images)
    again = sequences.film(one, np.random.default_rng(0))
    np.testing.assert_array_equal(again, sequences.film(two, np.random.default_rng(0)))
    outfits = [outfit for _, outfit in sequences.WALKS]
    days = [day for day, _ in sequences.WALKS]
    assert outfits[0] == outfits[1] and not {*outfits[:2]} & {*outfits[2:]}
    assert days[:2] == [0, 0] and days[2:] == [1, 1]


def test_walks_with_few_usable_frames_are_left_out(monkeypatch):
    def eyes(images, box):
        few = sequences.FEWEST - 1
        shape = (few, 64, 64), (few, 17, 3), (few,)
        return tuple(np.zeros(size, np.float32) for size in shape)

    monkeypatch.setattr(sequences, "_eyes", lambda: eyes)
    assert all("exact" in key for key, _ in sequences.records(TASK))


def parameters(seed, subject):
    return gait.draw_person(sequences._rng(sequences.Task(seed, subject), 0))


def test_nobody_who_trains_is_evaluated():
    """Train and test identities, and those of the sets that the weights are tested on,
    are drawn from other numbers, or are real."""
    for config in builder.Builder.BUILDER_CONFIGS:
        train, test = (config.tasks(split) for split in ("train", "test"))
        assert train and test and not {*train} & {*test}
        numbers = [task.subject for task in train]
        assert len({*numbers}) == len(numbers) and max(numbers) < builder.TEST_FROM
    config = builder.Builder.BUILDER_CONFIGS[0]
    seeds = {c.seed for c in synthetic.Builder.BUILDER_CONFIGS}
    seeds |= {c.seed for c in cmu.Builder.BUILDER_CONFIGS}
    assert config.seed not in seeds
    # and indeed they are other bodies
    people = [parameters(config.seed, task.subject) for task in config.tasks("train")]
    people += [parameters(config.seed, task.subject) for task in config.tasks("test")]
    for seed in sorted(seeds):
        people += [
            gait.draw_person(np.random.default_rng((seed, 0, subject)))
            for subject in range(1, 91)
        ]
    statures = np.array([[p["stature"], p["build"], p["cadence"]] for p in people])
    assert len(np.unique(statures.round(9), axis=0)) == len(people)


def test_the_eyes_speak_with_a_program_over_pipes(monkeypatch, tmp_path):
    """The protocol of gaitjax.use.look, answered by a program that sees nothing."""
    program = tmp_path / "program"
    program.write_text(
        "#!/usr/bin/env python3\n"
        "import sys\n"
        "from types import SimpleNamespace as plain\n"
        "import numpy as np\n"
        "from numpy.lib.format import read_array, write_array\n"
        "given = plain(read=sys.stdin.buffer.read)\n"
        "told = plain(write=sys.stdout.buffer.write)\n"
        "images, box = read_array(given), read_array(given)\n"
        "for shape in ((2, 64, 64), (2, 17, 3), (len(images),)):\n"
        "    write_array(told, np.full(shape, box[3]))\n"
    )
    popen = sequences.subprocess.Popen

    def start(command, **options):
        return popen([command[0], str(program)], **options)

    monkeypatch.setattr(sequences.subprocess, "Popen", start)
    eyes = sequences.Eyes()
    images = np.zeros((3, 8, 6, 3), np.uint8)
    silhouettes, _, ratios = eyes(images, (0, 0, 6, 8))
    assert silhouettes.shape == (2, 64, 64) and ratios.tolist() == [8, 8, 8]
    with pytest.raises(FileNotFoundError, match="person model did not answer"):
        eyes(images, (0, 0, 6, 8))
    assert walker.HEIGHT == 128
