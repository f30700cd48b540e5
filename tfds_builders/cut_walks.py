"""Walks of people, cut out of videos by gaitjax's program and read from its files.

A builder imports nothing of gaitjax, and the person model is gaitjax's. So the program
`python -m gaitjax.use.cut` runs in a process of its own, and what it writes are plain
images and JSON, which this module reads.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from etils import epath

from tfds_builders.archives import Outcome, Sequence, files_in, unreadable
from tfds_builders.damage import Damaged, naming, read_file, read_text
from tfds_builders.frames import decode_jpeg
from tfds_builders.image_folders import MAX_IMAGE, decode, outcome, read_grey

LIST = "walks.json"
ROOT = Path(__file__).resolve().parents[1]


class Listed(NamedTuple):
    """A walk of a video. number: from 1; 0 if the video has none. problem: why it is
    not read, "" if it is."""

    video: str
    number: int
    heading: str
    folder: epath.Path
    problem: str = ""


def walks_of(folder: epath.Path) -> list[Listed]:
    """What walks.json lists; one walk with a problem if there is none."""
    if not (folder / LIST).exists():
        why = "corrupt: the video is damaged, or was never cut"
        return [Listed(folder.name, 0, "none", folder, why)]
    try:
        with naming(folder / LIST):
            rows = json.loads(read_text(folder / LIST))["walks"]
            walks = [
                Listed(
                    folder.name,
                    number,
                    str(row["heading"]),
                    folder / str(row["folder"]).replace("/", "_"),
                    f"refused: {row['refused']}" if row["refused"] else "",
                )
                for number, row in enumerate(rows, 1)
            ]
    except (Damaged, ValueError, TypeError, KeyError, RecursionError) as error:
        text = str(error) if isinstance(error, Damaged) else f"corrupt: {LIST}: {error}"
        walks = [Listed(folder.name, 0, "none", folder, text)]
    return walks or [Listed(folder.name, 0, "none", folder, "empty: no walk")]


def cache_folder(name: str) -> Path:
    """Where cut walks stay: gaitjax's cache, so that a build need not cut again."""
    cache = os.environ.get("GAITJAX_CACHE") or "~/.cache/gaitjax"
    return Path(cache).expanduser() / name


def place_of(video: Path, out: Path, parts: int = 1) -> Path:
    """The folder of a video's walks: `parts` parts of its path, without the suffix."""
    return out.joinpath(*video.parts[-parts:-1], video.stem)


def cut(videos: list[Path], out: Path, parts: int = 1) -> None:
    """Runs the program; videos that it has cut before are not cut again."""
    command = [sys.executable, "-m", "gaitjax.use.cut", *map(str, videos)]
    command += [f"--parts={parts}"] if parts > 1 else []
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    done = subprocess.run(
        [*command, f"--out={out}"],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
        stderr=subprocess.PIPE,
        text=True,
    )
    sys.stderr.write(done.stderr)
    if not any((place_of(x, out, parts) / LIST).is_file() for x in videos):
        last = (done.stderr.strip().splitlines() or ["no reason was given"])[-1]
        raise FileNotFoundError(f"No walk could be cut out of the videos: {last}")


def read(sequence: Sequence, *, height: int, silhouette_size: int) -> Outcome:
    """The record of one walk as `gaitjax.use.cut` wrote it."""
    folder = epath.Path(sequence.files["walk"])
    try:
        with naming(folder / "walk.json"):
            walk = _described(read_text(folder / "walk.json"))
        frames = [_frame(file, height) for file in files_in(folder / "frames")]
        arrays = {
            "masks": _images(folder / "masks", (height, height // 2)),
            "silhouettes": _images(
                folder / "silhouettes", (silhouette_size, silhouette_size)
            ),
        }
        return outcome(
            sequence, {}, height, silhouette_size, frames=frames, **walk, **arrays
        )
    except (ValueError, OSError, cv2.error) as error:
        return unreadable(sequence, error)


def _described(text: str) -> dict[str, np.ndarray]:
    """ratios [T] and keypoints [T 17 3] of a walk.json."""
    try:
        walk = json.loads(text)
        ratios = np.asarray(walk["ratios"], np.float32)
        points = np.asarray(walk["keypoints"], np.float32)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise Damaged(f"no description of a walk ({error})") from error
    whole = ratios.ndim == 1 and points.shape == (len(ratios), 17, 3)
    if not whole or not np.isfinite(points).all() or not (ratios > 0).all():
        raise Damaged("ratios and key points do not fit together", "ragged")
    return {"ratios": ratios, "keypoints": points}


def _frame(file: epath.Path, height: int) -> bytes:
    image = decode(file, decode_jpeg)
    if image.shape != (height, height // 2, 3):
        raise Damaged(f"{image.shape[0]}x{image.shape[1]} pixels", "ragged", file.name)
    return read_file(file, MAX_IMAGE)


def _images(folder: epath.Path, shape: tuple[int, int]) -> np.ndarray | None:
    images = [read_grey(file) for file in files_in(folder)]
    if any(image.shape != shape for image in images):
        raise Damaged(
            f"images that are not {shape[0]}x{shape[1]}", "ragged", folder.name
        )
    return np.stack(images) if images else None
