"""Runs made before the engine was rebuilt (version 0.1.0, November 2026) go on.

earlier_runs.tar.gz holds three killed runs as that version wrote them (config, newest
checkpoint, metrics), their arguments, and parameters that its undisturbed runs ended
with: gaitbase at step 4 of 8, lmgait in its warm-up at step 1 of 2 + 6, cargait over
that gaitbase at step 3 of 9.
"""

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest

from gaitjax.engine.log import read_metrics
from tests.fake_datasets import tiny_synthetic
from tests.forked_runs import ROOT, Runs
from tests.test_end_to_end import final_parameters

# Biases that change no output, since a batch norm or a softmax takes them out: their
# gradient is the rounding of zero, which Adam scales to full steps
IDLE = (
    "['appearance']['project']['bias']",
    "['denoising']['expand']['bias']",
    "['key']['bias']",
)
ARCHIVE = Path(__file__).with_name("earlier_runs.tar.gz")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The archive's content, and the data set in data/."""
    folder = tmp_path_factory.mktemp("earlier")
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    tiny_synthetic(folder / "data")
    return folder


@pytest.fixture(scope="module")
def program(folder):
    """Runs gaitjax.main in a fork: program(name, *more arguments) -> its output."""
    runs, output = Runs(ROOT / ".cache" / "jax"), folder / "output.txt"
    arguments = json.loads((folder / "args.json").read_text())

    def run(name, *more):
        where = [
            f"--workdir={folder / name}",
            f"--config.data.data_dir={folder / 'data'}",
        ]
        runs.start([*arguments[name], *where, *more], output)
        assert runs.wait() == [0], output.read_text()[-3000:]
        return output.read_text()

    yield run
    runs.close()


@pytest.mark.parametrize(
    "name, steps", [("cargait", 9), ("gaitbase", 8), ("lmgait", 8)]
)
def test_an_earlier_run_goes_on_to_the_parameters_it_would_have_had(
    program, folder, name, steps
):
    # cargait first: the checkpoint of its base run must still be the old one
    more = [f"--config.base_run={folder / 'gaitbase'}"] if name == "cargait" else []
    output = program(name, *more)
    if name != "cargait":
        assert f"Continuing the run in {folder / name} from step" in output
    rows = [row for row in read_metrics(folder / name) if row["kind"] == "train"]
    assert [row["step"] for row in rows] == list(range(1, steps + 1))
    step, arrays = final_parameters(folder / name)
    assert step == steps
    with np.load(folder / name / "expected.npz") as expected:
        assert set(expected.files) <= set(arrays) and len(expected.files) >= 17
        for array in (name for name in expected.files if not name.endswith(IDLE)):
            # bit-equal on the machine that made them
            np.testing.assert_allclose(
                arrays[array], expected[array], rtol=1e-4, atol=1e-5, err_msg=array
            )


def test_an_earlier_run_is_evaluated(program, folder):
    output = program("gaitbase", "--config.mode=evaluate")
    assert "never seen in training" in output
