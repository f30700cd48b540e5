"""Raw archives: finds the sequences in their folders, and who is in which split."""

import json
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from etils import epath

from tfds_builders.damage import Damaged, naming, read_text

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp")


class Sequence(NamedTuple):
    """One walk of an archive. files: role -> folder of images, or file.

    split: "train", "test", or None if the subject is in neither list. problem: why the
    sequence is unusable, as far as file names show ("": it is not); it is reported and
    not read. lost: optional role -> why it is absent, though other sequences have it.
    """

    split: str | None
    subject: str
    condition: str
    view: str
    files: dict[str, str]
    problem: str = ""
    lost: dict[str, str] = {}

    @property
    def key(self) -> str:
        names = self.subject, self.condition, self.view
        return "/".join(filter(None, names))  # a stray folder has fewer than three


class Outcome(NamedTuple):
    """The result of reading a sequence: its record, or the problem that prevents one.

    problem: "" if there is none. num_frames: frames written. dropped: reason -> number
    of frames left out. lost: modality -> why it is left out. note: a doubt about data
    that was written. unpaired: where modalities did not fit together -> frames.
    """

    sequence: Sequence
    record: dict | None
    problem: str = ""
    num_frames: int = 0
    dropped: dict[str, int] = {}
    lost: dict[str, str] = {}
    note: str = ""
    unpaired: dict[str, int] = {}


def unreadable(sequence: Sequence, error: Exception) -> Outcome:
    """The Outcome of a sequence that cannot be read; its problem begins with a kind."""
    known = isinstance(error, Damaged)
    return Outcome(sequence, None, str(error if known else Damaged(str(error))))


def natural(name: str) -> list:
    """Sort key: digits as numbers, so that frame 10 comes after frame 9."""
    parts = re.split(r"(\d+)", name)
    return [(int(p), p) if p.isdecimal() else (-1, p) for p in parts]


def subfolders(folder: epath.Path) -> list[epath.Path]:
    """Folders in `folder` in natural order, without hidden ones."""
    found = [
        p for p in folder.iterdir() if not p.name.startswith((".", "_")) and p.is_dir()
    ]
    return sorted(found, key=lambda p: natural(p.name))


def walk(folder: epath.Path, depth: int) -> Iterator[tuple[str, ...]]:
    """Names of the nested folders `depth` levels down: ("001", "nm-01", "000").

    A folder that ends earlier, without sub-folders, yields fewer names.
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
    """Sequences ID/TYPE/VIEW of image folders. trees: role -> tree below root.

    Walks that are in only one of several trees are yielded too; reading them reports
    them as empty.
    """
    walks = {names for tree in trees.values() for names in walk(root / tree, 3)}
    for names in sorted(walks):
        place = "/".join(names)
        files = {what: str(root / tree / place) for what, tree in trees.items()}
        yield found_at(names, split_of, files)


def found_at(names: tuple[str, ...], split_of, files: dict[str, str]) -> Sequence:
    """The sequence of a folder ID/TYPE/VIEW; with fewer names it has a problem."""
    subject, condition, view = (*names, "", "", "")[:3]
    problem = "" if len(names) == 3 else "empty: no folders below it to ID/TYPE/VIEW"
    return Sequence(split_of(subject), subject, condition, view, files, problem)


def absent(listed: frozenset[str], seen: set[str], role: str) -> Iterator[Sequence]:
    """Sequences "ID-TYPE-VIEW" that are listed but not in the archive."""
    for name in sorted(listed - seen):
        subject, _, rest = name.partition("-")
        problem = f"missing: listed as {role}, not in the archive"
        yield Sequence("test", subject, role, rest, {}, problem)


def complete(
    found: Iterable[Sequence], required: tuple[str, ...], optional: tuple[str, ...]
) -> list[Sequence]:
    """The sequences; one without a file that others have gets a problem or a note.

    required, optional: roles of files; "a|b" asks for either. If no sequence has the
    file, the modality was not downloaded and is not asked for.
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
            problem = f"missing: no file of {files}, which other sequences have"
            sequences[i] = sequence._replace(problem=problem)
        else:
            sequences[i] = sequence._replace(lost=dict.fromkeys(names, "no such file"))
    return sequences


def readable(
    found: Iterable[Sequence],
) -> tuple[dict[str, list[Sequence]], list[Outcome]]:
    """The sequences to read, by split, and the outcomes of those that are unusable."""
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
    """Files with one of the suffixes in natural order; [] if there is no folder."""
    if not folder.exists():
        return []
    found = [
        p
        for p in folder.iterdir()
        if p.name.lower().endswith(suffixes) and not p.name.startswith(".")
    ]
    return sorted(found, key=lambda p: natural(p.name))


class Partition(NamedTuple):
    """Subject ids of the splits; probe, gallery: listed "id-condition-view"s."""

    train: frozenset[str]
    test: frozenset[str]
    probe: frozenset[str] = frozenset()
    gallery: frozenset[str] = frozenset()

    def split(self, subject: str) -> str | None:
        """ "train", "test", or None for a subject in neither list."""
        if subject in self.train:
            return "train"
        return "test" if subject in self.test else None


NO_LISTS = Partition(frozenset(), frozenset())


def shipped_partition(package: str) -> Partition:
    """The lists beside a builder: train.txt, test.txt, and, where the data set lists
    single sequences, probe.txt or gallery.txt; one name a line."""
    here = Path(package).parent
    files = {field: here / f"{field}.txt" for field in Partition._fields}
    lists = {
        field: frozenset(file.read_text().split())
        for field, file in files.items()
        if file.exists()
    }
    return Partition(**lists)


def users_partition(
    folders: tuple[epath.Path, ...],
    name: str,
    needed: tuple[str, ...],
    shipped: Partition = NO_LISTS,
) -> Partition:
    """The lists of a data set: those in folders that the user gives, else `shipped`.

    Either NAME.json with TRAIN_SET, TEST_SET and, if it lists single sequences,
    PROBE_SET or GALLERY_SET, or text files train.txt, test.txt, probe.txt, gallery.txt,
    one name a line. Raises FileNotFoundError if no folder has a list of `needed`, and
    Damaged for a list that cannot be read.
    """
    lists = {
        field: _listed(folders, name, field) or listed
        for field, listed in shipped._asdict().items()
    }
    for field in needed:
        if not lists[field]:
            places = " or ".join(
                f"{folder / name}.json ({field.upper()}_SET), {folder / field}.txt"
                for folder in dict.fromkeys(folders)
            )
            raise FileNotFoundError(
                f"{name} comes with a list of its {field} "
                f"{'subjects' if field in ('train', 'test') else 'sequences'}; save it "
                f"as {places}."
            )
    return Partition(**lists)


def _listed(folders, name: str, field: str) -> frozenset[str]:
    for folder in folders:
        file, text = folder / f"{name}.json", folder / f"{field}.txt"
        if file.exists():
            with naming(file):
                content = _json_object(file)
                names = content.get(f"{field.upper()}_SET", [])
                if not isinstance(names, list):
                    raise Damaged(f"{field.upper()}_SET is no list; download it again")
            if names:
                return frozenset(map(str, names))
        if text.exists():
            with naming(text):
                return frozenset(read_text(text).split())
    return frozenset()


def _json_object(file: epath.Path) -> dict:
    try:
        content = json.loads(read_text(file))
    except (ValueError, RecursionError) as error:
        raise Damaged(f"not a JSON file ({error}); download it again") from error
    if not isinstance(content, dict):
        raise Damaged(
            f"a JSON {type(content).__name__}, expected an object with TRAIN_SET, "
            "TEST_SET, ...; download it again"
        )
    return content
