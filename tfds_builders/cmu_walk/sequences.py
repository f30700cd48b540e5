"""Renders recordings in several outfits: motion capture -> joints -> records.

A recording has one role, and a role's conditions are never both probe and gallery of a
CCPG task, so no walk is compared with itself. This takes three roles: U0_D0 and
U0_D0_BG are probe and gallery in BG, and both are probes of the CL gallery.

| recordings of a person | roles, in the order of trial numbers |
|---|---|
| 3 or more | plain, gallery, bag, plain, gallery, bag, ... |
| 2 | plain, gallery (no bag: the person is only a distractor in BG) |
| 1 | distractor: gallery conditions only, never a probe |
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from etils import epath

from tfds_builders import appearance, walker
from tfds_builders.cmu_walk import acclaim
from tfds_builders.damage import Damaged, naming, read_text
from tfds_builders.features import make_record
from tfds_builders.figure import JOINTS, check_stature, make_body, of_human_size
from tfds_builders.frames import encode_jpeg

FPS = 12.0
MIN_FRAMES = 12  # one second
CONDITIONS = {
    "plain": ("U0_D0", "U0_D3", "U1_D0"),
    "bag": ("U0_D0_BG",),
    "gallery": ("U1_D1", "U2_D2", "U3_D3"),
    "distractor": ("U1_D1", "U2_D2", "U0_D3"),
}
BONES = frozenset(
    f"{side}{bone}"
    for side in "lr"
    for bone in ("femur", "tibia", "foot", "toes", "humerus", "wrist", "hand")
) | {"thorax", "lowerneck", "head"}
ROOM = 7.0  # metres from the middle of a walk; the cameras stand 8 or more away
CYCLE = ("plain", "gallery", "bag")
# as in synthetic_gait: azimuth from the walking direction, elevation, degrees
CAMERAS = ((90.0, 8.0), (60.0, 12.0), (30.0, 10.0), (125.0, 9.0))
_UPPER, _LOWER, _BAG, _SCENE = range(101, 105)

# Straight, level walks of the database, trial numbers by subject.
WALKS = {
    "02": (1, 2),
    "05": (1,),
    "06": (1,),
    "07": (1, 2, 3, 6, 7, 8, 9, 10, 11),
    "08": (1, 2, 3, 4, 6, 8, 9, 10),
    "10": (4,),
    "16": (15, 16, 21, 22, 31, 32, 47, 58),
    "32": (1, 2),
    "35": (*range(1, 3), 5, *range(7, 17), *range(28, 35)),
    "38": (1, 2),
    "39": (*range(1, 10), 12, 13, 14),
    "43": (1,),
    "49": (1,),
    "55": (4,),
}


class Recording(NamedTuple):
    """One AMC file of the folder and its role; at most num_frames frames are kept."""

    folder: str
    subject: str
    trial: int
    role: str
    seed: int
    num_cameras: int
    num_frames: int

    @property
    def name(self) -> str:
        return f"{self.subject}_{self.trial:02d}"


class Outcome(NamedTuple):
    """The records of one recording, or the problem that prevents them."""

    name: str
    records: list
    problem: str


def recordings(
    folder: str | Path,
    *,
    seed: int,
    num_cameras: int,
    max_recordings: int,
    num_frames: int,
) -> tuple[list[Recording], list[str]]:
    """The walks found in `folder` with their roles, and the names of missing ones.

    Only the first `max_recordings` of a person are used; otherwise two people would
    make up half of the probes.
    """
    found, missing = [], []
    for subject, trials in WALKS.items():
        present = []
        for trial in trials:
            name = f"{subject}_{trial:02d}"
            exists = (Path(folder) / subject / f"{name}.amc").is_file()
            (present if exists else missing).append(trial if exists else name)
        present = present[:max_recordings]
        roles = CYCLE if len(present) > 1 else ("distractor",)
        for i, trial in enumerate(present):
            role = roles[i % len(roles)]
            found.append(
                Recording(
                    str(folder), subject, trial, role, seed, num_cameras, num_frames
                )
            )
    return found, missing


def joints_of(pose: acclaim.Pose, step: int) -> tuple[np.ndarray, float]:
    """Joint positions [T J 3] of every `step`-th frame and the stature in metres.

    The walk, from the first to the last pelvis, goes along z on the floor y = 0.
    """
    end = {name: value[::step] for name, value in pose.end.items()}
    start = {name: value[::step] for name, value in pose.start.items()}
    turn = {name: value[::step] for name, value in pose.rotation.items()}
    at = {}
    for side in ("left", "right"):
        s = side[0]
        at[f"{side}_hip"] = start[f"{s}femur"]
        at[f"{side}_knee"] = end[f"{s}femur"]
        ankle, ball = end[f"{s}tibia"], end[f"{s}foot"]
        at[f"{side}_ankle"] = ankle
        at[f"{side}_toe"] = end[f"{s}toes"]
        at[f"{side}_shoulder"] = start[f"{s}humerus"]
        at[f"{side}_elbow"] = end[f"{s}humerus"]
        at[f"{side}_wrist"] = end[f"{s}wrist"]
        at[f"{side}_hand"] = end[f"{s}hand"]
        # the capture has no heel: place it behind and below the ankle
        length = np.linalg.norm(ball - ankle, axis=-1).mean()
        at[f"{side}_heel"] = ankle + turn[f"{s}foot"] @ np.array(
            [0, -0.35 * length, -0.3 * length]
        )
    at["pelvis"] = (at["left_hip"] + at["right_hip"]) / 2
    at["chest"] = (at["left_shoulder"] + at["right_shoulder"]) / 2
    at["neck"] = (end["thorax"] + end["lowerneck"]) / 2
    at["head"] = (start["head"] + end["head"]) / 2
    stature = _stature(at, end)
    at["nose"] = at["head"] + turn["head"] @ np.array([0, 0, 0.051 * stature])
    joints = np.stack([at[name] for name in JOINTS], 1)  # [T J 3]
    travel = joints[-1, 0] - joints[0, 0]
    heading = np.arctan2(travel[0], travel[2])
    joints = joints @ acclaim.rotation(np.array([0, heading, 0]), "Y")  # by -heading
    joints[..., 0] -= joints[:, 0, 0].mean()
    joints[..., 2] -= joints[0, 0, 2]
    joints[..., 1] -= joints[..., 1].min() - 0.024 * stature
    return joints, stature


def _stature(at, end) -> float:
    """The sum of bone lengths from head to floor, averaged over frames and sides."""

    def length(a, b):
        return float(np.linalg.norm(a - b, axis=-1).mean())

    legs = [
        length(at[f"{s}_hip"], at[f"{s}_knee"])
        + length(at[f"{s}_knee"], at[f"{s}_ankle"])
        for s in ("left", "right")
    ]
    trunk = length(at["pelvis"], at["chest"]) + length(at["chest"], end["head"])
    # 0.039 of stature is below the ankle, 0.02 above the last joint of the head
    return (sum(legs) / 2 + trunk) / (1 - 0.039 - 0.02)


def _check_size(joints: np.ndarray, stature: float):
    """Raises Damaged unless a person of human size walks before the cameras."""
    check_stature(stature)
    wrong = ~of_human_size(joints, JOINTS.index("pelvis"))  # [T]
    if wrong.any():
        raise Damaged(f"frame {wrong.argmax()} of {len(joints)} is not of human size")
    away = np.abs(joints - joints[:, JOINTS.index("pelvis")].mean(0)).max()
    if away > ROOM:
        raise Damaged(f"the person is {away:.1f} m off the middle of the walk")


def render(recording: Recording) -> Outcome:
    """All conditions and cameras of one recording."""
    folder = epath.Path(recording.folder) / recording.subject
    bones, walk = (
        folder / f"{name}"
        for name in (f"{recording.subject}.asf", f"{recording.name}.amc")
    )
    try:
        with naming(bones):
            skeleton = acclaim.parse_skeleton(read_text(bones))
            missing = sorted(BONES - skeleton.parents.keys())
            if missing:
                raise Damaged(f"bones {missing} are missing in the hierarchy")
        with naming(walk):
            motion = acclaim.parse_motion(read_text(walk), skeleton)
            pose = acclaim.pose(skeleton, motion)
            joints, stature = joints_of(pose, round(120 / FPS))
            if len(joints) < MIN_FRAMES:
                raise Damaged(f"{len(joints) / FPS:.1f} s", "short")
            joints = joints[: recording.num_frames]
            _check_size(joints, stature)
    except Damaged as error:
        return Outcome(recording.name, [], str(error))
    body = make_body(stature)
    records = [
        _record(recording, condition, camera, joints, body)
        for condition in CONDITIONS[recording.role]
        for camera in range(recording.num_cameras)
    ]
    return Outcome(recording.name, records, "")


def _record(recording, condition, camera, joints, body):
    subject, seed = int(recording.subject), recording.seed
    upper, lower, *rest = condition.split("_")
    bag_rng = np.random.default_rng((seed, _BAG, subject))
    bag = str(bag_rng.choice(("backpack", "shoulder bag"))) if rest else ""
    bag_texture = appearance.draw_texture(bag_rng)
    key = (subject, recording.trial, *condition.encode(), camera)
    scene_rng = np.random.default_rng((seed, _SCENE, *key))
    head = appearance.draw_head(scene_rng)
    walk = walker.render(
        joints,
        body,
        appearance.draw_upper(
            np.random.default_rng((seed, _UPPER, subject, int(upper[1:])))
        ),
        appearance.draw_lower(
            np.random.default_rng((seed, _LOWER, subject, int(lower[1:])))
        ),
        head,
        appearance.draw_scene(scene_rng, *CAMERAS[camera], seed=(seed, 99, *key)),
        bag,
        bag_texture,
    )
    return make_record(
        recording.subject,
        condition,
        f"{camera + 1:02d}_{recording.trial:02d}",
        frames=[encode_jpeg(frame) for frame in walk.frames],
        masks=walk.masks,
        silhouettes=walk.silhouettes,
        keypoints=walk.keypoints,
        ratios=walk.ratios,
        height=walker.HEIGHT,
        width=walker.WIDTH,
    )
