"""MetricLog: the files after writing, killing and resuming; the printed tables."""

import json
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gaitjax.engine import log
from gaitjax.engine.guards import Damaged


def _train(workdir, steps, resume_step=0):
    """A run that logs each step and evaluates every fourth one."""
    with log.MetricLog(workdir, resume_step) as metric_log:
        for step in range(resume_step + 1, steps + 1):
            metric_log.write(step, "train", {"total": 1 / step, "learning_rate": 1e-5})
            if step % 4 == 0:
                metric_log.write(step, "eval", {"ccpg_gait/CL/rank1": float(step)})


def _written(workdir) -> str:
    return (Path(workdir) / "metrics.jsonl").read_text()


def test_rows_hold_step_kind_and_rounded_scalars(tmp_path):
    with log.MetricLog(tmp_path / "new" / "run") as metric_log:
        metrics = {"total": jnp.float32(1 / 3), "count": np.int64(12345678)}
        metric_log.write(5, "train", metrics | {"half": jnp.bfloat16(0.5)})
    row = json.loads(_written(tmp_path / "new" / "run"))
    assert row == {
        "step": 5, "kind": "train", "total": 0.333333, "count": 12345678, "half": 0.5
    }  # fmt: skip


@pytest.mark.parametrize("value", [math.nan, math.inf, jnp.float32(-jnp.inf)])
def test_what_json_cannot_hold_is_null_and_read_as_nan(tmp_path, value):
    with log.MetricLog(tmp_path) as metric_log:
        metric_log.write(1, "train", {"total": value})
    assert '"total": null' in _written(tmp_path)
    (row,) = log.read_metrics(tmp_path / "metrics.jsonl")
    assert math.isnan(row["total"])


@pytest.mark.parametrize("killed_at, checkpoint", [(7, 4), (8, 4), (3, 0), (10, 10)])
def test_killed_and_resumed_run_leaves_the_rows_of_an_undisturbed_one(
    tmp_path, killed_at, checkpoint
):
    _train(tmp_path / "whole", 10)
    _train(tmp_path / "killed", killed_at)
    with (tmp_path / "killed" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 11, "ki')  # cut in the middle of a row
    _train(tmp_path / "killed", 10, resume_step=checkpoint)
    assert _written(tmp_path / "killed") == _written(tmp_path / "whole")
    assert not list((tmp_path / "killed").glob("*.new"))


def test_fresh_start_drops_also_the_evaluation_of_step_zero(tmp_path):
    for _ in range(2):
        with log.MetricLog(tmp_path, 0) as metric_log:
            metric_log.write(0, "eval", {"ccpg_gait/CL/rank1": 3.0})
    assert len(log.read_metrics(tmp_path)) == 1


def test_rows_are_on_disk_before_the_log_is_closed(tmp_path):
    with log.MetricLog(tmp_path) as metric_log:
        metric_log.write(1, "train", {"total": 1.0})
        assert len(log.read_metrics(tmp_path)) == 1


def _scalars(path) -> dict[tuple[str, int], float]:
    """Reads a TFRecord file of events: length (8 bytes), crc (4), event, crc (4)."""
    from tensorboardX.proto.event_pb2 import Event

    data, at, scalars = path.read_bytes(), 0, {}
    while at < len(data):
        length = int.from_bytes(data[at : at + 8], "little")
        event = Event.FromString(data[at + 12 : at + 12 + length])
        scalars |= {(v.tag, event.step): v.simple_value for v in event.summary.value}
        at += 12 + length + 4
    return scalars


def test_tensorboard_events_hold_the_same_numbers(tmp_path):
    _train(tmp_path, 4)
    (path,) = (tmp_path / "tensorboard").glob("events*")
    scalars = _scalars(path)
    assert scalars["eval/ccpg_gait/CL/rank1", 4] == 4
    assert scalars["train/total", 2] == 0.5
    assert len(scalars) == 4 * 2 + 1


def test_only_process_zero_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    _train(tmp_path / "run", 4)
    assert not (tmp_path / "run").exists()


def test_mistakes_are_answered(tmp_path):
    with pytest.raises(FileNotFoundError, match="runs/lmgait"):
        log.read_metrics(tmp_path / "absent.jsonl")
    good, bad = '{"step": 1, "kind": "train"}', tmp_path / "bad.jsonl"
    for line in ("nonsense", "[1]", "3", "{}", '{"step": "x", "kind": ""}', "[" * 9999):
        bad.write_text(f"{good}\n{line}\n")
        with pytest.raises(ValueError, match=r"bad.jsonl is damaged: line 2 is no row"):
            log.read_metrics(bad)


def test_table_aligns_names_left_and_numbers_right():
    rows = {
        "LMGait": {"rank1": 100.0, "steps": 1200, "paper": "2026"},
        "GEI": {"rank1": (8.5, 0.25), "paper": "a"},
    }
    assert log.table(rows) == (
        "              rank1  steps  paper\n"
        "------  -----------  -----  -----\n"
        "LMGait       100.00   1200  2026\n"
        "GEI     8.50 ± 0.25      -  a"
    )
    assert log.table([{"a": 1, "b": 0.25}], ["b"], digits=1) == "  b\n---\n0.2"


@pytest.mark.parametrize(
    "row",
    [
        '{"step": 3, "kind": "train", "total": "abc"}',
        '{"step": 3, "kind": "train", "total": [1, 2]}',
        '{"step": 3, "kind": "train", "total": {"a": 1}}',
        '{"step": 3, "kind": "train", "total": 1' + "0" * 400 + "}",
        '{"step": 3, "kind": 5, "total": 1}',
        '{"step": "3", "kind": "train", "total": 1}',
    ],
)
def test_a_row_with_anything_but_numbers_is_named(tmp_path, row):
    good = '{"step": 1, "kind": "train", "total": null}\n'
    (tmp_path / "metrics.jsonl").write_text(good + row + "\n")
    with pytest.raises(Damaged, match="line 2 is no row of step, kind and numbers"):
        log.read_metrics(tmp_path)
