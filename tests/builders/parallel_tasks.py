"""Tasks for spawned workers, in a module of their own so that workers start fast."""

import os
import signal


def square(number: int) -> int:
    return number * number


def killed_at_seven(number: int) -> int:
    if number == 7:
        os.kill(os.getpid(), signal.SIGKILL)
    return number
