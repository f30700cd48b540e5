"""Runs of gaitjax.main that start fast: one process imports, each run is its fork.

As a program (`python -m tests.forked_runs`): one JSON list of arguments per line of
stdin; for each a child runs gaitjax.main with them, and two lines are printed: its
process id at its start, its exit code (negative: killed by that signal) at its end.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


class Runs:
    """The parent's side. cache: folder of compiled programs, shared by the runs."""

    def __init__(self, cache: Path):
        environment = {
            **os.environ,
            "JAX_COMPILATION_CACHE_DIR": str(cache),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        self._server = subprocess.Popen(
            [sys.executable, "-m", "tests.forked_runs"], cwd=ROOT, env=environment,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def start(self, arguments: list[str], output: Path) -> int:
        """Process id of a new run; it must end before the next one starts."""
        self._server.stdin.write(json.dumps([str(output), *arguments]) + "\n")
        self._server.stdin.flush()
        return int(self._server.stdout.readline())

    def wait(self) -> int:
        """Exit code of the run."""
        return int(self._server.stdout.readline())

    def close(self) -> None:
        self._server.stdin.close()
        self._server.wait()
        self._server.stdout.close()


def wait_for(condition, what: str, seconds: float = 120) -> None:
    """Polls until `condition()`; an AssertionError naming `what` where it never is."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds} s for {what}"
        time.sleep(0.001)


def _child(output: str, arguments: list[str]) -> None:
    from absl import app

    from gaitjax import main

    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.argv = sys.orig_argv = ["gaitjax.main", *arguments]
    try:
        app.run(main._main, flags_parser=main._parse)
    except SystemExit as end:
        sys.stdout.flush()
        os._exit(end.code or 0)


def _serve() -> None:
    # what a run imports, and nothing that starts threads
    import cv2  # noqa: F401
    import grain  # noqa: F401
    import tensorboardX  # noqa: F401
    import tensorflow_datasets  # noqa: F401

    from gaitjax import checkpoints, evaluate, train, train_reranker  # noqa: F401

    for line in sys.stdin:
        output, *arguments = json.loads(line)
        child = os.fork()
        if child == 0:
            _child(output, arguments)
        print(child, flush=True)
        status = os.waitpid(child, 0)[1]
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    _serve()
