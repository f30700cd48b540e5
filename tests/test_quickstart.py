"""The notebook of the quick start, its cells run one after the other."""

import json
from pathlib import Path

from tests.fake_datasets import tiny_synthetic

NOTEBOOK = Path(__file__).parents[1] / "docs" / "quickstart.ipynb"
FULL = 'DATASET, PEOPLE, STEPS = "synthetic_gait/tiny", 4, 60'


def test_the_notebook_runs(tmp_path, monkeypatch, capsys):
    tiny_synthetic(tmp_path / "data")
    monkeypatch.setenv("GAITJAX_NOTEBOOK", str(tmp_path))
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    sources = ["".join(x["source"]) for x in cells if x["cell_type"] == "code"]
    assert FULL in sources[0]
    sources[0] = sources[0].replace(FULL, FULL.replace("60", "2"))
    names = {"__name__": "notebook"}
    for number, text in enumerate(sources, 1):
        exec(compile(text, f"cell {number}", "exec"), names)
    run = tmp_path / "runs" / "gaitset"
    assert (run / "report.html").stat().st_size > 100_000
    assert (run / "export" / "weights.safetensors").exists()
    assert "other person" in capsys.readouterr().out
