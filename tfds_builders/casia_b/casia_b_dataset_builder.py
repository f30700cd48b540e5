"""CASIA-B silhouettes: 124 people, 11 views, normal, bag and coat. See README.md."""

from tfds_builders import benchmark, image_folders, opengait_pickles
from tfds_builders.archives import find_folders, shipped_partition
from tfds_builders.checks import Expected

PARTITION = shipped_partition(__file__)
CONDITIONS = (
    *(f"nm-{number:02d}" for number in range(1, 7)),
    *(f"{kind}-{number:02d}" for kind in ("bg", "cl") for number in (1, 2)),
)
VIEWS = tuple(f"{angle:03d}" for angle in range(0, 181, 18))
GRID = tuple(f"{condition}/{view}" for condition in CONDITIONS for view in VIEWS)
FOLDERS = ("", "GaitDatasetB-silh", "silhouettes")
INSTRUCTIONS = (
    "Download the silhouettes of Dataset B (GaitDatasetB-silh.zip; for research) from "
    "http://www.cbsr.ia.ac.cn/english/Gait%20Databases.asp, unpack it and the archives "
    "in it, so that DIR holds ID/TYPE/VIEW/*.png, and pass --manual_dir=DIR."
)


class Builder(benchmark.BenchmarkBuilder):
    """Gait silhouettes of 124 people before 11 cameras (Yu, Tan, Tan 2006)."""

    BUILDER_CONFIGS = benchmark.configs("Images as distributed", "OpenGait pickles")
    MANUAL_DOWNLOAD_INSTRUCTIONS = INSTRUCTIONS
    SOURCES = {
        "raw": benchmark.Source(
            FOLDERS,
            ("[0-9][0-9][0-9]/[nbc][mgl]-*/*/*.png",),
            "ID/TYPE/VIEW/*.png, for instance 001/bg-01/000/001-bg-01-000-001.png",
            lambda root, given: find_folders(
                root, {"silhouettes": ""}, PARTITION.split
            ),
            image_folders.read_silhouettes,
        ),
        "opengait": benchmark.Source(
            ("",),
            ("[0-9][0-9][0-9]/[nbc][mgl]-*/*/*.pkl",),
            "ID/TYPE/VIEW/VIEW.pkl",
            lambda root, given: opengait_pickles.find(root, PARTITION.split),
            opengait_pickles.read,
        ),
    }
    EXPECTED = Expected(
        subjects={"train": PARTITION.train, "test": PARTITION.test},
        sequences={"test": 5485},
        recalled={"train": 8140},
        grid=GRID,
    )
