"""Raw archives: from folders to a list of sequences, and who is in which split."""

import json
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from etils import epath

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp")


class Sequence(NamedTuple):
    """One walk as an archive has it. files: what -> folder of images or pickle file.

    split: "train", "test", or None where the subject is in neither list. problem: what
    the listing alone tells ("": nothing); such a sequence is reported, never read.
    note: an optional file that is not there while other sequences have it.
    """

    split: str | None
    subject: str
    condition: str
    view: str
    files: dict[str, str]
    problem: str = ""
    note: str = ""

    @property
    def key(self) -> str:
        names = self.subject, self.condition, self.view
        return "/".join(filter(None, names))  # of a stray folder, its first names


class Outcome(NamedTuple):
    """A sequence read: its record, or the problem why there is none ("": no problem).

    num_frames: written; num_dropped: frames left out because they are all but empty;
    note: a modality that is left out, and why.
    """

    sequence: Sequence
    record: dict | None
    problem: str = ""
    num_frames: int = 0
    num_dropped: int = 0
    note: str = ""


def unreadable(sequence: Sequence, error: Exception) -> Outcome:
    """The Outcome of a sequence that cannot be read.

    Its problem begins with a kind: "refused", "ragged" or, for all else, "corrupt".
    """
    text = str(error)
    known = text.partition(":")[0] in ("refused", "ragged", "corrupt")
    return Outcome(sequence, None, text if known else f"corrupt: {text}")


def natural(name: str) -> list:
    """Sort key: digits as numbers, so that frame 10 comes after frame 9."""
    parts = re.split(r"(\d+)", name)
    return [(int(p), p) if p.isdecimal() else (-1, p) for p in parts]


def subfolders(folder: epath.Path) -> list[epath.Path]:
    """Folders in `folder` in natural order, hidden ones left out."""
    found = [
        p for p in folder.iterdir() if not p.name.startswith((".", "_")) and p.is_dir()
    ]
    return sorted(found, key=lambda p: natural(p.name))


def walk(folder: epath.Path, depth: int) -> Iterator[tuple[str, ...]]:
    """Names of the nested folders `depth` levels down: ("001", "nm-01", "000").

    A folder above that without sub-folders has fewer names.
    """
    children = subfolders(folder) if depth and folder.is_dir() else []
    if not children:
        yield ()
    for child in children:
        for below in walk(child, depth - 1):
            yield (child.name, *below)


def find_folders(
    root: epath.Path, trees: dict[str, str], split_of: Callable[[str], str | None]
) -> Iterator[Sequence]:
    """Sequences ID/TYPE/VIEW of image folders. trees: what -> tree below root.

    Walks in only one of several trees are yielded too, to be listed as empty.
    """
    walks = {names for tree in trees.values() for names in walk(root / tree, 3)}
    for names in sorted(walks):
        place = "/".join(names)
        files = {what: str(root / tree / place) for what, tree in trees.items()}
        yield found_at(names, split_of, files)


def found_at(names: tuple[str, ...], split_of, files: dict[str, str]) -> Sequence:
    """The sequence of a folder ID/TYPE/VIEW; one that ends before has a problem."""
    subject, condition, view = (*names, "", "", "")[:3]
    problem = "" if len(names) == 3 else "empty: no folders below it to ID/TYPE/VIEW"
    return Sequence(split_of(subject), subject, condition, view, files, problem)


def absent(listed: frozenset[str], seen: set[str], role: str) -> Iterator[Sequence]:
    """Sequences "ID-TYPE-VIEW" of a list that the archive does not have."""
    for name in sorted(listed - seen):
        subject, _, rest = name.partition("-")
        problem = f"missing: listed as {role}, not in the archive"
        yield Sequence("test", subject, role, rest, {}, problem)


def complete(
    found: Iterable[Sequence], required: tuple[str, ...], optional: tuple[str, ...]
) -> list[Sequence]:
    """The sequences; one without a file that others have gets a problem or a note.

    required, optional: names of files, "a|b" where either will do.
    """
    sequences = list(found)
    known = set()
    for sequence in sequences:
        if not sequence.problem and sequence.split:
            known.update(sequence.files)
    asked = [name for name in (*required, *optional) if known & set(name.split("|"))]
    for i, sequence in enumerate(sequences):
        names = [n for n in asked if not sequence.files.keys() & set(n.split("|"))]
        needed = [name for name in names if name in required]
        if not names or not sequence.files or sequence.problem or not sequence.split:
            continue  # complete, or reported as another problem
        if needed:
            files = ", ".join(needed).replace("|", " or ")
            problem = f"missing: no file of {files}, which others have"
            sequences[i] = sequence._replace(problem=problem)
        else:
            note = f"without {', '.join(names)}: no such file"
            sequences[i] = sequence._replace(note=note)
    return sequences


def readable(
    found: Iterable[Sequence],
) -> tuple[dict[str, list[Sequence]], list[Outcome]]:
    """Sequences to be read by split, and the others, with why they are not."""
    by_split: dict[str, list[Sequence]] = {"train": [], "test": []}
    left_out, first = [], {}
    for sequence in found:
        path = next(iter(sequence.files.values()), "")
        problem = sequence.problem
        if not problem and sequence.split is None:
            problem = "the subject is in neither partition list"
        if not problem and sequence.key in first:
            problem = f"twice: {first[sequence.key]} is read, {path} is left out"
        if problem or sequence.split is None:
            left_out.append(Outcome(sequence, None, problem))
        else:
            first[sequence.key] = path
            by_split[sequence.split].append(sequence)
    return {split: some for split, some in by_split.items() if some}, left_out


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


def users_partition(
    folders: tuple[epath.Path, ...], name: str, needed: tuple[str, ...]
) -> Partition:
    """Lists that come with the data set, from folders that the user gives.

    Either NAME.json with TRAIN_SET, TEST_SET and, where single sequences are listed,
    PROBE_SET or GALLERY_SET, or text files train.txt, test.txt, probe.txt, gallery.txt,
    one name a line. Raises FileNotFoundError where one of `needed` is in none.
    """
    lists = {field: _listed(folders, name, field) for field in Partition._fields}
    for field in needed:
        if not lists[field]:
            places = " or ".join(
                f"{folder / name}.json ({field.upper()}_SET), {folder / field}.txt"
                for folder in dict.fromkeys(folders)
            )
            raise FileNotFoundError(
                f"{name} comes with a list of its {field} "
                f"{'subjects' if field in ('train', 'test') else 'sequences'}; put it "
                f"to {places}."
            )
    return Partition(**lists)


def _listed(folders, name: str, field: str) -> frozenset[str]:
    for folder in folders:
        file, text = folder / f"{name}.json", folder / f"{field}.txt"
        if file.exists():
            try:
                content = json.loads(file.read_text())
            except ValueError as error:
                raise FileNotFoundError(
                    f"{file} is not a JSON file ({error}); get it again."
                ) from error
            if not isinstance(content, dict):
                raise FileNotFoundError(
                    f"{file} is a JSON {type(content).__name__}, expected an object "
                    f"with {field.upper()}_SET; get it again."
                )
            if f"{field.upper()}_SET" in content:
                return frozenset(map(str, content[f"{field.upper()}_SET"]))
        if text.exists():
            return frozenset(text.read_text().split())
    return frozenset()
