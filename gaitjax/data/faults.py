"""Faults of real perception, drawn into clean silhouettes and key points.

Renderers and motion capture give exact outlines; a segmentation of real video has
holes, spurs, shadows and neighbours, loses feet, and grows or shrinks; a pose estimator
jitters, exchanges left and right and misses joints. A model that never saw this fails
on real people. Each fault is drawn with a probability of its own, for a whole sequence
(what clothes or a camera do) or for single frames (what happens to a frame).
"""

from typing import Annotated, NamedTuple

import numpy as np

from gaitjax.engine.fields import AtLeast, Share

# Ranges, as shares of the silhouette's height if nothing else is said
GROWTH = 3  # pixels, at most, of dilation or erosion
COARSE = 1.0, 3.0  # factor of lost resolution
FEET = 0.08  # lost at most at the lower end
STRETCH = 0.08  # change of the width, at most
SHAKE = 0.03  # of the height and the place, per frame
BLOB = 0.1, 0.3  # radii
HOLE = 0.02, 0.08  # radii
CONFUSED = 0.25  # share of the frames whose left and right are exchanged
LOST = 0.1  # share of the joints that are missing


class Faults(NamedTuple):
    """config.data.faults: how often each fault occurs, 0 to 1.

    Of whole sequences: grow (thicker or thinner, as a coat or a threshold makes them),
    coarse (low resolution), stretch (wider or narrower), shake (the box trembles), feet
    (hidden, by grass for instance), jitter (key points; its size is jitter_size),
    confuse (left and right exchanged in some frames), miss (some key points not found).
    Of single frames: holes, spurs, blob (a neighbour or shadow that touches the
    person).
    """

    grow: Share = 0.0
    coarse: Share = 0.0
    stretch: Share = 0.0
    shake: Share = 0.0
    feet: Share = 0.0
    holes: Share = 0.0
    spurs: Share = 0.0
    blob: Share = 0.0
    jitter: Share = 0.0
    jitter_size: Annotated[float, AtLeast(0)] = 1.5  # deviation, pixels of a frame
    confuse: Share = 0.0
    miss: Share = 0.0


def disturb(
    arrays: dict[str, np.ndarray], faults: Faults, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """The modalities of one sequence with faults; others than these two are left.

    silhouettes: uint8 [T H W]. keypoints: float32 [T 17 3].
    """
    done = dict(arrays)
    if "silhouettes" in arrays:
        done["silhouettes"] = _outlines(arrays["silhouettes"], faults, rng)
    if "keypoints" in arrays:
        done["keypoints"] = _points(arrays["keypoints"], faults, rng)
    return done


def _outlines(images: np.ndarray, faults: Faults, rng) -> np.ndarray:
    """Silhouettes uint8 [T H W] with faults."""
    import cv2

    height, width = images.shape[1:]
    grow = rng.integers(-GROWTH, GROWTH + 1) if rng.random() < faults.grow else 0
    # a coat ends somewhere; a threshold does not
    rows = slice(0, int(height * rng.choice((0.5, 0.75, 1.0))))
    coarse = rng.uniform(*COARSE) if rng.random() < faults.coarse else 1.0
    stretch = rng.uniform(-STRETCH, STRETCH) if rng.random() < faults.stretch else 0.0
    shake = SHAKE if rng.random() < faults.shake else 0.0
    hidden = rng.uniform(0, FEET) if rng.random() < faults.feet else 0.0
    kept = height - round(hidden * height)
    done = []
    for image in images:
        image = _spoiled(image, faults, rng)
        if kept < height:  # what is left is as high as ever
            image = cv2.resize(image[:kept], (width, height))
        if grow:
            kernel = np.ones((1 + abs(grow) // 2, 1 + abs(grow)), np.uint8)
            change = cv2.dilate if grow > 0 else cv2.erode
            image = image.copy()
            image[rows] = change(image, kernel)[rows]
        if stretch or shake:
            # erosion moves rows and columns less than this does
            x, y, tall = rng.normal(0, shake, 3) if shake else (0.0, 0.0, 0.0)
            wide = (1 + stretch) * (1 + tall)
            matrix = np.array(
                [
                    [wide, 0, (1 - wide) * width / 2 + x * height],
                    [0, 1 + tall, -tall * height / 2 + y * height / 2],
                ]
            )
            image = cv2.warpAffine(image, matrix, (width, height))
        if coarse > 1:
            size = max(2, round(width / coarse)), max(2, round(height / coarse))
            small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
            image = cv2.resize(small, (width, height))
            image = np.where(image > 127, 255, 0).astype(np.uint8)
        done.append(image)
    return np.stack(done)


def _spoiled(image: np.ndarray, faults: Faults, rng) -> np.ndarray:
    """One silhouette with holes, spurs or a blob."""
    import cv2

    height, width = image.shape
    chances = faults.holes, faults.spurs, faults.blob
    holes, spurs, blob = (bool(d < c) for d, c in zip(rng.random(3), chances))
    if not (holes or spurs or blob):
        return image
    image = np.ascontiguousarray(image).copy()
    body = np.argwhere(image > 127)
    if not len(body):
        return image

    def ellipse(value, radii, place):
        axes = tuple(max(1, int(r)) for r in rng.uniform(*radii, 2) * height)
        centre = tuple(int(n) for n in place)
        cv2.ellipse(image, centre, axes, rng.uniform(0, 180), 0, 360, value, -1)

    def anywhere():
        return body[rng.integers(len(body))][::-1]  # x, y

    if holes:
        for _ in range(rng.integers(1, 4)):
            ellipse(0, HOLE, anywhere())
    if spurs:
        for _ in range(rng.integers(1, 3)):
            start = anywhere()
            end = start + rng.normal(0, 0.12 * height, 2)
            thick = int(rng.integers(1, 4))
            ends = (tuple(int(n) for n in point) for point in (start, end))
            cv2.line(image, *ends, 255, thick)
    if blob:
        low = rng.random() < 0.5  # a shadow at the feet, or a neighbour
        side = body[:, 1].min() if rng.random() < 0.5 else body[:, 1].max()
        y = height if low else rng.uniform(0.2, 0.9) * height
        radii = (0.03, 0.08) if low else BLOB
        ellipse(255, radii, (side + rng.normal(0, 0.05 * height), y))
    return image


def _points(points: np.ndarray, faults: Faults, rng) -> np.ndarray:
    """Key points float32 [T 17 3] with faults; missing ones stay missing."""
    absent = (points == 0).all(-1, keepdims=True)
    done = points.copy()
    if rng.random() < faults.jitter:
        size = faults.jitter_size * rng.uniform(0, 1)
        # an estimator is wrong in its own way about a person, and trembles
        done[..., :2] += rng.normal(0, size, (1, *points.shape[1:2], 2))
        done[..., :2] += rng.normal(0, size, (*points.shape[:2], 2))
    if rng.random() < faults.confuse:
        for first in (5, 7, 9, 11, 13, 15):  # shoulders to ankles
            frames = np.flatnonzero(rng.random(len(points)) < CONFUSED)
            pair = [first, first + 1]
            done[np.ix_(frames, pair)] = done[np.ix_(frames, pair[::-1])]
            absent[np.ix_(frames, pair)] = absent[np.ix_(frames, pair[::-1])]
    if rng.random() < faults.miss:
        absent |= rng.random((*points.shape[:2], 1)) < LOST
    return np.where(absent, 0, done).astype(points.dtype)
