"""Reads sequences from folders of image files: silhouettes, or frames with masks.

Frames and masks are read from separate folders. CCPG's own preprocessing script reads
both from one folder and so writes silhouettes as "RGB".
"""

import cv2
import numpy as np
from etils import epath

from tfds_builders import poses
from tfds_builders.archives import Outcome, Sequence, files_in, unreadable
from tfds_builders.damage import Damaged, naming, read_file
from tfds_builders.features import make_record
from tfds_builders.frames import (
    check_alignment,
    decode_jpeg,
    encode_jpeg,
    fit_crop,
    mask_box,
    normalise_parsing,
    normalise_silhouette,
)
from tfds_builders.image_header import check_size

MAX_IMAGE = 64 << 20  # bytes of an image file
ASPECT_TOLERANCE = 0.05  # relative difference between the aspects of mask and image


def read_silhouettes(
    sequence: Sequence,
    *,
    height: int,
    silhouette_size: int,
    joints: poses.Joints = poses.COCO_ONLY,
    interpolation: int = cv2.INTER_CUBIC,
    as_shipped: bool = False,
) -> Outcome:
    """The record of a folder of silhouette images, files["silhouettes"].

    Almost empty frames are dropped and counted. as_shipped: the images are normalised
    already (GREW); they must be squares of `silhouette_size`, stay as they are, and
    only those without any pixel are dropped. Key points and parsing, in folders of
    files[role], are paired by the files' names before frames are dropped.
    """
    try:
        kept, ratios, stems = [], [], []
        files = files_in(epath.Path(sequence.files["silhouettes"]))
        for file in files:
            mask = read_grey(file)
            if as_shipped and mask.shape != (silhouette_size, silhouette_size):
                what = (
                    f"{mask.shape[0]}x{mask.shape[1]} pixels, expected "
                    f"{silhouette_size}x{silhouette_size}"
                )
                raise Damaged(what, "ragged", file.name)
            if as_shipped:
                normal = mask if mask.any() else None
            else:
                normal = normalise_silhouette(mask, silhouette_size, interpolation)
            if normal is not None:
                kept.append(normal)
                ratios.append(_ratio(mask))
                stems.append(_stem(file))
        silhouettes = np.stack(kept) if kept else None
        more, lost, counts = _paired(sequence, files, stems, joints, silhouette_size)
        read = outcome(
            sequence,
            {"empty": len(files) - len(kept)},
            height,
            silhouette_size,
            ratios=np.array(ratios),
            silhouettes=silhouettes,
            **more,
        )
        read = read._replace(lost=lost, unpaired=counts)
        if as_shipped and silhouettes is not None:
            read = read._replace(note=check_alignment(silhouettes))
        return read
    except (ValueError, OSError, cv2.error) as error:
        return unreadable(sequence, error)


def read_frames(
    sequence: Sequence,
    *,
    height: int,
    silhouette_size: int,
    joints: poses.Joints = poses.COCO_ONLY,
    interpolation: int = cv2.INTER_CUBIC,
) -> Outcome:
    """The record of detections, files["frames"], with masks, files["silhouettes"].

    An image and its mask have the same file name. Files without a partner and frames
    with an almost empty mask are dropped and counted. The crop is the whole image,
    scaled to `height` keeping its aspect and padded; so is the mask.
    """
    try:
        images, masks = (
            {f.name.rpartition(".")[0]: f for f in files_in(epath.Path(folder))}
            for folder in (sequence.files["frames"], sequence.files["silhouettes"])
        )
        both = [name for name in images if name in masks]
        if not both and images and masks:
            raise Damaged(
                f"no image has the name of a silhouette ({next(iter(images))}, "
                f"{next(iter(masks))})"
            )
        crops, silhouettes, stems = [], [], []
        for name in both:
            image = decode(images[name], decode_jpeg)
            mask = _registered(read_grey(masks[name]), image, name)
            normal = normalise_silhouette(mask, silhouette_size, interpolation)
            if normal is None:
                continue
            box = (0, 0, image.shape[1], image.shape[0])
            crops.append(fit_crop(image, mask, box, height=height))
            silhouettes.append(normal)
            stems.append(name)
        unpaired = len(set(images) ^ set(masks))
        files = [masks[name] for name in both]
        more, lost, counts = _paired(sequence, files, stems, joints, silhouette_size)
        read = outcome(
            sequence,
            {"empty": len(both) - len(crops), "without a partner": unpaired},
            height,
            silhouette_size,
            ratios=np.array([crop.ratio for crop in crops]),
            frames=[encode_jpeg(crop.image) for crop in crops],
            masks=np.stack([crop.mask for crop in crops]) if crops else None,
            silhouettes=np.stack(silhouettes) if silhouettes else None,
            **more,
        )
        return read._replace(lost=lost, unpaired=counts)
    except (ValueError, OSError, cv2.error) as error:
        return unreadable(sequence, error)


def _stem(file: epath.Path) -> str:
    return file.name.rpartition(".")[0]


def _paired(
    sequence: Sequence, files, stems: list[str], joints: poses.Joints, size: int
):
    """Key points and parsing of the frames `stems`, and what did not fit.

    files: of all silhouettes, kept or not. Returns modalities, reasons of lost ones,
    and counts of frames.
    """
    modalities, lost, counts = {}, {}, {}
    named = {_stem(file): file for file in files}
    if "keypoints" in sequence.files and stems:
        found = poses.of_frames(
            epath.Path(sequence.files["keypoints"]), stems, list(named), joints,
            lambda stem: read_grey(named[stem]),
        )  # fmt: skip
        counts |= found.counts
        if found.keypoints is None:
            lost["keypoints"] = found.lost
        else:
            modalities["keypoints"] = found.keypoints
    if "parsing" in sequence.files and stems:
        folder = epath.Path(sequence.files["parsing"])
        try:
            modalities["parsing"], found = _parsing(folder, stems, set(named), size)
            counts |= found
        except Damaged as error:
            lost["parsing"] = str(error)
    return modalities, lost, counts


def _parsing(folder: epath.Path, stems: list[str], everything: set[str], size: int):
    """Class numbers [T size size] of the frames `stems`, and counts of what is absent.

    A frame without any gets zeros. Raises Damaged if over half of them have none.
    """
    maps = {_stem(file): file for file in files_in(folder)}
    rows = [
        normalise_parsing(read_grey(maps[stem]), size) if stem in maps else None
        for stem in stems
    ]
    without = sum(row is None for row in rows)
    if 2 * without > len(rows):
        raise Damaged(f"parsing of {len(rows) - without} of {len(rows)} frames only")
    blank = np.zeros((size, size), np.uint8)
    counts = {
        "without parsing": without,
        "of parsing without a silhouette": len(maps.keys() - everything),
    }
    labels = np.stack([blank if row is None else row for row in rows])
    return labels, {what: number for what, number in counts.items() if number}


def outcome(
    sequence: Sequence,
    dropped: dict[str, int],
    height: int,
    silhouette_size: int,
    **modalities,
) -> Outcome:
    """The Outcome of frames from which `dropped` (reason -> number) are left out."""
    count, dropped = len(modalities["ratios"]), {k: n for k, n in dropped.items() if n}
    if count == 0:
        found = sum(dropped.values())
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
    return Outcome(sequence, record, "", count, dropped)


def read_grey(file: epath.Path) -> np.ndarray:
    """An image file -> uint8 [H W]."""
    return decode(
        file,
        lambda data: cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE),
    )


def decode(file: epath.Path, decoder) -> np.ndarray:
    """decoder(bytes of the file); raises Damaged."""
    with naming(file):
        data = read_file(file, MAX_IMAGE)
        check_size(data)
        try:
            image = decoder(data)
        except (ValueError, cv2.error):
            image = None
        if image is None:
            raise Damaged("not a readable image")
    return image


def _registered(mask: np.ndarray, image: np.ndarray, name: str) -> np.ndarray:
    """The mask scaled to its image; raises Damaged if their aspects differ."""
    if mask.shape == image.shape[:2]:
        return mask
    aspects = [x.shape[1] / x.shape[0] for x in (mask, image)]
    if abs(aspects[0] / aspects[1] - 1) > ASPECT_TOLERANCE:
        raise Damaged(
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
