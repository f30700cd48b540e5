"""`run.sh launch`: with a program in Python's place that only waits or fails."""

import os
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
esac
"""


@pytest.fixture
def launch(tmp_path):
    """launch(fails) starts `run.sh launch 2` in a process group: (process, log file)"""
    (tmp_path / "bin").mkdir()
    python, log = tmp_path / "bin" / "python", tmp_path / "log"
    python.write_text(FAKE)
    python.chmod(0o755)
    files = sorted(ROOT.glob("requirements*.txt"))
    installed = b"".join(file.read_bytes() for file in files)
    (tmp_path / ".installed-requirements.txt").write_bytes(installed)

    def start(fails: int):
        environment = {**os.environ, "GAITJAX_VENV": str(tmp_path), "FAILS": str(fails)}
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
