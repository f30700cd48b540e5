"""Nothing is lost: kills at any moment, SIGTERM, full disks, damaged or missing data."""

import os
import random
import re
import signal
import time

import numpy as np
import pytest

from gaitjax.log import read_metrics
from tests.fake_datasets import tiny_synthetic
from tests.forked_runs import Runs, wait_for
from tests.test_end_to_end import SMALLER, final_parameters

STEPS = 60
SMALL = [
    "--config=configs/gaitbase.py", *SMALLER, "--config.pictures=False",
    "--config.model.channels=(2,)", "--config.model.layers=(1,)",
    "--config.model.strides=(2,)", "--config.model.num_strips=2",
    "--config.model.embedding_size=4",
    f"--config.train.steps={STEPS}",
]  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    runs = Runs(tmp_path_factory.mktemp("compiled"))
    yield runs
    runs.close()


@pytest.fixture(scope="module")
def arguments(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    tiny_synthetic(folder)
    return [*SMALL, f"--config.data.data_dir={folder}"]


@pytest.fixture(scope="module")
def undisturbed(runs, arguments, tmp_path_factory):
    """(parameters and all other state, training rows) of a run nobody disturbed."""
    folder = tmp_path_factory.mktemp("undisturbed")
    finish(runs, arguments, folder)
    return outcome(folder)


def finish(runs, arguments, folder):
    runs.start([*arguments, f"--workdir={folder}"], folder / "out.txt")
    code = runs.wait()
    assert code == 0, (folder / "out.txt").read_text()[-3000:]
    return (folder / "out.txt").read_text()


def outcome(folder):
    step, state = final_parameters(folder)
    assert step == STEPS
    rows = [row for row in read_metrics(folder) if row["kind"] == "train"]
    return state, [{k: v for k, v in row.items() if k != "wait_share"} for row in rows]


def assert_same(got, expected):
    assert got[0].keys() == expected[0].keys()
    for name, value in expected[0].items():
        np.testing.assert_array_equal(got[0][name], value, err_msg=name)
    assert got[1] == expected[1]


def logged(folder) -> int:
    """Steps that the run has logged so far."""
    path = folder / "metrics.jsonl"
    steps = re.findall(rb'"step": (\d+)', path.read_bytes()) if path.exists() else []
    return int(steps[-1]) if steps else 0


def test_ten_kills_and_resumes_are_bit_equal(runs, arguments, undisturbed, tmp_path):
    rng, killed_at = random.Random(0), []
    for kill in range(10):
        before = logged(tmp_path)
        child = runs.start([*arguments, f"--workdir={tmp_path}"], tmp_path / "out.txt")
        if kill == 3:  # while it starts
            time.sleep(rng.uniform(0.1, 1.0))
        else:
            step = before + rng.randint(1, 4)  # those since its checkpoint repeat
            wait_for(lambda step=step: logged(tmp_path) >= step, f"step {step}")
            time.sleep(rng.uniform(0, 0.02))
        os.kill(child, signal.SIGKILL)
        assert runs.wait() == -signal.SIGKILL, (tmp_path / "out.txt").read_text()
        killed_at.append(logged(tmp_path))
    assert killed_at[-1] < STEPS and len(set(killed_at)) == 9
    finish(runs, arguments, tmp_path)
    assert_same(outcome(tmp_path), undisturbed)


def test_preemption_by_sigterm_saves_and_resumes(
    runs, arguments, undisturbed, tmp_path
):
    child = runs.start([*arguments, f"--workdir={tmp_path}"], tmp_path / "out.txt")
    wait_for(lambda: logged(tmp_path) >= 4, "step 4")
    os.kill(child, signal.SIGTERM)
    code, text = runs.wait(), (tmp_path / "out.txt").read_text()
    assert code == 0, text[-3000:]
    step = int(re.search(r"Stopped after step (\d+) of 60; everything", text)[1])
    assert "run the same command again: gaitjax.main --config=" in text
    assert (tmp_path / "checkpoints" / str(step)).is_dir() and step < STEPS
    assert f"from step {step} of 60" in finish(runs, arguments, tmp_path)
    assert_same(outcome(tmp_path), undisturbed)
