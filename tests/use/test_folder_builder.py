"""A user's own folder: videos, frames and silhouettes become records of one set."""

import json
import subprocess
import sys

import cv2
import numpy as np
import pytest
import walkers_on_video as drawn

from gaitjax.data import source
from gaitjax.retrieval.protocols import evaluate
from gaitjax.use import cut, person
from tfds_builders import cut_walks, prepare


@pytest.fixture
def program(tmp_path, monkeypatch):
    """The program runs in this process, with the drawn people's model; its calls."""
    calls = []

    def run(command, **options):
        assert command[:3] == [sys.executable, "-m", "gaitjax.use.cut"]
        calls.append(command[3:])
        return subprocess.CompletedProcess(command, cut.main(command[3:]), "", "")

    monkeypatch.setattr(person, "load", lambda file: drawn.see)
    monkeypatch.setattr(cut_walks.subprocess, "run", run)
    monkeypatch.setenv("GAITJAX_CACHE", str(tmp_path / "cache"))
    return calls


def images(folder, pictures, ending="jpg"):
    folder.mkdir(parents=True)
    for number, image in enumerate(pictures):
        cv2.imwrite(str(folder / f"{number:03d}.{ending}"), image[..., ::-1])


def silhouettes(count=12):
    for number in range(count):
        mask = np.zeros((64, 64, 3), np.uint8)
        mask[4:60, 26 : 36 + number % 4] = 255
        yield mask


def build(tmp_path, raw):
    folder = prepare.prepare("folder", tmp_path / "data", manual_dir=raw)
    report = json.loads((folder / "build_report.json").read_text())
    return report, str(tmp_path / "data")


def test_videos_frames_and_silhouettes_of_a_user(tmp_path, program):
    raw = tmp_path / "raw"
    one = {"x": 30, "speed": 5, "stride": 0.3, "bottom": 165}
    there = drawn.walk(one, frames=40, size=(240, 180))
    both = [*there, *[drawn.scene(240, 180)] * 15, *there[::-1]]
    (raw / "ann/day1").mkdir(parents=True)
    drawn.save(raw / "ann/day1/side.avi", both)
    images(raw / "ann/day2/side", [*[drawn.scene(240, 180)] * 10, *there])
    images(raw / "bob/day1/front", silhouettes(), "png")
    images(raw / "bob/day2/front", silhouettes(), "png")
    (raw / "bob/day3").mkdir()
    report, data = build(tmp_path, raw)
    test = source.open_split(data, "folder", "test")
    assert sorted(test.index.key.tolist()) == [
        "ann/day1/side_01", "ann/day1/side_02", "ann/day2/side",
        "bob/day1/front", "bob/day2/front",
    ]  # fmt: skip
    assert "no folders below" in report["skipped"]["bob/day3"]
    assert len(program) == 1 and "--parts=3" in program[0]
    by_key = {k: test.records[i] for i, k in enumerate(test.index.key.tolist())}
    assert len(by_key["ann/day2/side"]["keypoints"]) >= 15
    assert len(by_key["bob/day1/front"]["silhouettes"]) == 12
    assert not len(by_key["bob/day1/front"]["keypoints"])
    # who is the gallery is said at the evaluation
    number = np.unique(test.index.subject, return_inverse=True)[1]
    embeddings = np.eye(2, dtype=np.float32)[number][:, None]
    flat = evaluate("own:day1->day2", embeddings, test.index)
    assert flat["own:day1->day2/day2/rank1"] == 100


def test_a_list_names_the_people_for_training(tmp_path, program):
    raw = tmp_path / "raw"
    for name in ("ann", "bob"):
        images(raw / name / "day1/front", silhouettes(), "png")
    (raw / "train.txt").write_text("ann\n")
    _, data = build(tmp_path, raw)
    assert set(source.open_split(data, "folder", "train").index.subject) == {"ann"}
    assert set(source.open_split(data, "folder", "test").index.subject) == {"bob"}
    assert not program  # silhouettes need no person model


def test_another_layout_is_refused_with_the_right_one(tmp_path, program):
    raw = tmp_path / "raw"
    images(raw / "ann", silhouettes(), "png")
    with pytest.raises(prepare.PrepareError, match="ID/CONDITION/VIEW"):
        build(tmp_path, raw)
