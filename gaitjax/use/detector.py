"""A user's own people detector, an ONNX file that OpenCV runs, in place of motion.

What is understood, for an input [1 3 SIZE SIZE] of RGB in 0..1:

  [1 N 5+C]   YOLOv5 and its like: centre x and y, width, height, objectness, classes
  [1 4+C N]   YOLOv8 and its like: the same without objectness, transposed
  [1 N 6]     with the suppression inside: left, top, right, bottom, score, class

in pixels of the input. Class 0 is a person, as in COCO. No detector comes with gaitjax.
"""

import os
from collections.abc import Callable

import numpy as np

from gaitjax.engine.guards import Damaged, require
from gaitjax.use.regions import Box

SIZE = 640  # rows and columns of the input
EVERY = 0.2  # seconds between looks: who is found is followed by the person model
SCORE, SAME = 0.4, 0.5  # the least score; boxes of a larger IoU are one person


def load(file: str, size: int = SIZE) -> Callable[[float, np.ndarray], list[Box]]:
    """The detector as a function (time, image uint8 RGB [H W 3]) -> boxes of people.

    Between two looks it finds nobody. Raises FileNotFoundError or Damaged.
    """
    import cv2

    require(
        os.path.isfile(file), f"There is no file {file} (--detector).",
        FileNotFoundError,
    )  # fmt: skip
    try:
        net = cv2.dnn.readNetFromONNX(str(file))
    except cv2.error as error:
        fault = "OpenCV cannot read it as an ONNX model"
        raise Damaged(file, fault, "Name another --detector.") from error
    due = [-np.inf]

    def detect(time: float, image: np.ndarray) -> list[Box]:
        if time < due[0]:
            return []
        due[0] = time + EVERY
        scale = size / max(image.shape[:2])
        resized = cv2.resize(image, None, fx=scale, fy=scale)[:size, :size]
        square = np.full((size, size, 3), 114, np.uint8)  # grey, as YOLO pads
        square[: resized.shape[0], : resized.shape[1]] = resized
        net.setInput(cv2.dnn.blobFromImage(square, 1 / 255))
        return [tuple(n / scale for n in box) for box in people(net.forward(), file)]

    return detect


def people(output: np.ndarray, file: str = "the detector") -> list[Box]:
    """Boxes (left, top, right, bottom) of people, in pixels of the network's input."""
    import cv2

    rows = np.asarray(output, np.float32)
    rows = rows.reshape(rows.shape[-2:]) if rows.ndim > 1 else rows
    known = rows.ndim == 2 and max(rows.shape) > 5 and rows.shape != (0, 0)
    require(
        known,
        f"{file} gives an output of shape {np.shape(output)}; expected [1 N 5+C], "
        "[1 4+C N] or [1 N 6] (docs/identify.md).",
    )
    # of one class, the first kind has six columns too, but no whole numbers in the last
    if rows.shape[1] == 6 and (rows[:, 5] == np.rint(rows[:, 5])).all():
        rows = rows[(rows[:, 4] >= SCORE) & (rows[:, 5] == 0)]
        return [tuple(map(float, row[:4])) for row in rows]
    if rows.shape[0] < rows.shape[1]:
        rows = rows.T
        scores, classes = rows[:, 4], rows[:, 4:]
    else:
        scores, classes = rows[:, 4] * rows[:, 5], rows[:, 5:]
    kept = (scores >= SCORE) & (classes.argmax(1) == 0)
    x, y, wide, high = rows[kept, :4].T
    boxes = np.stack([x - wide / 2, y - high / 2, wide, high], 1)
    found = cv2.dnn.NMSBoxes(boxes.tolist(), scores[kept].tolist(), SCORE, SAME)
    chosen = boxes[np.ravel(found).astype(int)]
    chosen[:, 2:] += chosen[:, :2]
    return [tuple(map(float, box)) for box in chosen]
