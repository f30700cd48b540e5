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
from tfds_builders.synthetic_gait import captions, gait

# names of CCPG (Li et al., CVPR 2023): U upper garment, D lower garment, BG with a bag
CONDITIONS = ("U0_D0", "U0_D0_BG", "U0_D3", "U1_D0", "U1_D1", "U2_D2", "U3_D3")
# (azimuth from the walking direction, elevation) in degrees; the view is "NN_0"
CAMERAS = ((90.0, 8.0), (60.0, 12.0), (30.0, 10.0), (125.0, 9.0))
_PERSON, _UPPER, _LOWER, _SESSION, _BAG, _WALK, _SCENE, _WORDS = range(8)


class Plan(NamedTuple):
    """The size of a data set; equal plans give equal bytes."""

    train_subjects: int
    test_subjects: int
    num_cameras: int
    num_frames: int
    fps: float
    seed: int
    outdoors: float = 0.0  # share of the scenes before a sky
    described: bool = False  # regions and captions are stored beside the frames


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


class Drawn(NamedTuple):
    """What a task's walk is rendered from, but for the person and the motion."""

    head: appearance.Head
    upper: appearance.Upper
    lower: appearance.Lower
    bag: str  # one of BAGS or ""
    bag_texture: np.ndarray
    scene: appearance.Scene


def draw(task: Task) -> Drawn:
    parts = CONDITIONS[task.condition].split("_")
    subject, condition, camera = task.subject, task.condition, task.camera
    bag_rng = _rng(task, _BAG, subject)
    bag = str(bag_rng.choice(BAGS)) if "BG" in parts else ""
    scene = appearance.draw_scene(
        _rng(task, _SCENE, subject, condition, camera),
        *CAMERAS[camera],
        seed=(task.plan.seed, 99, subject, condition, camera),
    )
    outdoors = _rng(task, _WORDS, subject, condition, camera).random()
    return Drawn(
        _session(task)[1],
        appearance.draw_upper(_rng(task, _UPPER, subject, int(parts[0][1:]))),
        appearance.draw_lower(_rng(task, _LOWER, subject, int(parts[1][1:]))),
        bag,
        appearance.draw_texture(bag_rng),
        scene._replace(outdoors=outdoors < task.plan.outdoors),
    )


def _session(task: Task) -> tuple[gait.Person, appearance.Head]:
    person = gait.draw_person(_rng(task, _PERSON, task.subject))
    rng = _rng(task, _SESSION, task.subject, task.condition)
    return gait.draw_session(person, rng), appearance.draw_head(rng)


def render(task: Task) -> walker.Walk:
    """The rendered walk of a task."""
    drawn = draw(task)
    joints = gait.walk(
        _session(task)[0],
        _rng(task, _WALK, task.subject, task.condition, task.camera),
        num_frames=task.plan.num_frames,
        fps=task.plan.fps,
        carries=drawn.bag == "suitcase",
    )
    body = gait.body_of(gait.draw_person(_rng(task, _PERSON, task.subject)))
    return walker.render(
        joints, body, drawn.upper, drawn.lower, drawn.head, drawn.scene, drawn.bag,
        drawn.bag_texture,
    )  # fmt: skip


def record(task: Task) -> tuple[str, dict]:
    """(key, record) of a task."""
    walk, described = render(task), {}
    if task.plan.described:
        described = {
            "regions": walk.regions,
            "captions": captions.of_frames(draw(task), task.plan.num_frames),
        }
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
        **described,
    )
