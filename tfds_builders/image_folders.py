"""Reads sequences from folders of image files: silhouettes, or frames with masks.

Frames and masks are read from separate folders. CCPG's own preprocessing script reads
both from one folder and so writes silhouettes as "RGB".
"""

import cv2
import numpy as np
from etils import epath

from tfds_builders.archives import Outcome, Sequence, files_in, unreadable
from tfds_builders.features import make_record
from tfds_builders.frames import (
    decode_jpeg,
    encode_jpeg,
    fit_crop,
    mask_box,
    normalise_silhouette,
)

ASPECT_TOLERANCE = 0.05  # relative difference between the aspects of mask and image


def read_silhouettes(
    sequence: Sequence,
    *,
    height: int,
    silhouette_size: int,
    interpolation: int = cv2.INTER_CUBIC,
    as_shipped: bool = False,
) -> Outcome:
    """The record of a folder of silhouette images, files["silhouettes"].

    Almost empty frames are dropped and counted. as_shipped: the images are normalised
    already (GREW); they must be squares of `silhouette_size`, stay as they are, and
    only those without any pixel are dropped.
    """
    try:
        kept, ratios = [], []
        files = files_in(epath.Path(sequence.files["silhouettes"]))
        for file in files:
            mask = read_grey(file)
            if as_shipped and mask.shape != (silhouette_size, silhouette_size):
                raise ValueError(
                    f"ragged: {file.name} is {mask.shape[0]}x{mask.shape[1]}, "
                    f"expected {silhouette_size}x{silhouette_size}"
                )
            if as_shipped:
                normal = mask if mask.any() else None
            else:
                normal = normalise_silhouette(mask, silhouette_size, interpolation)
            if normal is not None:
                kept.append(normal)
                ratios.append(_ratio(mask))
        return outcome(
            sequence,
            len(files),
            height,
            silhouette_size,
            ratios=np.array(ratios),
            silhouettes=np.stack(kept) if kept else None,
        )
    except (ValueError, OSError, cv2.error) as error:
        return unreadable(sequence, error)


def read_frames(
    sequence: Sequence,
    *,
    height: int,
    silhouette_size: int,
    interpolation: int = cv2.INTER_CUBIC,
) -> Outcome:
    """The record of detections, files["frames"], with masks, files["silhouettes"].

    An image and its mask have the same file name. A file that is in one folder only,
    and a frame with an almost empty mask, are dropped and counted. The crop is the
    whole image, scaled to `height` keeping its aspect and padded; so is the mask.
    """
    try:
        images, masks = (
            {f.name.rpartition(".")[0]: f for f in files_in(epath.Path(folder))}
            for folder in (sequence.files["frames"], sequence.files["silhouettes"])
        )
        both = [name for name in images if name in masks]
        if not both and images and masks:
            raise ValueError(
                f"no image has the name of a silhouette ({next(iter(images))}, "
                f"{next(iter(masks))})"
            )
        crops, silhouettes = [], []
        for name in both:
            image = decode(images[name], decode_jpeg)
            mask = _registered(read_grey(masks[name]), image, name)
            normal = normalise_silhouette(mask, silhouette_size, interpolation)
            if normal is None:
                continue
            box = (0, 0, image.shape[1], image.shape[0])
            crops.append(fit_crop(image, mask, box, height=height))
            silhouettes.append(normal)
        return outcome(
            sequence,
            len(set(images) | set(masks)),
            height,
            silhouette_size,
            ratios=np.array([crop.ratio for crop in crops]),
            frames=[encode_jpeg(crop.image) for crop in crops],
            masks=np.stack([crop.mask for crop in crops]) if crops else None,
            silhouettes=np.stack(silhouettes) if silhouettes else None,
        )
    except (ValueError, OSError, cv2.error) as error:
        return unreadable(sequence, error)


def outcome(
    sequence: Sequence, found: int, height: int, silhouette_size: int, **modalities
) -> Outcome:
    """The Outcome of `found` frames, after some were dropped from `modalities`."""
    count = len(modalities["ratios"])
    if count == 0:
        problem = f"empty: {found} frames, none with a person and all its files"
        return Outcome(sequence, None, problem)
    _, record = make_record(
        sequence.subject,
        sequence.condition,
        sequence.view,
        height=height,
        width=height // 2,
        silhouette_size=silhouette_size,
        **modalities,
    )
    return Outcome(sequence, record, "", count, found - count)


def read_grey(file: epath.Path) -> np.ndarray:
    """An image file -> uint8 [H W]."""
    return decode(
        file,
        lambda data: cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE),
    )


def decode(file: epath.Path, decoder) -> np.ndarray:
    """decoder(bytes of the file); raises a ValueError that names the file."""
    try:
        data = file.read_bytes()
        image = decoder(data) if data else None
    except (ValueError, cv2.error) as error:
        raise ValueError(f"{file.name} is not a readable image") from error
    if image is None:
        raise ValueError(f"{file.name} is not a readable image")
    return image


def _registered(mask: np.ndarray, image: np.ndarray, name: str) -> np.ndarray:
    """The mask scaled to its image; raises ValueError if their aspects differ."""
    if mask.shape == image.shape[:2]:
        return mask
    aspects = [x.shape[1] / x.shape[0] for x in (mask, image)]
    if abs(aspects[0] / aspects[1] - 1) > ASPECT_TOLERANCE:
        raise ValueError(
            f"silhouette {name} is {mask.shape[0]}x{mask.shape[1]} but its image "
            f"{image.shape[0]}x{image.shape[1]}: not the same crop"
        )
    size = (image.shape[1], image.shape[0])
    return cv2.resize(mask, size, interpolation=cv2.INTER_NEAREST)


def _ratio(mask: np.ndarray) -> float:
    """Width / height of the person's bounding box."""
    box = mask_box(mask)
    assert box is not None  # empty masks were dropped
    left, top, right, bottom = box
    return (right - left) / (bottom - top)
