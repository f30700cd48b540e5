"""SUSTech1K's camera modalities: 1,050 people, RGB and silhouettes. See README.md."""

import functools
from collections.abc import Iterator

from etils import epath

from tfds_builders import benchmark, opengait_pickles
from tfds_builders.archives import Sequence, shipped_partition, users_partition
from tfds_builders.checks import Expected

# 00 to 07 have each sensor at its own rate; 08 to 15, the same synchronised, are unused
ROLES = {
    "ratios": r"^04(?!\d)",
    "frames": r"^05(?!\d)",
    "silhouettes": r"^06(?!\d)",
    "masks": r"^07(?!\d)",
    "keypoints": r"^03(?!\d)",
    "points": r"^00(?!\d)",
}
VIEWS = (
    *(f"{angle:03d}" for angle in range(0, 316, 45)),
    *("000-far", "090-near", "180-far", "270-far"),
)
OPTIONAL = ("masks", "keypoints", "points")
PARTITION = shipped_partition(__file__)
INSTRUCTIONS = (
    "SUSTech1K is given under a signed agreement (https://lidargait.github.io). Unpack "
    "its pickles so that DIR holds ID/TYPE/VIEW/NN-*.pkl and pass --manual_dir=DIR."
)


def find(root: epath.Path, given: epath.Path) -> Iterator[Sequence]:
    """Folders ID/TYPE/VIEW of numbered pickles."""
    needed = ("train", "test")
    partition = users_partition((given, root), "SUSTech1K", needed, PARTITION)
    return opengait_pickles.find(root, partition.split, ROLES)


class Builder(benchmark.BenchmarkBuilder):
    """LiDAR and camera gait of 1,050 people (Shen et al. 2023).

    Point clouds are stored as they are; no model here reads them yet.
    """

    BUILDER_CONFIGS = benchmark.configs(
        "Pickles as distributed, frames channels last",
        "Pickles of OpenGait's own conversion, frames channels first",
        sizes=(64,),
        opengait_sizes=(64,),
    )
    MANUAL_DOWNLOAD_INSTRUCTIONS = INSTRUCTIONS
    SOURCES = dict.fromkeys(
        ("raw", "opengait"),
        benchmark.Source(
            ("",),
            ("[0-9]*/[0-9][0-9]-*/*/[0-9][0-9]-*.pkl",),
            "ID/TYPE/VIEW/NN-*.pkl (04 sizes, 05 RGB, 06 and 07 silhouettes)",
            find,
            functools.partial(opengait_pickles.read, optional=OPTIONAL),
            ("ratios", "frames", "silhouettes"),
            OPTIONAL,
        ),
    )
    EXTRAS = ("points",)
    EXPECTED = Expected(
        subjects={"train": 250, "test": 800},
        recalled={"train": 6011, "test": 19_228},
        total=25_239,
        views=VIEWS,
    )
