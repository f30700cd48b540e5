"""The program that cuts walks out of videos."""

import json

import cv2
import pytest
import walkers_on_video as drawn

from gaitjax.use import cut, person


@pytest.fixture(autouse=True)
def model(monkeypatch):
    monkeypatch.setattr(person, "load", lambda file: drawn.see)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    images = drawn.walk({"x": -40, "speed": 5})
    return drawn.save(tmp_path_factory.mktemp("video") / "street.avi", images)


def test_walks_are_written_once(clip, tmp_path, capsys, monkeypatch):
    arguments = [str(clip), f"--out={tmp_path}"]
    assert cut.main(arguments) == 0
    report = json.loads((tmp_path / "street/walks.json").read_text())
    (row,) = report["walks"]
    assert row["refused"] == "" and row["heading"] == "right" and report["frames"] == 90
    folder = tmp_path / "street" / row["folder"]
    files = {
        x: sorted((folder / x).iterdir()) for x in ("frames", "masks", "silhouettes")
    }
    walk = json.loads((folder / "walk.json").read_text())
    for name, size in {"frames": 128, "masks": 128, "silhouettes": 64}.items():
        assert len(files[name]) == len(walk["times"]) == row["quality"]["frames"]
        assert cv2.imread(str(files[name][0])).shape == (size, 64, 3)
    assert len(walk["keypoints"]) == len(walk["ratios"]) == len(walk["times"])
    assert len(walk["keypoints"][0]) == 17
    assert "1 walks, 0 refused; 90 frames" in capsys.readouterr().out
    monkeypatch.setattr(cut, "walks", None)  # nothing is looked at again
    assert cut.main(arguments) == 0


def test_a_damaged_video_stops_no_other(clip, tmp_path, capsys):
    bad = tmp_path / "bad.avi"
    bad.write_bytes(b"nothing")
    assert cut.main([str(bad), str(clip), f"--out={tmp_path / 'out'}"]) == 2
    said = capsys.readouterr()
    assert "bad.avi is damaged or no video" in said.err and "street: walk 1" in said.out
    assert (tmp_path / "out/street/walks.json").is_file()


def test_a_killed_run_begins_the_video_again(clip, tmp_path):
    left = tmp_path / "street/0001-left"
    left.mkdir(parents=True)
    assert cut.main([str(clip), f"--out={tmp_path}"]) == 0
    assert not left.exists()


def test_two_videos_of_one_name_need_two_folders(clip, tmp_path, capsys):
    other = tmp_path / "street.avi"
    other.write_bytes(clip.read_bytes())
    assert cut.main([str(clip), f"--out={tmp_path / 'out'}"]) == 0
    assert cut.main([str(other), f"--out={tmp_path / 'out'}"]) == 2
    assert "need another --out" in capsys.readouterr().err


def test_mistakes_are_one_sentence(clip, tmp_path, capsys):
    assert cut.main([str(clip), f"--out={tmp_path}", "--max_rate=0"]) == 2
    assert "--max_rate=0.0 must be positive" in capsys.readouterr().err


def test_a_folder_of_silhouettes_is_one_walk_without_frames(tmp_path):
    (tmp_path / "anna").mkdir()
    for t, image in enumerate(drawn.walk({"x": 100, "speed": 1}, frames=40)):
        mask = 255 * (image[..., 0].astype(int) - image[..., 2] > 60)
        cv2.imwrite(str(tmp_path / "anna" / f"{t}.png"), mask)
    assert cut.main([str(tmp_path / "anna"), f"--out={tmp_path / 'out'}"]) == 0
    (folder,) = (tmp_path / "out/anna").glob("*-*")
    assert {x.name for x in folder.iterdir()} == {"silhouettes", "walk.json"}
    assert len(list((folder / "silhouettes").iterdir())) == 40
    walk = json.loads((folder / "walk.json").read_text())
    assert walk["keypoints"] == [] and len(walk["ratios"]) == 40
