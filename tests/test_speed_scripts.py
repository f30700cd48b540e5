"""Benchmarks that compare: the device script's parts and limits, PyTorch's networks."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import device, input_pipeline, tables, temperature, zoo

ROOT = Path(__file__).resolve().parents[1]
ABSENT = (  # on a GPU machine as docs/scaling.md describes it
    "tensorflow", "tensorflow_datasets", "grain", "array_record", "tensorboardX",
    "torch",
)  # fmt: skip
WITHOUT = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {absent}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Absent())
"""


def without(absent, code: str) -> str:
    """stdout of the code in a process where these packages cannot be imported."""
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT.format(absent=set(absent)) + code],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_the_device_script_itself_needs_python_only():
    packages = (*ABSENT, "jax", "flax", "numpy", "ml_collections", "optax", "orbax")
    assert "lmgait" in without(
        packages, "from benchmarks import device; print(list(device.NAMES))"
    )


def test_its_parts_need_no_tensorflow_grain_or_torch():
    code = """
import json
from benchmarks import device, encoders, rerank, scaling, train_step, zoo
from gaitjax.data import pipeline
print(json.dumps([device.biggait_torch(True), device.search(True),
                  device.zoo_model(True, "gaitset", "")]))
"""
    theirs, search, model = json.loads(without(ABSENT, code).splitlines()[-1])
    assert theirs is None
    assert search["itself_first"] == 1 and search["ms_per_probe"] > 0
    assert model["step_ms"] > 0 and 0 < model["mfu"] < 1 and model["sequences"] == 4
    assert "torch" not in model


def test_parts_that_fail_or_last_too_long_are_null(tmp_path, capsys):
    late = device.run_part("search", True, 0.05, tmp_path)
    assert late["result"] is None and "not ready after 0 s" in late["reason"]
    report = device.run_all(["search"], True, device.SPARE / 2, tmp_path / "out.json")
    row = report["parts"]["search"]
    assert row["result"] is None and row["reason"] == "no time left"
    assert json.loads((tmp_path / "out.json").read_text()) == report
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert lines[0].keys() == {"jax", "flax", "devices", "device"} and lines[1] == row
    assert sum(device.PARTS.values()) < 2 * device.LIMIT  # limits, not expectations


def test_networks_have_the_published_number_of_parameters():
    pytest.importorskip("torch")
    from benchmarks.pytorch import networks

    sizes = {
        "gaitset": 2_594_592,
        "gaitpart": 1_204_000,
        "gaitbase": 7_305_408,
        "deepgaitv2": 25_492_160,
    }
    for name, size in sizes.items():
        config = zoo.model_config(name, sequences=2)
        network, images, labels = zoo.their_network(name, config)
        assert networks.parameters(network) == size
        assert len(images) == 2 * zoo.FRAMES and labels.tolist() == [0, 1]


def test_pages_show_the_stored_times():
    stored = tables.stored
    made = {
        "zoo": (zoo.table(stored(zoo.STORE)), zoo.DOCUMENT),
        "temperature": (temperature.table(), temperature.DOCUMENT),
    }
    if rates := stored(input_pipeline.STORE).get("rates"):
        rows = input_pipeline.table(rates)
        made["input_pipeline"] = (rows, input_pipeline.memory.DOCUMENT)
    for program, (table, page) in made.items():
        begin = f"<!-- made by benchmarks/{program}.py -->\n"
        block = page.read_text().partition(begin)[2].partition("<!-- end -->")[0]
        assert table.strip() and block.strip().startswith(table.strip()), program
