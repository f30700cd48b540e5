"""What a step does, read from its jaxpr (work) and its compiled HLO (the rest)."""

import math
import re
from collections import Counter, defaultdict
from typing import NamedTuple

import numpy as np

COLLECTIVES = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
)
_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "f64": 8, "s64": 8}


def collectives(hlo: str) -> dict[str, dict[str, int]]:
    """{kind: {count, bytes}} of compiled HLO text; bytes of the results, per device.

    Those in the body of a loop count as often as it runs, where the compiler knows how
    often that is (all loops of fixed length), else once.
    """
    found: dict[str, dict[str, int]] = {}
    times, inside = _executions(hlo), ""
    for line in hlo.splitlines():
        if header := re.match(_COMPUTATION, line):
            inside = header[2]
        match = re.search(rf"= (.*?) ({'|'.join(COLLECTIVES)})(-start)?\(", line)
        if not match:
            continue
        total = found.setdefault(match[2], {"count": 0, "bytes": 0})
        total["count"] += times[inside]
        arrays = re.findall(r"(\w+)\[([\d,]+)\]", match[1])
        if match[3] and match[2] in ("all-gather", "collective-permute"):
            arrays = arrays[len(arrays) // 2 :]  # (operands, results)
        for kind, sizes in arrays:
            size = math.prod(_numbers(sizes)) * _BYTES.get(kind, 4)
            total["bytes"] += times[inside] * size
    return found


_COMPUTATION = r"(ENTRY )?%?([\w.-]+) \(.*-> .*\{$"
_CALL = r"(?:body|calls|to_apply|computation)s?=\{?((?:%?[\w.-]+(?:, )?)+)"
_TRIPS = r'"known_trip_count":\{"n":"(\d+)"'


def _executions(hlo: str) -> Counter[str]:
    """{computation: how often the program runs it}; text outside of any, "": once."""
    calls, entry, inside = defaultdict(list), "", ""
    for line in hlo.splitlines():
        if header := re.match(_COMPUTATION, line):
            inside = header[2]
            entry = inside if header[1] else entry
        elif "= " in line:
            trips = re.search(_TRIPS, line)
            for names in re.findall(_CALL, line):
                for name in re.findall(r"[\w.-]+", names):
                    calls[inside].append((name, int(trips[1]) if trips else 1))
    times = Counter({"": 1})

    def run(name: str, count: int) -> None:
        times[name] += count
        for callee, trips in calls[name]:
            run(callee, count * trips)

    run(entry or "", 1 if entry else 0)
    return times


class Buffer(NamedTuple):
    """A result in a device's memory. operation: of the model's code that it is from."""

    name: str
    shape: str
    bytes: int
    operation: str


_RESULT = r"\s*(?:ROOT )?%?([\w.-]+) = (\(.*?\)|\S+) ([\w-]+)\("
_ARRAY = r"(\w+)\[([\d,]*)\](?:\{([\d,]*)(:[^}]*)?\})?"
_NO_BUFFER = {  # arguments, constants, and views of other results
    "bitcast", "call", "conditional", "constant", "get-tuple-element", "iota",
    "opt-barrier", "parameter", "tuple", "while",
}  # fmt: skip


def largest_buffers(hlo: str, count: int = 10) -> list[Buffer]:
    """The largest results that the program writes, arguments left out; per device.

    Several may lie in the same memory, one after the other.
    """
    fused = {
        name
        for line in hlo.splitlines()
        for names in re.findall(r"(?:calls|to_apply)=(%?[\w.-]+)", line)
        if " call(" not in line
        for name in [names.lstrip("%")]
    }
    found, inside = [], ""
    for line in hlo.splitlines():
        if header := re.match(_COMPUTATION, line):
            inside = header[2]
        match = re.match(_RESULT, line)
        if not match or inside in fused or match[3] in _NO_BUFFER:
            continue
        if match[3].endswith("-start"):  # its "-done" has the result
            continue
        own = re.search(r'op_name="([^"]*)"', line)
        operation = _plain(own[1]) if own else ""
        for kind, sizes, order, tiles in re.findall(_ARRAY, match[2]):
            if "S(" in tiles:  # in a memory on the chip
                continue
            size = _stored(_numbers(sizes), _numbers(order), tiles)
            size *= _BYTES.get(kind, 4)
            found.append(Buffer(match[1], f"{kind}[{sizes}]", size, operation))
    return sorted(found, key=lambda x: -x.bytes)[:count]


def _numbers(text: str) -> list[int]:
    return [int(n) for n in text.split(",") if n]


def _stored(sizes: list[int], order: list[int], tiles: str) -> int:
    """Elements in memory: a TPU rounds the minor dimensions up to its tile."""
    tile = re.search(r"T\(([\d,]+)\)", tiles)
    sizes = list(sizes)
    for dimension, step in zip(order, reversed(_numbers(tile[1]) if tile else [])):
        sizes[dimension] = math.ceil(sizes[dimension] / step) * step
    return math.prod(sizes)


def _plain(operation: str) -> str:
    """ "jit(step)/transpose(jvp(A))/b/add" as "A/b/add, backward"."""
    backward = ", backward" if "transpose(" in operation else ""
    path = re.sub(r"\w*jit\(\w*\)/?", "", operation)
    path = re.sub(r"\w+\(|\)", "", path)
    return re.sub(r"//+", "/", path).strip("/") + backward


def flops(jaxpr) -> int:
    """Floating-point operations of the matmuls and convolutions of a jaxpr.

    A loop counts as often as it runs (a `while` of unknown length once), of several
    branches the most expensive one.
    """
    total = 0
    for equation in jaxpr.eqns:
        kind, parameters = equation.primitive.name, equation.params
        if kind == "dot_general":
            total += _of_matmul(equation)
        elif kind == "conv_general_dilated":
            total += _of_convolution(equation)
        elif kind == "cond":
            total += max(flops(branch.jaxpr) for branch in parameters["branches"])
        else:
            times = parameters.get("length", 1) if kind == "scan" else 1
            for inner in parameters.values():
                inner = getattr(inner, "jaxpr", inner)  # of a closed one
                if hasattr(inner, "eqns"):
                    total += times * flops(inner)
    return total


def _of_matmul(equation) -> int:
    (contracted, _), _ = equation.params["dimension_numbers"]
    left, out = equation.invars[0].aval, equation.outvars[0].aval
    return 2 * math.prod(out.shape) * math.prod(left.shape[i] for i in contracted)


def _of_convolution(equation) -> int:
    """Products with padding, and with zeros of a dilation, are not counted."""
    parameters = equation.params
    numbers = parameters["dimension_numbers"]
    left, kernel = (variable.aval.shape for variable in equation.invars)
    out = equation.outvars[0].aval.shape
    total = 2 * out[numbers.out_spec[0]] * out[numbers.out_spec[1]]
    total *= kernel[numbers.rhs_spec[1]]
    for axis, (low, _) in enumerate(parameters["padding"]):
        size = left[numbers.lhs_spec[2 + axis]]
        steps = np.arange(out[numbers.out_spec[2 + axis]])[:, None]
        taps = np.arange(kernel[numbers.rhs_spec[2 + axis]])[None, :]
        place = steps * parameters["window_strides"][axis] - low
        place = place + taps * parameters["rhs_dilation"][axis]
        spread = parameters["lhs_dilation"][axis]
        inside = (place >= 0) & (place <= (size - 1) * spread) & (place % spread == 0)
        total *= int(inside.sum())
    return total
