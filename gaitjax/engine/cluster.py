"""Several processes as one run, and signals that ask a run to stop.

Inside the training loop the running step is finished and saved before the program
leaves; outside of it everything that is needed is on disk already. A single process
notes the signal itself. Of several, whichever got the signal, JAX's preemption service
makes all of them stop at the same poll (`asked`).
"""

import os
import shlex
import signal
import sys
import threading

import jax
from jax.experimental import multihost_utils

from gaitjax.engine.guards import require

SIGNALS = (signal.SIGTERM, signal.SIGINT)
LEAVE_SECONDS = 10  # how long a failed process waits for the others
END_SECONDS = 24 * 3600  # how long the others wait for process 0, which draws pictures


def join(coordinator: str | None, num_processes: int | None, process_id: int | None):
    """Makes this process one of a multi-host run; call it before anything uses devices.

    All three None: the cluster is asked (Slurm, Open MPI, Cloud TPU, ...; see
    `jax.distributed.initialize`). On CPU the processes talk through gloo.

    Raises ValueError if only some are given, if no cluster was recognised, and
    if the other processes did not come within five minutes.
    """
    given = dict(
        coordinator=coordinator, num_processes=num_processes, process_id=process_id
    )
    missing = [name for name, value in given.items() if value is None]
    require(
        len(missing) in (0, 3),
        f"--multihost got {', '.join(set(given) - set(missing))} but not "
        f"{', '.join(missing)}; give all three, or none if the cluster (Slurm, Open "
        "MPI, Cloud TPU) is recognised.",
    )
    require(
        coordinator is None or coordinator.rpartition(":")[2].isdigit(),
        f"--coordinator={coordinator} has no port; give HOST:PORT of process 0, for "
        "instance 10.0.0.1:1234.",
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
    if jax.process_count() > 1:
        signal.signal(signal.SIGINT, _interrupted)


def _interrupted(number, frame) -> None:
    """Turns Ctrl-C on one of several processes into SIGTERM, which the preemption
    service catches and tells to all."""
    signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # a second one ends at once
    os.kill(os.getpid(), signal.SIGTERM)


class Stopped(SystemExit):
    """The run was asked to end, and can do so at once; exit code 0."""


_noted: int | None = None  # the signal that asked this process to end
_polls = 0  # the same in all processes, so that they agree on a poll


def asked() -> bool:
    """Has the run been asked to end (SIGTERM, Ctrl-C)?

    Of several processes each must call it equally often; all get the same answer.
    """
    global _noted, _polls
    if jax.process_count() > 1 and _noted is None:
        _polls += 1
        if multihost_utils.reached_preemption_sync_point(_polls):
            _noted = signal.SIGTERM
    return _noted is not None


def leave_if_asked() -> None:
    """Raises Stopped if the run was `asked` to end; for work that can be done again."""
    if asked():
        raise _heard(Stopped(0))


class Stop:
    """Context of the training loop: signals to end are noted, for `asked`."""

    def __init__(self):
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
        global _noted
        if number == _noted == signal.SIGINT:
            raise KeyboardInterrupt  # a second Ctrl-C ends at once
        _noted = number


def end(step: int, last: int, workdir: str) -> None:
    """Leaves the program with code 0 and says how to go on; the state is saved."""
    say(
        f"Stopped after step {step} of {last}; everything is saved in {workdir}. To go "
        f"on, run the same command again: {command()}"
    )
    raise _heard(SystemExit(0))


def _heard(leaving: SystemExit) -> SystemExit:
    """Forgets the signal: a program that catches `leaving` is not stopped again."""
    global _noted
    _noted = None
    return leaving


def leave_soon(code: int) -> None:
    """Ends this process soon, for a failure that the other processes may not share.

    An ordinary exit would wait for them, while they wait for it in a collective; once
    it is gone, they notice.
    """
    if jax.distributed.is_initialized():
        timer = threading.Timer(LEAVE_SECONDS, os._exit, [code])
        timer.daemon = True
        timer.start()


def exit_when_stopped() -> None:
    """Outside the training loop, SIGTERM ends the program at once, with code 0."""

    def leave(number, frame):
        raise Stopped(0)

    signal.signal(signal.SIGTERM, leave)


def say_stopped() -> None:
    """Says how to go on, for a program that ends by Stopped."""
    say(
        "Stopped outside the training loop; what was trained is saved. To go on, run "
        f"the same command again: {command()}"
    )


def say(text: str) -> None:
    """Prints, on process 0 only."""
    if jax.process_index() == 0:
        print(text, flush=True)


def command() -> str:
    """The command line of this process, to be pasted into a shell."""
    return shlex.join(sys.orig_argv)
