"""KinectGait: skeletons of 164 people, rendered before four cameras. See README.md."""

import re
from collections.abc import Iterator

from etils import epath

from tfds_builders import benchmark, walker
from tfds_builders.archives import Sequence, files_in, shipped_partition, subfolders
from tfds_builders.checks import Expected
from tfds_builders.kinect_gait import recordings

PARTITION = shipped_partition(__file__)
RECORDINGS = {5: 153, 6: 7, 4: 3, 3: 1}  # recordings of a person -> people
INSTRUCTIONS = (
    "Clone https://github.com/Vortander/KinectGait to DIR, so that it holds "
    "Data/PersonNNN/K.txt, and pass --manual_dir=DIR. The data has no licence and may "
    "not be redistributed; its author asks for citation."
)


def find(root: epath.Path, given: epath.Path) -> Iterator[Sequence]:
    """Files PersonNNN/K.txt, each before all virtual cameras.

    The subject is NNN, the condition K (the recording's number) with two digits.
    """
    del given
    for person in subfolders(root):
        if not re.fullmatch(r"Person\d+", person.name):
            continue
        subject = f"{int(person.name.removeprefix('Person')):03d}"
        files = files_in(person, (".txt",))
        if not files:
            problem = "empty: no K.txt"
            yield Sequence(PARTITION.split(subject), subject, "", "", {}, problem)
        for file in files:
            number = file.name.removesuffix(".txt")
            if number.isdecimal():
                for view in recordings.VIEWS:
                    yield Sequence(
                        PARTITION.split(subject),
                        subject,
                        f"{int(number):02d}",
                        view,
                        {"skeleton": str(file)},
                    )


class Builder(benchmark.BenchmarkBuilder):
    """Kinect skeletons of 164 walking people (Andersson and Araujo 2015), rendered."""

    BUILDER_CONFIGS = [
        benchmark.BenchmarkConfig(
            name="default" if size == 64 else f"raw_{size}",
            description=f"Skeletons as distributed; silhouettes {size} x {size}.",
            silhouette_size=size,
            height=walker.HEIGHT,
        )
        for size in (64, 128)
    ]
    MANUAL_DOWNLOAD_INSTRUCTIONS = INSTRUCTIONS
    SOURCES = {
        "raw": benchmark.Source(
            ("Data", "", "KinectGait/Data"),
            ("Person[0-9]*/*.txt",),
            "Data/PersonNNN/K.txt",
            find,
            recordings.read,
        ),
    }
    EXPECTED = Expected(
        subjects={"train": PARTITION.train, "test": PARTITION.test},
        total=822 * len(recordings.VIEWS),
        each=dict.fromkeys(("train", "test"), {"01": len(recordings.VIEWS)}),
        distribution={
            "": {n * len(recordings.VIEWS): people for n, people in RECORDINGS.items()}
        },
    )
