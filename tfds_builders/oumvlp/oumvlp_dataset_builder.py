"""OU-MVLP: 10,307 people, 14 views, two walks each. See README.md."""

from collections.abc import Iterator

from etils import epath

from tfds_builders import benchmark, image_folders, opengait_pickles
from tfds_builders.archives import Sequence, shipped_partition, subfolders
from tfds_builders.checks import Expected

PARTITION = shipped_partition(__file__)
PREFIX = "Silhouette_"
VIEWS = tuple(f"{start + step:03d}" for start in (0, 180) for step in range(0, 91, 15))
INSTRUCTIONS = (
    "OU-MVLP is given under a signed agreement (password for its archives): "
    "http://www.am.sanken.osaka-u.ac.jp/BiometricDB/GaitMVLP.html. Unpack them so that "
    f"DIR holds {PREFIX}VIEW-SEQ/ID/*.png and pass --manual_dir=DIR. OU-MVLP-Pose, if "
    "you have it, lies beside them: alphapose/ID/VIEW_SEQ/*.json (or openpose)."
)
POSES = ("alphapose", "openpose")


def find_raw(root: epath.Path, given: epath.Path) -> Iterator[Sequence]:
    """Folders Silhouette_VIEW-SEQ/ID of silhouettes; the condition is SEQ."""
    del given
    trees = [root / name for name in POSES if (root / name).is_dir()][:1]
    for folder in subfolders(root):
        view, _, walk = folder.name.removeprefix(PREFIX).partition("-")
        if not folder.name.startswith(PREFIX):
            continue
        if not walk:
            problem = f"unknown: a folder of this name, expected {PREFIX}VIEW-SEQ"
            yield Sequence(None, folder.name, "", "", {}, problem)
            continue
        people = subfolders(folder)
        if not people:
            problem = "empty: no folders of people"
            yield Sequence(None, folder.name, "", "", {}, problem)
        for person in people:
            subject = person.name
            files = {"silhouettes": str(person)}
            for tree in trees:
                place = tree / subject / f"{view}_{walk}"
                if place.is_dir():
                    files["keypoints"] = str(place)
            yield Sequence(PARTITION.split(subject), subject, walk, view, files)


class Builder(benchmark.BenchmarkBuilder):
    """Multi-view large population gait silhouettes (Takemura et al. 2018)."""

    BUILDER_CONFIGS = benchmark.configs(
        "Images as distributed", "OpenGait pickles", alphapose=True
    )
    MANUAL_DOWNLOAD_INSTRUCTIONS = INSTRUCTIONS
    SOURCES = {
        "raw": benchmark.Source(
            ("",),
            (f"{PREFIX}*-*/*/*.png",),
            f"{PREFIX}VIEW-SEQ/ID/*.png, for instance {PREFIX}000-00/00001/0001.png",
            find_raw,
            image_folders.read_silhouettes,
            optional=("keypoints",),
        ),
        "opengait": benchmark.Source(
            ("",),
            ("[0-9]*/0[01]/*/*.pkl",),
            "ID/SEQ/VIEW/VIEW.pkl",
            lambda root, given: opengait_pickles.find(root, PARTITION.split),
            opengait_pickles.read,
            optional=("keypoints",),
        ),
    }
    JOINTS = (17, 18)
    EXPECTED = Expected(
        subjects={"train": PARTITION.train, "test": PARTITION.test},
        sequences={"test": 133_478},
        conditions=("00", "01"),
        views=VIEWS,
    )
