"""CCGR-mini: 970 people, 53 covariates, 33 views. See README.md."""

import functools
from collections.abc import Iterator

from etils import epath

from tfds_builders import benchmark, opengait_pickles
from tfds_builders.archives import (
    Sequence,
    absent,
    shipped_partition,
    users_partition,
)
from tfds_builders.checks import Expected

PARTITION = shipped_partition(__file__)
ABSENT = frozenset({"803"})  # listed, but has no sequence
# As its authors' organiser does: a name has the role of the first of these words that
# it contains ("90_3par-119-NM1", "003-90_3par-119-NM1", "003-par")
ROLES = {
    "ratios": "ratios_HW",
    "frames": "rgb_f",
    "masks_or_silhouettes": "sil",
    "parsing": "par",
    "keypoints": "pose",
}
CLASS_STEP = 13  # of grey values between the classes of parsing
OPTIONAL = ("keypoints", "parsing")
INSTRUCTIONS = (
    "CCGR-mini's derived data is free for research without redistribution, its RGB "
    "under a signed agreement (https://github.com/ShinanZou/CCGR). Unpack it so that "
    "DIR holds ID/TYPE/VIEW/*.pkl and pass --manual_dir=DIR."
)


def find(root: epath.Path, given: epath.Path) -> Iterator[Sequence]:
    """Folders ID/TYPE/VIEW of pickles; a test condition is gallery_ or probe_TYPE."""
    folders = given, root
    listed = users_partition(folders, "CCGR-MINI", ("gallery",), PARTITION).gallery
    gallery = frozenset(name.lstrip("0") for name in listed)
    seen = set()
    for sequence in opengait_pickles.find(root, split_of, ROLES):
        sequence = sequence._replace(subject=sequence.subject.lstrip("0"))
        if sequence.split == "test":
            name = f"{sequence.subject}-{sequence.condition}-{sequence.view}"
            seen.add(name)
            role = "gallery" if name in gallery else "probe"
            sequence = sequence._replace(condition=f"{role}_{sequence.condition}")
        yield sequence
    yield from absent(gallery, seen, "gallery")


def split_of(subject: str) -> str | None:
    """The split of a subject's folder, whose name may have leading zeros."""
    return PARTITION.split(subject.lstrip("0"))


class Builder(benchmark.BenchmarkBuilder):
    """Gait under many covariates, the small edition (Zou et al. 2024)."""

    BUILDER_CONFIGS = benchmark.configs(
        "Derived data as distributed",
        "OpenGait pickles",
        sizes=(64,),
        opengait_sizes=(64,),
    )
    MANUAL_DOWNLOAD_INSTRUCTIONS = INSTRUCTIONS
    SOURCES = dict.fromkeys(
        ("raw", "opengait"),
        benchmark.Source(
            ("",),
            ("[0-9]*/*/*/*.pkl",),
            "ID/TYPE/VIEW/*-ratios_HW.pkl, *-rgb_f.pkl (if you have it), *-sil.pkl",
            find,
            functools.partial(
                opengait_pickles.read, optional=OPTIONAL, class_step=CLASS_STEP
            ),
            ("ratios", "frames", "masks_or_silhouettes"),
            OPTIONAL,
        ),
    )
    EXTRAS = ("parsing",)
    EXPECTED = Expected(
        subjects={"train": PARTITION.train, "test": PARTITION.test - ABSENT},
        total=47_884,
        by_condition={"test": {"gallery": 795}},
        distribution={"gallery": {2: 396, 1: 3}},
    )
