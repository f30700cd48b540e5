"""One's own walks: ID/CONDITION/VIEW/ of videos, frames or silhouettes. README.md."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
from etils import epath

from tfds_builders import benchmark, cut_walks
from tfds_builders.archives import (
    Outcome,
    Sequence,
    files_in,
    found_at,
    subfolders,
    users_partition,
)
from tfds_builders.checks import Expected
from tfds_builders.damage import Damaged
from tfds_builders.image_folders import read_grey, read_silhouettes

VIDEOS = (".avi", ".mp4", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg")
LAYOUT = (
    "ID/CONDITION/VIEW/ with images, or ID/CONDITION/VIEW.mp4 (or .avi, .mov, .mkv, "
    ".webm), one person in each"
)
INSTRUCTIONS = (
    f"Pass --manual_dir=DIR, where DIR has {LAYOUT}. Images are frames of a video, or "
    "silhouettes; a file DIR/train.txt names the IDs that are for training, one a line."
)
GREY = 0.02  # share of the pixels of a silhouette that may be neither black nor white


def find(root: epath.Path, given: epath.Path) -> Iterator[Sequence]:
    """Subject, condition and view are the names of the folders.

    If a video has several walks, their views are VIEW_01, VIEW_02 and so on. Videos and
    frames are cut first; what was cut before is not cut again.
    """
    del given
    train = users_partition((root,), "folder", ()).train
    found = list(_sources(root))
    videos = [Path(source) for _, source, silhouettes in found if not silhouettes]
    digest = hashlib.sha256(str(Path(root).resolve()).encode()).hexdigest()[:12]
    out = cut_walks.cache_folder("folder") / digest
    if videos:
        cut_walks.cut(videos, out, parts=3)

    def split_of(subject: str) -> str:
        return "train" if subject in train else "test"

    for names, source, silhouettes in found:
        if silhouettes or len(names) < 3:
            files = {"silhouettes": str(source)}
            yield found_at(names, split_of, files)
            continue
        walks = cut_walks.walks_of(
            epath.Path(cut_walks.place_of(Path(source), out, parts=3))
        )
        for walk in walks:
            alone = len(walks) == 1
            view = names[2] if alone else f"{names[2]}_{walk.number:02d}"
            whole = found_at((*names[:2], view), split_of, {"walk": str(walk.folder)})
            yield whole._replace(problem=walk.problem)


def _sources(root: epath.Path) -> Iterator[tuple[tuple[str, ...], epath.Path, bool]]:
    """(names, video file or folder of images, whether these are silhouettes)."""
    for subject in subfolders(root):
        conditions = subfolders(subject)
        if not conditions:
            yield (subject.name,), subject, True
        for condition in conditions:
            names = subject.name, condition.name
            videos = files_in(condition, VIDEOS)
            views = subfolders(condition)
            if not videos and not views:
                yield names, condition, True
            for video in videos:
                yield (*names, video.stem), video, False
            for view in views:
                inside = files_in(view, VIDEOS)
                if len(inside) == 1:  # its name says nothing
                    yield (*names, view.name), inside[0], False
                else:
                    yield (*names, view.name), view, _are_silhouettes(view)


def _are_silhouettes(folder: epath.Path) -> bool:
    """Whether the images, by the middle one, are black and white; so are none."""
    files = files_in(folder)
    if not files:
        return True
    try:
        image = read_grey(files[len(files) // 2])
    except (Damaged, OSError, cv2.error):
        return True  # reading tells why
    return bool(((image > 15) & (image < 240)).mean() < GREY) and bool(np.any(image))


def read(sequence: Sequence, *, height: int, silhouette_size: int) -> Outcome:
    reader = cut_walks.read if "walk" in sequence.files else read_silhouettes
    return reader(sequence, height=height, silhouette_size=silhouette_size)


class Builder(benchmark.BenchmarkBuilder):
    """Walks of people of one's own, in folders ID/CONDITION/VIEW."""

    BUILDER_CONFIGS = [
        benchmark.BenchmarkConfig(
            name="default", description="One's own walks.", height=128
        )
    ]
    MANUAL_DOWNLOAD_INSTRUCTIONS = INSTRUCTIONS
    SOURCES = {"raw": benchmark.Source(("",), ("*/*/*",), LAYOUT, find, read)}
    EXPECTED = Expected(subjects={})
