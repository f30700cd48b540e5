"""Tasks of spawned workers, here so that a worker imports nothing else."""

import os
import signal


def square(number: int) -> int:
    return number * number


def killed_at_seven(number: int) -> int:
    if number == 7:
        os.kill(os.getpid(), signal.SIGKILL)
    return number
