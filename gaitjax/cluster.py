"""What a cluster does to a run: processes that must find each other, signals to stop.

A stop is never lost and never half: inside the training loop the step that runs is
finished and saved; outside of it everything that will be needed is on disk already.
"""

import os
import shlex
import signal
import sys
import threading

import jax
from jax.experimental import multihost_utils

SIGNALS = (signal.SIGTERM, signal.SIGINT)
LEAVE_SECONDS = 10  # that a process which failed still waits for the others
END_SECONDS = 24 * 3600  # that one which is done waits for process 0 and its pictures


def join(coordinator: str | None, num_processes: int | None, process_id: int | None):
    """Makes this process one of a multi-host run; call it before anything uses devices.

    All three None: found out from the cluster (Slurm, Open MPI, Cloud TPU, ...; see
    `jax.distributed.initialize`). On CPU the processes talk through gloo.

    Raises:
      ValueError: only some of them given, no cluster was recognised, or the other
        processes did not come within five minutes.
    """
    given = dict(
        coordinator=coordinator, num_processes=num_processes, process_id=process_id
    )
    missing = [name for name, value in given.items() if value is None]
    if 0 < len(missing) < 3:
        raise ValueError(
            f"--multihost got {', '.join(set(given) - set(missing))} but not "
            f"{', '.join(missing)}; give all three, or none where the cluster (Slurm, "
            "Open MPI, Cloud TPU) is recognised."
        )
    if coordinator is not None and not coordinator.rpartition(":")[2].isdigit():
        raise ValueError(
            f"--coordinator={coordinator} has no port; give HOST:PORT of process 0, "
            "for instance 10.0.0.1:1234."
        )
    try:
        jax.distributed.initialize(
            coordinator,
            num_processes,
            process_id,
            cluster_detection_method="deactivate" if coordinator else None,
            shutdown_timeout_seconds=END_SECONDS,
        )
    except (ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"--multihost: the processes did not find each other ({reason}). Give "
            "--coordinator=HOST:PORT --num_processes=N --process_id=I, the same "
            "HOST:PORT of process 0 for all, reachable from every host."
        ) from error


class Stop:
    """Around the training loop: has the run been asked to end (SIGTERM, Ctrl-C)?

    One process notes the signal itself; on several, JAX's preemption service makes all
    of them end at the same step, whichever was asked.
    """

    def __init__(self):
        self._asked = None
        self._before = {}

    def __enter__(self) -> "Stop":
        main = threading.current_thread() is threading.main_thread()
        if jax.process_count() == 1 and main:
            for number in SIGNALS:
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *exception) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number, frame) -> None:
        if self._asked == signal.SIGINT:
            raise KeyboardInterrupt  # the second Ctrl-C means now
        self._asked = number

    def asked(self, step: int) -> bool:
        """Call it after every step, on every process; `step` counts finished ones."""
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._asked is not None


def end(step: int, last: int, workdir: str) -> None:
    """Leaves the program with code 0, telling how to go on; the state is saved."""
    say(
        f"Stopped after step {step} of {last}; everything is saved in {workdir}. To go "
        f"on, run the same command again: {command()}"
    )
    raise SystemExit(0)


def leave_soon(code: int) -> None:
    """Call it where this process fails while others may not: at its exit it would wait
    for them and they, in a collective, for it. They notice that it is gone."""
    if jax.distributed.is_initialized():
        timer = threading.Timer(LEAVE_SECONDS, os._exit, [code])
        timer.daemon = True
        timer.start()


def exit_when_stopped() -> None:
    """Outside the training loop, SIGTERM ends the program at once, with code 0."""

    def leave(number, frame):
        print(
            "Stopped outside the training loop; what was trained is saved. To go on, "
            f"run the same command again: {command()}",
            flush=True,
        )
        raise SystemExit(0)

    signal.signal(signal.SIGTERM, leave)


def say(text: str) -> None:
    """Prints, on process 0 only."""
    if jax.process_index() == 0:
        print(text, flush=True)


def command() -> str:
    """The command line of this process, to be pasted into a shell."""
    return shlex.join(sys.orig_argv)
