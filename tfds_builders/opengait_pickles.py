"""Reads sequences preprocessed for OpenGait: pickled arrays, id/type/view/*.pkl."""

import functools
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import cv2
import numpy as np
from etils import epath

from tfds_builders import poses
from tfds_builders.archives import (
    Outcome,
    Sequence,
    files_in,
    found_at,
    unreadable,
    walk,
)
from tfds_builders.damage import Damaged, naming, read_file
from tfds_builders.features import pack_points
from tfds_builders.frames import (
    check_alignment,
    encode_jpeg,
    fit_frame,
    mask_box,
    normalise_silhouettes,
)
from tfds_builders.image_folders import outcome
from tfds_builders.image_header import MAX_ASPECT
from tfds_builders.safe_pickle import MAX_BYTES, load_array, load_arrays

# role of a file -> pattern of its name without ".pkl"; VIEW.pkl has silhouettes
ROLES = {
    "silhouettes": r"-aligned-sils$",
    "padded_frames": r"-aligned-rgbs$",
    "frames": r"-rgbs$",
    "masks": r"-sils$",
    "ratios": r"-ratios$",
}
# the four files of a sequence that was preprocessed with RGB
REQUIRED = ("ratios", "frames|padded_frames", "masks", "silhouettes")
# Pickles of key points and parsing have folders of their own beside the silhouettes':
# DIR/keypoints/ID/TYPE/VIEW/*.pkl
TREES = ("keypoints", "parsing")
MAX_DISTANCE = 1000.0  # of a point of a LiDAR, metres
MAX_CLASS = 63  # of parsing


def find(
    root: epath.Path,
    split_of: Callable[[str], str | None],
    roles: Mapping[str, str] = ROLES,
    by_walk: bool = False,
) -> Iterator[Sequence]:
    """Sequences id/type/view/*.pkl. roles: role of a file -> pattern of its name.

    by_walk: how a sequence is looked up in TREES, see `poses.place_beside`.
    """
    trees = {role: root / role for role in TREES if (root / role).is_dir()}
    for names in walk(root, 3):
        if names and names[0] in trees:
            continue
        files, view = {}, names[-1] if names else ""
        for role, tree in trees.items() if len(names) == 3 else ():
            place = poses.place_beside(tree, *names, by_walk=by_walk)
            for file in files_in(place, (".pkl",))[:1] if place else ():
                files[role] = str(file)
        for file in files_in(root / "/".join(names), (".pkl",)):
            stem = file.name.removesuffix(".pkl")
            matches = [role for role, name in roles.items() if re.search(name, stem)]
            if stem == view:
                matches = ["silhouettes"]
            for role in matches[:1]:
                files.setdefault(role, str(file))
        yield found_at(names, split_of, files)


def read(
    sequence: Sequence,
    *,
    height: int,
    silhouette_size: int,
    joints: poses.Joints = poses.COCO_ONLY,
    interpolation: int = cv2.INTER_CUBIC,
    optional: tuple[str, ...] = TREES,
    class_step: int = 1,
) -> Outcome:
    """The record of one sequence's pickles.

    Roles in `files`:
    "silhouettes" [T s s], normalised; if cut to 11/16 of the width, padded back.
    "padded_frames" [T 3 2w w].
    "frames" [T 3 h h] or [T h h 3], "masks" [T h h]: crops squeezed into squares, which
    "ratios", [T] = W / H or [T 2] = (H, W), stretch back.
    "masks_or_silhouettes": masks if they are as large as the frames.
    "keypoints" [T V 3] or with numbers in front (`poses.keypoints_of`), in the
    coordinates of their file.
    "parsing" [T s s], class numbers times class_step, aligned like silhouettes.
    "points": a list of point clouds [N 3], as many as there were scans.

    optional: roles; if such a file is damaged, the sequence is kept with a note. Frames
    whose silhouette is empty are dropped from all modalities and counted.
    """
    if not sequence.files:
        return Outcome(sequence, None, "empty: no pickle of a known name")
    try:
        convert = {
            "keypoints": functools.partial(poses.keypoints_of, joints=joints),
            "parsing": functools.partial(
                _classes, step=class_step, size=silhouette_size
            ),
        }
        arrays, lost = _load(sequence.files, optional, convert)
        points = arrays.pop("points", None)
        lengths = {role: len(array) for role, array in arrays.items()}
        if len(set(lengths.values())) != 1:
            raise Damaged(f"arrays differ in length: {lengths}", "ragged")
        if not next(iter(lengths.values())):
            return Outcome(sequence, None, "empty: arrays of no frames")
        modalities = _modalities(arrays, height, silhouette_size, interpolation)
        modalities |= {name: arrays[name] for name in TREES if name in arrays}
        count = len(modalities["ratios"])
        modalities = _with_a_person(modalities)
        dropped = {"empty": count - len(modalities["ratios"])}
        if points is not None and len(modalities["ratios"]):
            modalities["points"] = [pack_points(cloud) for cloud in points]
        made = outcome(sequence, dropped, height, silhouette_size, **modalities)
        note = _doubts(arrays, modalities) if made.record else ""
        return made._replace(lost=lost, note=note)
    except (ValueError, OSError, cv2.error) as error:
        return unreadable(sequence, error)


def _load(
    files: Mapping[str, str], optional, convert: Mapping[str, Callable]
) -> tuple[dict[str, Any], dict[str, str]]:
    """role -> array, and optional role -> why it is unusable."""
    arrays, lost = {}, {}
    for role, path in sorted(files.items(), key=lambda item: item[0] in optional):
        file = epath.Path(path)
        try:
            with naming(file):
                data = read_file(file, MAX_BYTES)
                if role == "points":
                    arrays[role] = _clouds(data)
                    continue
                array = load_array(data)
                array = convert.get(role, np.asarray)(array)
                if not np.isfinite(array).all():
                    raise Damaged("values that are not finite")
                if role in optional:
                    _check_optional(array, _length(arrays))
            arrays[role] = array
        except Damaged as error:
            if role not in optional or error.kind == "refused":
                raise
            lost[role] = str(error)
    if not arrays:
        raise Damaged("no usable array")
    sizes = {role: x.shape[1:] for role, x in arrays.items() if role != "points"}
    if "masks_or_silhouettes" in arrays:
        masks = {sizes.get("frames", ())[:2], sizes.get("frames", ())[1:]}
        role = "masks" if sizes["masks_or_silhouettes"] in masks else "silhouettes"
        arrays[role] = arrays.pop("masks_or_silhouettes")
    return arrays, lost


def _clouds(data: bytes) -> list[np.ndarray]:
    """The point clouds [N 3] of a pickled list; scans may be empty."""
    clouds = load_arrays(data)
    for number, cloud in enumerate(clouds):
        if cloud.ndim != 2 or cloud.shape[1] != 3:
            raise Damaged(f"scan {number} is {cloud.shape}, expected (N, 3)")
        if not (np.abs(cloud) <= MAX_DISTANCE).all():  # nor not a number
            raise Damaged(f"points of scan {number} beyond {MAX_DISTANCE:.0f} m")
    return clouds


def _classes(array: np.ndarray, step: int, size: int) -> np.ndarray:
    """Class numbers uint8 [T size size]; the values of `array` are step times these."""
    if array.ndim != 3:
        raise Damaged(f"shape {array.shape}, expected (T, {size}, {size})")
    classes = np.round(array / step)
    if not (classes >= 0).all() or not (classes <= MAX_CLASS).all():
        raise Damaged(f"parsing with classes outside 0..{MAX_CLASS}")
    return _square(classes.astype(np.uint8), size)


def _check_optional(array: np.ndarray, length: int):
    if array.ndim != 3:
        raise Damaged(f"shape {array.shape}, expected (T, H, W)")
    if len(array) != length:
        raise Damaged(f"{len(array)} frames, but the sequence has {length}", "ragged")


def _doubts(arrays: Mapping[str, np.ndarray], modalities: dict) -> str:
    """A note on silhouettes that are not aligned and on exchanged height and width."""
    doubts = []
    if "silhouettes" in arrays:
        doubts.append(check_alignment(modalities["silhouettes"]))
    ratio = np.median(modalities["ratios"])
    if "ratios" in arrays and ratio > 1:
        doubts.append(
            f"crops are wider than high (median ratio {ratio:.2f}): ratios are width / "
            "height, sizes are (height, width)"
        )
    return "; ".join(filter(None, doubts))


def _length(arrays: Mapping[str, np.ndarray]) -> int:
    """T of the required arrays, which are read first."""
    return len(arrays.get("ratios", next(iter(arrays.values()), ())))


def _modalities(arrays, height, silhouette_size, interpolation) -> dict:
    ratios = _ratios(arrays["ratios"]) if "ratios" in arrays else None
    made = {}
    if "padded_frames" in arrays:
        frames = _channels_last(arrays["padded_frames"])
        if frames.shape[1:3] != (height, height // 2):
            raise Damaged(
                f"frames are {frames.shape[1]}x{frames.shape[2]}, expected "
                f"{height}x{height // 2}"
            )
        made["frames"] = [encode_jpeg(frame) for frame in frames]
    squeezed = [r for r in ("frames", "masks") if r in arrays and r not in made]
    if squeezed and ratios is None:
        raise Damaged(f"{squeezed[0]} without ratios cannot be stretched back")
    if "frames" in squeezed and ratios is not None:
        frames = _channels_last(arrays["frames"])
        made["frames"] = [
            encode_jpeg(fit_frame(frame, ratio, height))
            for frame, ratio in zip(frames, ratios)
        ]
    if "masks" in squeezed and ratios is not None:
        masks = _bytes(arrays["masks"], 3)
        made["masks"] = np.stack(
            [_fit_mask(mask, ratio, height) for mask, ratio in zip(masks, ratios)]
        )
    if "silhouettes" in arrays:
        silhouettes = _bytes(arrays["silhouettes"], 3)
        made["silhouettes"] = _square(silhouettes, silhouette_size)
    elif "masks" in made:
        made["silhouettes"] = normalise_silhouettes(
            made["masks"], silhouette_size, interpolation
        )
    if not made.keys() & {"silhouettes", "frames", "masks"}:
        raise Damaged(f"none of silhouettes, frames, masks: {sorted(arrays)}")
    if ratios is None:  # nothing is squeezed: measure the silhouettes
        if "silhouettes" not in made:
            raise Damaged("frames without ratios")
        boxes = [mask_box(s) or (0, 0, 1, 1) for s in made["silhouettes"]]
        ratios = [(right - left) / (low - top) for left, top, right, low in boxes]
    return {"ratios": np.asarray(ratios, np.float32), **made}


def _with_a_person(modalities: dict) -> dict:
    """Drops the frames whose silhouette has no pixel from all modalities."""
    if "silhouettes" not in modalities:
        return modalities
    seen = modalities["silhouettes"].any((1, 2))  # [T]
    return {
        name: value[seen]
        if isinstance(value, np.ndarray)
        else [frame for frame, kept in zip(value, seen) if kept]
        for name, value in modalities.items()
    }


def _ratios(array: np.ndarray) -> np.ndarray:
    """Width / height [T] of stored ratios [T] or sizes [T 2] = (H, W)."""
    if array.ndim == 2 and array.shape[1] == 2:
        if (array <= 0).any() or array.min() < 1e-3 or array.max() > 1e5:
            raise Damaged("a crop of no height or width, or of over 100,000 pixels")
        array = array[:, 1] / array[:, 0]
    if array.ndim != 1 or not (array > 0).all():
        raise Damaged(f"ratios {array.shape} are not T positive numbers")
    if array.max() > MAX_ASPECT or array.min() < 1 / MAX_ASPECT:
        raise Damaged(
            f"ratios from {array.min():.3g} to {array.max():.3g}; of a person they are "
            f"between 1/{MAX_ASPECT} and {MAX_ASPECT}"
        )
    return array.astype(np.float64)


def _channels_last(array: np.ndarray) -> np.ndarray:
    """RGB uint8 [T H W 3] from frames with channels first or last."""
    array = _bytes(array, 4)
    if array.shape[1] == 3 and array.shape[3] != 3:
        array = np.moveaxis(array, 1, 3)  # [T H W 3]
    if array.shape[3] != 3:
        raise Damaged(f"frames {array.shape} have no three channels")
    return np.ascontiguousarray(array)


def _bytes(array: np.ndarray, ndim: int) -> np.ndarray:
    """uint8 0..255 from values 0..255, or 0..1 if none is above 1, of any dtype."""
    if array.ndim != ndim:
        raise Damaged(f"an array {array.shape}, expected {ndim} axes, time first")
    high, low = array.max(initial=0), array.min(initial=0)
    if high <= 1 and low >= 0 and array.dtype.kind != "f":
        return array.astype(np.uint8) * np.uint8(255)
    if high <= 1:
        array = np.round(array * 255.0)
    if not np.isfinite(array).all() or array.min() < 0 or array.max() > 255:
        raise Damaged("values outside 0..255")
    return array.astype(np.uint8)


def _fit_mask(mask: np.ndarray, ratio: float, height: int) -> np.ndarray:
    person = np.where(mask > 127, 255, 0).astype(np.uint8)
    return np.where(fit_frame(person, ratio, height) > 127, 255, 0).astype(np.uint8)


def _square(silhouettes: np.ndarray, size: int) -> np.ndarray:
    """Silhouettes [T size size]; cut ones get their empty margins back."""
    cut = 11 * size // 16
    if silhouettes.shape[1:] == (size, cut):
        margin = (size - cut) // 2
        return np.pad(silhouettes, ((0, 0), (0, 0), (margin, margin)))
    if silhouettes.shape[1:] != (size, size):
        raise Damaged(
            f"silhouettes are {silhouettes.shape[1]}x{silhouettes.shape[2]}, expected "
            f"{size}x{size} (or cut, {size}x{cut}); there are configs for 64 and 128"
        )
    return silhouettes
