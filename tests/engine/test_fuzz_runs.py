"""Damaged checkpoints, metrics and configs of a run are skipped or named."""

import json
import shutil

import numpy as np
import pytest

from configs import gaitbase
from gaitjax import run_folder
from gaitjax.engine import log
from gaitjax.engine.guards import Damaged
from tests.engine.test_checkpoints import restore, saved, shardings, state
from tests.mutants import mutants, read_all

__all__ = ["shardings"]  # a fixture


def test_mutants_of_metrics_are_read_or_named(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with log.MetricLog(tmp_path) as metrics:
        for step in range(1, 6):
            metrics.write(step, "train", {"total": 1 / step, "broken": float("nan")})
    good = path.read_bytes()
    messages = read_all(mutants(good, 300), path, log.read_metrics, Damaged)
    assert len(messages) > 50

    def resume(_):
        with log.MetricLog(tmp_path, 3):
            pass
        assert {row["step"] for row in log.read_metrics(path)} <= {1, 2, 3}

    def bounded(content):  # a mutant's step may be any number
        return b'"step": ' in content

    read_all(filter(bounded, mutants(good, 60, seed=1)), path, resume, Damaged)


def test_mutants_of_a_config_are_read_or_named(tmp_path):
    run_folder.write_config(gaitbase.get_config(), tmp_path)
    path = tmp_path / "config.json"
    files = mutants(path.read_bytes(), 300)
    messages = read_all(
        files, path, lambda _: run_folder.read_config(tmp_path), Damaged
    )
    assert len(messages) > 100


@pytest.mark.parametrize("part", ["state", "description"])
def test_mutants_of_a_checkpoint_are_skipped(tmp_path, shardings, part):
    """The newest is damaged in one file: it is read as it was, or the one before is."""
    description = saved(tmp_path / "good", shardings, (1, 2))
    files = sorted(
        path.relative_to(tmp_path / "good")
        for path in (tmp_path / "good" / "checkpoints" / "2" / part).rglob("*")
        if path.is_file() and path.stat().st_size
    )
    found = []
    for number, name in enumerate(files):
        content = (tmp_path / "good" / name).read_bytes()
        for count, mutant in enumerate(mutants(content, 4, seed=number)):
            folder = tmp_path / f"{number}_{count}"
            shutil.copytree(tmp_path / "good", folder)
            (folder / name).write_bytes(mutant)
            tree, step = restore(folder, shardings, description)
            np.testing.assert_array_equal(tree["w"], state(step, shardings)["w"])
            assert int(tree["step"]) == step
            found.append(step)
            shutil.rmtree(folder)
    assert set(found) <= {1, 2} and found.count(1) > len(found) / 4
    assert json.dumps(description)  # unchanged by all that
