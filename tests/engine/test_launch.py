"""`run.sh launch` and `run.sh test`, with a fake Python that only waits or fails."""

import os
import re
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from tests.forked_runs import wait_for

ROOT = Path(__file__).resolve().parents[2]
FAKE = r"""#!/bin/bash
case "$*" in
  *socket*) echo 4321 ;;
  *gaitjax.main*)
    trap 'echo stopped; exit 0' TERM
    echo "started $* on $JAX_LOCAL_DEVICE_IDS"
    case "$FAILS $*" in 1*--process_id=1) exit 3 ;; esac
    sleep 60 & wait ;;
  *) echo "$*" ;;
esac
"""


@pytest.fixture
def venv(tmp_path):
    """The folder of a virtual environment whose Python is FAKE."""
    (tmp_path / "bin").mkdir()
    python = tmp_path / "bin" / "python"
    python.write_text(FAKE)
    python.chmod(0o755)
    return tmp_path


@pytest.fixture
def launch(venv, tmp_path):
    """launch(fails) starts `run.sh launch 2` in a process group: (process, log file)"""
    log = tmp_path / "log"
    shutil.copy(ROOT / "requirements.txt", venv / ".installed-requirements.txt")

    def start(fails: int):
        environment = {**os.environ, "GAITJAX_VENV": str(venv), "FAILS": str(fails)}
        with log.open("w") as output:
            process = subprocess.Popen(
                [ROOT / "run.sh", "launch", "2", "configs/x.py", "--workdir=w"],
                cwd=tmp_path, env=environment, stdout=output, stderr=output,
                start_new_session=True,
            )  # fmt: skip
        wait_for(lambda: log.read_text().count("started") == 2, "two processes")
        return process, log

    return start


def test_processes_get_a_number_a_device_and_each_other(launch, tmp_path):
    process, log = launch(fails=0)
    for number in range(2):
        expected = (
            f"started -m gaitjax.main --config=configs/x.py --workdir={tmp_path}/w "
            "--multihost --coordinator=127.0.0.1:4321 --num_processes=2 "
            f"--process_id={number} on {number}\n"
        )
        assert expected in log.read_text()
    os.killpg(process.pid, signal.SIGTERM)  # as Ctrl-C: all of the group
    assert process.wait(30) == 0  # not before all have stopped
    assert log.read_text().count("stopped") == 2


def test_where_one_fails_the_others_are_ended(launch):
    process, log = launch(fails=1)
    assert process.wait(30) == 3
    assert "a process ended with code 3, so the others are ended too" in log.read_text()


def test_what_the_tests_need_is_installed_once_and_arguments_go_to_pytest(venv):
    environment = {**os.environ, "GAITJAX_VENV": str(venv)}
    command = [ROOT / "run.sh", "test", "-k", "two words"]
    first, second = (
        subprocess.run(command, env=environment, capture_output=True, text=True)
        for _ in range(2)
    )
    assert first.returncode == second.returncode == 0, first.stderr + second.stderr
    installed = f"-r {ROOT}/requirements.txt -r {ROOT}/requirements-dev.txt\n"
    assert installed in first.stdout and "pip install" not in second.stdout
    for output in (first.stdout, second.stdout):
        assert re.search(r"^-m pytest -n 2 .*-k two words$", output, re.MULTILINE)
