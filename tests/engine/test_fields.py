"""Domains of options: what fits, and what the message says of what does not."""

import dataclasses
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import pytest
from ml_collections import ConfigDict

from gaitjax.engine.fields import (
    Above,
    Between,
    Natural,
    Odd,
    Positive,
    Share,
    Some,
    check,
    settle,
)


class Inner(NamedTuple):
    fusion: Literal["mask", "gate"] = "mask"
    pairs: tuple[tuple[str, tuple[int, ...]], ...] = ()


@dataclasses.dataclass(frozen=True)
class Options:
    width: Positive
    count: Natural = 0
    share: Share = 0.5
    rate: Annotated[float, Above(0)] = 1.0
    angle: Annotated[float, Between(-1, 1)] = 0.0
    kernel: Odd = 3
    bins: Some[Positive] = (1,)
    size: tuple[Positive, Positive] = (1, 2)
    names: tuple[str, ...] = ()
    on: bool = True
    title: str = ""
    inner: Inner = Inner()
    weights: dict[str, Share] = dataclasses.field(default_factory=dict, hash=False)
    anything: Any = None


RIGHT = {
    "count": [0, np.int64(3)],
    "share": [0, 1, 0.25, np.float32(0.5)],
    "rate": [1e-9, 3],
    "angle": [-1, 0.5],
    "kernel": [1, 7],
    "bins": [(1,), [4, 2], (np.int32(1),)],
    "size": [(1, 1), [2, 3]],
    "names": [(), ("a", "b")],
    "on": [True, False, np.bool_(True)],
    "title": ["", "x"],
    "weights": [{}, {"a": 1, "b": 0.5}],
    "anything": [None, (1, "a"), {"b": 2}],
    "inner": [{}, {"fusion": "gate"}, ConfigDict({"pairs": (("a", (1, 2)),)})],
}
WRONG = {
    "width": [
        (0, "config.x.width must be an integer, 1 or more; got 0."),
        (1.0, "must be an integer"),
        (True, "must be an integer"),
        ("8", "must be an integer, 1 or more; got '8'."),
        (None, "must be an integer"),
    ],
    "count": [(-1, "config.x.count must be an integer, 0 or more; got -1.")],
    "share": [
        (1.5, "config.x.share must be a finite number, from 0 to 1; got 1.5."),
        (float("nan"), "got nan."),
        (True, "got True."),
    ],
    "rate": [(0, "must be a finite number, above 0; got 0."), (np.inf, "got inf")],
    "kernel": [(2, "odd and above 0"), (-3, "odd and above 0")],
    "bins": [
        ((), "config.x.bins must be a tuple (each an integer, 1 or more), not empty"),
        (4, "config.x.bins must be a tuple"),
        ("ab", "got 'ab'."),
        ((4, 0), "config.x.bins[1] must be an integer, 1 or more; got 0."),
    ],
    "size": [
        (128, "config.x.size must be a tuple of 2 entries"),
        ((1, 2, 3), "a tuple of 2 entries (each an integer, 1 or more); got (1, 2, 3)"),
        ((1, 0), "config.x.size[1]"),
    ],
    "names": [(("a", 1), "config.x.names[1] must be text; got 1.")],
    "on": [(1, "config.x.on must be True or False; got 1.")],
    "title": [(3, "config.x.title must be text; got 3.")],
    "weights": [
        (1, "config.x.weights must be a group; got 1."),
        ({"a": 2}, "config.x.weights.a must be a finite number, from 0 to 1; got 2."),
    ],
    "inner": [
        (3, "config.x.inner must be a group of the fields fusion, pairs; got 3."),
        (
            {"fusion": "add"},
            "Unknown config.x.inner.fusion 'add'; choose from mask, gate.",
        ),
        ({"fusoin": "mask"}, "Unknown field of config.x.inner: 'fusoin'; choose from"),
        ({"pairs": (("a", (1, "b")),)}, "config.x.inner.pairs[0][1][1] must be an int"),
        ({"pairs": (("a",),)}, "config.x.inner.pairs[0] must be a tuple of 2 entries"),
    ],
}


@pytest.mark.parametrize("name", RIGHT)
def test_what_is_in_the_domain_passes(name):
    for value in RIGHT[name]:
        check({"width": 1, name: value}, Options, "config.x")
        check(ConfigDict({"width": 1, name: value}), Options, "config.x")


@pytest.mark.parametrize(
    "name, value, message",
    [(name, *case) for name, cases in WRONG.items() for case in cases],
)
def test_what_is_outside_is_named_with_its_path_and_domain(name, value, message):
    with pytest.raises(ValueError) as error:
        check({"width": 1} | {name: value}, Options, "config.x")
    assert message in str(error.value)


def test_missing_fields_need_a_default():
    check({"width": 1}, Options, "config.x")
    check({}, Options, "config.x", skip=("width",))
    with pytest.raises(ValueError, match=r"config.x.width is missing; .* 1 or more\."):
        check({}, Options, "config.x")


def test_settled_options_are_hashable_and_equal_to_their_class():
    inner = settle({"fusion": "gate", "pairs": [["a", [1, 2]]]}, Inner)
    assert inner == Inner("gate", (("a", (1, 2)),))
    given = ConfigDict({"width": 2, "bins": [4, 2], "inner": {"fusion": "gate"}})
    options = settle(given, Options)
    assert options == Options(2, bins=(4, 2), inner=Inner("gate"))
    assert isinstance(options.inner, Inner) and hash(options)
    assert settle(options, Options) is options
