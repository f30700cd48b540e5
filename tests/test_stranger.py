"""A stranger's walk through the README, on a machine that has nothing.

The commands are read from README.md and run as they stand there, in a copy of the
repository, with an empty home. Three things are replaced: `python -m venv` gives an
environment that has the packages of the tests, `pip install` only says that it was
called, and a training gets smaller numbers at the end of its arguments. Videos are
drawn, and what the person model would see of them is known.
"""

import json
import os
import re
import shlex
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

import gaitjax.__main__ as entry
from configs import gei
from gaitjax import run_folder
from gaitjax.use import cut, person
from tests.test_end_to_end import LMGAIT, ROOT

sys.path.insert(0, str(Path(__file__).parent / "use"))
import walkers_on_video as drawn

README = (ROOT / "README.md").read_text()
# what the packages, the wheel or the builders' tests show, or what needs a benchmark
ELSEWHERE = (
    r"--manual_dir=DIR",
    r"--config.checkpoint=FILE.pt",
    r"/run.sh train configs/lmgait.py --config.train.steps=200",  # as ./run.sh
    r"/run.sh build synthetic_gait$",  # full size; ./run.sh has built the tiny one
    r"/run.sh test$",
    r"main --config=configs/lmgait.py$",  # as ./run.sh, whose last line it is
    r"^gaitjax --config=configs/lmgait.py$",  # tests/test_package.py
    r"/run.sh train configs/cargait.py",  # tests/rerank
)
PASSING = {"x": -30, "speed": 8, "stride": 0.4}  # a drawn person
PYTHON = """#!{python}
import json, os, pathlib, sys
given, home = sys.argv[1:], pathlib.Path({home!r})
if given[:2] == ["-m", "venv"]:
    folder = pathlib.Path(given[2]) / "bin"
    folder.mkdir(parents=True)
    (folder / "python").symlink_to(pathlib.Path(sys.argv[0]).resolve())
    sys.exit()
if given[:2] == ["-m", "pip"]:
    with (home / "pip.txt").open("a") as file:
        file.write(" ".join(given[2:]) + chr(10))
    sys.exit()
more = []
if given[1:2] in (["gaitjax.main"], ["tfds_builders.prepare"]):
    config = [x.partition("configs/")[2] for x in given if x[:9] == "--config="]
    more = json.loads((home / "smaller.json").read_text())[config[0]]
os.execv({python!r}, [{python!r}, *given, *more])
"""


def commands() -> list[str]:
    """Of the README's bash blocks, without their comments."""
    blocks = "\n".join(re.findall(r"(?s)```bash\n(.*?)```", README))
    lines = (re.sub(r"\s+# .*", "", x).strip() for x in blocks.splitlines())
    return [line for line in lines if line]


@pytest.fixture(scope="module")
def machine(tmp_path_factory):
    """run(command) -> its output; a copy of the repository and an empty home."""
    clone, home = tmp_path_factory.mktemp("clone"), tmp_path_factory.mktemp("home")
    for name in ("gaitjax", "configs", "tfds_builders"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, clone / name, ignore=ignored)
    for file in (ROOT / "run.sh", *ROOT.glob("requirements*.txt")):
        shutil.copy(file, clone)
    (home / "smaller.json").write_text(json.dumps({"lmgait.py": LMGAIT[1:]}))
    python = home / "python"
    python.write_text(PYTHON.format(python=sys.executable, home=str(home)))
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    kept = {k: v for k, v in os.environ.items() if k.startswith(("JAX_", "XLA_"))}
    environment = kept | {
        "HOME": str(home),
        "PATH": f"{clone}/.venv/bin:/usr/bin:/bin",
        "PYTHON": str(python),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }

    def run(command: str) -> str:
        done = subprocess.run(
            shlex.split(command), cwd=clone, env=environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        assert done.returncode == 0, f"{command}\n{done.stdout[-4000:]}"
        return done.stdout

    run.clone, run.home = clone, home
    return run


def test_every_command_of_the_readme_is_tested():
    walked = ("./run.sh", *AFTER, *VIDEOS)
    for command in commands():
        elsewhere = any(re.search(pattern, command) for pattern in ELSEWHERE)
        assert command in walked or elsewhere, command
    assert set(walked) <= {*commands()}


AFTER = (
    "./run.sh evaluate configs/lmgait.py",
    "python -m gaitjax.main --config=configs/lmgait.py --print_config",
)
VIDEOS = (
    "gaitjax enroll anna anna.mp4",
    "gaitjax identify street.mp4",
    "python -m gaitjax.use.cut street.mp4 --out=walks",
)


def test_from_a_clone_to_a_trained_model(machine):
    output = machine("./run.sh")
    assert "Creating " in output and "never seen in training" in output
    installed = (machine.home / "pip.txt").read_text().splitlines()
    (line,) = installed  # once
    assert (
        line.startswith("install ") and f"-r {machine.clone}/requirements.txt" in line
    )
    run = machine.clone / "runs/lmgait"
    assert json.loads((run / "results.json").read_text())["step"] == 8
    promised = ("checkpoints", "metrics.jsonl", "tensorboard", "pictures")
    assert all((run / name).exists() for name in promised)
    assert "pictures/ranked_CL.png" in README
    assert (run / "pictures/ranked_CL.png").is_file()
    evaluated, shown = (machine(command) for command in AFTER)
    assert "ccpg_gait" in evaluated and "name: lmgait" in shown
    assert "`gaitjax report RUN`" in README
    machine("python -m gaitjax report runs/lmgait")
    assert (run / "report.html").stat().st_size > 100_000


def test_from_a_video_to_a_name(tmp_path, monkeypatch, capsys):
    """With the weights that come with the package."""
    monkeypatch.setattr(person, "load", lambda file: drawn.see)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for name in ("anna", "street"):
        drawn.save(tmp_path / f"{name}.mp4", drawn.walk(PASSING, frames=45))
    said = []
    for command in VIDEOS:
        words = shlex.split(command)
        if words[0] == "gaitjax":
            monkeypatch.setattr(sys, "argv", words)
            with pytest.raises(SystemExit) as ended:
                entry.run()
            assert ended.value.code == 0
        else:
            assert cut.main(words[3:]) == 0
        said.append(capsys.readouterr().out)
    assert "enrolled" in said[0] and "nearest anna" in said[1]
    assert len(list((tmp_path / "walks/street").glob("*-right/walk.json"))) == 1


PYTHON_PAGES = [ROOT / "README.md", ROOT / "docs" / "identify.md"]


@pytest.mark.parametrize("page", PYTHON_PAGES, ids=lambda x: x.stem)
def test_python_in_the_pages_runs(page, tmp_path, monkeypatch, capsys):
    blocks = re.findall(r"(?s)```python\n(.*?)```", page.read_text())
    monkeypatch.setattr(person, "load", lambda file: drawn.see)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs/gaitset").mkdir(parents=True)
    run_folder.write_config(gei.get_config(), tmp_path / "runs/gaitset")
    for name in ("anna", "street"):
        drawn.save(tmp_path / f"{name}.mp4", drawn.walk(PASSING, frames=45))
    for block in blocks:
        exec(compile(block, page.name, "exec"), {"__name__": "page"})
    assert not blocks or "nearest anna" in capsys.readouterr().out
