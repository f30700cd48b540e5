"""Drawn people who walk through videos, and a person model that sees them."""

import functools
from pathlib import Path

import cv2
import numpy as np

from gaitjax.use.person import Seen

RED, BLUE = (230, 40, 40), (40, 40, 230)  # a person has a colour, the scene is grey
LOGIT = 6.0


@functools.cache
def _noise(width: int, height: int) -> np.ndarray:
    noise = np.random.default_rng(0).integers(90, 120, (height, width, 1), np.uint8)
    return np.repeat(noise, 3, 2)


def scene(width: int = 320, height: int = 240) -> np.ndarray:
    return _noise(width, height).copy()


def draw(image, x: float, bottom: int, height: int, phase: float, colour=RED) -> None:
    """A person whose feet stand on row `bottom` and are apart twice in 2 pi."""
    unit, x = height / 16, round(x)
    top = bottom - height
    step = 2.5 * unit * np.sin(phase)
    head = x, round(top + 2 * unit)
    cv2.circle(image, head, round(2 * unit), colour, -1)
    low = x + round(1.5 * unit), round(top + 10 * unit)
    cv2.rectangle(
        image, (x - round(1.5 * unit), round(top + 3 * unit)), low, colour, -1
    )
    for side in (-1, 1):
        foot = round(x + side * step), bottom - 2
        thick = max(2, round(1.2 * unit))
        cv2.line(image, (x, round(top + 9 * unit)), foot, colour, thick)


def walk(
    *people, frames: int = 90, size: tuple[int, int] = (320, 240), rate: float = 25.0
) -> list[np.ndarray]:
    """Images [H W 3]. people: dicts of start x, speed (pixels a frame), and optionally
    bottom, height, colour, stride (radians a frame)."""
    images = []
    for t in range(frames):
        image = scene(*size)
        for one in people:
            one = {"bottom": 210, "height": 120, "colour": RED, "stride": 0.2} | one
            x = one["x"] + one["speed"] * t
            draw(
                image, x, one["bottom"], one["height"], one["stride"] * t, one["colour"]
            )
        images.append(image)
    return images


def save(file: Path, images, rate: float = 25.0) -> Path:
    code = {".avi": "MJPG", ".mp4": "mp4v"}[file.suffix]
    size = images[0].shape[1], images[0].shape[0]
    writer = cv2.VideoWriter(str(file), cv2.VideoWriter_fourcc(*code), rate, size)
    assert writer.isOpened()
    for image in images:
        writer.write(np.ascontiguousarray(image[..., ::-1]))
    writer.release()
    return file


def see(square: np.ndarray) -> Seen:
    """Sees the drawn person nearest to the middle of the square, as the model would."""
    colour = square.astype(int)
    found = (np.abs(colour[..., 0] - colour[..., 2]) > 60).astype(np.uint8)
    # people of different colours are told apart even where they touch
    parts = [found * (colour[..., 0] > colour[..., 2]), None]
    parts[1] = found - parts[0]
    bodies = [body for part in parts for body in _bodies(part.astype(np.uint8))]
    landmarks = np.zeros((39, 5))
    if not bodies:
        return Seen(landmarks, 0.1, np.full((256, 256), -LOGIT, np.float32))
    body = min(bodies, key=lambda x: np.hypot(*(np.argwhere(x).mean(0) - 127.5)))
    rows, columns = np.flatnonzero(body.any(1)), np.flatnonzero(body.any(0))
    x, top, bottom = columns.mean(), rows[0], rows[-1]
    feet = np.flatnonzero(body[bottom - max(2, len(rows) // 12) : bottom].any(0))
    landmarks[:, :2] = x, (top + bottom) / 2
    landmarks[:, 3:] = 0.95
    landmarks[27, :2], landmarks[28, :2] = (feet[0], bottom), (feet[-1], bottom)
    landmarks[34, :2] = x, (top + bottom) / 2 - (bottom - top) / 2 - 1
    return Seen(landmarks, 0.9, np.where(body, LOGIT, -LOGIT).astype(np.float32))


def _bodies(part: np.ndarray) -> list[np.ndarray]:
    count, labels, stats, _ = cv2.connectedComponentsWithStats(part)
    return [labels == i for i in range(1, count) if stats[i, cv2.CC_STAT_AREA] > 300]
