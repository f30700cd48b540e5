"""KTH walking: from drawn videos, through gaitjax's program, to records."""

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import walkers_on_video as drawn

from gaitjax.data import source
from gaitjax.use import cut, person
from tfds_builders import cut_walks, prepare
from tfds_builders.features import unpack_mask

VIDEO = "person{:02d}_walking_d{}_uncomp.avi"


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Persons 1 and 7: d1 with a pass in each direction, d3 with a refused one."""
    folder = tmp_path_factory.mktemp("videos")
    one = {"x": 30, "speed": 5, "stride": 0.3, "bottom": 165}
    there = drawn.walk(one, frames=40, size=(240, 180))
    for number in (1, 7):
        both = [*there, *[drawn.scene(240, 180)] * 15, *there[::-1]]
        drawn.save(folder / VIDEO.format(number, 1), both)
        few = there[:8] + [drawn.scene(240, 180)] * 15
        drawn.save(folder / VIDEO.format(number, 3), few)
    return folder


@pytest.fixture(scope="module")
def cut_passes(videos, tmp_path_factory):
    out = tmp_path_factory.mktemp("passes")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(person, "load", lambda file: drawn.see)
        assert cut.main([*map(str, sorted(videos.iterdir())), f"--out={out}"]) == 0
    return out


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


def build(tmp_path, raw, config="default"):
    name = f"kth_walking/{config}"
    folder = prepare.prepare(name, tmp_path / "data", manual_dir=raw)
    report = json.loads((folder / "build_report.json").read_text())
    return source.open_split(str(tmp_path / "data"), name, "test"), report


def test_cut_passes_become_records(cut_passes, tmp_path):
    data, report = build(tmp_path, cut_passes)
    keys = [f"{n}/d1-{p}" for n in ("01", "07") for p in ("01/right", "02/left")]
    assert sorted(data.index.key.tolist()) == keys
    refused = "refused: 7 usable frames, at least 15 needed"
    assert set(report["skipped"].values()) <= {refused, refused.replace("7", "8")}
    assert set(report["skipped"]) == {"01/d3-01/still", "07/d3-01/still"}
    record = data.records[0]
    length = len(record["ratios"])
    assert len(record["masks"]) == length and length >= 15
    assert unpack_mask(record["masks"][0]).shape == (128, 64)
    assert record["silhouettes"].shape == (length, 64, 64)
    assert record["keypoints"].shape == (length, 17, 3)
    place = cut_passes / f"person{data.index.subject[0]}_walking_d1_uncomp"
    walk = next(place.glob(f"*-{data.index.view[0]}"))
    frame = (walk / "frames/00001.jpg").read_bytes()
    assert record["frames"][0] in (frame, frame.decode("latin-1"))
    stored = json.loads((walk / "walk.json").read_text())
    np.testing.assert_allclose(record["keypoints"], stored["keypoints"], atol=1e-3)


def test_only_some_people_are_built_and_the_others_not_expected(cut_passes, tmp_path):
    data, report = build(tmp_path, cut_passes, "people_07_12")
    assert set(data.index.subject) == {"07"}
    assert report["totals"]["test"]["subjects_expected"] == 6


def test_videos_are_cut_once_by_the_program(videos, tmp_path, program):
    data, _ = build(tmp_path, videos, "people_01_06")
    assert set(data.index.subject) == {"01"} and len(program) == 1
    assert [Path(x).name for x in program[0][:-1]] == [
        VIDEO.format(1, 1),
        VIDEO.format(1, 3),
    ]
    assert (tmp_path / f"cache/kth_walking/walks/{VIDEO.format(1, 1)[:-4]}").is_dir()


def test_the_official_zip_is_unpacked_by_name(videos, tmp_path, program):
    raw = tmp_path / "raw"
    raw.mkdir()
    with zipfile.ZipFile(raw / "walking.zip", "w") as archive:
        archive.write(videos / VIDEO.format(1, 1), f"../../{VIDEO.format(1, 1)}")
        archive.writestr("../evil.avi", b"")
    data, report = build(tmp_path, raw, "people_01_06")
    assert set(data.index.subject) == {"01"}
    assert [x.name for x in (tmp_path / "cache/kth_walking/video").iterdir()] == [
        VIDEO.format(1, 1)
    ]
    assert not list(tmp_path.rglob("evil.avi"))
    (raw / "walking.zip").write_bytes(b"damaged")
    with pytest.raises(Exception, match="walking.zip"):
        build(tmp_path / "again", raw, "people_01_06")


def test_a_damaged_video_or_walk_is_listed(videos, cut_passes, tmp_path, program):
    raw = tmp_path / "raw"
    raw.mkdir()
    good = VIDEO.format(1, 1)
    (raw / good).write_bytes((videos / good).read_bytes())
    (raw / VIDEO.format(2, 1)).write_bytes(b"no video")
    _, report = build(tmp_path, raw, "people_01_06")
    assert "video is damaged" in report["skipped"]["02/d1/none"]
    place = tmp_path / "cache/kth_walking/walks" / good[:-4]
    first, second = sorted(x for x in place.iterdir() if x.is_dir())
    (first / "masks/00003.png").write_bytes(b"damaged")
    (second / "walk.json").write_text('{"ratios": [1.0], "keypoints": 3}')
    with pytest.raises(Exception, match="00003.png: not a PNG"):
        build(tmp_path / "again", place.parent, "people_01_06")


def test_a_program_that_cuts_nothing_stops_the_build(videos, tmp_path, monkeypatch):
    def run(command, **options):
        error = "gaitjax: The person model could not be fetched from PyPI (...)."
        return subprocess.CompletedProcess(command, 2, "", error)

    monkeypatch.setattr(cut_walks.subprocess, "run", run)
    monkeypatch.setenv("GAITJAX_CACHE", str(tmp_path / "cache"))
    with pytest.raises(Exception, match="No walk could be cut .* could not be fetched"):
        build(tmp_path, videos)
