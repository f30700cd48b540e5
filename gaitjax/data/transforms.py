"""Frame decoding and augmentation; one draw of parameters for a whole sequence.

Arrays are numpy, time first. Every augmentation treats all modalities of a sequence
alike, so frames, masks, silhouettes and heat maps stay registered.
"""

import zlib
from typing import NamedTuple

import numpy as np

from gaitjax.engine.guards import require

# width is axis 2
IMAGE_LIKE = ("frames", "masks", "silhouettes", "heatmaps", "regions", "parsing")
CHOICES = ("masks", "regions", "parsing")  # no value lies between two of theirs
MODALITIES = (*IMAGE_LIKE, "keypoints", "captions")
# COCO-17 with left and right exchanged
MIRRORED = (0, 2, 1, 4, 3, 6, 5, 8, 7, 10, 9, 12, 11, 14, 13, 16, 15)
# the same of AlphaPose's 18, and COCO's joints among them (the neck is left out)
MIRRORED_18 = (0, 1, 5, 6, 7, 2, 3, 4, 11, 12, 13, 8, 9, 10, 15, 14, 17, 16)
COCO_OF_18 = (0, 15, 14, 17, 16, 5, 2, 6, 3, 7, 4, 11, 8, 12, 9, 13, 10)
# How far the transforms go, as in OpenGait: shares of the width, degrees, shares of the
# height, shares of the area, height / width
PERSPECTIVE, ROTATION, SHIFT = 10 / 44, 10.0, 10 / 64
ERASED_AREA, ERASED_ASPECT = (0.05, 0.2), (0.3, 3.3)


def decode_frames(
    encoded: list[bytes], key: str, place: np.ndarray | None = None
) -> np.ndarray:
    """JPEG or PNG bytes of a sequence -> RGB uint8 [T H W 3], in `place` if it fits."""
    import cv2

    flags, name = cv2.IMREAD_COLOR_RGB, f"Sequence {key}: frame"
    return _decode_images(encoded, flags, name, place)


def decode_masks(
    encoded: list[bytes], key: str, place: np.ndarray | None = None
) -> np.ndarray:
    """Deflated PBM files of one sequence, white is the person -> uint8 [T H W], 0/1."""
    import cv2

    name = f"Sequence {key}: mask"
    try:
        files = [zlib.decompress(data) for data in encoded]
    except zlib.error as error:
        raise ValueError(f"{name}s cannot be inflated ({error}).") from error
    masks = _decode_images(files, cv2.IMREAD_GRAYSCALE, name, place)
    return np.floor_divide(masks, 255, out=masks)


def _decode_images(encoded: list[bytes], flags: int, name: str, place) -> np.ndarray:
    """Image files of equal size -> uint8 [T H W ...], in `place` if it is as large."""
    import cv2

    images = None
    for number, data in enumerate(encoded):
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
        require(image is not None, f"{name} {number} is not a decodable image.")
        if images is None:
            shape = (len(encoded), *image.shape)
            fits = place is not None and place.shape == shape
            images = place if fits else np.empty(shape, np.uint8)
        require(image.shape == images.shape[1:], f"{name}s differ in size.")
        images[number] = image
    return images


def cut_silhouettes(silhouettes: np.ndarray, key: str) -> np.ndarray:
    """Central 44 of 64 (88 of 128) columns: [T H H ...] -> [T H 11H/16 ...].

    Gait models read silhouettes cut so. Data that is already cut is refused.
    """
    height, width = silhouettes.shape[1:3]
    require(
        width == height and height % 16 == 0,
        f"Sequence {key}: silhouettes are {height}x{width}; expected square ones "
        "(64x64 or 128x128) as the builders store them. Already cut data must not be "
        "cut again.",
    )
    margin = 5 * height // 32
    return silhouettes[:, :, margin : width - margin]


def flip(
    arrays: dict[str, np.ndarray], frame_width: int | None = None
) -> dict[str, np.ndarray]:
    """Mirrors every modality of a sequence left to right; images in place.

    frame_width: of the frames whose pixels the key points are in; needed for keypoints
    only. Missing key points stay missing.
    """
    import cv2

    mirrored = dict(arrays)
    for name in arrays.keys() & set(IMAGE_LIKE):
        for image in arrays[name]:  # a tenth of the time of numpy's [:, :, ::-1]
            image[:] = cv2.flip(image, 1)
    if "keypoints" in arrays:
        points = arrays["keypoints"]  # [T V 3]
        swap = MIRRORED if points.shape[1] == len(MIRRORED) else MIRRORED_18
        points = points[:, list(swap)]
        place = points.copy()
        place[..., 0] = frame_width - 1 - place[..., 0]
        mirrored["keypoints"] = np.where(_missing(points), points, place)
    return mirrored


def _missing(points: np.ndarray) -> np.ndarray:
    """bool [T 17 1]: key points (0, 0, 0), the field's mark of one that was not found.

    A confidence of 0 alone does not count: renderers also place points outside the
    frame.
    """
    return (points == 0).all(-1, keepdims=True)


class Warp(NamedTuple):
    """One change of geometry, in units that fit images of every size.

    corners: columns of the source's top left, bottom left, top right and bottom right
    corner, as shares of the width from their own edge. degrees: rotation about the
    centre. shift: (x, y) as shares of the height.
    """

    corners: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    degrees: float = 0.0
    shift: tuple[float, float] = (0.0, 0.0)

    def matrix(self, height: int, width: int) -> np.ndarray:
        """float64 [3 3], maps points (x, y, 1) of an image of this size."""
        import cv2

        right, low = width - 1.0, height - 1.0
        a, b, c, d = (share * width for share in self.corners)
        source = np.array([[a, 0], [b, low], [right - c, 0], [right - d, low]])
        target = np.array([[0, 0], [0, low], [right, 0], [right, low]])
        matrix = cv2.getPerspectiveTransform(
            source.astype(np.float32), target.astype(np.float32)
        )
        turn = np.eye(3)
        turn[:2] = cv2.getRotationMatrix2D((right / 2, low / 2), self.degrees, 1.0)
        turn[:2, 2] += np.array(self.shift) * height
        return turn @ matrix


def draw_warp(
    rng: np.random.Generator, *, perspective: float, rotate: float, shift: float
) -> Warp | None:
    """A Warp whose parts are drawn with these probabilities; None: no change.

    Ranges are OpenGait's. Differs from OpenGait, which rotates about (h/2, w/2) where
    (x, y) is meant, and whose perspective needs a width of at least 44.
    """
    made = Warp()
    if perspective and rng.random() < perspective:
        a, b, c, d = rng.uniform(0, PERSPECTIVE, 4)
        made = made._replace(corners=(a, b, c, d))
    if rotate and rng.random() < rotate:
        made = made._replace(degrees=rng.uniform(-ROTATION, ROTATION))
    if shift and rng.random() < shift:
        x, y = rng.uniform(-SHIFT, SHIFT, 2)
        made = made._replace(shift=(x, y))
    return None if made == Warp() else made


def warp(
    arrays: dict[str, np.ndarray],
    change: Warp,
    frame_size: tuple[int, int] | None = None,
) -> dict[str, np.ndarray]:
    """Every modality under the same change; pixels from outside the image are 0.

    frame_size: (H, W) of the frames whose pixels the key points are in; needed for
    keypoints only. Masks stay 0/1, missing key points stay missing.
    """
    import cv2

    done = dict(arrays)
    for name in arrays.keys() & set(IMAGE_LIKE):
        height, width = arrays[name].shape[1:3]
        matrix = change.matrix(height, width)
        flags = cv2.INTER_NEAREST if name in CHOICES else cv2.INTER_LINEAR
        done[name] = np.stack(
            [
                cv2.warpPerspective(image, matrix, (width, height), flags=flags)
                for image in arrays[name]
            ]
        )
    if "keypoints" in arrays:
        points = arrays["keypoints"]
        matrix = change.matrix(*frame_size)
        ones = np.ones((*points.shape[:2], 1), points.dtype)
        moved = np.concatenate([points[..., :2], ones], -1) @ matrix.T  # [T 17 3]
        place = moved[..., :2] / moved[..., 2:]
        moved = np.concatenate([place, points[..., 2:]], -1).astype(points.dtype)
        done["keypoints"] = np.where(_missing(points), points, moved)
    return done


def erase(
    arrays: dict[str, np.ndarray], rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """Blackens one rectangle, the same share of every image in all frames.

    Its area is 5 to 20 % of the image, its height / width 0.3 to 3.3, both uniform
    (Zhong et al., "Random Erasing Data Augmentation", AAAI 2020; OpenGait's ranges), in
    pixels of the first of IMAGE_LIKE that is there: images of another shape have the
    same shares of their height and width. Sides are rounded to whole pixels.
    """
    names = [name for name in IMAGE_LIKE if name in arrays]
    if not names:
        return arrays
    height, width = arrays[names[0]].shape[1:3]
    while True:
        area, aspect = rng.uniform(*ERASED_AREA), rng.uniform(*ERASED_ASPECT)
        high = np.sqrt(area * aspect * width / height)  # share of the height
        wide = area / high
        if high < 1 and wide < 1:
            break
    top, left = rng.uniform(0, 1 - high), rng.uniform(0, 1 - wide)
    done = dict(arrays)
    for name in names:
        height, width = arrays[name].shape[1:3]
        row, column = int(top * height), int(left * width)
        rows = slice(row, row + round(high * height))
        columns = slice(column, column + round(wide * width))
        done[name] = arrays[name].copy()
        done[name][:, rows, columns] = 0
    return done


def recolour(frames: np.ndarray, strength: float, rng: np.random.Generator):
    """RGB uint8 [T H W 3] in other colours, the same ones in all frames.

    Each output channel is a random mix of the three (weights sum to 1), then gets a
    random gain and offset. strength 0 is the identity; at 1 hue, saturation and
    brightness say little about what somebody wears. Not in the papers: small training
    sets have too few outfits for a model to learn to ignore clothes.
    """
    mix = rng.dirichlet((1.0, 1.0, 1.0), 3)  # [3 3]
    mix = (1 - strength) * np.eye(3) + strength * mix
    gain = np.exp(strength * rng.uniform(-0.5, 0.5, 3))
    offset = 64 * strength * rng.uniform(-1, 1, 3)
    mixed = frames @ (mix * gain[:, None]).T.astype(np.float32) + offset
    return np.clip(mixed, 0, 255).astype(np.uint8)  # [T H W 3]


def augment(
    arrays: dict[str, np.ndarray],
    *,
    rng: np.random.Generator,
    flip_probability: float = 0.0,
    colour_strength: float = 0.0,
    perspective: float = 0.0,
    rotate: float = 0.0,
    shift: float = 0.0,
    erasing: float = 0.0,
    frame_size: tuple[int, int] | None = None,
) -> dict[str, np.ndarray]:
    """Training augmentation of one sequence; draws from `rng` in a fixed order.

    The arrays may be changed in place (by the flip). perspective, rotate, shift,
    erasing: probabilities for the whole sequence. An augmentation that is off draws
    nothing, so switching it on leaves the draws before it as they were. frame_size:
    (H, W) of the frames whose pixels key points are in.
    """
    if rng.random() < flip_probability:
        arrays = flip(arrays, frame_size[1] if frame_size else None)
    if colour_strength and "frames" in arrays:
        frames = recolour(arrays["frames"], colour_strength, rng)
        arrays = arrays | {"frames": frames}
    change = draw_warp(rng, perspective=perspective, rotate=rotate, shift=shift)
    if change is not None:
        arrays = warp(arrays, change, frame_size)
    if erasing and rng.random() < erasing:
        arrays = erase(arrays, rng)
    return arrays
