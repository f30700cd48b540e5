"""The commands enroll, identify, watch and gallery, as a user calls them."""

import json
import subprocess
import sys

import cv2
import pytest
import walkers_on_video as drawn

import gaitjax.__main__ as entry
from configs import gei
from gaitjax import run_folder
from gaitjax.use import commands, person, walk_files


@pytest.fixture(autouse=True)
def eyes(monkeypatch):
    monkeypatch.setattr(person, "load", lambda file: drawn.see)


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Two people, who differ in their stride; somebody cut by the edge; nobody."""
    folder = tmp_path_factory.mktemp("videos")
    for name, stride in {"anna": 0.3, "bob": 0.6}.items():
        walk = drawn.walk({"x": -30, "speed": 10, "stride": stride}, frames=40)
        drawn.save(folder / f"{name}.avi", walk)
        back = drawn.walk({"x": 350, "speed": -10, "stride": stride}, frames=40)
        drawn.save(folder / f"{name}_back.avi", back)
    half = drawn.walk({"x": 50, "speed": 3, "bottom": 290}, frames=15)
    drawn.save(folder / "half.avi", half)
    drawn.save(folder / "nobody.avi", [drawn.scene()] * 20)
    crowd = [
        {"x": 60 + 110 * i, "speed": 1.5, "height": 100, "stride": 0.4}
        for i in range(4)
    ]
    drawn.save(folder / "crowd.avi", drawn.walk(*crowd, frames=24, size=(560, 240)))
    (folder / "broken.avi").write_bytes(b"no video")
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    run_folder.write_config(gei.get_config(), folder)
    return folder


@pytest.fixture
def call(run, tmp_path, capsys):
    def call(*words, model=True):
        options = [f"--gallery={tmp_path / 'people'}"]
        options += [f"--model={run}"] * model
        code = commands.main([*map(str, words), *options])
        said = capsys.readouterr()
        return code, said.out, said.err

    return call


def test_from_videos_to_names_and_out_again(call, videos, tmp_path):
    for name in ("anna", "bob"):
        code, out, err = call("enroll", name, videos / f"{name}.avi")
        assert code == 0 and "walk 1, " in out and "enrolled" in out
        assert "strangers are told from them. This person was seen walking right" in out
        assert "1 walks, 0 refused; 40 frames, " in err and "frames/s" in err
    picture = tmp_path / "who.png"
    found = "identify", videos / "bob.avi", videos / "anna.avi"
    page = tmp_path / "who.html"
    code, out, err = call(*found, f"--picture={picture}", f"--report={page}")
    head, *lines = out.splitlines()
    assert code == 0 and head.split() == list(commands.COLUMNS)
    assert ["nearest bob" in lines[0], "nearest anna" in lines[1]] == [True, True]
    assert "2 people are enrolled, fewer than 10, so strangers cannot" in err
    assert cv2.imread(str(picture)).shape[1] > 300
    text = page.read_text()
    assert "bob.avi, walk 1" in text and "<td>nearest" in text
    assert "Map of the embeddings" not in text  # of two walks there is none
    code, out, err = call(*found, "--json", "--least_people=2", "--threshold=0.001")
    rows = [json.loads(line) for line in out.splitlines()]
    assert [row["verdict"] for row in rows] == ["known", "known"]
    assert [row["name"] for row in rows] == ["bob", "anna"]
    assert rows[0]["nearest"][0]["distance"] < 1e-3 < rows[0]["nearest"][1]["distance"]
    code, out, _ = call("watch", videos / "anna_back.avi", "--threshold=1e-9")
    assert "unknown" in out and "(nearest " in out and code == 0
    code, out, _ = call("gallery", "list", model=False)
    assert "bob: 1 walks (right), from bob.avi\n2 people, 2 walks" in out
    code, out, _ = call("gallery", "list", "--json", model=False)
    assert [json.loads(x)["name"] for x in out.splitlines()] == ["anna", "bob"]
    code, out, _ = call("gallery", "export", tmp_path / "all.jsonl", model=False)
    assert (tmp_path / "all.safetensors").is_file() and out.startswith("2 walks")
    code, out, _ = call("gallery", "remove", "anna", model=False)
    assert (code, out) == (0, "anna: 1 walks deleted\n")
    code, out, _ = call("gallery", "check", model=False)
    assert code == 2 and out == "bob has one walk; two or more are safer.\n"
    code, out, err = call("gallery", "remove", "anna", model=False)
    assert code == 2 and "Nobody is called 'anna'" in err and "it has bob" in err


def test_bad_videos_stop_no_other_and_have_their_reason(call, videos):
    assert call("enroll", "anna", videos / "anna.avi")[0] == 0
    bad = [videos / f"{x}.avi" for x in ("broken", "none", "half", "nobody")]
    code, out, err = call("identify", *bad, videos / "anna.avi")
    assert code == 2 and "nearest anna" in out
    assert "refused, the picture's edge cuts the person" in out
    assert "broken.avi is damaged or no video" in err
    assert "There is no video, folder or camera" in err
    assert "nobody.avi: nobody was seen walking" in err
    code, out, err = call("enroll", "x", *bad, videos / "crowd.avi")
    assert code == 2 and "shows several people at once" in err
    assert "Nobody was enrolled: the picture's edge cuts" in err
    assert "Nobody was enrolled: no person was found" in err
    assert call("gallery", "list", model=False)[1].startswith("anna: 1 walks")
    code, out, _ = call("identify", videos / "crowd.avi")
    assert code == 0 and len(out.splitlines()) == 5  # four people


def test_mistakes_are_one_sentence(call, videos, tmp_path):
    for words, what in {
        ("gallery", "list"): "There is no gallery in",
        ("identify", "x.avi", "--max_rate=0"): "--max_rate=0.0 must be positive",
        ("identify", "x.avi", "--index=faiss:x"): "--index='faiss:x' is not understood",
        ("enroll", "a\tb", videos / "anna.avi"): "must be printable",
    }.items():
        code, out, err = call(*words, model=words[0] != "gallery")
        assert code == 2 and what in err and len(err.splitlines()) == 1, err
    code = commands.main(["identify", "x.avi", f"--model={tmp_path / 'none'}"])
    assert code == 2


def test_a_full_disk_is_told_and_loses_nobody(call, videos, monkeypatch):
    assert call("enroll", "anna", videos / "anna.avi")[0] == 0

    def full(path, mode):
        raise OSError(28, "No space left on device", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(walk_files, "replacing", full)
        code, _, err = call("enroll", "bob", videos / "bob.avi")
    assert code == 2 and "The disk is full" in err and "who was enrolled before" in err
    assert call("gallery", "list", model=False)[1].endswith("1 people, 1 walks\n")


def test_an_interrupted_command_loses_nobody(call, videos, monkeypatch):
    assert call("enroll", "anna", videos / "anna.avi")[0] == 0
    monkeypatch.setattr(
        commands, "_each", lambda *x: (_ for _ in ()).throw(KeyboardInterrupt)
    )
    code, _, err = call("watch", "0")
    assert code == 130 and "who was enrolled stays" in err


@pytest.mark.parametrize(
    "words, expected",
    [
        (["identify", "--help"], "--fpir"),
        (["enroll", "--help"], "15 usable"),
        (["gallery", "--help"], "remove"),
        (["--help"], "gaitjax enroll NAME VIDEO"),
    ],
)
def test_help_helps(words, expected, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["gaitjax", *words])
    with pytest.raises(SystemExit) as ended:
        entry.run()
    assert ended.value.code == 0 and expected in capsys.readouterr().out


def test_the_program_starts_by_its_module(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "gaitjax", "gallery", "list", f"--gallery={tmp_path}"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2 and "There is no gallery in" in done.stderr
