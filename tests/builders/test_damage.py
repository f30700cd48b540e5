"""Damaged and hostile files: named, bounded in time and memory, and never silent."""

import errno
import json
import os
import pickle
import re
import resource
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import cv2
import fake_benchmarks
import numpy as np
import pytest
from etils import epath
from fake_datasets import write_cmu_walk

from tfds_builders import image_folders, image_header, opengait_pickles, prepare
from tfds_builders.archives import Sequence
from tfds_builders.cmu_walk import sequences
from tfds_builders.damage import Damaged, naming, read_file
from tfds_builders.kinect_gait import recordings
from tfds_builders.safe_pickle import load_array

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def bounded():
    """The test takes under 5 s and 300 MB."""
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    yield
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert time.monotonic() - began < 5 and grown < 300_000  # kB


# --- pickles


def _nested(opening: bytes, closing: bytes, depth: int = 60) -> bytes:
    """A pickle's item of 2 ** depth leaves, memo `depth`: each level has two below."""
    levels = (
        opening + b"h" + bytes([level]) * 1 + b"h" + bytes([level]) + closing
        + b"q" + bytes([level + 1]) + b"0"
        for level in range(depth)
    )  # fmt: skip
    return b"\x80\x02]q\x000" + b"".join(levels)


def _array(payload: bytes) -> bytes:
    """numpy.core.numeric._frombuffer(payload, uint8, (1 << 20,), "C")."""
    return b"".join(
        (b"cnumpy.core.numeric\n_frombuffer\n(", payload, b"cnumpy\ndtype\n(U\x02u1tR",
         b"(J\x00\x00\x10\x00tU\x01CtR")
    )  # fmt: skip


LISTS, TUPLES = _nested(b"(", b"l"), _nested(b"(", b"t")
MEGABYTE = struct.pack("<I", 1 << 20) + b"a" * (1 << 20)
HOSTILE = {
    "lists of lists": LISTS + b"h\x3c.",
    "tuples of tuples": TUPLES + b"h\x3c.",
    "a hash of tuples": TUPLES + b"}h\x3cNs.",
    "a dtype of tuples": TUPLES + b"cnumpy\ndtype\n(h\x3ctR.",
    "a codec of tuples": TUPLES + b"c_codecs\nencode\n(U\x01ah\x3ctR.",
    "a shape of tuples": TUPLES + _array(b"B\x01\0\0\0a").replace(
        b"(J\x00\x00\x10\x00t", b"h\x3c"
    ) + b".",
    "itself": b"\x80\x02]q\x00h\x00a.",
    "a memo of 16 GB": b"\x80\x02Nr\xff\xff\xff\x7f.",
    "bytes of 1 TB": b"\x80\x05\x96" + struct.pack("<Q", 1 << 40) + b"a.",
    "text of 1 TB": b"\x80\x04\x8d" + struct.pack("<Q", 1 << 40) + b"a.",
    "a number of many digits": b"I" + b"9" * 1_000_000 + b"\n.",
    "a long number": b"\x80\x02]\x8b\x40\x42\x0f\0" + b"9" * 1_000_000 + b"a.",
    "two million items": b"\x80\x02](" + b"N" * 2_000_000 + b"e.",
    "deep lists": b"]" * 400_000 + b"a" * 399_999 + b".",
    "long strings": b"\x80\x02](X" + MEGABYTE + b"q\x01" + b"h\x01" * 30_000 + b"e.",
    "one array many times": b"\x80\x04](" + _array(b"B" + MEGABYTE)
    + b"q\x01" + b"h\x01" * 30_000 + b"e.",
    "one text encoded many times": b"\x80\x02c_codecs\nencode\nq\x00X" + MEGABYTE
    + b"q\x01U\x06latin1q\x02](" + b"h\x00h\x01h\x02\x86R" * 30_000 + b"e.",
    "frames without values": pickle.dumps(np.zeros((10**15, 0), np.uint8)),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_pickle_takes_no_time_and_no_memory(name, bounded):
    with pytest.raises(Damaged):
        load_array(HOSTILE[name])


def test_messages_are_short():
    pickled = b"c" + b"a" * 100_000 + b"\nb\n."
    with pytest.raises(Damaged, match="refused: it asks for aaa") as caught:
        load_array(pickled)
    assert len(str(caught.value)) < 320


# --- images


def _png(width: int, height: int, rows: bytes) -> bytes:
    def chunk(kind, data):
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    packed = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows, 9))
    return b"\x89PNG\r\n\x1a\n" + packed + chunk(b"IEND", b"")


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp"])
@pytest.mark.parametrize("channels", [(), (3,)])
def test_the_size_of_an_image_is_read_from_its_header(suffix, channels):
    image = np.full((30, 41, *channels), 90, np.uint8)
    options = [cv2.IMWRITE_JPEG_PROGRESSIVE, 1] if suffix == ".jpg" else []
    for parameters in ([], options):
        _, data = cv2.imencode(suffix, image, parameters)
        assert image_header.image_size(data.tobytes()) == (41, 30)


def test_an_image_of_absurd_size_is_refused_before_it_is_decoded(tmp_path, bounded):
    wide = _png(1_000_000, 1, bytes(1_000_001))
    assert len(wide) < 1100
    jpeg = cv2.imencode(".jpg", np.zeros((30, 41), np.uint8))[1].tobytes()
    place = jpeg.index(b"\xff\xc0") + 5
    bitmap = cv2.imencode(".bmp", np.zeros((30, 41), np.uint8))[1].tobytes()
    huge = bitmap[:18] + struct.pack("<ii", 30_000, -30_000) + bitmap[26:]
    for data, message in (
        (wide, "1000000x1 pixels; images have at most 16,777,216 pixels"),
        (_png(1, 1_000_000, b""), "1x1000000 pixels"),
        (_png(30_000, 30_000, b""), "30000x30000 pixels"),
        (_png(0, 5, b""), "0x5 pixels"),
        (jpeg[:place] + b"\xff" * 4 + jpeg[place + 4 :], "65535x65535 pixels"),
        (huge, "30000x30000 pixels"),
        (jpeg + b"\xff\xda" * 101, "a JPEG file of over 100 scans"),
        (jpeg[: place - 5], "a JPEG file without a size"),
        (b"GIF89a" + bytes(50), "not a PNG, JPEG or BMP file"),
        (b"", "not a PNG, JPEG or BMP file"),
        (_png(8, 8, b""), "not a readable image"),
        (_png(8, 8, b"")[:-20], "the PNG chunk at byte 33 is cut off"),
        (_png(8, 8, b"")[:-12] + b"\xff\xff\xff\xf0IEND", "the PNG chunk at byte 5"),
    ):
        (tmp_path / "1.png").write_bytes(data)
        with pytest.raises(Damaged, match=f"^corrupt: 1.png: {message}"):
            image_folders.read_grey(epath.Path(tmp_path / "1.png"))


def test_what_is_no_plain_file_or_too_large_is_damaged(tmp_path, bounded):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(1 << 40)
    for name, message in (
        ("pipe", "not a plain file"),
        ("folder", "not a plain file"),
        ("absent", r"cannot be read \(No such file"),
        ("sparse", "1,099,511,627,776 bytes; at most 1,000 are read"),
    ):
        file = epath.Path(tmp_path / name)
        with pytest.raises(Damaged, match=f"corrupt: {name}: {message}"), naming(file):
            read_file(file, 1000)


# --- skeletons


def _render_cmu(tmp_path, asf=lambda text: text, amc=lambda text: text):
    folder = write_cmu_walk(tmp_path, {"02": (1,)})
    for name, change in (("02.asf", asf), ("02_01.amc", amc)):
        file = folder / "02" / name
        file.write_text(change(file.read_text()))
    recording = sequences.Recording(str(folder), "02", 1, "distractor", 0, 1, 12)
    return sequences.render(recording)


@pytest.mark.parametrize(
    "old, new, message",
    [
        ("dof rx", "dof rw", "bone 'lfemur': degrees of freedom 'rw'"),
        ("dof rx", "dof r", "bone 'lfemur': degrees of freedom 'r'"),
        ("dof rx", "dof rx rx", "bone 'lfemur': degrees of freedom 'rx rx'"),
        ("order TX TY TZ RX RY RZ", "order TX QQ", "root: degrees of freedom 'TX QQ'"),
        ("  length 0.45", "  length 0", "units: length 0, expected one such as 0.45"),
        ("  length 0.45", "  length nan", "units: length is 'nan'"),
        ("  length 0.45", "  mass 1", "units: length is ''"),
        ("  length 0.45", "  length 0.00450", "a person of 1"),
        (
            "direction 0.7 -0.65 0.3",
            "direction 0 0 0",
            "bone 'lhipjoint' has no direct",
        ),
        ("direction 0.7 -0.65 0.3", "direction 0 nan 1", "direction is '0 nan 1'"),
        ("direction 0.7 -0.65 0.3", "direction 1e308 1e308 0", "direction is '1e308 "),
        ("direction 0.7 -0.65 0.3", "direction 1 0", "direction is '1 0', expected 3"),
        ("length 7.2", "length 7200000", "length is '7200000', expected 1 number"),
        ("length 7.2", "length 720", "a person of 44.4 m"),
        ("length 0.8", "length 800", "frame 0 of 12 is not of human size"),
        ("length 7.2", "length -7.2", "a negative length"),
        ("axis 0 0 0 XYZ", "axis 0 0 0 XYQ", "axis order 'XYQ'"),
        ("axis 0 0 0 XYZ", "axis 0 0", "axis order ''"),
        ("   axis XYZ", "   axis XY", "root: axis order 'XY'"),
        ("position 0 0 0", "position 0 0", "root: position is '0 0', expected 3"),
        (
            "    ltibia lfoot",
            "    ltibia",
            "the hierarchy has ltoes under unknown lfoot",
        ),
        ("    lfoot ltoes", "", r"bones \['ltoes'\] are missing"),
    ],
)
def test_an_impossible_skeleton_is_skipped(old, new, message, tmp_path):
    outcome = _render_cmu(tmp_path, asf=lambda text: text.replace(old, new))
    assert outcome.records == []
    file = "02_01.amc" if message.startswith(("a person", "frame")) else "02.asf"
    assert re.match(f"corrupt: {file}: .*{message}", outcome.problem), outcome.problem


def test_a_walk_out_of_the_picture_is_skipped(tmp_path):
    far = _render_cmu(tmp_path, amc=lambda text: text.replace("\nroot ", "\nroot 9"))
    assert re.match("corrupt: 02_01.amc: the person is .* off the middle", far.problem)


@pytest.mark.parametrize("value", ["1e300", "-1.7e308", "50", "4"])
def test_a_recording_of_inhuman_size_is_skipped(value, tmp_path):
    """Of the elbow in every frame; in some frames only, these are dropped."""
    text = fake_benchmarks.kinect_walk(12, 90.0)
    file = tmp_path / "1.txt"
    walk = Sequence("test", "075", "01", "090", {"skeleton": str(file)})
    rows = text.splitlines()
    for frames in (range(12), (3, 4, 6)):
        for frame in frames:
            rows[20 * frame + 4] = f"Elbow-Right;0;{value};3"
        file.write_text("\n".join(rows))
        outcome = recordings.read(walk, height=128, silhouette_size=64)
        rows = text.splitlines()
        if len(frames) == 12:
            assert outcome.problem == "corrupt: 1.txt: no frame is of human size"
    assert outcome.dropped == {"not of human size": 2} and outcome.num_frames == 4
    assert np.isfinite(outcome.record["keypoints"]).all()


def test_a_recording_names_file_and_line(tmp_path):
    lines = fake_benchmarks.kinect_walk(2, 0.0).splitlines()
    walk = Sequence("test", "075", "01", "090", {"skeleton": str(tmp_path / "1.txt")})
    for line, message in (
        ("Head;0;x;3", "line 21 is 'Head;0;x;3', expected Head;x;y;z"),
        ("Head;0;3", "line 21 is 'Head;0;3', expected"),
        ("Head;0;inf;3", "line 21: a position that is not finite"),
        ("\0" * 10_000, "line 21 is"),
    ):
        lines[20] = line
        (tmp_path / "1.txt").write_text("\n".join(lines))
        outcome = recordings.read(walk, height=128, silhouette_size=64)
        assert outcome.problem.startswith(f"corrupt: 1.txt: {message}")
        assert len(outcome.problem) < 320


# --- silhouettes that are not aligned, lost modalities


def _placed(rows: slice, columns: slice, num_frames: int = 8) -> np.ndarray:
    """Silhouettes [T 64 64] of people scaled into a part of the frame."""
    frames = np.zeros((num_frames, 64, 64), np.uint8)
    for number, frame in enumerate(frames):
        part = frame[rows, columns]
        person = fake_benchmarks.person(64, 64, number)[2:63]
        part[:] = cv2.resize(person, part.shape[::-1])
    return frames


def _read(folder: Path, **arrays):
    files = {}
    for role, array in arrays.items():
        fake_benchmarks.dump(folder / f"{role}.pkl", array)
        files[role] = str(folder / f"{role}.pkl")
    walk = Sequence("test", "1", "a", "v", files)
    return opengait_pickles.read(
        walk, height=256, silhouette_size=64, optional=("keypoints",)
    )


WHOLE = slice(0, 64)


@pytest.mark.parametrize(
    "rows, columns, problem, note",
    [
        (WHOLE, WHOLE, "", ""),
        (slice(2, 62), slice(4, 60), "", ""),
        (
            slice(0, 50),
            slice(7, 57),
            "",
            "in 100% of the frames the person spans under",
        ),
        (
            slice(32, 64),
            slice(16, 48),
            "",
            "in 100% of the frames the person spans under",
        ),
        (WHOLE, slice(24, 64), "", ""),
        (WHOLE, slice(44, 64), "", "over 1/4 of its pixels lie outside the central 44"),
        (
            slice(0, 30),
            slice(0, 16),
            "in 100% of the frames over half of the pixels",
            "",
        ),
        (WHOLE, slice(0, 12), "in 100% of the frames over half of the pixels lie", ""),
    ],
)
def test_silhouettes_that_are_not_aligned_are_noted_or_skipped(
    rows, columns, problem, note, tmp_path
):
    outcome = _read(tmp_path, silhouettes=_placed(rows, columns))
    assert problem in outcome.problem and bool(problem) == bool(outcome.problem)
    assert note in outcome.note and bool(note) == bool(outcome.note)
    if problem:
        assert outcome.problem.startswith("corrupt: silhouettes are not aligned")


def test_a_few_bad_frames_of_an_aligned_sequence_give_no_note(tmp_path):
    frames = np.concatenate(
        [_placed(WHOLE, WHOLE, 19), _placed(slice(0, 20), slice(0, 20), 1)]
    )
    assert _read(tmp_path, silhouettes=frames).note == ""


def test_exchanged_height_and_width_are_noted(tmp_path):
    frames = np.full((6, 32, 32, 3), 90, np.uint8)
    sizes = np.array([[160, 70]] * 6)
    assert _read(tmp_path, ratios=sizes, frames=frames).note == ""
    swapped = _read(tmp_path, ratios=sizes[:, ::-1], frames=frames)
    assert "crops are wider than high (median ratio 2.29)" in swapped.note


def test_key_points_that_overflow_are_lost(tmp_path):
    silhouettes = _placed(WHOLE, WHOLE)
    for value in (1e300, -1e39):
        points = np.full((8, 17, 3), value)
        outcome = _read(tmp_path, silhouettes=silhouettes, keypoints=points)
        assert outcome.record["keypoints"].shape == (0, 17, 3)
        expected = "corrupt: keypoints.pkl: key points beyond 1,000,000 pixels"
        assert outcome.lost == {"keypoints": expected}


def test_lost_modalities_and_doubts_are_in_the_summary(tmp_path, capsys):
    fake_benchmarks.sustech1k(tmp_path / "raw")
    files = sorted((tmp_path / "raw").glob("*/*/*/03-*.pkl"))
    poses = np.full((2, 17, 3), 0.5)
    longer, extra = np.full((3, 17, 3), 0.5), np.full((2, 18, 3), 0.5)
    for file, points in zip(
        files, (longer, extra, [poses[0], None], poses), strict=True
    ):
        fake_benchmarks.dump(file, points)
    swapped = files[3].with_name("04-000-Camera-Ratios.pkl")
    fake_benchmarks.dump(swapped, np.array([[70, 160]] * 2))
    folder = prepare.prepare(
        "sustech1k", tmp_path / "data", manual_dir=tmp_path / "raw"
    )
    report = json.loads((folder / "build_report.json").read_text())
    name = "03-000-Camera-Pose.pkl"
    reasons = [
        f"ragged: {name}: 3 frames, but the sequence has 2",
        f"corrupt: {name}: shape (2, 18, 3), expected (T, 17, 3)",
        f"ragged: {name}: frame 1 of 2 is None",
    ]
    keys = ["/".join(file.parts[-4:-1]) for file in files]
    lost = {key: f"without keypoints: {text}" for key, text in zip(keys, reasons)}
    assert report["notes"].pop(keys[3]).startswith("crops are wider than high")
    assert report["notes"] == lost and report["skipped"] == {}
    assert report["lost"] == {
        "keypoints": {"sequences": 3, "first": f"{keys[0]}: {reasons[0]}"}
    }
    assert report["doubtful"]["sequences"] == 1
    error = capsys.readouterr().err
    assert "sustech1k: 3 sequences lost their keypoints, the first is\n" in error
    assert f"  {keys[0]}: {reasons[0]}\n" in error
    assert "sustech1k: 1 sequences are doubtful, the first is\n" in error


# --- the disk, the folder


def test_a_data_dir_that_is_a_file_is_an_error_of_one_line(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert prepare.main(["synthetic_gait/tiny", f"--data_dir={tmp_path}/file"]) == 2
    assert "synthetic_gait/tiny: [Errno 20] Not a directory" in capsys.readouterr().err


def test_a_folder_beside_the_version_is_left_alone(tmp_path):
    (tmp_path / "synthetic_gait/tiny/1.0.0.bak").mkdir(parents=True)
    folder = prepare.make_builder("synthetic_gait/tiny", tmp_path).data_dir
    assert folder.endswith("synthetic_gait/tiny/1.0.0")


def test_a_file_size_limit_is_explained(tmp_path):
    code = (
        "import resource, sys\n"
        "from tfds_builders import prepare\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))\n"
        f"sys.exit(prepare.main(['oumvlp', '--data_dir={tmp_path}/data', "
        f"'--manual_dir={tmp_path}/raw']))\n"
    )
    fake_benchmarks.oumvlp(tmp_path / "raw")
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True,
        timeout=120,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    (line,) = [x for x in done.stderr.splitlines() if x.startswith("prepare: ")]
    assert "oumvlp: a file reached the limit of `ulimit -f`" in line
    assert "choose another --data_dir" in line and "Traceback" not in done.stderr
    assert not list((tmp_path / "data/oumvlp/default").glob("*incomplete*"))


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_explained(number, tmp_path, monkeypatch, capsys):
    def full(self, **_):
        place = Path(self.data_dir)
        place.mkdir(parents=True)
        (place / "shard").write_bytes(b"")
        raise RuntimeError(f"write() failed: {os.strerror(number)}; at byte 7")

    monkeypatch.setattr(
        prepare.builder_class("synthetic_gait"), "download_and_prepare", full
    )
    arguments = ["synthetic_gait/tiny", f"--data_dir={tmp_path}"]
    assert prepare.main(arguments) == 2
    assert "; free space or choose another --data_dir" in capsys.readouterr().err
    assert not list(tmp_path.glob("*/*/*incomplete*"))
