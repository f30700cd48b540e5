"""Reads arrays of numbers from pickles, and refuses everything else.

Python's unpickler runs any code that a file asks for, so this module has its own, which
admits numbers, lists and plain numpy arrays only. It counts a pickle's opcodes before
it runs them, because a few bytes can ask for unbounded time and memory.
"""

import io
import numbers
import pickle
import pickletools
import re
from collections.abc import Callable, Mapping

import numpy as np

from tfds_builders.damage import Damaged

MAX_BYTES = 1 << 30  # of a file, and of the arrays in it: 10,000 frames of 256 x 128
MAX_ITEMS = 1_000_000  # opcodes of a pickle, and items of its lists
MAX_DEPTH = 4  # of lists in lists: T, height, width, channel
# opcodes that fill dicts and sets: to hash nested tuples could take for ever
HASHING: dict[str, str] = {"SETITEM": "dict", "SETITEMS": "dict", "DICT": "dict"}
HASHING |= {"ADDITEMS": "set", "FROZENSET": "set"}
MEMO = {"PUT", "BINPUT", "LONG_BINPUT"}


class _DType:
    """Stands in for numpy.dtype: a kind of number and its byte order."""

    def __init__(self, code, *_):
        code = code.decode() if isinstance(code, bytes) else code
        if not isinstance(code, str) or not re.fullmatch(r"b1|[iu][1248]|f[248]", code):
            name = repr(code) if isinstance(code, str) else type(code).__name__
            raise Damaged(f"dtype {name}: not an array of numbers")
        self.dtype = np.dtype(code)

    def __setstate__(self, state):
        if state[1] in ("<", ">"):
            self.dtype = self.dtype.newbyteorder(state[1])


class _Array:
    """Stands in for numpy.ndarray; its content arrives last."""

    value: np.ndarray | None = None

    def __setstate__(self, state):
        _, shape, kind, fortran, data = state
        if not isinstance(kind, _DType) or not isinstance(data, bytes):
            raise Damaged("an array that holds objects, not numbers")
        self.value = _from_bytes(data, kind, shape, "F" if fortran else "C").value


def _reconstruct(*_):
    return _Array()


def _from_bytes(data, kind, shape, order, axis_order=None) -> _Array:
    array = _Array()
    flat = np.frombuffer(data, kind.dtype)
    array.value = flat.reshape(shape, order="F" if order == "F" else "C")
    if order == "K" and axis_order is not None:
        array.value = array.value.transpose(axis_order)
    return array


def _scalar(kind, data):
    return np.frombuffer(data, kind.dtype)[0].item()


class _Ndarray:
    """Stands in for the class numpy.ndarray, which pickles mention but never call."""


class _Admitted:
    """Wraps a function that pickles may call, so that they cannot change it.

    The BUILD opcode could otherwise set a function's defaults or a class's methods, for
    all pickles that are read afterwards.
    """

    __slots__ = ("function",)

    def __init__(self, function: Callable):
        self.function = function

    def __call__(self, *arguments):
        return self.function(*arguments)

    def __setstate__(self, state):
        raise Damaged("it sets attributes of what it calls", "refused")


_ADMITTED: Mapping[tuple[str, str], _Admitted] = {
    ("numpy", "dtype"): _Admitted(_DType),
    ("numpy", "ndarray"): _Admitted(_Ndarray),
    **{
        (f"numpy.{core}.{module}", name): _Admitted(function)
        for core in ("core", "_core")
        for module, name, function in (
            ("multiarray", "_reconstruct", _reconstruct),
            ("multiarray", "scalar", _scalar),
            ("numeric", "_frombuffer", _from_bytes),
        )
    },
}


class _Unpickler(pickle.Unpickler):
    def __init__(self, data: bytes):
        super().__init__(io.BytesIO(data))
        self._left = len(data)  # bytes that `_latin1` may make

    def find_class(self, module, name):
        if (module, name) == ("_codecs", "encode"):
            return _Admitted(self._latin1)
        if (module, name) not in _ADMITTED:
            raise Damaged(
                f"it asks for {module}.{name}; only arrays of numbers are admitted",
                "refused",
            )
        return _ADMITTED[module, name]

    def _latin1(self, text, encoding):
        """Bytes as Python 2 protocols spell them: each text of the file once."""
        if encoding != "latin1":
            raise Damaged("a codec other than latin1")
        self._left -= len(text)
        if self._left < 0:
            raise Damaged("it makes more bytes than it has")
        return text.encode("latin1")


def load_array(data: bytes) -> np.ndarray:
    """The array in a pickle, or the stack of a list: at least 1 axis, time first.

    Raises Damaged: "refused" if the pickle asks for anything but arrays of numbers,
    "ragged" for lists with None or with arrays of different shapes, else "corrupt".
    """
    value = _loaded(data)
    if isinstance(value, (list, tuple)):
        array = _stack(value)
    elif isinstance(value, _Array) and value.value is not None:
        array = value.value
    else:
        raise Damaged(f"a {type(value).__name__.strip('_')}, not an array of numbers")
    if array.ndim == 0:
        raise Damaged("a single number, not an array with a time axis")
    if array.size == 0 and len(array):
        raise Damaged(f"an array {array.shape} without values")
    return array


def load_arrays(data: bytes) -> list[np.ndarray]:
    """The arrays of a pickled list, which may differ in shape; raises Damaged."""
    value = _loaded(data)
    if not isinstance(value, (list, tuple)):
        raise Damaged(f"a {type(value).__name__.strip('_')}, not a list of arrays")
    items = _plain(value, [MAX_ITEMS, MAX_BYTES], MAX_DEPTH)
    if not all(isinstance(item, np.ndarray) for item in items):
        raise Damaged("a list with something else than arrays", "ragged")
    return items


def _loaded(data: bytes):
    """What the pickle holds, made of numbers, lists and `_Array`s."""
    try:
        _check_opcodes(data)
        return _Unpickler(data).load()
    except Damaged:
        raise
    except Exception as error:  # damaged pickles raise a dozen types
        raise Damaged(f"{type(error).__name__}: {error}") from error


def _check_opcodes(data: bytes):
    """Raises Damaged for opcodes that take unbounded time or memory."""
    for count, (opcode, argument, place) in enumerate(pickletools.genops(data)):
        if count > MAX_ITEMS:
            raise Damaged(f"over {MAX_ITEMS:,} opcodes")
        if opcode.name in HASHING:
            name = HASHING[opcode.name]
            raise Damaged(f"a {name}, not an array of numbers (byte {place})")
        if opcode.name in MEMO and (argument or 0) > MAX_ITEMS:
            raise Damaged(f"memo {argument:,} at byte {place}; at most {MAX_ITEMS:,}")


def _stack(value: list | tuple) -> np.ndarray:
    """The array of a list of arrays, or of nested lists of numbers."""
    items = _plain(value, [MAX_ITEMS, MAX_BYTES], MAX_DEPTH)
    for number, item in enumerate(items):
        if item is None:
            raise Damaged(f"frame {number} of {len(items)} is None", "ragged")
    try:
        shapes = {np.shape(item) for item in items}
    except ValueError as error:  # numpy's word for lists of different lengths
        raise Damaged("lists of different lengths", "ragged") from error
    if len(shapes) > 1:
        raise Damaged(f"frames of shapes {sorted(shapes)[:3]}", "ragged")
    array = np.array(items)
    if array.dtype.kind not in "biuf":
        raise Damaged(f"a list of {array.dtype}, not of numbers")
    return array


def _plain(value, left: list[int], depth: int):
    """`value` with arrays in place of their stand-ins; left: items, bytes to spend."""
    left[0] -= 1
    if isinstance(value, _Array) and value.value is not None:
        left[1] -= value.value.nbytes
        value = value.value
    elif isinstance(value, (list, tuple)):
        if depth == 0:
            raise Damaged(f"lists nested more than {MAX_DEPTH} deep")
        value = [_plain(item, left, depth - 1) for item in value]
    elif value is not None and not isinstance(value, numbers.Real):
        raise Damaged(f"a list of {type(value).__name__}, not of numbers")
    if min(left) < 0:
        raise Damaged(
            f"lists of over {MAX_ITEMS:,} items or {MAX_BYTES:,} bytes of arrays"
        )
    return value
