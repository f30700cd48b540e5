"""The wheel: what is in it, and that its command works outside of the repository."""

import email
import importlib.metadata
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import gaitjax

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("gaitjax", "configs", "tfds_builders")


def pip(*arguments) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    quiet = {"capture_output": True, "text": True}
    done = subprocess.run([*command, *map(str, arguments)], **quiet)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel of this checkout, built without network from a copy."""
    copy, built = tmp_path_factory.mktemp("copy"), tmp_path_factory.mktemp("wheel")
    for name in PACKAGES:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, copy / name, ignore=ignored)
    for pattern in ("*.toml", "*.md", "LICENSE", "requirements*.txt"):
        for file in ROOT.glob(pattern):
            shutil.copy(file, copy)
    options = ("--no-deps", "--no-index", "--no-build-isolation")
    pip("wheel", *options, "--wheel-dir", built, copy)
    (file,) = built.glob("*.whl")
    return file


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    folder = tmp_path_factory.mktemp("installed")
    pip("install", "--no-deps", "--no-index", "--target", folder, wheel)
    return folder


def requirements(file: str) -> set[Requirement]:
    stripped = (x.partition("#")[0] for x in (ROOT / file).read_text().splitlines())
    return {Requirement(x) for x in stripped if x.strip()}


def test_every_file_of_the_packages_is_in_the_wheel_and_nothing_else(wheel):
    held = set(zipfile.ZipFile(wheel).namelist())
    expected = {
        path.relative_to(ROOT).as_posix()
        for name in PACKAGES
        for path in (ROOT / name).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {x for x in held if ".dist-info/" not in x} == expected
    for name in ("configs/lmgait.py", "tfds_builders/ccpg/CITATIONS.bib"):
        assert name in expected


def test_metadata_are_those_of_the_repository(installed):
    (found,) = importlib.metadata.distributions(path=[str(installed)])
    metadata = email.message_from_string(found.read_text("METADATA"))
    assert found.name == "gaitjax" and found.version == gaitjax.__version__
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == ">=3.11"
    assert metadata.get_payload() == (ROOT / "README.md").read_text()
    needed = {"": set(), "dev": set(), "beam": set()}
    for text in metadata.get_all("Requires-Dist"):
        what, _, marker = text.partition(";")  # name<2; extra == "dev"
        needed[marker.partition("==")[2].strip(" \"'")].add(Requirement(what))
    assert needed == {
        "": requirements("requirements.txt"),
        "dev": requirements("requirements-dev.txt"),
        "beam": requirements("requirements-beam.txt"),
    }


@pytest.mark.parametrize(
    "arguments, expected",
    [
        (["--version"], f"gaitjax {gaitjax.__version__}"),
        (["--help"], "--config=configs/lmgait.py"),
        (["--config=configs/gaitbase.py:ccpg", "--print_config"], "gaitbase_ccpg"),
        (["--config", "configs/gei.py", "--print_config"], "name: gei"),
    ],
    ids=["version", "help", "config", "config as two words"],
)
def test_the_command_works_in_any_folder(installed, tmp_path, arguments, expected):
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    done = subprocess.run(
        [installed / "bin" / "gaitjax", *arguments],
        cwd=tmp_path, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert expected in done.stdout and not done.stderr


def test_a_config_that_is_nowhere_is_refused(installed, tmp_path):
    done = subprocess.run(
        [installed / "bin" / "gaitjax", "--config=configs/moon.py"], cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(installed)},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2
    assert "no config file 'configs/moon.py'" in done.stderr
    assert str(installed / "configs") in done.stderr
