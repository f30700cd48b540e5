"""Raw archives: from folders to a list of sequences, and who is in which split."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from etils import epath

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp")


class Sequence(NamedTuple):
    """One walk as an archive has it. files: what -> folder of images or pickle file.

    split: "train", "test", or None where the subject is in neither list.
    """

    split: str | None
    subject: str
    condition: str
    view: str
    files: dict[str, str]

    @property
    def key(self) -> str:
        return f"{self.subject}/{self.condition}/{self.view}"


class Outcome(NamedTuple):
    """A sequence read: its record, or the problem why there is none ("": no problem).

    num_frames: written; num_dropped: frames left out because they are all but empty.
    """

    sequence: Sequence
    record: dict | None
    problem: str = ""
    num_frames: int = 0
    num_dropped: int = 0


def natural(name: str) -> list:
    """Sort key: digits as numbers, so that frame 10 comes after frame 9."""
    parts = re.split(r"(\d+)", name)
    return [(int(p), p) if p.isdigit() else (-1, p) for p in parts]


def subfolders(folder: epath.Path) -> list[epath.Path]:
    """Folders in `folder` in natural order, hidden ones left out."""
    found = [
        p for p in folder.iterdir() if not p.name.startswith((".", "_")) and p.is_dir()
    ]
    return sorted(found, key=lambda p: natural(p.name))


def walk(folder: epath.Path, depth: int) -> Iterator[tuple[str, ...]]:
    """Names of the nested folders `depth` levels down: ("001", "nm-01", "000")."""
    if depth == 0:
        yield ()
        return
    for child in subfolders(folder):
        for below in walk(child, depth - 1):
            yield (child.name, *below)


def files_in(folder: epath.Path, suffixes=IMAGE_SUFFIXES) -> list[epath.Path]:
    """Files with one of the suffixes in natural order; none of an absent folder."""
    if not folder.exists():
        return []
    found = [
        p
        for p in folder.iterdir()
        if p.name.lower().endswith(suffixes) and not p.name.startswith(".")
    ]
    return sorted(found, key=lambda p: natural(p.name))


class Partition(NamedTuple):
    """Subject ids of the splits; probe, gallery: "id-condition-view" of listed ones."""

    train: frozenset[str]
    test: frozenset[str]
    probe: frozenset[str] = frozenset()
    gallery: frozenset[str] = frozenset()

    def split(self, subject: str) -> str | None:
        """ "train", "test", or None for a subject in neither list."""
        if subject in self.train:
            return "train"
        return "test" if subject in self.test else None


def shipped_partition(package: str) -> Partition:
    """The lists beside a builder: train.txt, test.txt, one id a line."""
    here = Path(package).parent
    lists = [
        frozenset((here / f"{split}.txt").read_text().split())
        for split in ("train", "test")
    ]
    return Partition(*lists)


def users_partition(root: epath.Path, name: str, needed: tuple[str, ...]) -> Partition:
    """Lists that come with the data set, from the folder that the user gives.

    Either NAME.json with TRAIN_SET, TEST_SET and, where single sequences are listed,
    PROBE_SET or GALLERY_SET, or text files train.txt, test.txt, probe.txt, gallery.txt,
    one name a line. Raises FileNotFoundError where one of `needed` is in neither.
    """
    lists = {}
    file = root / f"{name}.json"
    content = json.loads(file.read_text()) if file.exists() else {}
    for field in Partition._fields:
        text = root / f"{field}.txt"
        if f"{field.upper()}_SET" in content:
            lists[field] = frozenset(map(str, content[f"{field.upper()}_SET"]))
        elif text.exists():
            lists[field] = frozenset(text.read_text().split())
        elif field in needed:
            raise FileNotFoundError(
                f"The list {field!r} of {name} is neither in {file} (as "
                f"{field.upper()}_SET) nor in {text}; it comes with the data set, put "
                "it there."
            )
    empty = frozenset[str]()
    return Partition(*(lists.get(field, empty) for field in Partition._fields))
