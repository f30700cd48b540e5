"""The embedded data set: reproducible, readable without TensorFlow, fair by design."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from fake_datasets import tiny_synthetic

from tfds_builders import appearance, prepare
from tfds_builders.features import make_record, record_features, unpack_mask
from tfds_builders.figure import JOINTS
from tfds_builders.frames import decode_jpeg
from tfds_builders.synthetic_gait import fairness, gait, sequences

ROOT = Path(__file__).resolve().parents[2]
PLAN = sequences.Plan(4, 4, 2, 8, 12.0, 0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tiny_synthetic(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def splits(folder):
    import tensorflow_datasets as tfds

    return tfds.builder_from_directory(str(folder)).as_data_source()


def _shards(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.glob("*.array_record*"))}


def test_every_identity_has_every_condition_and_camera(splits):
    for split, subjects in (("train", range(1, 5)), ("test", range(5, 9))):
        keys = sorted(record["key"].decode() for record in splits[split])
        assert keys == sorted(
            f"{subject:03d}/{condition}/{camera:02d}_0"
            for subject in subjects
            for condition in sequences.CONDITIONS
            for camera in (1, 2)
        )


def test_records_follow_the_schema(splits):
    for record in list(splits["test"])[:3]:
        frames = np.stack([decode_jpeg(frame) for frame in record["frames"]])
        assert frames.shape == (8, 128, 64, 3)
        masks = np.stack([unpack_mask(mask) for mask in record["masks"]])
        assert masks.shape == (8, 128, 64) and set(np.unique(masks)) == {0, 255}
        assert record["silhouettes"].shape == (8, 64, 64)
        assert record["keypoints"].shape == (8, 17, 3)
        assert record["ratios"].shape == (8,)
        assert record["camera"] == record["view"].split(b"_")[0]
        assert 0.1 < (masks > 0).mean() < 0.6


def test_reading_imports_no_tensorflow(folder):
    code = (
        "import sys, tensorflow_datasets as tfds\n"
        f"source = tfds.builder_from_directory({str(folder)!r}).as_data_source()\n"
        "print(len(source['test'][0]['frames']), len(source['train'][3]['masks']))\n"
        "heavy = [m for m in ('tensorflow', 'torch', 'jax') if m in sys.modules]\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["8", "8"]


def test_modalities_must_agree_in_length():
    ratios = np.ones(3, np.float32)
    with pytest.raises(ValueError, match="modalities differ in length"):
        make_record(
            "1", "a", "v", ratios=ratios, height=8, width=4, masks=np.zeros((2, 8, 4))
        )
    with pytest.raises(ValueError, match=r"Masks are \(9, 4\), frames \(8, 4\)"):
        make_record(
            "1", "a", "v", ratios=ratios, height=8, width=4, masks=np.zeros((3, 9, 4))
        )
    for name in ("", ".", "..", "1/2", "1\\2", "1\n", "1\0", "1\x7f", "\udc80"):
        for names in ((name, "a", "v"), ("1", name, "v"), ("1", "a", name)):
            with pytest.raises(ValueError, match="are printable names other than"):
                make_record(*names, ratios=ratios, height=8, width=4)
    with pytest.raises(ValueError, match="twice as high as wide, got 128 x 128"):
        record_features(128, 128)
    key, record = make_record("1", "a", "02_x", ratios=ratios, height=8, width=4)
    assert key == "1/a/02_x" and record["camera"] == "02"
    assert record["masks"] == record["frames"] == []


def _garments(monkeypatch, task):
    """The outfit that `render` draws for a task."""
    seen = {}

    def keep(joints, body, upper, lower, head, scene, bag, bag_texture):
        seen.update(
            upper=upper, lower=lower, head=head, scene=scene, bag=bag, body=body,
            joints=joints,
        )  # fmt: skip

    monkeypatch.setattr(sequences.walker, "render", keep)
    sequences.render(task)
    return seen


def _same(one, two) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(one, two))


def test_conditions_share_what_their_names_say(monkeypatch):
    worn = {
        name: _garments(monkeypatch, sequences.Task(PLAN, 3, i, 0))
        for i, name in enumerate(sequences.CONDITIONS)
    }
    for one in worn:
        for two in worn:
            upper, lower = one.split("_")[:2], two.split("_")[:2]
            assert _same(worn[one]["upper"], worn[two]["upper"]) == (
                upper[0] == lower[0]
            )
            assert _same(worn[one]["lower"], worn[two]["lower"]) == (
                upper[1] == lower[1]
            )
            assert _same(worn[one]["body"], worn[two]["body"])
            assert one == two or not _same(worn[one]["head"], worn[two]["head"])
            assert one == two or worn[one]["scene"].seed != worn[two]["scene"].seed
    assert [name for name in worn if worn[name]["bag"]] == ["U0_D0_BG"]


def test_clothes_do_not_depend_on_who_wears_them(monkeypatch):
    """Another identity draw changes body and motion, but not one garment or scene."""
    task = sequences.Task(PLAN, 3, 4, 1)
    before = _garments(monkeypatch, task)
    heavy = {name: row.mean + row.between for name, row in gait.PARAMETERS.items()}
    monkeypatch.setattr(gait, "draw_person", lambda rng: heavy)
    after = _garments(monkeypatch, task)
    for part in ("upper", "lower", "head", "scene"):
        assert _same(before[part], after[part])
    assert not _same(before["body"], after["body"])
    assert not np.array_equal(before["joints"], after["joints"])


def test_walks_follow_their_parameters():
    mean = {name: row.mean for name, row in gait.PARAMETERS.items()}

    def walk(**changes):
        rng = np.random.default_rng(5)
        joints = gait.walk(mean | changes, rng, num_frames=120, fps=60)
        return {name: joints[:, i] for i, name in enumerate(JOINTS)}

    plain = walk()
    # the lowest point of the feet is a sole's radius above the floor
    feet = np.stack([plain[f"{s}_{p}"][:, 1] for s in ("left", "right") for p in
                     ("heel", "toe")])  # fmt: skip
    np.testing.assert_allclose(feet.min(0), 0.024 * mean["stature"], atol=1e-9)
    head = plain["head"][:, 1].mean() / mean["stature"]
    assert 0.88 < head < 0.95
    ahead = plain["left_ankle"][:, 2] - plain["right_ankle"][:, 2]
    assert 0.55 < ahead.max() < 0.85  # a step of about 0.4 statures (Murray 1964)
    # arms swing against the legs
    arm = plain["left_wrist"][:, 2] - plain["right_wrist"][:, 2]
    assert np.corrcoef(ahead, arm)[0, 1] < -0.6
    spread = {
        name: np.ptp(walk(arm_swing=value)["left_wrist"][:, 2] - plain["chest"][:, 2])
        for name, value in (("little", 5.0), ("much", 30.0))
    }
    assert spread["much"] > 2 * spread["little"]
    speed = [walk(cadence=c)["pelvis"][-1, 2] for c in (90.0, 130.0)]
    assert speed[1] / speed[0] == pytest.approx(130 / 90, rel=0.1)
    upright, bent = walk(trunk_lean=0.0), walk(trunk_lean=15.0)
    lean = [(w["chest"] - w["pelvis"])[:, 2].mean() for w in (upright, bent)]
    assert lean[1] - lean[0] == pytest.approx(
        0.288 * mean["stature"] * np.sin(np.deg2rad(15)), rel=0.15
    )
    longer = walk(leg_length=1.1)
    assert longer["pelvis"][:, 1].mean() > plain["pelvis"][:, 1].mean() + 0.05


def test_sessions_change_habits_but_not_the_body():
    person = gait.draw_person(np.random.default_rng(1))
    session = gait.draw_session(person, np.random.default_rng(2))
    changed = {name for name in person if person[name] != session[name]}
    assert changed == {n for n, row in gait.PARAMETERS.items() if row.session}
    for name in changed:
        row = gait.PARAMETERS[name]
        assert abs(session[name] - person[name]) <= 2.3 * row.session * row.between


def test_textures_and_colours_are_valid():
    rng = np.random.default_rng(0)
    for _ in range(20):
        tile = appearance.draw_texture(rng)
        assert tile.shape == (32, 32, 3) and tile.min() >= 0 and tile.max() <= 255
        for outdoors in (False, True):
            room, kind = appearance.draw_background(rng, 140, 300, 90.0, outdoors)
            assert room.shape == (140, 300, 3) and room.dtype == np.uint8
            above = (
                {appearance.SKY} if outdoors else {appearance.WALL, appearance.PANEL}
            )
            assert set(np.unique(kind[:90])) <= above
            assert set(np.unique(kind[90:])) == {appearance.FLOOR}


def test_rank1_by_hand():
    """Two people, two cameras; features place 001's probe nearest to 002's gallery
    only across cameras."""
    names = [
        ("001", "U3_D3", "01", 0.0),
        ("002", "U3_D3", "01", 10.0),
        ("001", "U0_D3", "01", 1.0),
        ("002", "U0_D3", "01", 9.0),
        ("001", "U0_D3", "02", 6.0),
        ("002", "U0_D3", "02", 5.0),
    ]
    subject, condition, camera, value = map(np.array, zip(*names))
    table = fairness.Table(subject, condition, camera, {})
    feature = value[:, None].astype(np.float32)
    # camera 01 -> 02: 001 at 0 is nearer to 5 (wrong), 002 at 10 nearer to 6 (wrong)
    assert fairness.rank1(table, feature, "UP") == (0.0, 100.0)
    assert np.isnan(fairness.rank1(table, feature, "BG")[0])
    assert fairness.chance(table, "UP") == 50.0


def test_joint_feature_by_hand():
    """Hips at (10, 20) and (12, 20), one hand that swings 4 px; the figure is 40 px."""
    keypoints = np.zeros((2, 17, 3), np.float32)
    keypoints[..., :2] = 11, 20
    keypoints[:, 11, 0], keypoints[:, 12, 0] = 10, 12
    keypoints[:, 0, 1], keypoints[:, 16, 1] = 0, 40
    keypoints[:, 9, 0] = 9, 17
    feature = fairness.joint_feature(keypoints)
    places, moved = feature.reshape(2, 17, 2)
    np.testing.assert_allclose(places[0], (0, -0.5), atol=1e-6)
    np.testing.assert_allclose(places[9], (2 / 40, 0), atol=1e-6)
    np.testing.assert_allclose(moved[9], (4 / 40, 0), atol=1e-6)
    assert moved.sum() == moved[9, 0]
    shifted = keypoints * 2 + np.float32([30, 5, 0])  # nearer, and elsewhere
    np.testing.assert_allclose(fairness.joint_feature(shifted), feature, atol=1e-6)


def test_discriminant_finds_the_informative_direction():
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(10), 20)
    signal = rng.normal(0, 1, 10)[labels]
    noise = rng.normal(0, 10, (200, 5))
    features = np.concatenate([noise, signal[:, None]], 1)
    projected = fairness.discriminant(features, labels, components=6, kept=1)(features)
    assert abs(np.corrcoef(projected[:, 0], signal)[0, 1]) > 0.95


def test_a_prepared_set_is_left_alone(folder, capsys):
    before = _shards(folder)
    data_dir = folder.parents[2]
    assert prepare.main(["synthetic_gait/tiny", f"--data_dir={data_dir}"]) == 0
    assert "already prepared" in capsys.readouterr().out
    assert _shards(folder) == before


def test_a_killed_build_leaves_nothing_that_is_read(folder, tmp_path, monkeypatch):
    root = tmp_path / "synthetic_gait/tiny"
    code = (
        "import os, sys\n"
        "from tfds_builders import prepare\n"
        "from tfds_builders.synthetic_gait import sequences\n"
        "whole = sequences.record\n"
        "def record(task):\n"
        "    if task.subject == 6: os._exit(9)\n"
        "    return whole(task)\n"
        "sequences.record = record\n"
        f"prepare.main(['synthetic_gait/tiny', '--data_dir={tmp_path}'])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, timeout=120
    )
    assert done.returncode == 9
    assert list(root.glob("incomplete*")), "the test should leave a partial build"
    assert not (root / "1.0.0").exists()
    again = tiny_synthetic(tmp_path)
    assert _shards(again) == _shards(folder)
    assert not list(root.glob("*incomplete*"))


def test_the_same_seed_gives_the_same_bytes_also_when_overwriting(folder, tmp_path):
    place = tiny_synthetic(tmp_path)
    first, second = _shards(folder), _shards(place)
    assert len(first) == 2 and first == second
    next(place.glob("*.array_record*")).write_bytes(b"damaged")
    arguments = ["synthetic_gait/tiny", "--overwrite", f"--data_dir={tmp_path}"]
    assert prepare.main(arguments) == 0
    assert _shards(place) == first
    assert not list(place.parent.glob("*incomplete*"))


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["synthetic"], "Unknown data set 'synthetic'; choose from casia_b, casia_b_"),
        (
            ["synthetic_gait/huge"],
            "no config 'huge'; it has: default, pocket, pocket_tiny, tiny",
        ),
        (["--config=configs/absent.py"], "No config file 'configs/absent.py'"),
    ],
)
def test_mistakes_are_answered_in_one_line(arguments, message, tmp_path, capsys):
    assert prepare.main([*arguments, f"--data_dir={tmp_path}"]) == 2
    error = capsys.readouterr().err
    assert message in error and len(error.splitlines()) == 1


def test_a_config_file_names_its_data_sets(tmp_path):
    file = tmp_path / "some.py"
    file.write_text(
        "from ml_collections import ConfigDict\n"
        "def get_config(variant='a'):\n"
        "    if variant not in ('a', 'b'): raise ValueError('Unknown variant')\n"
        "    test = 'cmu_walk' if variant == 'b' else 'synthetic_gait'\n"
        "    data = dict(train_dataset='synthetic_gait', test_dataset=test)\n"
        "    return ConfigDict(dict(data=data))\n"
    )

    def names(argument, *overrides):
        return prepare.names_in_config(prepare.read_config(argument, overrides))

    assert names(str(file)) == ["synthetic_gait"]
    assert names(f"{file}:b") == ["synthetic_gait", "cmu_walk"]
    override = "--config.data.test_dataset=casia_b"
    assert names(f"{file}:b", override) == ["synthetic_gait", "casia_b"]
    with pytest.raises(prepare.PrepareError, match="Unknown variant"):
        names(f"{file}:c")
    with pytest.raises(prepare.PrepareError, match="tset_dataset.*Did you mean"):
        names(str(file), "--config.data.tset_dataset=ccpg")
    with pytest.raises(prepare.PrepareError, match="No config file"):
        names(str(tmp_path / "other.py"))


def test_a_configs_data_are_built_where_it_looks_for_them(tmp_path, capsys):
    """--config.data.data_dir and --config.data.test_dataset, as the training reads."""
    arguments = [
        "--config=configs/lmgait.py",
        "--config.data.train_dataset=synthetic_gait/tiny",
        "--config.data.test_dataset=synthetic_gait/tiny",
        f"--config.data.data_dir={tmp_path}",
    ]
    assert prepare.main(arguments) == 0
    assert (tmp_path / "synthetic_gait" / "tiny").is_dir()
    (tmp_path / "config.json").write_text('{"data": {"data_dir": "/base"}}')
    read = prepare.read_config
    found = read("configs/cargait.py", [f"--config.base_run={tmp_path}"])
    assert prepare.data_dir_of(found) == "/base"
    found = read("configs/cargait.py", ["--config.base_run=nowhere"])
    assert prepare.data_dir_of(found) == "data"
    with pytest.raises(SystemExit):
        prepare.main(["synthetic_gait/tiny", "--config.data.data_dir=elsewhere"])
    assert "unrecognized arguments: --config.data" in capsys.readouterr().err
