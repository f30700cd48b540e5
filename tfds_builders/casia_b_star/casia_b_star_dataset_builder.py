"""CASIA-B*: new crops and masks of CASIA-B's videos, with RGB. See README.md."""

from tfds_builders import benchmark, image_folders, opengait_pickles
from tfds_builders.archives import find_folders, shipped_partition
from tfds_builders.casia_b.casia_b_dataset_builder import GRID
from tfds_builders.checks import Expected

PARTITION = shipped_partition(__file__)
FRAMES, SILHOUETTES = "crop_im", "crop_seg"
TREES = {"frames": FRAMES, "silhouettes": SILHOUETTES}
INSTRUCTIONS = (
    'Apply to CASIA (http://www.cbsr.ia.ac.cn) for "Dataset B*" with a signed '
    f"agreement. Unpack it so that DIR holds {FRAMES}/ID/TYPE/VIEW/ and "
    f"{SILHOUETTES}/ID/TYPE/VIEW/ (config default), or ID/TYPE/VIEW/*.pkl (config "
    "opengait), and pass --manual_dir=DIR."
)


class Builder(benchmark.BenchmarkBuilder):
    """RGB crops, masks and silhouettes of CASIA-B's people (Liang et al. 2022)."""

    BUILDER_CONFIGS = benchmark.configs(
        "Images as distributed", "OpenGait pickles", opengait_sizes=(64,)
    )
    MANUAL_DOWNLOAD_INSTRUCTIONS = INSTRUCTIONS
    SOURCES = {
        "raw": benchmark.Source(
            ("",),
            (f"{FRAMES}/*/*/*", f"{SILHOUETTES}/*/*/*"),
            f"{FRAMES}/ID/TYPE/VIEW/* beside {SILHOUETTES}/ID/TYPE/VIEW/*",
            lambda root, given: find_folders(root, TREES, PARTITION.split),
            image_folders.read_frames,
        ),
        "opengait": benchmark.Source(
            ("",),
            ("[0-9][0-9][0-9]/[nbc][mgl]-*/*/*.pkl",),
            "ID/TYPE/VIEW/*-aligned-sils.pkl, *-ratios.pkl, *-rgbs.pkl, *-sils.pkl",
            lambda root, given: opengait_pickles.find(root, PARTITION.split),
            opengait_pickles.read,
            opengait_pickles.REQUIRED,
        ),
    }
    EXPECTED = Expected(
        subjects={"train": PARTITION.train, "test": PARTITION.test},
        recalled={"train": 8140, "test": 5486},  # test: counted by a user
        grid=GRID,
    )
