"""Data sets that are computed on this machine and need no download."""

import subprocess
import sys

from gaitjax.data.source import version_folder
from gaitjax.engine import cluster
from gaitjax.engine.guards import require

EMBEDDED = ("synthetic_gait", "seen_gait")


def prepare(data) -> None:
    """Builds the embedded data sets that `data` (config.data) names and that are not
    in data.data_dir yet; the user prepares all others.

    A child process builds, because gaitjax does not import tfds_builders. Each of
    several processes starts one: the builder locks its folder, so that one of them
    builds while the others wait, and hosts that share no disk each get a copy.

    Raises ValueError if a build fails; the builder has printed why.
    """
    if not data.data_dir:  # a re-ranker reads the data of its base run
        return
    for name in dict.fromkeys([data.train_dataset, data.test_dataset]):
        embedded = name.partition("/")[0] in EMBEDDED
        if embedded and version_folder(data.data_dir, name) is None:
            cluster.say(f"Making the embedded data set {name} (once) ...")
            command = [sys.executable, "-m", "tfds_builders.prepare", name]
            code = subprocess.call([*command, f"--data_dir={data.data_dir}"])
            require(
                code == 0,
                f"The data set {name} was not made; the lines above say why. Repair "
                "that and run the same command again.",
            )
