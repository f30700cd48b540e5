"""Parity with stored numbers of the reference implementations (tests/goldens).

    GAITJAX_GOLDENS=FOLDER:FOLDER pytest tests/test_goldens.py     # other folders

Every *.npz of the folders is a test, whatever its name. None is skipped: a kind without
a check fails, and so does a model that gaitjax.models does not have.
"""

import importlib

import golden_files
import pytest
from conftest import ROOT

FOLDERS = golden_files.folders()
FILES = [path for folder in FOLDERS for path in sorted(folder.glob("*.npz"))]


def families(table: str = "KINDS") -> dict:
    """{kind: check} of every tests/golden_<family>.py with KINDS.

    table "CLASSES": {meta["class"]: check}, of one model among the files of its kind.
    """
    checks = {}
    for path in sorted((ROOT / "tests").glob("golden_*.py")):
        family = getattr(importlib.import_module(path.stem), table, {})
        twice = set(checks) & set(family)
        assert not twice, f"{path.name} defines {twice} again"
        checks |= family
    return checks


@pytest.mark.parametrize("folder", FOLDERS, ids=str)
def test_the_folder_holds_golden_files(folder):
    assert list(folder.glob("*.npz")), f"no *.npz in {folder.resolve()}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_golden(path):
    golden = golden_files.read(path)
    kind = golden.meta.get("kind")
    check = families("CLASSES").get(golden.meta.get("class"), families().get(kind))
    if check is None:
        pytest.fail(
            f"{path.name} is of kind {kind!r}, which no tests/golden_*.py checks; "
            "add it to the KINDS of its family."
        )
    check(golden)
