"""How a user's mistake is refused: one sentence, where the mistake enters.

The sentence says what is wrong, what was given, what was expected and how to repair it.
Functions that compute do not check what their callers have checked.
"""

import contextlib
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any


def require(condition, message: str, error: type[Exception] = ValueError) -> None:
    """Raises `error` with `message` unless `condition` holds."""
    if not condition:
        raise error(message)


class Damaged(ValueError):
    """A file that is not whole, or not what its name says.

    The message is "FILE is damaged: fault. repair"; the fault says where and how. It is
    cut short, because names in a damaged file can be of any length.
    """

    def __init__(self, file, fault: str, repair: str = "Fetch it again."):
        short = fault if len(fault) <= 600 else fault[:597] + "..."
        super().__init__(f"{file} is damaged: {short}. {repair}")


def require_whole(condition, file, fault: str, repair="Fetch it again.") -> None:
    """Raises `Damaged` unless `condition` holds."""
    if not condition:
        raise Damaged(file, fault, repair)


@contextlib.contextmanager
def reading(file, fault: str) -> Iterator[None]:
    """Any error while `file` is read becomes `Damaged`: `fault`, then the error."""
    try:
        yield
    except Damaged:
        raise
    except Exception as error:
        kind = f"{type(error).__name__}: {error}"
        raise Damaged(file, f"{fault} ({kind})") from error


def choose(name, table: Collection, what: str) -> Any:
    """What `table` holds under `name`; `name` itself if the table is no mapping.

    what: the field or flag the name comes from, for instance "config.optimizer.name".
    Raises ValueError, which lists the choices, for a name that is not in the table.
    """
    if name not in list(table):  # an unhashable name is unknown, too
        choices = ", ".join(map(str, table)) or "nothing"
        raise ValueError(f"Unknown {what} {name!r}; choose from {choices}.")
    return table[name] if isinstance(table, Mapping) else name


def require_regex(pattern: str, what: str) -> None:
    """Raises ValueError, naming the field `what`, unless `pattern` compiles."""
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(
            f"{what}: {pattern!r} is no regular expression ({error})."
        ) from error
