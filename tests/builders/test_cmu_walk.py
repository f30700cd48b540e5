"""The Acclaim reader against results by hand, the roles of recordings, the builder."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from fake_datasets import write_cmu_walk

from tfds_builders.cmu_walk import acclaim, sequences
from tfds_builders.figure import JOINTS
from tfds_builders.prepare import PrepareError, main, prepare
from tfds_builders.synthetic_gait.fairness import TASKS

ASF = """
:units
  mass 1.0
  length 0.45
  angle deg
:documentation
   begin with words that are no bone
:root
   order TX TY TZ RX RY RZ
   axis XYZ
   position 0 0 0
   orientation 0 0 0
:bonedata
  begin
     id 1
     name a
     direction 0 0 1
     length 0.9
     axis 0 0 90 XYZ
    dof rx
    limits (-160.0 20.0)
  end
  begin
     id 2
     name b
     direction 1 0 0
     length 0.45   # one inch
     axis 0 0 0 XYZ
    dof rz ry
  end
:hierarchy
  begin
    root a
    a b
  end
"""
AMC = """#! a comment
:FULLY-SPECIFIED
:DEGREES
1
root 0 0 0 0 0 0
a 0
b 0 0
2
root 0.45 0 0.9 0 0 90
a 90
b 0 0
3
root 0 0 0 0 0 0
a 0
b 90 30
"""
INCH = 0.0254


def test_joint_positions_by_hand():
    skeleton = acclaim.parse_skeleton(ASF)
    pose = acclaim.pose(skeleton, acclaim.parse_motion(AMC, skeleton))
    # rest: a is 0.9 / 0.45 = 2 inches along z, b one inch along x
    np.testing.assert_allclose(pose.end["a"][0], [0, 0, 2 * INCH], atol=1e-9)
    np.testing.assert_allclose(pose.end["b"][0], [INCH, 0, 2 * INCH], atol=1e-9)
    # a turns by C Rx(90) C^-1 = Ry(90): z becomes x, x becomes -z; then the root's
    # Rz(90): x becomes y. The root stands at (1, 0, 2) inches.
    np.testing.assert_allclose(pose.end["a"][1], [INCH, 2 * INCH, 2 * INCH], atol=1e-9)
    np.testing.assert_allclose(pose.end["b"][1], [INCH, 2 * INCH, INCH], atol=1e-9)
    # dof "rz ry" names the order of the values, the axis XYZ the order of turning:
    # Rz(90) Ry(30) x = Rz(90) (cos 30, 0, -sin 30) = (0, cos 30, -sin 30)
    expected = INCH * np.array([0, np.sqrt(3) / 2, 2 - 0.5])
    np.testing.assert_allclose(pose.end["b"][2], expected, atol=1e-9)


def test_rotations_apply_the_first_letter_first():
    angles = np.deg2rad([90.0, 0.0, 90.0])
    up = np.array([0.0, 1.0, 0.0])
    # x first: y -> z, then z stays. z first: y -> -x, then x stays
    np.testing.assert_allclose(
        acclaim.rotation(angles, "XYZ") @ up, [0, 0, 1], atol=1e-9
    )
    np.testing.assert_allclose(
        acclaim.rotation(angles, "ZYX") @ up, [-1, 0, 0], atol=1e-9
    )


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda t: t.replace("a 90", "a 90 3"), "a has 2 values"),
        (lambda t: t[: t.rindex("b 90")], "rows per bone differ"),
        (lambda t: t.replace("a 90", "c 90"), "'c' is no moving bone of the skeleton"),
        (lambda t: t.replace("a 90", "a nan"), "not finite"),
        (lambda t: t.replace("a 90", "a x"), "frame 2: a: could not convert"),
        (lambda t: t.replace("a 90", "a 1e300"), "frame 2: a has values .* not under"),
        (lambda t: "", "0 frames"),
    ],
)
def test_damaged_motion_is_refused(damage, message):
    with pytest.raises(ValueError, match=message):
        acclaim.parse_motion(damage(AMC), acclaim.parse_skeleton(ASF))


def test_damaged_skeleton_is_refused():
    with pytest.raises(ValueError, match=r"\['hierarchy'\] are missing"):
        acclaim.parse_skeleton(ASF[: ASF.index(":hierarchy")])
    with pytest.raises(ValueError, match="unknown c"):
        acclaim.parse_skeleton(ASF.replace("    a b", "    c b"))


def test_walks_are_turned_to_z_and_stand_on_the_floor(tmp_path):
    folder = write_cmu_walk(tmp_path, {"07": (1,)})
    skeleton = acclaim.parse_skeleton((folder / "07/07.asf").read_text())
    motion = acclaim.parse_motion((folder / "07/07_01.amc").read_text(), skeleton)
    joints, stature = sequences.joints_of(acclaim.pose(skeleton, motion), 10)
    assert joints.shape == (36, len(JOINTS), 3)
    travel = joints[-1, 0] - joints[0, 0]
    # 0.22 units a frame along x of the file, 350 frames
    assert travel[2] == pytest.approx(350 * 0.22 / 0.45 * INCH, rel=1e-3)
    assert abs(travel[0]) < 1e-6
    at = {name: joints[:, i] for i, name in enumerate(JOINTS)}
    assert (at["left_hip"][:, 0] > at["right_hip"][:, 0]).all()  # x is to the left
    assert (at["nose"][:, 2] > at["head"][:, 2]).all()  # it looks where it walks
    assert 1.3 < stature < 2.0
    assert joints[..., 1].min() == pytest.approx(0.024 * stature)


def test_no_recording_meets_itself_as_probe_and_gallery():
    for conditions in sequences.CONDITIONS.values():
        for probes, galleries in TASKS.values():
            assert not (
                set(conditions) & set(probes) and set(conditions) & set(galleries)
            )
    only_gallery = set(sequences.CONDITIONS["distractor"])
    assert not any(only_gallery & set(probes) for probes, _ in TASKS.values())


def test_roles_give_every_probe_a_match(tmp_path):
    write_cmu_walk(tmp_path, {"02": (1, 2), "05": (1,), "08": (1, 2, 3, 4, 6)})
    found, missing = sequences.recordings(
        tmp_path, seed=0, num_cameras=1, max_recordings=4, num_frames=12
    )
    roles = {}
    for recording in found:
        roles.setdefault(recording.subject, []).append(recording.role)
    assert roles == {
        "02": ["plain", "gallery"],
        "05": ["distractor"],
        "08": ["plain", "gallery", "bag", "plain"],
    }
    assert "07_01" in missing and "08_01" not in missing
    for own in roles.values():
        worn = {c for role in own for c in sequences.CONDITIONS[role]}
        for probes, galleries in TASKS.values():
            assert not worn & set(probes) or worn & set(galleries)


def test_builder_skips_and_reports_what_it_cannot_read(tmp_path):
    import tensorflow_datasets as tfds

    raw = write_cmu_walk(tmp_path / "raw", {"02": (1, 2), "05": (1,), "10": (4,)})
    (raw / "10/10_04.amc").write_text("1\nroot 0 0\n")
    short = (raw / "05/05_01.amc").read_text().split("\n100\n")[0]
    (raw / "05/05_01.amc").write_text(short)
    folder = prepare("cmu_walk/tiny", tmp_path / "data", manual_dir=raw)
    report = json.loads((folder / "build_report.json").read_text())
    assert report["recordings"] == 2 and len(report["missing"]) == 65
    assert report["skipped"]["05_01"].startswith("short: 05_01.amc: 0.8 s")
    assert "root has 2 values" in report["skipped"]["10_04"]
    source = tfds.builder_from_directory(str(folder)).as_data_source()
    assert list(source) == ["test"]
    views = {record["key"].decode() for record in source["test"]}
    assert views == {
        *(f"02/{c}/01_01" for c in sequences.CONDITIONS["plain"]),
        *(f"02/{c}/01_02" for c in sequences.CONDITIONS["gallery"]),
    }


def test_missing_recordings_say_what_to_fetch(tmp_path, capsys):
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw/notes.txt").write_text("nothing")
    arguments = ["cmu_walk", f"--data_dir={tmp_path}", f"--manual_dir={tmp_path}/raw"]
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert "No NN/NN.asf in" in error and "mocap.cs.cmu.edu/subjects/NN/NN.asf" in error
    with pytest.raises(PrepareError, match="is not a folder"):
        prepare("cmu_walk", tmp_path, manual_dir=tmp_path / "absent")


def _real_folder() -> Path | None:
    root = Path(__file__).resolve().parents[2]
    for place in (os.environ.get("GAITJAX_CMU_DIR"), root / "../shared/data/cmu_walk"):
        if place and Path(place).is_dir():
            return Path(place)
    return None


@pytest.mark.skipif(_real_folder() is None, reason="GAITJAX_CMU_DIR is not set")
def test_real_recordings_are_upright_walks():
    found, missing = sequences.recordings(
        _real_folder(), seed=0, num_cameras=1, max_recordings=1, num_frames=48
    )
    assert len(found) == 14 and not missing
    for recording in found:
        place = Path(recording.folder) / recording.subject
        skeleton = acclaim.parse_skeleton(
            (place / f"{recording.subject}.asf").read_text(errors="replace")
        )
        text = (place / f"{recording.name}.amc").read_text(errors="replace")
        motion = acclaim.parse_motion(text, skeleton)
        joints, stature = sequences.joints_of(acclaim.pose(skeleton, motion), 10)
        at = {name: joints[:, i] for i, name in enumerate(JOINTS)}
        assert 1.45 < stature < 2.0, recording.name
        speed = (joints[-1, 0, 2] - joints[0, 0, 2]) / (len(joints) / 12)
        assert 0.5 < speed < 2.0, recording.name
        heights = [at[n][:, 1].mean() for n in ("head", "chest", "pelvis", "left_knee")]
        assert heights == sorted(heights, reverse=True)
        assert 0.85 < heights[0] / stature < 1.0
        # the feet take turns and stay near the floor
        ahead = at["left_ankle"][:, 2] - at["right_ankle"][:, 2]
        assert ahead.max() > 0.2 and ahead.min() < -0.2
        assert max(at["left_toe"][:, 1].min(), at["right_toe"][:, 1].min()) < 0.1
        # rigid bones
        shank = np.linalg.norm(at["left_knee"] - at["left_ankle"], axis=-1)
        assert shank.std() < 1e-6
