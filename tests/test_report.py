"""report.html of a run and of an identification, looked at in a browser."""

import base64
import io
import json
import re
import shutil
import subprocess
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gaitjax import report
from gaitjax.pictures import page
from tests.fake_datasets import tiny_synthetic

EARLIER_RUNS = Path(__file__).parent / "engine" / "earlier_runs.tar.gz"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
SECTIONS = (
    "Identification",
    "Cumulative match characteristic",
    "By condition and view",
    "Known or unknown",
    "Map of the embeddings",
    "Hardest confusions",
    "Training",
    "Before and after CarGait",
    "Data",
    "Config",
)
# Chromium writes the page as it is after the script; its title then says what it saw
LOOK = """<script>window.onload = () => { document.title = JSON.stringify(
[...document.images].map(x => [x.complete, x.naturalWidth, x.clientWidth])); };</script>
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """An earlier run, with a re-ranker's results beside it."""
    folder = tmp_path_factory.mktemp("report")
    with tarfile.open(EARLIER_RUNS) as archive:
        archive.extractall(folder, filter="data")
    (folder / "cargait" / "pictures").mkdir(parents=True)
    numbers = {"ccpg_gait/CL/rank1": 10.0, "ccpg_gait/mean/rank1": 20.0}
    after = {name: value + 1 for name, value in numbers.items()}
    reranked = {
        "base_run": "runs/gaitbase",
        "shortlist": 10,
        "rerankers": {"base": {"results": numbers}, "cargait": {"results": after}},
    }
    (folder / "cargait" / "rerank.json").write_text(json.dumps(reranked))
    picture = folder / "cargait" / "pictures" / "reranked_CL.png"
    Image.effect_noise((40, 20), 50).save(picture)
    return folder / "gaitbase"


def pictures_in(text):
    found = re.findall(r'src="data:image/png;base64,([^"]+)"', text)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(x)))) for x in found]


def look_at(file: Path) -> list[list]:
    """[[loaded, width, shown width] of each picture]; no error may be logged."""
    watched = file.with_name("watched.html")
    watched.write_text(file.read_text().replace("</html>", LOOK + "</html>"))
    command = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom",
        "--disable-dev-shm-usage", "--enable-logging=stderr", "--window-size=1200,900",
        "--virtual-time-budget=5000", f"--user-data-dir={file.parent / 'profile'}",
        watched.as_uri(),
    ]  # fmt: skip
    seen = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert "CONSOLE" not in seen.stderr, seen.stderr
    title = re.search(r"<title>(.*?)</title>", seen.stdout)
    return json.loads(title[1])


def check_in_browser(file: Path, count: int) -> None:
    if CHROMIUM is None:
        return  # the pictures were decoded all the same
    seen = look_at(file)
    assert len(seen) == count
    assert all(loaded and width and shown for loaded, width, shown in seen)


def test_report_of_a_run(run, tmp_path, capsys):
    data_dir = tiny_synthetic(tmp_path / "data").parents[1].parent
    assert report.main([str(run), f"--data_dir={data_dir}"]) == 0
    file = run / "report.html"
    text = file.read_text()
    assert re.findall(r"<h2>(.*?)</h2>", text) == list(SECTIONS)
    assert "equal error rate" in text and "CarGait" in text
    assert not re.search(r'(src|href)="(?!data:|#)', text)  # self-contained
    pictures = pictures_in(text)
    assert len(pictures) == 7
    assert all(len(np.unique(x)) > 10 for x in pictures)
    check_in_browser(file, len(pictures))


def test_report_without_the_data_says_so(run, tmp_path):
    file = tmp_path / "report.html"
    report.of_run(run, file, data_dir=str(tmp_path / "nothing"))
    text = file.read_text()
    assert "The test split could not be embedded" in text
    assert "<h2>Training</h2>" in text and "Known or unknown" not in text


def test_mistakes(run, tmp_path, capsys):
    assert report.main([str(tmp_path)]) == 2
    assert "it has no config.json" in capsys.readouterr().err
    assert report.main([str(run), f"--reranker={tmp_path}"]) == 2
    assert "rerank.json" in capsys.readouterr().err


def test_hardest_confusions_are_the_largest_gaps_once_per_pair_of_persons():
    probe, gallery = np.array(["a", "a", "b", "c"]), np.array(["a", "b"])
    matrix = np.array([[5.0, 1], [9, 1], [1, 2], [3, 4]])
    # the second row is the harder search of a for b; c has no walk of its own
    assert report.hardest(matrix, probe, gallery, 6) == [(1, 1, 0), (2, 0, 1)]


def test_texts_of_cells():
    assert page.text(None) == page.text(float("nan")) == "–"
    assert page.text(12.345) == "12.3" and page.text(0.01234) == "0.0123"
    assert page.text(12345) == "12,345" and page.text("<b>") == "&lt;b&gt;"
