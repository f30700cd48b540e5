"""Draws rendered people before many cameras, as the person model sees them.

An identity has WALKS walks. Each is drawn twice: once small, grey and noisy, and looked
at by the person model (its condition ends in "seen"), once from another camera with
exact silhouettes and key points ("exact"). Walks 1 and 2 share clothes, as two passes
on one day do; 3 and 4 are on another day in other clothes, 4 may carry a bag.
"""

import atexit
import contextlib
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace as plain
from typing import NamedTuple

import cv2
import numpy as np
from numpy.lib.format import read_array, write_array

from tfds_builders import appearance, walker
from tfds_builders.features import make_record
from tfds_builders.figure import BAGS
from tfds_builders.frames import normalise_silhouettes
from tfds_builders.synthetic_gait import gait

WALKS = ((0, 0), (0, 0), (1, 1), (1, 2))  # (day, outfit)
FRAMES = 14
FEWEST = 8  # usable frames of a walk that is kept
PAD = 32  # pixels around a drawn image
ROOT = Path(__file__).resolve().parents[2]
_PERSON, _HEAD, _UPPER, _LOWER, _DAY, _WALK, _VIEW, _LENS = range(8)


class Task(NamedTuple):
    seed: int
    subject: int  # from 1
    seen: bool = True  # False: exact walks only, which cost a tenth


class View(NamedTuple):
    """A camera and its sensor; `fps` frames a second, person `1 / (1 + 2 * margin)` of
    the image's height."""

    scene: appearance.Scene
    fps: float


def _rng(task: Task, *stream: int) -> np.random.Generator:
    return np.random.default_rng((task.seed, task.subject, *stream))


def draw_view(rng: np.random.Generator, seed: tuple[int, ...]) -> View:
    """Half of the cameras see the person from the side, the others from anywhere but
    straight ahead and behind; either side is as likely."""
    from_side = rng.random() < 0.55
    azimuth = 90 + rng.uniform(-18, 18) if from_side else rng.uniform(18, 162)
    azimuth *= rng.choice((-1.0, 1.0))
    scene = appearance.draw_scene(rng, azimuth, rng.uniform(0, 12), seed)
    scene = scene._replace(
        distance=rng.uniform(5, 16), margin=rng.uniform(0.07, 0.25),
        jitter=rng.uniform(0, 0.003),
    )  # fmt: skip
    return View(scene, rng.uniform(10, 15))


class Drawn(NamedTuple):
    painted: walker.Painted
    azimuth: float


def draw(task: Task, number: int, exact: bool) -> Drawn:
    """Walk `number` (from 0) of an identity."""
    day, outfit = WALKS[number]
    person = gait.draw_person(_rng(task, _PERSON))
    session = gait.draw_session(person, _rng(task, _DAY, day))
    rng = _rng(task, _VIEW, number, exact)
    view = draw_view(rng, (task.seed, task.subject, _LENS, number, exact))
    # hair is the same on most days
    head_of = 0 if rng.random() < 0.7 else 1 + number
    head = appearance.draw_head(_rng(task, _HEAD, head_of))
    bag = str(rng.choice(BAGS)) if number == 3 and rng.random() < 0.5 else ""
    bag_texture = appearance.draw_texture(rng)
    joints = gait.walk(
        session, _rng(task, _WALK, number), num_frames=FRAMES, fps=view.fps,
        carries=bag == "suitcase",
    )  # fmt: skip
    painted = walker.paint(
        np.random.default_rng(view.scene.seed),
        joints,
        gait.body_of(person),
        appearance.draw_upper(_rng(task, _UPPER, outfit)),
        appearance.draw_lower(_rng(task, _LOWER, outfit)),
        head,
        view.scene,
        bag,
        bag_texture,
    )
    return Drawn(painted, view.scene.azimuth)


def film(painted: walker.Painted, rng: np.random.Generator) -> np.ndarray:
    """uint8 [T H W 3] RGB: what a cheap camera makes of a drawn walk.

    The background gets a brightness and a grain of its own; then contrast, blur, noise
    and JPEG, in grey or colour, and a border, because a person is seldom cut so narrow.
    """
    images, behind = painted.images, painted.masks == 0
    shape = images.shape[1:3]
    grain = rng.standard_normal(shape).astype(np.float32) * rng.uniform(0, 10)
    grain = cv2.GaussianBlur(grain, (0, 0), rng.uniform(0.5, 1.5))
    level = rng.uniform(0.45, 1.05)
    scene = images * np.float32(level) + grain[None, :, :, None]
    images = np.where(behind[..., None], scene, images.astype(np.float32))
    if rng.random() < 0.6:
        images = np.repeat(images.mean(-1, keepdims=True), 3, -1)
    contrast, offset = rng.uniform(0.8, 1.15), rng.uniform(-10, 20)
    blur, noise = rng.uniform(0.35, 0.9), rng.uniform(1, 5)
    quality = int(rng.integers(40, 95))
    border = cv2.BORDER_REPLICATE if rng.random() < 0.7 else cv2.BORDER_CONSTANT
    done = []
    for image in images:
        image = cv2.GaussianBlur(image * np.float32(contrast) + offset, (0, 0), blur)
        image = image + rng.standard_normal((*shape, 1)).astype(np.float32) * noise
        image = np.clip(image, 0, 255).astype(np.uint8)
        _, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])
        image = cv2.imdecode(data, cv2.IMREAD_COLOR)
        done.append(cv2.copyMakeBorder(image, PAD, PAD, PAD, PAD, border))
    return np.stack(done)


class Eyes:
    """gaitjax's person model, in a process of its own (`gaitjax.use.look`)."""

    def __init__(self):
        paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "gaitjax.use.look"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
        )
        atexit.register(self.close)

    def close(self) -> None:
        assert self.process.stdin and self.process.stdout
        with contextlib.suppress(OSError):  # it may have ended, with a message
            self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()

    def __call__(self, images: np.ndarray, box):
        """(silhouettes [n 64 64], keypoints [n 17 3], ratios [n]) of the usable frames.

        images: uint8 [T H W 3]. box: of the person in the first, or roughly so.
        """
        given, told = self.process.stdin, self.process.stdout
        assert given and told
        # numpy asks real files for their position, and a pipe has none
        given_to, told_by = plain(write=given.write), plain(read=told.read)
        try:
            for array in (images, np.asarray(box, np.float64)):
                write_array(given_to, np.ascontiguousarray(array), allow_pickle=False)
            given.flush()
            return tuple(read_array(told_by, allow_pickle=False) for _ in range(3))
        except (OSError, ValueError) as error:
            self.close()
            raise FileNotFoundError(
                "The person model did not answer; the lines above say why."
            ) from error


_EYES: list[Eyes] = []  # of this process


def _eyes() -> Eyes:
    if not _EYES:
        _EYES.append(Eyes())
    return _EYES[0]


def _box(mask: np.ndarray) -> tuple[int, int, int, int]:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return columns[0] + PAD, rows[0] + PAD, columns[-1] + 1 + PAD, rows[-1] + 1 + PAD


def records(task: Task) -> list[tuple[str, dict]]:
    """(key, record) of the walks of one identity."""
    made = []
    for number in range(len(WALKS)):
        for exact in (False, True) if task.seen else (True,):
            drawn = draw(task, number, exact)
            painted = drawn.painted
            if exact:
                points = painted.keypoints
                points[..., 0] -= (walker.CANVAS - walker.WIDTH) / 2
                seen = normalise_silhouettes(painted.masks), points, painted.ratios
            else:
                images = film(painted, _rng(task, _LENS, number))
                seen = _eyes()(images, _box(painted.masks[0]))
            if len(seen[2]) < FEWEST:
                continue
            day, outfit = WALKS[number]
            kind = "exact" if exact else "seen"
            made.append(
                make_record(
                    f"{task.subject:04d}",
                    f"day{day}-outfit{outfit}-walk{number}-{kind}",
                    f"{round(drawn.azimuth) % 360:03d}",
                    silhouettes=seen[0],
                    keypoints=seen[1],
                    ratios=seen[2],
                    height=walker.HEIGHT,
                    width=walker.WIDTH,
                )
            )
    return made
