"""Seeded fuzz of every reader of raw files.

A mutant is read or named as a problem: no other exception and no warning (they are
errors in tests), nothing that is not finite, in bounded time and memory.
"""

import json
import pickle
import pickletools
import re
import resource
import time
from pathlib import Path

import cv2
import fake_benchmarks
import numpy as np
import pytest
from etils import epath
from fake_datasets import write_cmu_walk

from tfds_builders import archives, image_folders, opengait_pickles
from tfds_builders.archives import Sequence
from tfds_builders.cmu_walk import sequences
from tfds_builders.damage import Damaged
from tfds_builders.kinect_gait import recordings
from tfds_builders.safe_pickle import load_array

WORDS = [
    b"0", b"-1", b"1e300", b"-1e308", b"nan", b"inf", b"1e9", b"7.5", b"x", b"\xff",
    b"", b"\n", b";", b":", b"#", b" ", b"begin", b"end", b"root", b"rx", b"XYQ",
    b"9" * 5000,
]  # fmt: skip
OPCODES = [opcode.code.encode("latin1") for opcode in pickletools.opcodes]
PROBLEM = re.compile("(corrupt|ragged|refused|short|empty): ")


@pytest.fixture(autouse=True)
def bounded():
    """A test takes under 15 s and 400 MB."""
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    yield
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert time.monotonic() - began < 15 and grown < 400_000  # kB


def _mutants(data: bytes, count: int, seed: int, words=WORDS):
    """`count` copies of `data`, each with 1 to 3 changes."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        mutant = bytearray(data)
        for _ in range(rng.integers(1, 4)):
            start = int(rng.integers(len(mutant) + 1))
            # headers matter more than pixels
            start = min(start, int(rng.integers(200))) if rng.random() < 0.5 else start
            length = int(rng.choice([1, 2, 4, 16, 300]))
            kind = rng.integers(6)
            if kind == 0:
                mutant[start : start + length] = rng.bytes(length)
            elif kind == 1:
                del mutant[start : start + length]
            elif kind == 2:
                mutant[start:start] = mutant[start : start + length]
            elif kind == 3:
                del mutant[start:]
            elif kind == 4:
                mutant[start:start] = words[rng.integers(len(words))]
            else:
                mutant[start : start + length] = words[rng.integers(len(words))]
        yield bytes(mutant)


def _text_mutants(text: str, count: int, seed: int):
    """`count` copies of a text, each with 1 to 3 words replaced, moved or removed."""
    rng = np.random.default_rng(seed)
    pieces = re.split(r"([\s;]+)", text)
    for _ in range(count):
        mutant = list(pieces)
        for _ in range(rng.integers(1, 4)):
            place, other = rng.integers(len(mutant), size=2)
            word = WORDS[rng.integers(len(WORDS))].decode("latin1")
            mutant[place] = (word, "", mutant[other])[rng.integers(3)]
        yield "".join(mutant).encode("latin1")


def _check(outcome, file: str) -> bool:
    """Whether the sequence was read; its record or its problem is as documented."""
    if outcome.record is None:
        assert PROBLEM.match(outcome.problem), outcome.problem
        assert file in outcome.problem or outcome.problem.startswith("empty")
        assert len(outcome.problem) < 400
        return False
    for name in ("ratios", "keypoints"):
        assert np.isfinite(outcome.record[name]).all()
    return True


@pytest.mark.parametrize("protocol", range(6))
def test_pickles(protocol):
    array = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    read = 0
    for number, value in enumerate((array, list(array), [[1, 2.5], [3, None]])):
        data = pickle.dumps(value, protocol)
        for mutant in _mutants(data, 150, 10 * protocol + number, OPCODES + WORDS):
            try:
                found = load_array(mutant)
            except Damaged as error:
                assert PROBLEM.match(str(error)) and len(str(error)) < 400
            else:
                assert found.dtype.kind in "biuf" and found.ndim
                read += 1
    assert 0 < read < 450


def test_sequences_of_pickles(tmp_path):
    roles = {"aligned-sils": "silhouettes", "ratios": "ratios", "rgbs": "frames",
             "sils": "masks"}  # fmt: skip
    fake_benchmarks.multimodal_pickles(tmp_path, "v")
    fake_benchmarks.dump(tmp_path / "v-pose.pkl", np.full((6, 17, 3), 0.5))
    files = {role: str(tmp_path / f"v-{name}.pkl") for name, role in roles.items()}
    files["keypoints"] = str(tmp_path / "v-pose.pkl")
    walk = Sequence("test", "1", "a", "v", files)
    read = 0
    for seed, (role, place) in enumerate(sorted(files.items())):
        whole = Path(place).read_bytes()
        for mutant in _mutants(whole, 40, seed):
            Path(place).write_bytes(mutant)
            outcome = opengait_pickles.read(
                walk, height=64, silhouette_size=64, optional=("keypoints",)
            )
            # arrays that do not fit together are named by their role
            known = Path(place).name if Path(place).name in outcome.problem else ""
            read += _check(outcome, known)
            assert role == "keypoints" or not outcome.lost
        Path(place).write_bytes(whole)
    assert 0 < read < 200


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp"])
def test_images(suffix, tmp_path):
    mask = fake_benchmarks.person(64, 64)
    data = cv2.imencode(suffix, mask)[1].tobytes()
    file = tmp_path / f"1{suffix}"
    walk = Sequence("test", "1", "a", "v", {"silhouettes": str(tmp_path)})
    both = walk._replace(files={"silhouettes": str(tmp_path), "frames": str(tmp_path)})
    read = 0
    for mutant in _mutants(data, 300, 7):
        file.write_bytes(mutant)
        for as_shipped in (False, True):
            outcome = image_folders.read_silhouettes(
                walk, height=64, silhouette_size=64, as_shipped=as_shipped
            )
            known = "" if "not aligned" in outcome.problem else file.name
            read += _check(outcome, known)
        _check(
            image_folders.read_frames(both, height=64, silhouette_size=64), file.name
        )
    assert 0 < read < 600


@pytest.mark.parametrize("mutants", [_mutants, None])
def test_kinect_recordings(mutants, tmp_path):
    text = fake_benchmarks.kinect_walk(4, 40.0)
    file = tmp_path / "1.txt"
    walk = Sequence("test", "075", "01", "090", {"skeleton": str(file)})
    read = 0
    made = mutants(text.encode(), 200, 1) if mutants else _text_mutants(text, 200, 2)
    for mutant in made:
        file.write_bytes(mutant)
        outcome = recordings.read(walk, height=128, silhouette_size=64)
        read += _check(outcome, file.name)
    assert 0 < read < 200


@pytest.mark.parametrize("suffix", ["02.asf", "02_01.amc"])
@pytest.mark.parametrize("mutants", [_mutants, None])
def test_motion_capture(suffix, mutants, tmp_path):
    folder = write_cmu_walk(tmp_path, {"02": (1,)})
    motion = folder / "02/02_01.amc"
    motion.write_text(motion.read_text().split("\n131\n")[0] + "\n")
    recording = sequences.Recording(str(folder), "02", 1, "bag", 0, 1, 2)
    file = folder / "02" / suffix
    text = file.read_text()
    read = 0
    made = mutants(text.encode(), 150, 3) if mutants else _text_mutants(text, 150, 4)
    for mutant in made:
        file.write_bytes(mutant)
        outcome = sequences.render(recording)
        read += not outcome.problem
        if outcome.problem:
            assert PROBLEM.match(outcome.problem) and len(outcome.problem) < 400
            assert re.match(r"\w+: 02(_01)?\.(asf|amc): ", outcome.problem)
        for _, record in outcome.records:
            assert np.isfinite(record["keypoints"]).all()
            assert record["silhouettes"].any((1, 2)).all()
    assert 0 < read < 150


def test_partition_lists(tmp_path):
    lists = {"TRAIN_SET": ["0001", "0003"], "TEST_SET": ["0000"]}
    data = json.dumps(lists).encode()
    words = [*WORDS, b"[" * 3000, b"{", b"]", b"null", b'"TEST_SET"']
    read = 0
    for mutant in _mutants(data, 300, 5, words):
        (tmp_path / "SUSTech1K.json").write_bytes(mutant)
        try:
            archives.users_partition(
                (epath.Path(tmp_path),), "SUSTech1K", ("train", "test")
            )
            read += 1
        except (FileNotFoundError, Damaged) as error:
            assert "SUSTech1K.json" in str(error)
    assert 0 < read < 300
