"""How a user's mistake is refused: one sentence, where the mistake enters.

The sentence says what is wrong, what was given, what was expected and how to repair it.
Functions that compute do not check what their callers have checked.
"""

from collections.abc import Collection, Mapping
from typing import Any


def require(condition, message: str, error: type[Exception] = ValueError) -> None:
    """Raises `error` with `message` unless `condition` holds."""
    if not condition:
        raise error(message)


def choose(name, table: Collection, what: str) -> Any:
    """What `table` holds under `name`; `name` itself where the table is no mapping.

    what: the field or flag the name comes from, for instance "config.optimizer.name".
    Raises ValueError, which lists the choices, for a name that is not in the table.
    """
    if name not in list(table):  # an unhashable name is unknown, too
        choices = ", ".join(map(str, table)) or "nothing"
        raise ValueError(f"Unknown {what} {name!r}; choose from {choices}.")
    return table[name] if isinstance(table, Mapping) else name
