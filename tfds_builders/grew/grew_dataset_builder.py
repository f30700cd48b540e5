"""GREW: silhouettes and key points of 26,000 people in the wild. See README.md."""

import functools
from collections.abc import Iterator

from etils import epath

from tfds_builders import benchmark, image_folders, opengait_pickles
from tfds_builders.archives import Sequence, files_in, subfolders
from tfds_builders.checks import Expected

INSTRUCTIONS = (
    "GREW is given on request for non-commercial use, with a password "
    "(https://www.grew-benchmark.org). Unpack its silhouettes so that DIR holds "
    "train/ID/SEQ/*.png, test/gallery/ID/SEQ/*.png and test/probe/SEQ/*.png, and pass "
    "--manual_dir=DIR. Key points, *_2d_pose.txt, lie beside the images."
)
LOOKED_AT = 50  # walks, to see whether the archive has key points
NO_WALKS = "empty: a person's folder without folders of walks"


def find_raw(root: epath.Path, given: epath.Path) -> Iterator[Sequence]:
    """`_find`, with the folders of key points where the archive has any."""
    del given
    sequences = list(_find(root))
    some = [one for one in sequences if one.files][:LOOKED_AT]
    if any(map(_has_poses, some)):
        sequences = [_with_poses(one) for one in sequences]
    yield from sequences


def _has_poses(sequence: Sequence) -> bool:
    folder = epath.Path(sequence.files["silhouettes"])
    return bool(files_in(folder, ("_2d_pose.txt",)))


def _with_poses(sequence: Sequence) -> Sequence:
    files = sequence.files
    if files:
        files = files | {"keypoints": files["silhouettes"]}
    return sequence._replace(files=files)


def _find(root: epath.Path) -> Iterator[Sequence]:
    """Training walks have condition 00, gallery walks 01 and 02, probes 03.

    The first of a person's gallery walks in sorted order is 01, the others are 02. The
    field takes the order in which the file system lists them, which differs between
    machines. Probes belong to the subject "probe".
    """
    for person in _folders(root / "train"):
        walks, subject = subfolders(person), f"{person.name}train"
        yield from (_sequence("train", subject, "00", walk) for walk in walks)
        if not walks:
            yield Sequence("train", subject, "00", "", {}, NO_WALKS)
    for person in _folders(root / "test/gallery"):
        walks = subfolders(person)
        for number, walk in enumerate(walks):
            yield _sequence("test", person.name, "02" if number else "01", walk)
        if not walks:
            yield Sequence("test", person.name, "01", "", {}, NO_WALKS)
    probes = _folders(root / "test/probe")
    for walk in probes:
        yield _sequence("test", "probe", "03", walk)
    if not probes:
        problem = "missing: no folder in test/probe, so no submission is possible"
        yield Sequence("test", "probe", "03", "", {}, problem)


def _folders(folder: epath.Path) -> list[epath.Path]:
    return subfolders(folder) if folder.exists() else []


def _sequence(split: str, subject: str, condition: str, walk: epath.Path) -> Sequence:
    return Sequence(split, subject, condition, walk.name, {"silhouettes": str(walk)})


def split_of(subject: str) -> str:
    """The split of one of OpenGait's folders: 00001train, 00001, probe."""
    return "train" if subject.endswith("train") else "test"


class Builder(benchmark.BenchmarkBuilder):
    """Gait recognition in the wild, 26,345 people (Zhu et al. 2021)."""

    BUILDER_CONFIGS = benchmark.configs(
        "Images as distributed", "OpenGait pickles", sizes=(64,), opengait_sizes=(64,)
    )
    MANUAL_DOWNLOAD_INSTRUCTIONS = INSTRUCTIONS
    SOURCES = {
        "raw": benchmark.Source(
            ("", "GREW"),
            ("train/*/*/*.png", "test/gallery/*/*/*.png"),
            "train/ID/SEQ/*.png beside test/gallery/ID/SEQ/*.png, test/probe/SEQ/*.png",
            find_raw,
            functools.partial(image_folders.read_silhouettes, as_shipped=True),
        ),
        "opengait": benchmark.Source(
            ("",),
            ("*/0[0-3]/*/*.pkl",),
            "IDtrain/00/SEQ/SEQ.pkl, ID/01, ID/02, probe/03",
            lambda root, given: opengait_pickles.find(root, split_of, by_walk=True),
            opengait_pickles.read,
            optional=("keypoints",),
        ),
    }
    EXPECTED = Expected(
        subjects={"train": 20_000, "test": 6001},  # with the subject "probe"
        recalled={"train": 102_887, "test": 24_000},
        by_condition={"test": {"01": 6000, "02": 6000}},
        each={"test": {"01": 1, "02": 1}},
        apart="probe",
    )
