"""Files of the ONNX format, written without its package: a tiny people detector.

An ONNX file is a protobuf message; the numbers are those of the fields in onnx.proto.
"""

import struct

import numpy as np

FLOAT, INT64 = 1, 7  # of TensorProto.DataType
HIGH, WIDE, STEP = 224, 64, 32  # pixels of the window that slides over the input
REDNESS = 1.8 * np.array([1, 0, -1], np.float32)  # of red, green and blue


def message(*fields) -> bytes:
    """A protobuf message of (field number, value) pairs."""
    return b"".join(_field(number, value) for number, value in fields)


def _field(number: int, value) -> bytes:
    if isinstance(value, float):
        return _varint(number << 3 | 5) + struct.pack("<f", value)
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    data = value.encode() if isinstance(value, str) else value
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def _varint(value: int) -> bytes:
    data = b""
    while value > 127:
        data += bytes([value & 127 | 128])
        value >>= 7
    return data + bytes([value])


def tensor(name: str, values: np.ndarray) -> bytes:
    kind = {"f": FLOAT, "i": INT64}[values.dtype.kind]
    sizes = [(1, size) for size in values.shape]
    return message(*sizes, (2, kind), (8, name), (9, values.tobytes()))


def value(name: str, shape) -> bytes:
    """The description of a float32 input or output."""
    sizes = message(*[(1, message((1, size))) for size in shape])
    kind = message((1, message((1, FLOAT), (2, sizes))))
    return message((1, name), (2, kind))


def node(kind: str, inputs, output: str, **attributes) -> bytes:
    fields = [*[(1, x) for x in inputs], (2, output), (3, output), (4, kind)]
    for name, given in attributes.items():
        if isinstance(given, int):
            fields.append((5, message((1, name), (3, given), (20, 2))))
        else:
            numbers = [(8, x) for x in given]
            fields.append((5, message((1, name), *numbers, (20, 7))))
    return message(*fields)


def red_people(size: int = 640) -> bytes:
    """A detector that finds red people: YOLOv8's output [1 4+1 N] for [1 3 size size].

    The score of a window is its mean red minus blue.
    """
    tops = np.arange(0, size - HIGH + 1, STEP)
    lefts = np.arange(0, size - WIDE + 1, STEP)
    y, x = np.meshgrid(tops + HIGH / 2, lefts + WIDE / 2, indexing="ij")
    count = x.size
    shape = np.ones(count)
    boxes = np.stack([x.ravel(), y.ravel(), WIDE * shape, HIGH * shape])[None]
    nodes = [
        node("Conv", ("images", "redness"), "red", kernel_shape=(1, 1)),
        node(
            "AveragePool", ("red",), "mean",
            kernel_shape=(HIGH, WIDE), strides=(STEP, STEP),
        ),
        node("Reshape", ("mean", "flat"), "scores"),
        node("Concat", ("boxes", "scores"), "output", axis=1),
    ]  # fmt: skip
    tensors = [
        tensor("redness", REDNESS.reshape(1, 3, 1, 1)),
        tensor("flat", np.array([1, 1, count], np.int64)),
        tensor("boxes", boxes.astype(np.float32)),
    ]
    graph = message(
        *[(1, x) for x in nodes],
        (2, "people"),
        *[(5, x) for x in tensors],
        (11, value("images", (1, 3, size, size))),
        (12, value("output", (1, 5, count))),
    )
    return message((1, 8), (7, graph), (8, message((1, ""), (2, 13))))
