"""From images and video to person masks, crops and silhouettes.

    background_of -> foreground_masks -> people_in -> fit_crop -> normalise_silhouettes

Numpy and cv2 on the host; images are uint8 RGB, masks uint8 0/255.
"""

from typing import NamedTuple

import cv2
import numpy as np

from tfds_builders.damage import Damaged

JPEG_QUALITY = 90
# A silhouette whose grey values sum to this or less counts as empty: the field's rule.
MIN_MASK_SUM = 10_000


class Crop(NamedTuple):
    """A person crop, `height` x `width`.

    image: uint8 [H W 3]. mask: uint8 [H W], 0/255, registered with the image. ratio:
    width / height of the box before padding. transform: float64 [2 3], maps a point
    (x, y) of the source image to the crop; pixel centres have whole coordinates.
    """

    image: np.ndarray
    mask: np.ndarray
    ratio: float
    transform: np.ndarray


def encode_jpeg(image: np.ndarray, quality: int = JPEG_QUALITY) -> bytes:
    """uint8 RGB [H W 3] -> the bytes of a JPEG file."""
    done, data = cv2.imencode(
        ".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality]
    )
    if not done:
        raise ValueError(f"cv2 cannot encode an image {image.shape} {image.dtype}.")
    return data.tobytes()


def decode_jpeg(data: bytes) -> np.ndarray:
    """The bytes of a JPEG (or PNG) file -> uint8 RGB [H W 3]."""
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    if image is None:
        raise ValueError(f"{len(data)} bytes that cv2 cannot decode as an image.")
    return image[..., ::-1]


def mask_box(mask: np.ndarray) -> tuple[int, int, int, int] | None:
    """(left, top, right, bottom) of the non-zero pixels, right and bottom exclusive."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return None
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def fit_crop(
    image: np.ndarray,
    mask: np.ndarray,
    box: tuple[float, float, float, float],
    *,
    height: int,
    margin: float = 0.0,
) -> Crop:
    """Cuts `box` out, scales it to `height` keeping its aspect, pads to height / 2.

    image: uint8 [H W 3]. mask: uint8 [H W], registered with the image. box: (left, top,
    right, bottom) in pixels, not empty. margin: added on each side, as a share of the
    box's height. The box lies in the middle of the crop; the columns beside it are
    black, as are the parts of the box outside the image. A box wider than half its
    height loses columns on both sides.
    """
    width = height // 2
    left, top, right, bottom = box
    extra = margin * (bottom - top)
    left, top, right, bottom = left - extra, top - extra, right + extra, bottom + extra
    scale = height / (bottom - top)
    # Pixel i covers [i, i + 1), so its centre is at i + 0.5; warpAffine puts the centre
    # of pixel i at i.
    shift_x = width / 2 - scale * (left + right) / 2 + (scale - 1) / 2
    shift_y = -scale * top + (scale - 1) / 2
    transform = np.array([[scale, 0, shift_x], [0, scale, shift_y]])
    smooth = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    if scale < 1:  # warpAffine does not average: blur before shrinking
        sigma = 0.4 / scale
        image = cv2.GaussianBlur(image, (0, 0), sigma)
        smooth = cv2.INTER_LINEAR
    image = cv2.warpAffine(image, transform, (width, height), flags=smooth)
    mask = cv2.warpAffine(
        (mask > 0).astype(np.float32), transform, (width, height), flags=smooth
    )
    ratio = (right - left) / (bottom - top)
    kept = min(width, round(height * ratio))
    inside = np.zeros(width, bool)
    inside[(width - kept) // 2 : (width - kept) // 2 + kept] = True
    image = np.where(inside[None, :, None], image, 0).astype(np.uint8)  # [H W 3]
    mask = np.where((mask >= 0.5) & inside[None], 255, 0).astype(np.uint8)  # [H W]
    return Crop(image, mask, ratio, transform)


def normalise_silhouette(
    mask: np.ndarray, size: int = 64, interpolation: int = cv2.INTER_CUBIC
) -> np.ndarray | None:
    """The person's rows scaled to height `size` and centred: the field's convention.

    mask: uint8 [H W], 0..255. Returns uint8 [size size], which after a cubic resize is
    not binary, or None if the mask is almost empty (MIN_MASK_SUM). The column where the
    cumulative mass first exceeds half goes to the middle (Takemura et al., "Multi-view
    large population gait dataset and its performance evaluation for cross-view gait
    recognition", 2018).
    """
    if mask.sum(dtype=np.int64) <= MIN_MASK_SUM:
        return None
    rows = np.flatnonzero(mask.any(1))
    person = mask[rows[0] : rows[-1] + 1]
    width = max(1, int(size * person.shape[1] / person.shape[0]))
    person = cv2.resize(person, (width, size), interpolation=interpolation)
    mass = np.cumsum(person.sum(0, dtype=np.int64))
    centre = int(np.argmax(mass > mass[-1] / 2))
    half = size // 2
    padded = np.pad(person, ((0, 0), (half, half)))
    return padded[:, centre : centre + size]


def normalise_parsing(labels: np.ndarray, size: int = 64) -> np.ndarray | None:
    """Class numbers [H W] of the body's parts (0: background), aligned by themselves.

    As `normalise_silhouette` of the pixels above 0, without values between classes.
    """
    body = np.where(labels > 0, np.uint8(255), np.uint8(0))
    if body.sum(dtype=np.int64) <= MIN_MASK_SUM:
        return None
    rows = np.flatnonzero(body.any(1))
    person, body = (x[rows[0] : rows[-1] + 1] for x in (labels, body))
    width = max(1, int(size * person.shape[1] / person.shape[0]))
    nearest = cv2.INTER_NEAREST
    person, body = (
        cv2.resize(x, (width, size), interpolation=nearest) for x in (person, body)
    )
    mass = np.cumsum(body.sum(0, dtype=np.int64))
    centre = int(np.argmax(mass > mass[-1] / 2))
    half = size // 2
    return np.pad(person, ((0, 0), (half, half)))[:, centre : centre + size]


def fit_frame(frame: np.ndarray, ratio: float, height: int) -> np.ndarray:
    """Undoes a square resize: [h w ...] -> [height height/2 ...], aspect `ratio`.

    Scales to height x int(height * ratio), then pads with black or cuts both sides to
    half the height. The BigGait reference pads after normalising, with mean grey.
    """
    width, whole = height // 2, max(1, int(height * ratio))
    small = frame.shape[0] <= height
    smooth = cv2.INTER_LINEAR if small else cv2.INTER_AREA
    scaled = cv2.resize(frame, (whole, height), interpolation=smooth)
    if whole >= width:
        left = (whole - width) // 2
        return scaled[:, left : left + width]
    left = (width - whole) // 2
    sides = [(0, 0), (left, width - whole - left)] + [(0, 0)] * (frame.ndim - 2)
    return np.pad(scaled, sides)


def normalise_silhouettes(
    masks: np.ndarray, size: int = 64, interpolation: int = cv2.INTER_CUBIC
) -> np.ndarray:
    """uint8 [T H W] -> uint8 [T size size]; an almost empty mask becomes zeros."""
    empty = np.zeros((size, size), np.uint8)
    done = [normalise_silhouette(mask, size, interpolation) for mask in masks]
    return np.stack([empty if one is None else one for one in done])


def check_alignment(silhouettes: np.ndarray) -> str:
    """A note if normalised silhouettes uint8 [T s s] are not aligned, "" if they are.

    An aligned person fills the rows and stands in the middle, because the loader cuts
    11/16 of the columns out. Raises Damaged if most of the frames would lose most of
    their pixels. No frame may be empty.
    """
    size = silhouettes.shape[1]
    cut = slice(5 * size // 32, size - 5 * size // 32)
    place = (
        f"outside the central {cut.stop - cut.start} columns, which the loader keeps"
    )
    rows = np.asarray(silhouettes.any(2))  # [T s]
    span = size - rows.argmax(1) - rows[:, ::-1].argmax(1)  # [T]
    whole, kept = (
        s.sum((1, 2), np.int64) for s in (silhouettes, silhouettes[..., cut])
    )
    lost = 1 - kept / whole  # [T]
    mostly = (lost > 0.5).mean()
    if mostly > 0.5:
        raise Damaged(
            f"silhouettes are not aligned: in {mostly:.0%} of the frames over half of "
            f"the pixels lie {place}; normalise them (docs/datasets.md)"
        )
    odd = ((span < 7 * size / 8) | (lost > 0.25)).mean()
    if odd <= 0.1:
        return ""
    return (
        f"silhouettes are not aligned: in {odd:.0%} of the frames the person spans "
        f"under 7/8 of the height, or over 1/4 of its pixels lie {place}"
    )


def background_of(frames: np.ndarray, *, tolerance: float = 30.0) -> np.ndarray:
    """The empty scene, uint8 [H W 3], from frames [N H W 3] of a still camera.

    People move, but the empty scene looks the same each time. The frame that resembles
    the most others (no pixel of 48 x 27 miniatures differs by more than `tolerance`) is
    taken to be empty, and the background is the median of the frames that resemble it.
    If there are fewer than three, because someone is always in view, it is the median
    of all frames, which is right where a pixel shows the background in over half of
    them.
    """
    size = (48, 27)
    small = [cv2.resize(f, size, interpolation=cv2.INTER_AREA) for f in frames]
    small = np.stack(small).astype(np.int16)  # [N 27 48 3]
    alike = [np.abs(small - one).max((1, 2, 3)) <= tolerance for one in small]
    chosen = max(alike, key=np.count_nonzero)
    if np.count_nonzero(chosen) >= 3:
        frames = frames[chosen]
    return np.median(frames, axis=0).astype(np.uint8)


def foreground_masks(
    frames: np.ndarray, background: np.ndarray, *, threshold: float = 30.0
) -> np.ndarray:
    """Background subtraction: uint8 0/255 [T H W] of frames [T H W 3].

    A pixel is foreground if a channel differs from `background` by more than
    `threshold`, after a light blur; an opening and a closing, sized in proportion to
    the image, remove specks and fill holes. Nothing but the threshold removes shadows.
    """
    size = max(3, round(background.shape[0] / 80) | 1)
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (size, size))
    wide = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * size + 1, 2 * size + 1))
    reference = cv2.GaussianBlur(background, (5, 5), 0)
    masks = []
    for frame in frames:
        difference = cv2.absdiff(cv2.GaussianBlur(frame, (5, 5), 0), reference)
        mask = np.where(difference.max(-1) > threshold, 255, 0).astype(np.uint8)
        mask = cv2.morphologyEx(mask, cv2.MORPH_OPEN, disc)
        masks.append(cv2.morphologyEx(mask, cv2.MORPH_CLOSE, wide))
    return np.stack(masks)


def people_in(
    mask: np.ndarray, *, min_height: float = 0.25
) -> list[tuple[tuple[int, int, int, int], np.ndarray]]:
    """(box, mask of that person alone) of each person, largest first.

    A person is a connected region that is higher than wide and at least `min_height`
    (share of the image's height) high.
    """
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask)
    found = []
    for label in range(1, count):
        left, top, width, height, area = stats[label]
        if height >= min_height * mask.shape[0] and height > width:
            box = (int(left), int(top), int(left + width), int(top + height))
            person = np.where(labels == label, 255, 0).astype(np.uint8)
            found.append((int(area), box, person))
    found.sort(key=lambda item: -item[0])
    return [(box, person) for _, box, person in found]
