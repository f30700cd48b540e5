"""KTH walking: video of 25 people outdoors and indoors, pass by pass. See README.md."""

import functools
import re
from collections.abc import Iterator

from etils import epath

from tfds_builders import benchmark, cut_walks
from tfds_builders.archives import Sequence
from tfds_builders.checks import Expected
from tfds_builders.kth_walking import passes

# config -> people; what is chosen on the first may be reported on the others, once
PEOPLE = {
    "default": range(1, 26),
    "people_01_06": range(1, 7),
    "people_07_12": range(7, 13),
    "people_13_25": range(13, 26),
}
INSTRUCTIONS = (
    "Download walking.zip from the actions page of the Computational Vision group at "
    "KTH (https://www.csc.kth.se/cvap/actions/; non-commercial use, cite the paper) to "
    "DIR, unpacked or not, and pass --manual_dir=DIR."
)


def find(
    root: epath.Path, given: epath.Path, people: range = PEOPLE["default"]
) -> Iterator[Sequence]:
    """Passes of personPP_walking_dD_uncomp.avi: subject PP, condition dD-NN.

    NN counts the walks of a video, refused ones too. The view is the direction in the
    picture: left, right, near, far or still. Passes are cut first, if the folder has
    videos or walking.zip.
    """
    del given
    for walk in passes.listed(root, people):
        match = re.fullmatch(passes.NAME, walk.video)
        assert match  # only such names are listed
        person, scene = match.groups()
        condition = f"d{scene}-{walk.number:02d}" if walk.number else f"d{scene}"
        files = {"walk": str(walk.folder)}
        yield Sequence("test", person, condition, walk.heading, files, walk.problem)


class Builder(benchmark.BenchmarkBuilder):
    """Walks of 25 people before a still camera (Schuldt, Laptev and Caputo 2004)."""

    BUILDER_CONFIGS = [
        benchmark.BenchmarkConfig(
            name=name,
            description=f"People {people[0]:02d} to {people[-1]:02d}.",
            source=name,
            height=128,
        )
        for name, people in PEOPLE.items()
    ]
    MANUAL_DOWNLOAD_INSTRUCTIONS = INSTRUCTIONS
    SOURCES = {
        name: benchmark.Source(
            ("", "video", "walking"),
            ("*walking*",),
            "walking.zip, personPP_walking_dD_uncomp.avi, or the folders that "
            "gaitjax.use.cut makes of these",
            functools.partial(find, people=people),
            cut_walks.read,
        )
        for name, people in PEOPLE.items()
    }

    @property
    def EXPECTED(self) -> Expected:
        people = PEOPLE[self.settings.source]
        return Expected(subjects={"test": frozenset(f"{n:02d}" for n in people)})
