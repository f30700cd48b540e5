"""Gait3D: 4,000 people in a supermarket, 39 cameras. See README.md."""

from collections.abc import Iterator

from etils import epath

from tfds_builders import benchmark, image_folders, opengait_pickles, poses
from tfds_builders.archives import (
    Partition,
    Sequence,
    absent,
    find_folders,
    shipped_partition,
    users_partition,
)
from tfds_builders.checks import Expected

INSTRUCTIONS = (
    "Gait3D is given under a signed agreement for non-commercial use "
    "(https://gait3d.github.io). Unpack its silhouettes so that DIR holds "
    "2D_Silhouettes/ID/CAM_VIDEO/SEQ/*.png, with 2D_Poses and 2D_Parsings beside it if "
    "you have them, and pass --manual_dir=DIR."
)
PARTITION = shipped_partition(__file__)
TREES = {"keypoints": "2D_Poses", "parsing": "2D_Parsings"}
# Gait3D-Parsing's pickles have the modality in front
ROLES = {"silhouettes": r"^sils-", "parsing": r"^pars-"}


def find_raw(root: epath.Path, given: epath.Path) -> Iterator[Sequence]:
    """Folders ID/CAM_VIDEO/SEQ of silhouettes, and of key points and parsing."""
    partition = _partition(root, given)
    home = root.parent if root.name == "2D_Silhouettes" else root
    trees = {role: home / name for role, name in TREES.items()}
    trees = {role: tree for role, tree in trees.items() if tree.is_dir()}
    found = (
        one._replace(
            files=poses.add_trees(
                one.files, trees, one.subject, one.condition, one.view
            )
        )
        for one in find_folders(root, {"silhouettes": ""}, partition.split)
        if one.subject not in TREES.values()
    )
    return with_roles(found, partition)


def find_pickles(root: epath.Path, given: epath.Path) -> Iterator[Sequence]:
    partition = _partition(root, given)
    found = opengait_pickles.find(root, partition.split, ROLES)
    return with_roles(found, partition)


def with_roles(found: Iterator[Sequence], partition: Partition) -> Iterator[Sequence]:
    """Condition "probe", "gallery" or "train"; view CAM_VIDEO_SEQ.

    The camera is the view before its first "_", as in all data sets. Probes that are
    listed but not found come last.
    """
    seen = set()
    for sequence in found:
        name = f"{sequence.subject}-{sequence.condition}-{sequence.view}"
        seen.add(name)
        role = "probe" if name in partition.probe else "gallery"
        yield sequence._replace(
            condition=role if sequence.split == "test" else "train",
            view=f"{sequence.condition}_{sequence.view}".strip("_"),
        )
    yield from absent(partition.probe, seen, "probe")


def _partition(root: epath.Path, given: epath.Path) -> Partition:
    needed = ("train", "test", "probe")
    folders = given, root, root.parent
    return users_partition(folders, "Gait3D", needed, PARTITION)


class Builder(benchmark.BenchmarkBuilder):
    """Gait in the wild, 4,000 people (Zheng et al. 2022)."""

    BUILDER_CONFIGS = benchmark.configs("Images as distributed", "OpenGait pickles")
    MANUAL_DOWNLOAD_INSTRUCTIONS = INSTRUCTIONS
    SOURCES = {
        "raw": benchmark.Source(
            ("2D_Silhouettes", ""),
            ("[0-9]*/camid*/seq*/*.png",),
            "2D_Silhouettes/ID/camidX_videoidY/seqZ/*.png",
            find_raw,
            image_folders.read_silhouettes,
            optional=tuple(TREES),
        ),
        "opengait": benchmark.Source(
            ("",),
            ("[0-9]*/camid*/seq*/*.pkl",),
            "ID/camidX_videoidY/seqZ/seqZ.pkl",
            find_pickles,
            opengait_pickles.read,
            optional=tuple(TREES),
        ),
    }
    EXTRAS = ("parsing",)
    EXPECTED = Expected(
        subjects={"train": 3000, "test": 1000},
        recalled={"train": 18_940, "test": 6369},
        by_condition={"test": {"probe": 1000}},
        each={"test": {"probe": 1}},
    )
