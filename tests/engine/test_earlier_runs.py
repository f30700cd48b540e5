"""Runs made before the engine was rebuilt (version 0.1.0, November 2026) go on.

earlier_runs.tar.gz holds three killed runs as that version wrote them (config, one
checkpoint), their arguments, and the logged rows and parameters of its undisturbed
runs: gaitbase at step 4 of 8, lmgait in its warm-up at step 1 of 2 + 6, cargait over
that gaitbase at step 3 of 9. Tests compile without optimisation, which rounds in other
places than the undisturbed runs did.
"""

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest

from configs import lmgait
from gaitjax import run_folder
from tests.fake_datasets import tiny_synthetic
from tests.forked_runs import ROOT, Runs
from tests.test_end_to_end import final_parameters, train_rows

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
        if name == "lmgait":
            more = (*more, *as_before(folder / name, arguments[name]))
        where = [
            f"--workdir={folder / name}",
            f"--config.data.data_dir={folder / 'data'}",
        ]
        runs.start([*arguments[name], *where, *more], output)
        assert runs.wait() == [0], output.read_text()[-3000:]
        return output.read_text()

    yield run
    runs.close()


def as_before(run, given) -> list[str]:
    """Arguments that give today's default LMGait the settings of an earlier run.

    Since then its encoders are frozen and pretrained, and its sizes are others. Fields
    that the run lacks are left to `run_folder`, those of the arguments `given` to them.
    """
    stored = run_folder.flat(json.loads((run / "config.json").read_text()))
    today = run_folder.flat(run_folder.plain(lmgait.get_config()))
    sources = {name: "" for name in today if name.startswith("pretrained.")}
    named = {argument.split("=")[0].removeprefix("--config.") for argument in given}
    changed = {name: stored[name] for name in stored.keys() & today.keys() - named}
    return [
        f"--config.{name}={tuple(value) if isinstance(value, list) else value}"
        for name, value in (sources | changed).items()
        if today[name] != value
    ]


@pytest.mark.parametrize(
    "name, steps", [("cargait", 9), ("gaitbase", 8), ("lmgait", 8)]
)
def test_an_earlier_run_goes_on_as_it_would_have(program, folder, name, steps):
    expected = train_rows(folder / name)  # all of the undisturbed run
    # cargait first: the checkpoint of its base run must still be the old one
    more = [f"--config.base_run={folder / 'gaitbase'}"] if name == "cargait" else []
    output = program(name, *more)
    if name != "cargait":
        assert f"Continuing the run in {folder / name} from step" in output
    rows = train_rows(folder / name)
    assert [row["step"] for row in rows] == list(range(1, steps + 1))
    for row, before in zip(rows, expected, strict=True):
        for field in before.keys() - {"wait_share", "kind"}:
            near = 1e-2 if field == "gradient_norm" else 2e-3
            assert row[field] == pytest.approx(before[field], rel=near, abs=1e-5), field
    step, arrays = final_parameters(folder / name)
    assert step == steps
    if name == "lmgait":  # of its parameters, Adam makes full steps out of rounding
        return
    with np.load(folder / name / "expected.npz") as stored:
        assert set(stored.files) <= set(arrays) and len(stored.files) >= 17
        for array in stored.files:
            np.testing.assert_allclose(
                arrays[array], stored[array], rtol=1e-4, atol=1e-5, err_msg=array
            )


def test_an_earlier_run_is_evaluated(program, folder):
    output = program("gaitbase", "--config.mode=evaluate")
    assert "never seen in training" in output
