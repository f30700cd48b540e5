"""Moving regions before a still camera: where a person may be."""

import collections
import functools

import numpy as np

from gaitjax.use.video import SAMPLED, small

SAMPLE_EVERY = 0.5  # seconds between the images that the background is the median of
THRESHOLD = 14.0  # grey values by which a moving pixel differs, on top of the noise

Box = tuple[float, float, float, float]  # left, top, right, bottom


class Regions:
    """Finds what differs from the empty scene, the median of images of the last time.

    seen: images of the scene, known ahead (Video.sampled). Memory is that of SAMPLED
    images 320 pixels wide.
    """

    def __init__(self, seen: list[np.ndarray]):
        self._kept = collections.deque(map(small, seen), maxlen=SAMPLED)
        self._next, self._fresh = 0.0, 0
        self._scene: np.ndarray | None = self._median() if seen else None

    def _median(self) -> np.ndarray:
        self._fresh = 0
        return np.median(np.stack(self._kept), axis=0).astype(np.uint8)

    def __call__(self, time: float, image: np.ndarray) -> list[Box]:
        """Boxes of the regions that move in the image [H W 3], in its pixels."""
        import cv2

        shrunk = small(image)
        if time >= self._next:
            self._next = time + SAMPLE_EVERY
            self._kept.append(shrunk)
            self._fresh += 1
            if self._scene is None or self._fresh >= min(8, len(self._kept) // 2):
                self._scene = self._median()
        assert self._scene is not None  # the first image has made it
        blurred = (cv2.GaussianBlur(x, (3, 3), 0) for x in (shrunk, self._scene))
        channels = cv2.split(cv2.absdiff(*blurred))
        difference = functools.reduce(cv2.max, channels)  # [h w]
        noise = float(np.median(difference))
        if noise > THRESHOLD:  # half of the image moves: the camera does
            return []
        moving = (difference > THRESHOLD + 2 * noise).astype(np.uint8)
        moving = cv2.morphologyEx(moving, cv2.MORPH_OPEN, np.ones((2, 2), np.uint8))
        # parts of a body lie above each other
        gap = np.ones((max(3, shrunk.shape[0] // 12), max(3, shrunk.shape[1] // 60)))
        moving = cv2.morphologyEx(moving, cv2.MORPH_CLOSE, gap.astype(np.uint8))
        _, _, stats, _ = cv2.connectedComponentsWithStats(moving)
        scale = image.shape[1] / shrunk.shape[1]
        boxes = []
        for left, top, width, height, area in stats[1:]:
            if area > 0.2 * width * height and height > 0.6 * width:
                box = (left, top, left + width, top + height)
                boxes.append(tuple(float(n * scale) for n in box))
        return boxes


def overlap(a: Box, b: Box) -> float:
    """The shared area as a share of the smaller box, 0..1."""
    wide, high = (min(a[i + 2], b[i + 2]) - max(a[i], b[i]) for i in (0, 1))
    sizes = [(x[2] - x[0]) * (x[3] - x[1]) for x in (a, b)]
    return max(0.0, wide) * max(0.0, high) / max(min(sizes), 1e-9)


def iou(a: Box, b: Box) -> float:
    """Intersection over union, 0..1."""
    wide, high = (min(a[i + 2], b[i + 2]) - max(a[i], b[i]) for i in (0, 1))
    shared = max(0.0, wide) * max(0.0, high)
    sizes = [(x[2] - x[0]) * (x[3] - x[1]) for x in (a, b)]
    return shared / max(sum(sizes) - shared, 1e-9)
