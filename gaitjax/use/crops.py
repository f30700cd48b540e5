"""A person in an image -> frame, mask, silhouette and key points of a record.

`normalised` is the rule of `tfds_builders.frames.normalise_silhouette`, and `cut` that
of `fit_crop`: neither package imports the other, so a test holds the two equal.
"""

from typing import NamedTuple

import numpy as np

from gaitjax.use.person import Person

HEIGHT, WIDTH, SIZE = 128, 64, 64  # of frames and masks; of silhouettes
MARGIN = 0.03  # around the mask's box, as a share of its height
MIN_MASK_SUM = 10_000  # a mask of less is empty: the field's rule
JPEG_QUALITY = 90


class Moment(NamedTuple):
    """One frame of a walk.

    time: seconds. frame: JPEG [128 64]. mask: uint8 [128 64], 0/255. silhouette: uint8
    [64 64]. keypoints: float32 [17 3] in pixels of the frame. ratio: width / height of
    the person's box. centre, height: of the box in the image, pixels.
    """

    time: float
    frame: bytes
    mask: np.ndarray
    silhouette: np.ndarray
    keypoints: np.ndarray
    ratio: float
    centre: tuple[float, float]
    height: float


def moment(time: float, image: np.ndarray, person: Person) -> Moment | None:
    """The Moment of a person in an image; None if the mask is almost empty."""
    import cv2

    silhouette = normalised(person.mask)
    if silhouette is None:
        return None
    left, top, right, bottom = person.box
    extra = MARGIN * (bottom - top)
    outer = left - extra, top - extra, right + extra, bottom + extra
    # only what the crop shows is copied
    x0, y0 = (max(0, int(n) - 1) for n in outer[:2])
    part = image[y0 : int(outer[3]) + 2, x0 : int(outer[2]) + 2]
    mask = _window(person, (x0, y0), part.shape)
    box = outer[0] - x0, outer[1] - y0, outer[2] - x0, outer[3] - y0
    frame, mask, ratio, matrix = cut(part, mask, box)
    _, data = cv2.imencode(
        ".jpg", frame[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]
    )
    points = person.keypoints.copy()
    inside = np.c_[points[:, 0] - x0, points[:, 1] - y0, np.ones(len(points))]
    points[:, :2] = inside @ matrix.T
    centre = (left + right) / 2, (top + bottom) / 2
    return Moment(
        time, data.tobytes(), mask, silhouette, points, ratio, centre, bottom - top
    )


def _window(person: Person, corner, shape) -> np.ndarray:
    """The person's mask in the window of the image at `corner` of `shape`."""
    x, y = person.corner[0] - corner[0], person.corner[1] - corner[1]
    height, width = shape[:2]
    mask = person.mask[max(0, -y) :, max(0, -x) :]
    x, y = max(0, x), max(0, y)
    mask = mask[: max(0, height - y), : max(0, width - x)]
    window = np.zeros((height, width), np.uint8)
    window[y : y + mask.shape[0], x : x + mask.shape[1]] = mask
    return window


def cut(image: np.ndarray, mask: np.ndarray, box):
    """`box` scaled to HEIGHT, black beside it: (frame, mask, ratio, matrix [2 3]).

    image: uint8 [H W 3]. mask: uint8 [H W]. box: (left, top, right, bottom). matrix
    maps a point of the image to the frame. A box wider than half its height loses
    columns on both sides.
    """
    import cv2

    left, top, right, bottom = box
    scale = HEIGHT / (bottom - top)
    shift_x = WIDTH / 2 - scale * (left + right) / 2 + (scale - 1) / 2
    shift_y = -scale * top + (scale - 1) / 2
    matrix = np.array([[scale, 0, shift_x], [0, scale, shift_y]])
    if scale < 1:  # warpAffine does not average: blur before shrinking
        image = cv2.GaussianBlur(image, (0, 0), 0.4 / scale)
    size, smooth = (WIDTH, HEIGHT), cv2.INTER_LINEAR
    frame = cv2.warpAffine(image, matrix, size, flags=smooth)
    soft = cv2.warpAffine((mask > 0).astype(np.float32), matrix, size, flags=smooth)
    ratio = (right - left) / (bottom - top)
    kept = min(WIDTH, round(HEIGHT * ratio))
    inside = np.zeros(WIDTH, bool)
    inside[(WIDTH - kept) // 2 : (WIDTH - kept) // 2 + kept] = True
    frame = np.where(inside[None, :, None], frame, 0).astype(np.uint8)
    small = np.where((soft >= 0.5) & inside[None], 255, 0).astype(np.uint8)
    return frame, small, ratio, matrix


def normalised(mask: np.ndarray) -> np.ndarray | None:
    """The mask's rows scaled to SIZE, its centre of mass in the middle column.

    mask: uint8 [H W], 0..255. Returns uint8 [64 64], or None if the mask is almost
    empty. (Takemura et al., "Multi-view large population gait dataset and its
    performance evaluation for cross-view gait recognition", 2018.)
    """
    import cv2

    if mask.sum(dtype=np.int64) <= MIN_MASK_SUM:
        return None
    rows = np.flatnonzero(mask.any(1))
    person = mask[rows[0] : rows[-1] + 1]
    width = max(1, int(SIZE * person.shape[1] / person.shape[0]))
    person = cv2.resize(person, (width, SIZE), interpolation=cv2.INTER_CUBIC)
    mass = np.cumsum(person.sum(0, dtype=np.int64))
    centre = int(np.argmax(mass > mass[-1] / 2))
    padded = np.pad(person, ((0, 0), (SIZE // 2, SIZE // 2)))
    return padded[:, centre : centre + SIZE]
