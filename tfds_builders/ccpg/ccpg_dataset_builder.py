"""CCPG: cloth-changing gait before ten cameras, RGB and silhouettes. See README.md."""

import functools
from collections.abc import Iterator

import cv2
from etils import epath

from tfds_builders import benchmark, image_folders, opengait_pickles, poses
from tfds_builders.archives import Sequence, find_folders, shipped_partition
from tfds_builders.checks import Expected

PARTITION = shipped_partition(__file__)
FRAMES, SILHOUETTES = "CCPG_D_MASK_FACE_SHOE", "CCPG_G_SIL"
TREES = {"frames": FRAMES, "silhouettes": SILHOUETTES}
CONDITIONS = ("U0_D0", "U0_D0_BG", "U0_D3", "U1_D0", "U1_D1", "U2_D2", "U3_D3")
INSTRUCTIONS = (
    "CCPG is given to academic researchers who sign its agreement "
    "(https://github.com/BNU-IVC/CCPG). Unpack it so that DIR holds "
    f"{FRAMES}/ID/TYPE/VIEW/ and {SILHOUETTES}/ID/TYPE/VIEW/, and "
    "keypoints/ID/TYPE/VIEW/*.pkl if you have its key points, and pass "
    "--manual_dir=DIR."
)


def find_raw(root: epath.Path, given: epath.Path) -> Iterator[Sequence]:
    """Folders ID/TYPE/VIEW of detections, silhouettes and key points."""
    del given
    trees = {"keypoints": root / "keypoints"}
    trees = {role: tree for role, tree in trees.items() if tree.is_dir()}
    for one in find_folders(root, TREES, PARTITION.split):
        names = one.subject, one.condition, one.view
        yield one._replace(files=poses.add_trees(one.files, trees, *names))


class Builder(benchmark.BenchmarkBuilder):
    """Cloth-changing person identification by gait, 200 people (Li et al. 2023)."""

    BUILDER_CONFIGS = benchmark.configs(
        "Images as distributed", "OpenGait pickles", alphapose=True
    )
    MANUAL_DOWNLOAD_INSTRUCTIONS = INSTRUCTIONS
    SOURCES = {
        "raw": benchmark.Source(
            ("",),
            (f"{FRAMES}/*/*/*", f"{SILHOUETTES}/*/*/*"),
            f"{FRAMES}/ID/TYPE/VIEW/*.jpg beside {SILHOUETTES}/ID/TYPE/VIEW/*.png",
            find_raw,
            functools.partial(image_folders.read_frames, interpolation=cv2.INTER_AREA),
            optional=("keypoints",),
        ),
        "opengait": benchmark.Source(
            ("",),
            ("*/*/*/*.pkl",),
            "ID/TYPE/VIEW/*-aligned-sils.pkl, *-ratios.pkl, *-rgbs.pkl, *-sils.pkl",
            lambda root, given: opengait_pickles.find(root, PARTITION.split),
            functools.partial(opengait_pickles.read, interpolation=cv2.INTER_AREA),
            opengait_pickles.REQUIRED,
            ("keypoints",),
        ),
    }
    JOINTS = (17, 18)
    EXPECTED = Expected(
        subjects={"train": PARTITION.train, "test": PARTITION.test},
        recalled={"train": 8388, "test": 8178},
        conditions=CONDITIONS,
        more_than=16_000,
    )
