"""The parts that the benchmarks' builders share: pickles, skeletons, totals, Beam."""

import importlib.util
import json
import pickle
from pathlib import Path

import fake_benchmarks
import numpy as np
import parallel_tasks
import pytest
from etils import epath

from tfds_builders import (
    archives,
    checks,
    opengait_pickles,
    parallel,
    prepare,
    safe_pickle,
)
from tfds_builders.archives import Sequence
from tfds_builders.ccgr_mini import ccgr_mini_dataset_builder
from tfds_builders.ccpg import ccpg_dataset_builder
from tfds_builders.damage import Damaged
from tfds_builders.figure import JOINTS
from tfds_builders.frames import decode_jpeg, fit_frame
from tfds_builders.gait3d import gait3d_dataset_builder
from tfds_builders.grew import grew_dataset_builder
from tfds_builders.kinect_gait import kinect_gait_dataset_builder, recordings
from tfds_builders.oumvlp import oumvlp_dataset_builder
from tfds_builders.safe_pickle import load_array


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("dtype", ["bool", "uint8", "<i8", ">f4", "float64"])
def test_pickled_arrays_are_read_in_every_protocol(protocol, dtype):
    plain = (np.arange(24).reshape(2, 3, 4) % 7).astype(dtype)
    for array in (plain, np.asfortranarray(plain), plain.transpose(2, 0, 1)):
        read = load_array(pickle.dumps(array, protocol))
        np.testing.assert_array_equal(read, array)
        assert read.dtype == array.dtype
    rows = load_array(pickle.dumps([list(row) for row in plain[0]], protocol))
    np.testing.assert_array_equal(rows, plain[0])


class _Call:
    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    "value, message",
    [
        (_Call(eval, ("1 + 1",)), "refused: it asks for builtins.eval"),
        (_Call(np.loadtxt, ("/etc/passwd",)), "refused: it asks for numpy"),
        (_Call(np.dtype, ("O",)), "corrupt: dtype 'O': not an array of numbers"),
        (Path("/tmp"), "refused: it asks for pathlib"),
        (np.array([{}, None], object), "corrupt: dtype 'O8'"),
        (np.array(["a", "b"]), "corrupt: dtype 'U1'"),
        ([np.zeros((2, 3)), np.zeros((2, 4))], r"ragged: frames of shapes \[\(2, 3\)"),
        ({"a": 1}, "corrupt: a dict, not an array"),
        (["a"], "corrupt: a list of str"),
        ([np.zeros((2, 3)), None], "ragged: frame 1 of 2 is None"),
        ([[[1, 2], [3]]], "ragged: lists of different lengths"),
        (np.array(3.0), "corrupt: a single number"),
        (np.zeros((2, 0)), "corrupt: an array .* without values"),
    ],
)
def test_other_pickles_are_refused(value, message):
    with pytest.raises(ValueError, match=message):
        load_array(pickle.dumps(value))


def test_a_pickle_cannot_change_the_reader():
    """BUILD with slot state, (None, {"x": 1}), on what the unpickler admits."""
    for name in (b"numpy\ndtype", b"numpy.core.numeric\n_frombuffer"):
        with pytest.raises(Damaged, match="corrupt: a dict"):
            load_array(b"c" + name + b"\n(N}S'x'\nI1\nstb.")
        with pytest.raises(Damaged, match="refused: it sets attributes"):
            load_array(b"c" + name + b"\n(N}tb.")
    assert not hasattr(safe_pickle._DType, "x")
    assert not hasattr(safe_pickle._from_bytes, "x")


def test_damaged_pickles_are_corrupt():
    whole = pickle.dumps(np.zeros((4, 8, 8), np.uint8))
    for data in (b"", b"abc", whole[:40], whole[:-10]):
        with pytest.raises(ValueError, match="^corrupt: "):
            load_array(data)


def _read(tmp_path, **arrays):
    files = {}
    for role, array in arrays.items():
        fake_benchmarks.dump(tmp_path / f"{role}.pkl", array)
        files[role] = str(tmp_path / f"{role}.pkl")
    walk = Sequence("test", "1", "a", "v", files)
    return opengait_pickles.read(
        walk, height=256, silhouette_size=64, optional=("masks", "keypoints")
    )


@pytest.mark.parametrize(
    "arrays, problem",
    [
        ({"silhouettes": np.zeros((3, 64, 60), np.uint8)}, "silhouettes are 64x60"),
        ({"silhouettes": np.zeros((3, 128, 88), np.uint8)}, "silhouettes are 128x88"),
        ({"silhouettes": np.zeros((0, 64, 64), np.uint8)}, "empty: arrays of no"),
        ({"silhouettes": np.full((3, 64, 64), 300)}, "values outside 0..255"),
        ({"frames": np.zeros((3, 8, 8, 3), np.uint8)}, "frames without ratios"),
        (
            {"ratios": np.ones(2), "frames": np.zeros((3, 8, 8, 3), np.uint8)},
            "ragged: arrays differ in length: {'ratios': 2, 'frames': 3}",
        ),
        (
            {"ratios": np.array([1, -1]), "frames": np.zeros((2, 8, 8, 3))},
            "not T positive numbers",
        ),
        ({"ratios": np.ones(2)}, "none of silhouettes, frames, masks"),
        (
            {"ratios": np.array([0.4, 1e308]), "frames": np.zeros((2, 8, 8, 3))},
            "corrupt: ratios from 0.4 to 1e+308; of a person they are between 1/20",
        ),
        (
            {"ratios": np.array([[1e-308, 90]]), "frames": np.zeros((1, 8, 8, 3))},
            "corrupt: a crop of no height or width",
        ),
        (
            {"ratios": np.array(0.4), "keypoints": np.zeros((2, 17, 3))},
            "corrupt: ratios.pkl: a single number",
        ),
        ({"padded_frames": np.zeros((2, 256, 128, 3))}, "frames without ratios"),
        (
            {"ratios": np.ones(2), "frames": np.zeros((2, 0, 0, 3), np.uint8)},
            "corrupt: ",
        ),
        ({}, "empty: no pickle of a known name"),
    ],
)
def test_what_does_not_fit_is_a_named_problem(arrays, problem, tmp_path):
    outcome = _read(tmp_path, **arrays)
    assert outcome.record is None and problem in outcome.problem
    assert outcome.problem.split(":")[0] in ("corrupt", "ragged", "empty")


def test_frames_are_stretched_back_and_optional_masks_may_be_damaged(tmp_path):
    frames = np.full((2, 32, 32, 3), 200, np.uint8)
    sizes = np.array([[200, 50], [100, 90]])  # H, W
    ragged = [np.zeros((5, 6)), np.zeros((7, 6))]
    outcome = _read(tmp_path, ratios=sizes, frames=frames, masks=ragged)
    assert outcome.problem == "" and outcome.note == ""
    expected = "ragged: masks.pkl: frames of shapes [(5, 6), (7, 6)]"
    assert outcome.lost == {"masks": expected}
    np.testing.assert_allclose(outcome.record["ratios"], [0.25, 0.9])
    narrow, wide = (decode_jpeg(frame) for frame in outcome.record["frames"])
    columns = np.flatnonzero((narrow > 100).all((0, 2)))
    assert (columns[0], columns[-1]) == (32, 95)  # 64 = 256 x 0.25 of 128, centred
    assert (wide > 190).all()  # 230 columns, the central 128 are kept


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int64", "float32"])
def test_silhouettes_of_zeros_and_ones_are_scaled(dtype, tmp_path):
    ones = np.stack([fake_benchmarks.person(64, 64, t) // 255 for t in range(5)])
    stored = _read(tmp_path, silhouettes=ones.astype(dtype)).record["silhouettes"]
    np.testing.assert_array_equal(stored, 255 * ones)


def test_empty_frames_are_dropped_from_all_modalities(tmp_path):
    silhouettes = np.stack([fake_benchmarks.person(64, 64, t) for t in range(5)])
    silhouettes[[0, 2, 3]] = 0
    frames = np.repeat(np.arange(50, 255, 50, dtype=np.uint8), 3 * 32 * 32)
    frames = frames.reshape(5, 32, 32, 3)
    arrays = {"ratios": np.full(5, 0.5), "frames": frames, "silhouettes": silhouettes}
    outcome = _read(tmp_path, **arrays)
    assert (outcome.num_frames, outcome.dropped) == (2, {"empty": 3})
    assert len(outcome.record["ratios"]) == 2
    np.testing.assert_array_equal(outcome.record["silhouettes"], silhouettes[[1, 4]])
    grey = [decode_jpeg(frame).mean() for frame in outcome.record["frames"]]
    np.testing.assert_allclose(grey, [100, 250], atol=2)
    nobody = _read(tmp_path, silhouettes=np.zeros((5, 64, 64), np.uint8))
    assert nobody.record is None
    assert nobody.problem.startswith("empty: 5 frames, none with a person")


def test_wide_frames_are_cut_centrally():
    ramp = np.repeat(np.arange(128, dtype=np.uint8)[None], 128, 0)
    out = fit_frame(ramp, 1.0, 128)  # 128 columns to 64: 32 off on both sides
    np.testing.assert_array_equal(out[0], np.arange(32, 96))
    small = fit_frame(ramp[..., None].repeat(3, 2), 0.25, 128)
    assert small.shape == (128, 64, 3)
    assert not small[:, :16].any() and not small[:, 48:].any()


def test_frames_are_sorted_as_numbers(tmp_path):
    for name in ("10.png", "9.png", "1.PNG", ".hidden.png", "notes.txt"):
        (tmp_path / name).write_bytes(b"")
    names = [file.name for file in archives.files_in(epath.Path(tmp_path))]
    assert names == ["1.PNG", "9.png", "10.png"]
    folders = sorted(("000²", "001", "000"), key=archives.natural)
    assert folders == ["000", "000²", "001"]  # no decimal, though a digit


def test_ragged_frames_of_grew_are_skipped(tmp_path):
    fake_benchmarks.grew(tmp_path / "raw")
    walk = tmp_path / "raw/test/probe/p2"
    fake_benchmarks.save(walk / "5.png", fake_benchmarks.person(64, 60))
    fake_benchmarks.silhouettes(
        tmp_path / "raw/test/gallery/00001/s11", ["1.png"], 64, 64
    )
    (tmp_path / "raw/train/00002").mkdir()
    folder = prepare.prepare("grew", tmp_path / "data", manual_dir=tmp_path / "raw")
    report = json.loads((folder / "build_report.json").read_text())
    assert report["skipped"] == {
        "probe/03/p2": "ragged: 5.png: 60x64 pixels, expected 64x64",
        "00002train/00": "empty: a person's folder without folders of walks",
    }
    test = report["totals"]["test"]
    assert test["conditions"] == {"01": 1, "02": 2, "03": 1}
    assert "1 sequences '01', expected 6000" in test["mismatches"]["all"]
    assert set(test["mismatches"]) == {"all", "00001"}  # ids of GREW are not listed
    assert test["mismatches"]["00001"] == "2 sequences '02', expected 1"


def _problems(found) -> dict[str, str]:
    _, left_out = archives.readable(found)
    return {outcome.sequence.key: outcome.problem for outcome in left_out}


def test_problems_that_the_listing_shows_are_reported(tmp_path):
    """Listed but absent sequences, one sequence twice, strange and empty folders."""
    root = epath.Path(tmp_path)
    lists = dict(train=["0000"], test=["0005"], probe=["0005-camid0_videoid2-seq0"])
    fake_benchmarks.listed(tmp_path / "Gait3D.json", **lists)
    (tmp_path / "0000/camid1_videoid1/seq0").mkdir(parents=True)
    (tmp_path / "0005").mkdir()
    assert _problems(gait3d_dataset_builder.find_raw(root, root)) == {
        "0005/gallery": "empty: no folders below it to ID/TYPE/VIEW",
        "0005/probe/camid0_videoid2-seq0": "missing: listed as probe, not in the "
        "archive",
    }
    fake_benchmarks.listed(tmp_path / "a/CCGR-MINI.json", gallery=["0601-t-v", "602-x"])
    for subject in ("601", "0601"):
        (tmp_path / "a" / subject / "t/v").mkdir(parents=True)
    a = root / "a"
    files = [str(a / subject / "t/v/1-sil.pkl") for subject in ("0601", "601")]
    for file in files:
        Path(file).write_bytes(b"")
    assert _problems(ccgr_mini_dataset_builder.find(a, a)) == {
        "601/gallery_t/v": f"twice: {files[0]} is read, {files[1]} is left out",
        "602/gallery/x": "missing: listed as gallery, not in the archive",
    }
    for name in ("Silhouette_000_00", "Silhouette_015-00", "Silhouette_030-00/00002"):
        (tmp_path / "o" / name).mkdir(parents=True)
    assert _problems(oumvlp_dataset_builder.find_raw(root / "o", root)) == {
        "Silhouette_000_00": "unknown: a folder of this name, expected "
        "Silhouette_VIEW-SEQ",
        "Silhouette_015-00": "empty: no folders of people",
    }
    (tmp_path / "k/Person200").mkdir(parents=True)
    found = kinect_gait_dataset_builder.find(root / "k", root)
    assert _problems(found) == {"200": "empty: no K.txt"}
    (tmp_path / "g/test/probe").mkdir(parents=True)
    found = grew_dataset_builder.find_raw(root / "g", root)
    assert _problems(found)["probe/03"].startswith("missing: no folder in test/probe")


def test_grew_is_kept_as_shipped(tmp_path):
    from gaitjax.data import source

    fake_benchmarks.grew(tmp_path / "raw")
    small = np.zeros((2, 64, 64), np.uint8)
    small[0, 30:36, 30:36] = 255  # 36 pixels: no rule on sums for what is shipped
    for number, image in enumerate(small, 2):  # the second has no pixel at all
        fake_benchmarks.save(tmp_path / f"raw/test/probe/p1/{number}.png", image)
    prepare.prepare("grew", tmp_path / "data", manual_dir=tmp_path / "raw")
    data = source.open_split(str(tmp_path / "data"), "grew", "test")
    row = data.index.key.tolist().index("probe/03/p1")
    stored = data.records[row]["silhouettes"]
    assert len(stored) == 10
    np.testing.assert_array_equal(stored[8], fake_benchmarks.person(64, 64, 9))
    np.testing.assert_array_equal(stored[1], small[0])
    assert grew_dataset_builder.split_of("00001train") == "train"


def test_totals_are_compared_subject_by_subject():
    expected = checks.Expected(
        subjects={"train": frozenset({"1", "2"}), "test": 1},
        sequences={"test": 3},
        by_condition={"test": {"nm": 2}},
        grid=("nm-01/000", "nm-01/090"),
    )
    rows = [("train", "1", "nm-01", "000"), ("train", "1", "nm-01", "090")]
    rows += [("test", "3", "nm-01", "000"), ("test", "3", "bg-01", "000")]
    found = checks.totals(expected, rows)
    assert found["train"]["mismatches"] == {
        "all": "1 subjects, expected 2",
        "2": "no sequence",
    }
    assert found["test"]["mismatches"] == {
        "all": "2 sequences, expected 3; 1 sequences 'nm', expected 2",
        "3": "2 sequences, expected 2; missing nm-01/090; unexpected bg-01/000",
    }
    assert found["test"]["conditions"] == {"bg-01": 1, "nm-01": 1}
    complete = [("train", s, "nm-01", v) for s in "12" for v in ("000", "090")]
    assert checks.totals(expected, complete)["train"]["mismatches"] == {}


def _grid(subjects, conditions, views, split="test"):
    return [(split, s, c, v) for s in subjects for c in conditions for v in views]


def test_a_kinect_gait_with_one_recording_a_person_is_a_mismatch():
    builder = kinect_gait_dataset_builder
    people = sorted(builder.PARTITION.train | builder.PARTITION.test)
    counts = [n for n, many in builder.RECORDINGS.items() for _ in range(many)]
    assert (len(people), len(counts), sum(counts)) == (164, 164, 822)
    rows = []
    for subject, count in zip(people, counts):
        numbers = [f"{k + 1:02d}" for k in range(count)]
        rows += _grid(
            [subject], numbers, recordings.VIEWS, builder.PARTITION.split(subject)
        )
    expected = builder.Builder.EXPECTED
    whole = checks.totals(expected, rows)
    assert not checks.overall(expected, rows)
    assert not whole["train"]["mismatches"] and not whole["test"]["mismatches"]
    rows = [row for row in rows if row[2] == "02"]
    assert checks.totals(expected, rows)["test"]["mismatches"]["075"] == (
        "0 sequences '01', expected 4; 4 sequences, expected 12 or 16 or 20 or 24"
    )
    assert checks.overall(expected, rows)["all"] == (
        "656 sequences in all, expected 3288; 164 subjects with 4 sequences, expected "
        "1 subjects with 12 sequences, 3 subjects with 16 sequences, "
        "153 subjects with 20 sequences, 7 subjects with 24 sequences"
    )


def test_what_a_complete_archive_may_lack_is_counted_not_a_mismatch():
    expected = oumvlp_dataset_builder.Builder.EXPECTED
    odd = sorted(oumvlp_dataset_builder.PARTITION.train)
    rows = _grid(odd[:1], ("00", "01"), oumvlp_dataset_builder.VIEWS, "train")
    rows += _grid(odd[1:], ("00",), ("090",), "train")
    train = checks.totals(expected, rows)["train"]
    assert train["mismatches"] == {} and train["absent"]["each"] == 28
    assert train["absent"]["walks"] == 27 * 5152
    assert train["absent"]["subjects"] == {"27": " ".join(odd[1:])}
    rows[0] = ("train", "00001", "00", "100")
    strange = checks.totals(expected, rows)["train"]["mismatches"]
    assert strange == {"00001": "unexpected */100"}
    expected = ccpg_dataset_builder.Builder.EXPECTED
    people = sorted(ccpg_dataset_builder.PARTITION.test)
    rows = _grid(people, ("U0_D0",), ("01_0",))
    assert checks.totals(expected, rows)["test"]["absent"]["walks"] == 600
    few = "100 sequences in all, expected more than 16000"
    assert checks.overall(expected, rows) == {"all": few}
    report = checks.report_of(expected, [])
    assert "\nccpg: 0 sequences in all, expected" in checks.summary("ccpg", report)


def test_partition_lists_of_the_papers():
    from tfds_builders.ccgr_mini import ccgr_mini_dataset_builder as ccgr
    from tfds_builders.oumvlp import oumvlp_dataset_builder as oumvlp

    train, test = oumvlp.PARTITION.train, oumvlp.PARTITION.test
    assert (len(train), len(test)) == (5153, 5154) and not train & test
    assert {"00001", "10305"} <= train and {"00002", "10306", "10307"} <= test
    assert (len(ccgr.PARTITION.train), len(ccgr.PARTITION.test)) == (571, 400)
    assert ccgr.split_of("0135") is None and ccgr.split_of("0601") == "test"


def test_a_list_that_comes_with_the_data_may_be_text(tmp_path):
    folder = epath.Path(tmp_path)
    with pytest.raises(FileNotFoundError, match="a list of its probe sequences"):
        archives.users_partition((folder,), "Gait3D", ("probe",))
    (tmp_path / "probe.txt").write_text("0001-camid0_videoid1-seq0\n")
    partition = archives.users_partition((folder,), "Gait3D", ("probe",))
    assert partition.probe == {"0001-camid0_videoid1-seq0"}
    for text, message in (
        ("<html>", "Gait3D.json: not a JSON file"),
        ("[1]", "Gait3D.json: a JSON list, expected .*TRAIN_SET"),
        ("[" * 100_000, "Gait3D.json: not a JSON file"),
        ('{"PROBE_SET": 5}', "Gait3D.json: PROBE_SET is no list"),
    ):
        (tmp_path / "Gait3D.json").write_text(text)
        with pytest.raises(Damaged, match=f"corrupt: {message}"):
            archives.users_partition((folder,), "Gait3D", ("probe",))


@pytest.mark.parametrize("heading", [0.0, 90.0, 200.0])
@pytest.mark.parametrize("mirrored", [False, True])
def test_kinect_walks_are_turned_to_the_walking_direction(heading, mirrored):
    points = recordings.parse(fake_benchmarks.kinect_walk(40, heading))
    assert points.shape == (40, 20, 3)
    if mirrored:
        points = points * np.array([-1.0, 1.0, 1.0])
    joints, stature = recordings.joints_of(points)
    at = {name: joints[:, i] for i, name in enumerate(JOINTS)}
    np.testing.assert_allclose(at["left_hip"][:, 0], 0.09, atol=1e-4)
    np.testing.assert_allclose(at["right_hip"][:, 0], -0.09, atol=1e-4)
    np.testing.assert_allclose(at["pelvis"][:, [0, 2]], 0, atol=1e-4)
    assert (at["left_toe"][:, 2] > at["left_heel"][:, 2]).all()
    assert 1.6 < stature < 1.8
    assert 0 < joints[..., 1].min() < 0.06
    swing = at["left_ankle"][:, 2] - at["right_ankle"][:, 2]
    np.testing.assert_allclose(np.abs(swing).max(), 0.5, atol=0.01)


@pytest.mark.parametrize("glitch", [1e6, 1e300])
def test_a_glitch_of_the_kinect_is_counted(glitch, tmp_path):
    lines = fake_benchmarks.kinect_walk(12, 90.0).splitlines()
    for i in range(80, 100):  # of frame 4
        name, *place = lines[i].split(";")
        lines[i] = ";".join([name, *(str(glitch * float(x)) for x in place)])
    (tmp_path / "1.txt").write_text("\n".join(lines))
    walk = Sequence("test", "075", "01", "090", {"skeleton": str(tmp_path / "1.txt")})
    outcome = recordings.read(walk, height=128, silhouette_size=64)
    assert (outcome.num_frames, outcome.dropped) == (5, {"not of human size": 1})
    assert outcome.record["silhouettes"].any((1, 2)).all()
    assert np.isfinite(outcome.record["ratios"]).all()


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda t: t + "Head;0;0;0\n", "ragged: 41 lines"),
        (lambda t: t.replace("Spine;", "Spin;", 1), "corrupt: line 11 is 'Spin;"),
        (lambda t: t.replace("Head;0.00000;", "Head;nan;", 1), "not finite"),
        (lambda t: "", "ragged: 0 lines"),
    ],
)
def test_damaged_skeletons_are_refused(damage, message):
    with pytest.raises(ValueError, match=message):
        recordings.parse(damage(fake_benchmarks.kinect_walk(2, 0.0)))


def test_parallel_map_keeps_the_order_and_survives_a_stop():
    found = parallel.ordered_map(
        parallel_tasks.square, range(300), "squares", min_per_worker=1
    )
    assert [next(found) for _ in range(100)] == [n * n for n in range(100)]
    found.close()  # ends the workers though their feeder is blocked


def test_a_killed_worker_is_an_error_not_a_wait(monkeypatch):
    monkeypatch.setattr(parallel, "PATIENCE", 0.5)
    found = parallel.ordered_map(
        parallel_tasks.killed_at_seven, range(20), "numbers", min_per_worker=1
    )
    with pytest.raises(parallel.WorkerKilled, match="numbers: a reading process"):
        list(found)


NEEDS_BEAM = pytest.mark.skipif(
    importlib.util.find_spec("apache_beam") is None, reason="apache_beam not installed"
)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "options", [None, pytest.param("runner=DirectRunner", marks=NEEDS_BEAM)]
)
def test_a_split_without_a_readable_sequence_is_an_error(options, tmp_path):
    fake_benchmarks.oumvlp_pickles(tmp_path / "raw")
    for file in (tmp_path / "raw/00002").glob("*/*/*.pkl"):
        file.write_bytes(b"damaged")
    with pytest.raises(prepare.PrepareError, match="None of 3 sequences of split 'tes"):
        prepare.prepare(
            "oumvlp/opengait", tmp_path / "data",
            manual_dir=tmp_path / "raw", beam_options=options,
        )  # fmt: skip


@NEEDS_BEAM
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["oumvlp", "grew", "ccgr_mini"])
def test_a_beam_pipeline_writes_the_same_records_and_report(name, tmp_path):
    getattr(fake_benchmarks, name)(tmp_path / "raw")
    folders = [
        prepare.prepare(
            name, tmp_path / kind, manual_dir=tmp_path / "raw", beam_options=options
        )
        for kind, options in (("plain", None), ("beam", "runner=DirectRunner"))
    ]
    for file in folders[0].glob("*"):
        if file.name != "dataset_info.json":
            assert (folders[1] / file.name).read_bytes() == file.read_bytes()
    assert list(folders[1].glob("*.array_record*"))


@pytest.mark.skipif(
    importlib.util.find_spec("apache_beam") is not None, reason="apache_beam is there"
)
def test_beam_options_without_beam_say_what_to_install(tmp_path, capsys):
    arguments = ["grew", f"--data_dir={tmp_path}", f"--manual_dir={tmp_path}"]
    assert prepare.main([*arguments, "--beam_pipeline_options=runner=X"]) == 2
    assert "pip install" in capsys.readouterr().err
