"""The domain (allowed values) of every option, written as the type of its field.

    class Text(NamedTuple):
        fusion: Literal["mask", "gate"] = "mask"
        channels: Some[Positive] = (64, 128)   # one entry or more, each 1 or more
        dropout: Share = 0.0                   # 0 to 1

A class of options is a NamedTuple or a dataclass. `check` compares a group of a config
with it and names the field, the value and the domain of what does not fit; `settle`
turns the group into the class.
"""

import dataclasses
import functools
import math
import numbers
import typing
from collections.abc import Callable
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

from gaitjax.engine.guards import choose, require


class Where(NamedTuple):
    """A condition on a value, and how a message words it."""

    holds: Callable[[Any], Any]
    words: str


def AtLeast(low) -> Where:
    return Where(lambda value: value >= low, f"{low} or more")


def Above(low) -> Where:
    return Where(lambda value: value > low, f"above {low}")


def Between(low, high) -> Where:
    return Where(lambda value: low <= value <= high, f"from {low} to {high}")


Item = TypeVar("Item")
Natural = Annotated[int, AtLeast(0)]
Positive = Annotated[int, AtLeast(1)]
Odd = Annotated[int, Where(lambda value: value > 0 and value % 2, "odd and above 0")]
Share = Annotated[float, Between(0, 1)]
Some = Annotated[tuple[Item, ...], Where(len, "not empty")]
SCALARS = {  # type -> (what counts as it, words)
    bool: (bool, "True or False"),
    int: (numbers.Integral, "an integer"),
    float: (numbers.Real, "a finite number"),
    str: (str, "text"),
}
LIMITS = {int: 2**31, float: 2.0**128}  # devices compute in 32 bits


@functools.cache
def fields_of(options: type) -> dict[str, tuple[Any, bool]]:
    """{name: (domain, whether it has a default)} of a NamedTuple or a dataclass."""
    hints = typing.get_type_hints(options, include_extras=True)
    if not dataclasses.is_dataclass(options):
        defaults = options._field_defaults  # pyright: ignore
        return {name: (hint, name in defaults) for name, hint in hints.items()}
    missing = dataclasses.MISSING
    return {
        f.name: (hints[f.name], not f.default is f.default_factory is missing)
        for f in dataclasses.fields(options)
    }


def check(group, options: type, path: str, skip=()) -> None:
    """Raises ValueError unless every value of a config's group is in its domain.

    path: of the group, for instance "config.model"; skip: fields that no config sets.
    """
    fields = {n: field for n, field in fields_of(options).items() if n not in skip}
    names = ", ".join(fields)
    is_group = hasattr(group, "keys")
    require(is_group, f"{path} must be a group of the fields {names}; got {group!r}.")
    for name in list(group):
        choose(name, fields, f"field of {path}:")
    for name, (domain, default) in fields.items():
        here = f"{path}.{name}"
        given = name in group
        require(given or default, f"{here} is missing; it must be {words(domain)}.")
        if given:
            check_value(group[name], domain, here)


def check_value(value, domain, path: str) -> None:
    """`check` of one value, the field `path`."""
    if getattr(value, "shape", None) == ():
        value = value.item()  # NumPy's scalars
    kind, conditions = _split(domain)
    if typing.get_origin(kind) is Literal:
        choose(value, typing.get_args(kind), path)
    elif kind in SCALARS or typing.get_origin(kind) is tuple:
        message = f"{path} must be {words(domain)}; got {value!r}."
        require(_is(value, kind), message)
        require(
            kind not in LIMITS or abs(value) < LIMITS[kind],
            f"{path}={value!r} does not fit into 32 bits; it must be {words(domain)}.",
        )
        if kind not in SCALARS:
            for index, item in enumerate(value):
                check_value(item, _items(kind, value)[index], f"{path}[{index}]")
        require(all(c.holds(value) for c in conditions), message)
    elif typing.get_origin(kind) is dict:  # dict[str, X]: a group of any names
        require(hasattr(value, "keys"), f"{path} must be a group; got {value!r}.")
        for name in value:
            check_value(value[name], typing.get_args(kind)[1], f"{path}.{name}")
    elif kind is not Any:
        check(value, kind, path)


def settle(value, domain):
    """The value as options hold it: lists become tuples, groups their classes."""
    kind, _ = _split(domain)
    if isinstance(value, list | tuple) and typing.get_origin(kind) is tuple:
        return tuple(map(settle, value, _items(kind, value)))
    if hasattr(value, "keys") and isinstance(kind, type):
        fields = fields_of(kind)
        return kind(**{name: settle(value[name], fields[name][0]) for name in value})
    return value


def words(domain) -> str:
    """The domain as a message words it."""
    kind, conditions = _split(domain)
    items = typing.get_args(kind)
    if typing.get_origin(kind) is Literal:
        text = f"one of {', '.join(map(str, items))}"
    elif typing.get_origin(kind) is tuple:
        text = "a tuple" if ... in items else f"a tuple of {len(items)} entries"
        if len({*items} - {...}) == 1:
            text += f" (each {words(items[0])})"
    else:
        text = SCALARS[kind][1] if kind in SCALARS else "a group of fields"
    return ", ".join([text, *(condition.words for condition in conditions)])


def _is(value, kind) -> bool:
    """Whether the value is of the kind, whatever the conditions on it."""
    if kind not in SCALARS:
        sequence = isinstance(value, list | tuple)
        return sequence and len(value) == len(_items(kind, value))
    if not isinstance(value, SCALARS[kind][0]) or isinstance(value, bool):
        return kind is bool and isinstance(value, bool)
    return kind is not float or abs(value) < math.inf


def _split(domain):
    """(kind, conditions): Annotated[int, AtLeast(1)] is an int with one condition."""
    if typing.get_origin(domain) is Annotated:
        return domain.__origin__, domain.__metadata__
    return domain, ()


def _items(kind, value) -> tuple:
    """The domain of each item of a tuple; for tuple[X, ...] one X per item of value."""
    items = typing.get_args(kind)
    return items[:1] * len(value) if ... in items else items
