"""Runs of gaitjax.main that start fast: one process imports, each run is a fork of it.

As a program (`python -m tests.forked_runs`): each line of stdin is a JSON list of
processes, [devices, output file, arguments of gaitjax.main ...]; a first argument
"tests.checkpoint_task" runs that with the others. Two lines answer: the process ids
when they start, the exit codes when they end (negative: killed by that signal).
"""

import atexit
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


class Runs:
    """The parent's side. cache: folder of compiled programs; None: the tests' own."""

    def __init__(self, cache: Path | None = None):
        environment = {**os.environ, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
        if cache:
            environment["JAX_COMPILATION_CACHE_DIR"] = str(cache)
        self._server = subprocess.Popen(
            [sys.executable, "-m", "tests.forked_runs"], cwd=ROOT, env=environment,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def start(
        self, arguments: list[str], output: Path, processes: int = 1, devices: int = 1
    ) -> list[int]:
        """Process ids of a new run; it must end before the next one starts.

        output: file of its output; of each process, with its number, where several.
        """
        jobs = [[devices, str(output), *arguments]]
        if processes > 1:
            with socket.socket() as server:
                server.bind(("127.0.0.1", 0))
                port = server.getsockname()[1]
            address = f"--coordinator=127.0.0.1:{port}"
            several = ["--multihost", address, f"--num_processes={processes}"]
            jobs = [
                [devices, f"{output}{i}", *arguments, *several, f"--process_id={i}"]
                for i in range(processes)
            ]
        self._server.stdin.write(json.dumps(jobs) + "\n")
        self._server.stdin.flush()
        return json.loads(self._server.stdout.readline())

    def wait(self) -> list[int]:
        """Exit codes of the run's processes."""
        return json.loads(self._server.stdout.readline())

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


def _child(devices: int, output: str, *arguments: str) -> None:
    import jax

    from gaitjax import main
    from tests import checkpoint_task

    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    jax.config.update("jax_num_cpu_devices", devices)
    sys.argv = sys.orig_argv = ["gaitjax.main", *arguments]
    try:
        if arguments[0] == "tests.checkpoint_task":
            checkpoint_task.run(*arguments[1:])
            raise SystemExit(0)
        main.run()
    except SystemExit as end:
        sys.stdout.flush()
        atexit._run_exitfuncs()  # as at any exit: processes leave together
        os._exit(end.code or 0)


def _serve() -> None:
    # what a run imports, and nothing that starts threads
    import cv2  # noqa: F401
    import grain  # noqa: F401
    import tensorboardX  # noqa: F401
    import tensorflow_datasets  # noqa: F401

    import gaitjax.evaluate
    import gaitjax.rerank.run
    import gaitjax.train  # noqa: F401

    for line in sys.stdin:
        children = []
        for job in json.loads(line):
            children.append(os.fork())
            if children[-1] == 0:
                _child(*job)
        print(json.dumps(children), flush=True)
        codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
        print(json.dumps(codes), flush=True)


if __name__ == "__main__":
    _serve()
