"""Lists the sequences and renders each from (seed, subject, condition, camera).

Every random quantity has its own generator, keyed by what it belongs to: a person, a
garment of a person, a session (person and condition), or a sequence. Therefore outfits,
hair, bags, light and background do not depend on the identity's parameters.
"""

from typing import NamedTuple

import numpy as np

from tfds_builders import appearance, walker
from tfds_builders.features import make_record
from tfds_builders.figure import BAGS
from tfds_builders.frames import encode_jpeg
from tfds_builders.synthetic_gait import gait

# names of CCPG (Li et al., CVPR 2023): U upper garment, D lower garment, BG with a bag
CONDITIONS = ("U0_D0", "U0_D0_BG", "U0_D3", "U1_D0", "U1_D1", "U2_D2", "U3_D3")
# (azimuth from the walking direction, elevation) in degrees; the view is "NN_0"
CAMERAS = ((90.0, 8.0), (60.0, 12.0), (30.0, 10.0), (125.0, 9.0))
_PERSON, _UPPER, _LOWER, _SESSION, _BAG, _WALK, _SCENE = range(7)


class Plan(NamedTuple):
    """The size of a data set; equal plans give equal bytes."""

    train_subjects: int
    test_subjects: int
    num_cameras: int
    num_frames: int
    fps: float
    seed: int


class Task(NamedTuple):
    plan: Plan
    subject: int  # from 1
    condition: int
    camera: int  # from 0


def tasks(plan: Plan, split: str) -> list[Task]:
    """All sequences of a split: train identities first, then test identities."""
    if not 1 <= plan.num_cameras <= len(CAMERAS):
        raise ValueError(f"num_cameras is 1 to {len(CAMERAS)}, got {plan.num_cameras}.")
    first, count = {
        "train": (1, plan.train_subjects),
        "test": (plan.train_subjects + 1, plan.test_subjects),
    }[split]
    return [
        Task(plan, subject, condition, camera)
        for subject in range(first, first + count)
        for condition in range(len(CONDITIONS))
        for camera in range(plan.num_cameras)
    ]


def _rng(task: Task, stream: int, *key: int) -> np.random.Generator:
    return np.random.default_rng((task.plan.seed, stream, *key))


def render(task: Task) -> walker.Walk:
    """The rendered walk of a task."""
    name = CONDITIONS[task.condition]
    parts = name.split("_")
    subject, condition, camera = task.subject, task.condition, task.camera
    person = gait.draw_person(_rng(task, _PERSON, subject))
    session_rng = _rng(task, _SESSION, subject, condition)
    session = gait.draw_session(person, session_rng)
    head = appearance.draw_head(session_rng)
    upper = appearance.draw_upper(_rng(task, _UPPER, subject, int(parts[0][1:])))
    lower = appearance.draw_lower(_rng(task, _LOWER, subject, int(parts[1][1:])))
    bag_rng = _rng(task, _BAG, subject)
    bag = str(bag_rng.choice(BAGS)) if "BG" in parts else ""
    bag_texture = appearance.draw_texture(bag_rng)
    joints = gait.walk(
        session,
        _rng(task, _WALK, subject, condition, camera),
        num_frames=task.plan.num_frames,
        fps=task.plan.fps,
        carries=bag == "suitcase",
    )
    scene = appearance.draw_scene(
        _rng(task, _SCENE, subject, condition, camera),
        *CAMERAS[camera],
        seed=(task.plan.seed, 99, subject, condition, camera),
    )
    body = gait.body_of(person)
    return walker.render(joints, body, upper, lower, head, scene, bag, bag_texture)


def record(task: Task) -> tuple[str, dict]:
    """(key, record) of a task."""
    walk = render(task)
    return make_record(
        f"{task.subject:03d}",
        CONDITIONS[task.condition],
        f"{task.camera + 1:02d}_0",
        frames=[encode_jpeg(frame) for frame in walk.frames],
        masks=walk.masks,
        silhouettes=walk.silhouettes,
        keypoints=walk.keypoints,
        ratios=walk.ratios,
        height=walker.HEIGHT,
        width=walker.WIDTH,
    )
