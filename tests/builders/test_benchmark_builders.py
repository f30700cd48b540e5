"""Builds tiny archives in the layout of each benchmark and reads the result back."""

import functools
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import fake_benchmarks
import numpy as np
import pytest
from array_record.python import array_record_module
from tensorflow_datasets.proto import tf_example_pb2

from configs import skeletongait
from gaitjax import evaluate
from gaitjax.data import pipeline, source
from tfds_builders import prepare
from tfds_builders.features import unpack_mask
from tfds_builders.frames import decode_jpeg

ROOT = Path(__file__).resolve().parents[2]

# builder/config -> (writer of the archive, modalities besides ratios)
RGB, ONLY, POSE = ("frames", "masks", "silhouettes"), ("silhouettes",), ("keypoints",)
CASES = {
    "ccpg": (fake_benchmarks.ccpg, RGB),
    "ccpg/opengait": (fake_benchmarks.ccpg_pickles, RGB),
    "casia_b": (fake_benchmarks.casia_b, ONLY),
    "casia_b/raw_128": (fake_benchmarks.casia_b, ONLY),
    "casia_b/opengait": (fake_benchmarks.casia_b_pickles, ONLY),
    "casia_b/opengait_128": (
        functools.partial(fake_benchmarks.casia_b_pickles, size=128),
        ONLY,
    ),
    "casia_b_star": (fake_benchmarks.casia_b_star, RGB),
    "casia_b_star/opengait": (fake_benchmarks.casia_b_star_pickles, RGB),
    "oumvlp": (fake_benchmarks.oumvlp, ONLY),
    "oumvlp/opengait": (fake_benchmarks.oumvlp_pickles, ONLY),
    "sustech1k": (fake_benchmarks.sustech1k, RGB + POSE),
    "sustech1k/opengait": (fake_benchmarks.sustech1k_pickles, RGB + POSE),
    "gait3d": (fake_benchmarks.gait3d, ONLY),
    "gait3d/opengait": (fake_benchmarks.gait3d_pickles, ONLY),
    "grew": (fake_benchmarks.grew, ONLY),
    "grew/opengait": (fake_benchmarks.grew_pickles, ONLY),
    "ccgr_mini": (fake_benchmarks.ccgr_mini, ("frames", "silhouettes", *POSE)),
    "ccgr_mini/opengait": (fake_benchmarks.ccgr_mini_without_rgb, ONLY + POSE),
    "kinect_gait": (fake_benchmarks.kinect_gait, ONLY + POSE),
}


def build(name, tmp_path, writer) -> tuple[Path, dict]:
    expected = writer(tmp_path / "raw")
    data_dir = tmp_path / "data"
    return prepare.prepare(name, data_dir, manual_dir=tmp_path / "raw"), expected


@pytest.mark.parametrize("name", CASES)
def test_archive_is_built_and_read_back(name, tmp_path, capsys):
    writer, modalities = CASES[name]
    folder, expected = build(name, tmp_path, writer)
    size = 128 if name.endswith("_128") else 64
    for split, names in expected.items():
        data = source.open_split(str(tmp_path / "data"), name, split)
        assert sorted(data.index.key.tolist()) == sorted(names)
        for row in range(len(data.records)):
            record = data.records[row]
            length = len(record["ratios"])
            assert length >= 1 and (record["ratios"] > 0).all()
            for modality in (*RGB, "keypoints"):
                present = length if modality in modalities else 0
                assert len(record[modality]) == present, modality
            if "silhouettes" in modalities:
                silhouettes = record["silhouettes"]
                assert silhouettes.shape == (length, size, size)
                # a person fills the height, centred
                assert (silhouettes > 127).any(2).mean() > 0.85
                mass = (silhouettes > 127).sum((0, 1))
                centre = (mass * np.arange(size)).sum() / mass.sum()
                assert abs(centre - size / 2) < size / 16
            if "frames" in modalities:
                frame = decode_jpeg(record["frames"][0])
                assert frame.shape == (256, 128, 3)
                if "masks" in modalities:  # RGB of its own folder, registered
                    inside = unpack_mask(record["masks"][0]) > 0
                    distance = np.abs(frame.astype(int) - (200, 120, 40)).max(-1)
                    assert np.median(distance[inside]) < 12
                kept = round(256 * float(record["ratios"][0]))
                assert (frame[:, : (128 - kept) // 2 - 8] < 8).all()
                assert np.median(frame[:, 64 - kept // 2 + 3 : 64 - kept // 2 + 6]) > 40
        clip = pipeline.load_clip(data, 0, np.arange(1), modalities)
        assert all(len(clip[modality]) == 1 for modality in modalities)
        # what a model does not read is not inflated
        lean = source.open_split(str(tmp_path / "data"), name, split, modalities[:1])
        again = pipeline.load_clip(lean, 0, np.arange(1), modalities[:1])
        np.testing.assert_array_equal(again[modalities[0]], clip[modalities[0]])
        for array in {"silhouettes", "keypoints"} - {modalities[0]}:
            assert isinstance(lean.records[0][array], bytes)
    report = json.loads((folder / "build_report.json").read_text())
    assert report["skipped"] == {} and report["frames"] > 0
    for split, names in expected.items():
        assert report["totals"][split]["sequences"] == len(names)
    stored = json.loads((folder / "metadata.json").read_text())
    assert stored["totals"] == report["totals"] and stored["skipped"] == 0
    assert "sequences skipped" in capsys.readouterr().err


def test_unreadable_sequences_are_skipped_and_listed(tmp_path, capsys):
    raw = tmp_path / "raw"
    fake_benchmarks.ccpg(raw)
    frames, masks = raw / "CCPG_D_MASK_FACE_SHOE", raw / "CCPG_G_SIL"
    (masks / "101/U0_D0/01_0/00003.png").write_bytes(b"damaged")
    for file in (masks / "101/U0_D0/02").iterdir():
        file.unlink()
    for frame in range(1, 7):  # another crop than the image's
        fake_benchmarks.save(
            masks / f"000/U0_D0/02/{frame:05d}.png", fake_benchmarks.person(160, 160)
        )
    (frames / "000/U3_D3/10_1/00001.jpg").unlink()
    empty = np.zeros((162, 68), np.uint8)
    fake_benchmarks.save(masks / "000/U3_D3/10_1/00002.png", empty)
    stray = frames / "555/U0_D0/01"
    fake_benchmarks.save(stray / "1.jpg", np.zeros((8, 4, 3), np.uint8))
    (frames / "102").mkdir()
    (masks / "103/U0_D0").mkdir(parents=True)
    folder = prepare.prepare("ccpg", tmp_path / "data", manual_dir=raw)
    report = json.loads((folder / "build_report.json").read_text())
    skipped = report["skipped"]
    assert set(skipped) == {
        "101/U0_D0/01_0", "101/U0_D0/02", "000/U0_D0/02", "555/U0_D0/01",
        "102", "103/U0_D0",
    }  # fmt: skip
    assert skipped["102"] == "empty: no folders below it to ID/TYPE/VIEW"
    assert (
        skipped["101/U0_D0/01_0"] == "corrupt: 00003.png: not a PNG, JPEG or BMP file"
    )
    assert skipped["101/U0_D0/02"].startswith("empty: 6 frames")
    assert "not the same crop" in skipped["000/U0_D0/02"]
    assert "neither partition list" in skipped["555/U0_D0/01"]
    dropped = {"empty": 1, "without a partner": 1}
    assert report["frames_dropped"] == {"000/U3_D3/10_1": dropped}
    error = capsys.readouterr().err
    assert "2 frames dropped (1 empty, 1 without a partner)" in error
    assert report["short"] == ["000/U3_D3/10_1"]
    train = report["totals"]["train"]
    assert train["sequences"] == 2 and train["sequences_recalled"] == 8388
    assert train["mismatches"]["all"] == "1 subjects, expected 100"
    assert train["mismatches"]["001"] == "no sequence"
    assert "000" not in train["mismatches"]


def test_a_missing_archive_names_every_place_looked_at(tmp_path):
    (tmp_path / "raw").mkdir()
    for given in (None, tmp_path / "raw"):
        with pytest.raises(prepare.PrepareError, match="is missing or empty. CCPG is"):
            prepare.prepare("ccpg", tmp_path / "data", manual_dir=given)
    with pytest.raises(prepare.PrepareError, match="nowhere is not a folder"):
        prepare.prepare("ccpg", tmp_path / "data", manual_dir=tmp_path / "nowhere")
    with pytest.raises(prepare.PrepareError, match="tfds build"):
        prepare.prepare("ccpg", "gs://bucket/data")
    (tmp_path / "raw/notes.txt").write_text("nothing")
    with pytest.raises(prepare.PrepareError) as caught:
        prepare.prepare("ccpg", tmp_path / "data", manual_dir=tmp_path / "raw")
    for part in ("raw/CCPG_G_SIL", "raw/ccpg/CCPG_G_SIL", "github.com/BNU-IVC/CCPG"):
        assert part in str(caught.value)


def test_a_wrong_folder_is_answered_with_the_right_one(tmp_path):
    raw, images = tmp_path / "raw/ccpg_images", tmp_path / "raw/pickles"
    for tree in ("CCPG_D_MASK_FACE_SHOE", "CCPG_G_SIL"):
        (raw / tree / "000/U0_D0/01_0").mkdir(parents=True)
        (raw / tree / "000/U0_D0/01_0/1.png").write_bytes(b"")
    (images / "000/U0_D0/01_0").mkdir(parents=True)
    (images / "000/U0_D0/01_0/01_0.pkl").write_bytes(b"")
    packed = tmp_path / "packed"
    packed.mkdir()
    (packed / "CCPG.zip").write_bytes(b"")
    for name, given, hint in (
        ("ccpg", tmp_path / "raw", f"Did you mean --manual_dir={raw}?"),
        ("ccpg", raw / "CCPG_G_SIL", f"Did you mean --manual_dir={raw}?"),
        ("ccpg", images, "That folder is for the config ccpg/opengait."),
        ("ccpg/opengait", raw, "That folder is for the config ccpg/default."),
        ("ccpg", packed, "Unpack CCPG.zip."),
    ):
        with pytest.raises(prepare.PrepareError) as caught:
            prepare.prepare(name, tmp_path / "data", manual_dir=given)
        assert hint in str(caught.value), caught.value


def _bytes(folder: Path) -> dict[str, bytes]:
    return {f.name: f.read_bytes() for f in sorted(folder.glob("*"))
            if f.name != "dataset_info.json"}  # fmt: skip


def test_a_killed_build_ends_with_the_same_bytes(tmp_path):
    whole, _ = build("ccpg/opengait", tmp_path / "a", fake_benchmarks.ccpg_pickles)
    fake_benchmarks.ccpg_pickles(tmp_path / "b/raw")
    code = (
        "import os\n"
        "from tfds_builders import opengait_pickles as p, prepare\n"
        "load = p.load_array\n"
        "count = [0]\n"
        "def killed(data):\n"
        "    count[0] += 1\n"
        "    if count[0] == 15: os._exit(9)\n"
        "    return load(data)\n"
        "p.load_array = killed\n"
        f"prepare.main(['ccpg/opengait', '--data_dir={tmp_path}/b/data', "
        f"'--manual_dir={tmp_path}/b/raw'])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, timeout=120
    )
    assert done.returncode == 9, done.stderr
    folder = tmp_path / "b/data/ccpg/opengait"
    assert list(folder.glob("incomplete*")) and not (folder / "1.0.0").exists()
    again = prepare.prepare(
        "ccpg/opengait", tmp_path / "b/data", manual_dir=tmp_path / "b/raw"
    )
    assert _bytes(again) == _bytes(whole) and len(_bytes(whole)) >= 5
    (shard,) = again.glob("*test.array_record*")
    for record in array_record_module.ArrayRecordReader(str(shard)).read_all():
        fields = tf_example_pb2.Example.FromString(record)
        # in no process's own order: that differs from one to the next
        assert fields.SerializeToString(deterministic=True) == record
    assert not list(folder.glob("*incomplete*"))


class _Malicious:
    def __reduce__(self):
        return os.system, ("touch /tmp/gaitjax_was_here",)


def test_a_malicious_pickle_is_refused(tmp_path):
    raw = tmp_path / "raw"
    fake_benchmarks.ccpg_pickles(raw)
    bad = raw / "101/U0_D0/02/02-ratios.pkl"
    marker = Path("/tmp/gaitjax_was_here")
    assert not marker.exists()
    bad.write_bytes(pickle.dumps(_Malicious()))
    folder = prepare.prepare("ccpg/opengait", tmp_path / "data", manual_dir=raw)
    report = json.loads((folder / "build_report.json").read_text())
    assert list(report["skipped"]) == ["101/U0_D0/02"]
    assert report["skipped"]["101/U0_D0/02"].startswith(
        "refused: 02-ratios.pkl: it asks for posix.system"
    )
    assert not marker.exists()


def test_a_sequence_without_a_file_that_others_have_is_listed(tmp_path):
    """Skipped if the file is required, else kept; the training then names it."""
    raw = tmp_path / "raw"
    fake_benchmarks.sustech1k(raw)
    for number in ("03", "05"):  # pose, RGB
        view = "000" if number == "03" else "180-far"
        (bad,) = raw.glob(f"0000/*/{view}/{number}-*.pkl")
        bad.unlink()
    folder = prepare.prepare("sustech1k", tmp_path / "data", manual_dir=raw)
    report = json.loads((folder / "build_report.json").read_text())
    missing = "missing: no file of frames, which other sequences have"
    assert report["skipped"] == {"0000/01-bg-cr/180-far": missing}
    assert report["notes"] == {"0000/00-nm/000": "without keypoints: no such file"}
    assert report["modalities"] == dict.fromkeys(RGB, 3) | {"keypoints": 2, "points": 3}
    for _ in range(2):  # scanned, and from the cached index
        data = source.open_split(str(tmp_path / "data"), "sustech1k", "test")
        assert {m: bool(h.all()) for m, h in data.present.items()} == {
            "frames": True, "masks": True, "silhouettes": True, "keypoints": False,
            "regions": False, "captions": False, "parsing": False, "points": True,
        }  # fmt: skip
    source.check_modalities(data, RGB)
    source.check_modalities(data, ("keypoints",), limit=1)
    config = skeletongait.get_config("sustech1k")
    config.data.data_dir = str(tmp_path / "data")
    with pytest.raises(ValueError, match="1 of 1 sequences have no 'heatmaps'"):
        evaluate.open_test_split(config)  # before training
    old = dict(np.load(folder / "index_test.npz"))
    old.pop("present")  # of a build of before: scanned again
    np.savez(folder / "index_test.npz", **old)
    again = source.open_split(str(tmp_path / "data"), "sustech1k", "test")
    assert again.fingerprint == data.fingerprint and not again.present["keypoints"][0]


def test_what_no_sequence_has_is_not_asked_for(tmp_path):
    raw = tmp_path / "raw"
    fake_benchmarks.ccpg_pickles(raw)
    for bad in [*raw.glob("*/*/*/*-rgbs.pkl"), raw / "101/U0_D0/02/02-sils.pkl"]:
        bad.unlink()
    folder = prepare.prepare("ccpg/opengait", tmp_path / "data", manual_dir=raw)
    report = json.loads((folder / "build_report.json").read_text())
    assert report["skipped"] == {
        "101/U0_D0/02": "missing: no file of masks, which other sequences have"
    }
    assert report["modalities"]["frames"] == 0 and report["notes"] == {}
