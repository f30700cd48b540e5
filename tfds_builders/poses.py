"""Reads key points and pairs them with the frames of a sequence.

Key points are float32 [T V 3]: x and y in pixels of their own image, confidence;
(0, 0, 0) where a joint was not found. V = 17 are COCO's joints (GREW, Gait3D, CCGR,
SUSTech1K), V = 18 AlphaPose's in OpenPose's order (OU-MVLP; CCPG has either).
"""

import json
import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from etils import epath

from tfds_builders.archives import files_in
from tfds_builders.damage import Damaged, naming, read_file, read_text
from tfds_builders.safe_pickle import MAX_BYTES, load_array

COCO, ALPHAPOSE = 17, 18
# COCO's joints among AlphaPose's 18; the neck is left out
FROM_ALPHAPOSE = (0, 15, 14, 17, 16, 5, 2, 6, 3, 7, 4, 11, 8, 12, 9, 13, 10)
# numbers in front of the joints: none, the image's two sides, a box with its confidence
LEADS = (0, 2, 5)
MAX_COORDINATE = 1_000_000  # pixels
TEXTS = ("_2d_pose.txt", ".txt")  # of GREW and of Gait3D; GREW's 3-D files are not read
SUFFIXES = (".txt", ".json", ".pkl")


class Joints(NamedTuple):
    """wanted: joints that records have. known: what the data set's files may have."""

    wanted: int = COCO
    known: tuple[int, ...] = (COCO,)


COCO_ONLY = Joints()


class Paired(NamedTuple):
    """Key points [T V 3] of the frames, or the reason why they are lost.

    counts: what did not fit together -> frames.
    """

    keypoints: np.ndarray | None = None
    counts: dict[str, int] = {}
    lost: str = ""


def keypoints_of(array: np.ndarray, joints: Joints) -> np.ndarray:
    """float32 [T wanted 3] of key points as they are distributed; raises Damaged.

    array: [T V 3], or [T lead + 3 V] with the numbers of LEADS in front. AlphaPose's
    joints become COCO's where 17 are wanted.
    """
    if array.ndim == 2:
        for count in joints.known:
            if array.shape[1] - 3 * count in LEADS:
                array = array[:, array.shape[1] - 3 * count :].reshape(-1, count, 3)
                break
    if array.ndim != 3 or array.shape[1:] not in [(count, 3) for count in joints.known]:
        expected = " or ".join(f"(T, {count}, 3)" for count in joints.known)
        raise Damaged(f"shape {array.shape}, expected {expected}")
    if not np.isfinite(array).all():
        raise Damaged("values that are not finite")
    if np.abs(array).max(initial=0) > MAX_COORDINATE:
        raise Damaged(f"key points beyond {MAX_COORDINATE:,} pixels")
    if array.shape[1] == COCO and joints.wanted == ALPHAPOSE:
        raise Damaged(
            "17 joints, expected AlphaPose's 18: build the data set's config without "
            '"joints_18"'
        )
    if array.shape[1] == ALPHAPOSE and joints.wanted == COCO:
        array = array[:, FROM_ALPHAPOSE]
    return array.astype(np.float32)


def read_pickle(file: epath.Path, joints: Joints) -> np.ndarray:
    """The key points [T wanted 3] of a pickle; raises Damaged."""
    with naming(file):
        return keypoints_of(load_array(read_file(file, MAX_BYTES)), joints)


def read_numbers(file: epath.Path, joints: Joints) -> np.ndarray:
    """The key points [wanted 3] of a text file: one line of numbers, commas between."""
    with naming(file):
        words = read_text(file).replace(",", " ").split()
        try:
            row = np.array([float(word) for word in words])[None]
        except ValueError as error:
            raise Damaged(f"no line of numbers ({error})") from error
        return keypoints_of(row, joints)[0]


def read_people(file: epath.Path) -> np.ndarray:
    """The people [P 18 3] of a frame in OpenPose's JSON; P may be 0."""
    with naming(file):
        try:
            content = json.loads(read_text(file))
            rows = [person["pose_keypoints_2d"] for person in content["people"]]
            people = np.array(rows, np.float64).reshape(len(rows), 3 * ALPHAPOSE)
        except (ValueError, RecursionError, KeyError, TypeError) as error:
            raise Damaged(f"no JSON of people with key points ({error})") from error
        return keypoints_of(people, Joints(ALPHAPOSE, (ALPHAPOSE,)))


def the_walker(people: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
    """The key points [V 3] of the person that the silhouette shows, of people [P V 3].

    That is the one at whose joints the grey values of mask uint8 [H W], in the key
    points' own pixels, have the largest sum. Somebody with a joint outside the image
    cannot be it. Without a mask, or with nobody inside, it is the first.
    """
    if mask is None or len(people) == 1:
        return people[0]
    columns, rows = people[..., 0].astype(int), people[..., 1].astype(int)  # [P V]
    height, width = mask.shape
    inside = (columns >= 0) & (columns < width) & (rows >= 0) & (rows < height)
    values = mask[rows.clip(0, height - 1), columns.clip(0, width - 1)]
    score = np.where(inside.all(axis=1), values.sum(axis=1, dtype=np.int64), -1)
    return people[score.argmax()]


def stem_of(name: str) -> str:
    """What a pose file's name has in common with that of its silhouette.

    "00012_2d_pose.txt" -> "00012"; "human_crop_f9.txt" -> "human_crop_f9";
    "0021_keypoint.json" -> "0021", and the number at the end of names with "-".
    """
    if name.endswith(".json"):
        name = name.removesuffix(".json")
        number = re.match(r"(\d{4})(?!\d)", name) or re.search(r"(\d{1,9})\D*$", name)
        return f"{int(number[1]):04d}" if number else name
    for suffix in TEXTS:
        if name.endswith(suffix):
            return name.removesuffix(suffix)
    return name.rpartition(".")[0]


def files_of(folder: epath.Path) -> dict[str, epath.Path]:
    """stem -> pose file of a folder, which may hold the silhouettes as well."""
    named = [f for f in files_in(folder, SUFFIXES) if "_3d_pose" not in f.name]
    return {stem_of(file.name): file for file in named}


def of_frames(
    folder: epath.Path,
    kept: list[str],
    everything: list[str],
    joints: Joints,
    mask_of: Callable[[str], np.ndarray],
) -> Paired:
    """Key points of the frames `kept`, from a folder with a file per frame or a pickle.

    kept: stems of the frames that are stored, in their order. everything: stems of all
    frames, some of which were dropped. mask_of: stem -> silhouette, read only where
    several people are in a frame. A frame without key points gets zeros, the mark of
    joints that were not found, and is counted; over half of them lose the modality.
    """
    files = files_of(folder)
    pickles = [file for file in files.values() if file.name.endswith(".pkl")]
    if pickles:
        return _of_pickle(pickles[0], kept, everything, joints)
    found, damaged = {}, []
    for stem in kept:
        if stem not in files:
            continue
        try:
            points = _of_file(files[stem], stem, joints, mask_of)
        except Damaged as error:
            damaged.append(str(error))
            continue
        if points is not None:
            found[stem] = points
    if 2 * len(found) < len(kept) or not found:
        reason = damaged[0] if damaged else "no such file"
        some = f"key points of {len(found)} of {len(kept)} frames only: {reason}"
        return Paired(lost=some if found else reason)
    blank = np.zeros((joints.wanted, 3), np.float32)
    counts = {
        "without key points": len(kept) - len(found) - len(damaged),
        "with damaged key points": len(damaged),
        "of key points without a silhouette": len(files.keys() - set(everything)),
    }
    points = np.stack([found.get(stem, blank) for stem in kept])
    return Paired(points, {what: n for what, n in counts.items() if n})


def _of_file(file, stem: str, joints: Joints, mask_of) -> np.ndarray | None:
    if not file.name.endswith(".json"):
        return read_numbers(file, joints)
    people = read_people(file)
    if not len(people):
        return None
    mask = mask_of(stem) if len(people) > 1 else None
    return keypoints_of(the_walker(people, mask)[None], joints)[0]


def _of_pickle(file, kept, everything, joints: Joints) -> Paired:
    """Key points in one array, whose frames have no names: the lengths must agree."""
    try:
        points = read_pickle(file, joints)
    except Damaged as error:
        return Paired(lost=str(error))
    for names in (everything, kept):
        if len(points) == len(names):
            row = {name: number for number, name in enumerate(names)}
            return Paired(points[[row[name] for name in kept]])
    text = f"{len(points)} frames, but the sequence has {len(everything)}"
    return Paired(lost=str(Damaged(text, "ragged", file.name)))


def place_beside(
    tree: epath.Path, subject: str, condition: str, view: str, by_walk: bool = False
) -> epath.Path | None:
    """TREE/SUBJECT/CONDITION/VIEW if it exists.

    by_walk: VIEW is the walk's own name and CONDITION only a number that another
    script may have given otherwise (GREW's 01 and 02): the one match below any
    condition is taken.
    """
    exact = tree / subject / condition / view
    if not by_walk:
        return exact if exact.is_dir() else None
    found = list((tree / subject).glob(f"*/{view}"))
    return found[0] if len(found) == 1 else None


def add_trees(
    files: Mapping[str, str], trees: Mapping[str, epath.Path], *names: str, **options
) -> dict[str, str]:
    """files with a role for each of `trees` (role -> folder) that has the sequence."""
    found = {
        role: place_beside(tree, *names, **options) for role, tree in trees.items()
    }
    return dict(files) | {role: str(place) for role, place in found.items() if place}
