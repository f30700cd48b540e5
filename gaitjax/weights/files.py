"""Weights files -> {name: array}, whatever library wrote them.

    tensors = read(Path("model.safetensors"))

Names and layouts stay the file's own; encoder_names and zoo_names translate them. No
code in a file is run, except in TorchScript archives of encoders (`read`). A file that
is not whole raises `Damaged`, with the first tensor that it lacks if its format
tells: safetensors and msgpack do. A PyTorch archive has its table of contents at the
end, so a truncated one names no tensor, but it holds checksums, so changed weights are
found. The other two have no checksums: a changed value that is finite goes unnoticed.
"""

import functools
import json
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import serialization, traverse_util

from gaitjax.engine.guards import Damaged, reading, require, require_whole
from gaitjax.weights.torch_files import read_torch

SUFFIXES = (".safetensors", ".msgpack", ".pth", ".pt", ".bin", ".index.json")
LISTED = 20  # names per kind of fault in an error
DTYPES = ("F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U64", "U32")
DTYPES += ("U16", "U8", "BOOL")  # of safetensors that numpy reads
JSON_BYTES = 100_000_000  # of a header or index; also the limit of safetensors
UNPACKED = 100, 2**26  # an .npz may unpack to 100 times its size + 64 MiB


def read(file: Path, scripts: bool = True) -> dict[str, np.ndarray]:
    """Every tensor of a weights file (or of the shards of an index), flat.

    scripts: TorchScript archives are read too; torch runs them, so they must come from
    a source you trust (OpenAI's CLIP files are such archives).
    """
    torch = functools.partial(read_torch, scripts=scripts)
    readers = {
        ".safetensors": _read_safetensors,
        ".index.json": _read_shards,
        ".msgpack": _read_msgpack,
        ".npz": _read_npz,
        **dict.fromkeys((".pth", ".pt", ".bin"), torch),
    }
    found = [reader for end, reader in readers.items() if file.name.endswith(end)]
    require(found, f"{file} must end in one of {', '.join(SUFFIXES)}.")
    return _only_tensors(file, found[0](file))


def read_published(file: Path) -> dict[str, np.ndarray]:
    """Every tensor of a gait model's checkpoint: .pt, .pth, .bin, .safetensors or .npz.

    Nothing in the file is run: TorchScript archives and pickled objects are refused.
    """
    require(os.path.isfile(file), f"There is no file {file} (config.checkpoint).")
    return read(file, scripts=False)


def _only_tensors(file: Path, tensors: Mapping) -> dict[str, np.ndarray]:
    """`tensors`; ValueError unless it is a non-empty {str: array of numbers}."""
    kinds = (jnp.floating, jnp.integer, jnp.bool_)

    def plain(value) -> bool:
        found = isinstance(value, (np.ndarray, np.generic))
        return found and any(jnp.issubdtype(value.dtype, kind) for kind in kinds)

    strange = [
        str(name)[:100]
        for name, value in tensors.items()
        if not (isinstance(name, str) and plain(value))
    ]
    require(tensors, f"{file} is empty, expected {{name: tensor}}.")
    require(
        not strange,
        f"{file} must hold {{name: tensor}}; these are no tensors: "
        f"{', '.join(strange[:LISTED])}.",
    )
    return {name: np.asarray(value) for name, value in tensors.items()}


def shards(index: Path) -> dict[str, str]:
    """{tensor: file name beside the index} of an index of shards."""
    require_whole(
        index.stat().st_size <= JSON_BYTES, index, "it is too large for an index"
    )
    content = _json(index, index.read_bytes())
    names = content.get("weight_map") if isinstance(content, dict) else None
    found = isinstance(names, dict) and names
    require_whole(found, index, "it must hold a weight_map of {tensor: shard}")
    for name, shard in names.items():
        plain = isinstance(shard, str) and Path(shard).name == shard
        require_whole(
            plain and shard.endswith((".safetensors", ".bin")),
            index,
            f"it must name a .safetensors or .bin file beside it for {name[:100]}, got "
            f"{shard!r}",
        )
    return names


def _read_shards(index: Path) -> dict[str, np.ndarray]:
    names, tensors = shards(index), {}
    for shard in sorted(set(names.values())):
        file = index.parent / shard
        require(
            os.path.isfile(file),
            f"{index} names the shard {shard[:100]}, which is not beside it. Fetch it.",
            FileNotFoundError,
        )
        found = read(file, scripts=False)
        listed = {name for name, place in names.items() if place == shard}
        apart = sorted(listed ^ set(found))
        first = f"{apart[0]} is only in the " if apart else ""
        where = "index" if apart and apart[0] in listed else "shard"
        fault = f"{shard} does not belong to it: {first}{where}"
        require_whole(not apart, index, fault, "Fetch both again.")
        tensors |= found
    return tensors


def _json(file: Path, text: bytes) -> Any:
    with reading(file, "its header is no JSON"):
        return json.loads(text)


def _read_safetensors(file: Path) -> dict[str, np.ndarray]:
    from safetensors.numpy import load_file

    _check_header(file)
    with reading(file, "it is no whole safetensors file"):
        return load_file(file)


def _check_header(file: Path) -> None:
    """Damaged with the first tensor that a truncated safetensors file lacks."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        require_whole(
            size >= 8 and length <= min(size - 8, JSON_BYTES),
            file,
            f"{size} bytes, expected a header of {length} bytes (at most {JSON_BYTES}) "
            "and the tensors after it",
        )
        header = _json(file, stream.read(length))
    with reading(file, "its header has no {name: dtype, shape, data_offsets}"):
        entries = [(k, v) for k, v in header.items() if k != "__metadata__"]
        ends = sorted(_entry(name, entry) for name, entry in entries)
    for end, name, shape, dtype in ends:
        known = ", ".join(DTYPES)
        fault = f"it holds {name[:100]} {shape} as {dtype!r}, expected one of {known}"
        require_whole(dtype in DTYPES, file, fault)
        require_whole(
            end <= size - 8 - length,
            file,
            f"it is truncated at {name[:100]}: expected shape {shape} up to byte "
            f"{8 + length + end}, found {size} bytes",
        )


def _entry(name: str, entry: Mapping) -> tuple[int, str, tuple, str]:
    start, end = entry["data_offsets"]
    shape = tuple(entry["shape"])
    whole = all(type(number) is int for number in (start, end, *shape))
    require(whole, f"{name[:100]} has offsets or sizes that are no integers")
    return end, name, shape, entry["dtype"]


def _read_msgpack(file: Path) -> dict[str, np.ndarray]:
    content = file.read_bytes()
    try:
        tree = serialization.msgpack_restore(content)
        tree = tree.get("params", tree)
        flat = traverse_util.flatten_dict(tree, sep="/")
    except Exception as error:  # msgpack raises its own, ValueError and TypeError
        name, shape = _first_broken(content)
        expected = f"shape {shape}" if shape is not None else "its entries"
        truncated = (
            f"it is truncated at {name[:100]}: expected {expected}, found the end of "
            f"the file after {len(content)} bytes"
        )
        kind = f"{type(error).__name__}: {error}"
        other = f"it is no whole Flax msgpack ({kind}); expected a dict of arrays"
        raise Damaged(file, truncated if name else other) from error
    return flat


def _first_broken(content: bytes, path: str = "") -> tuple[str, tuple | None]:
    """Path and shape of the value of a Flax msgpack that ends too early; "" if none."""
    import msgpack

    unpacker = msgpack.Unpacker(max_buffer_size=len(content) + 1)
    unpacker.feed(content)
    try:
        entries = unpacker.read_map_header()
    except Exception:  # an array, or nothing at all
        return path, _array_shape(content)
    try:
        for _ in range(entries):
            name = unpacker.unpack()
            start = unpacker.tell()
            try:
                unpacker.skip()
            except msgpack.OutOfData:
                return _first_broken(content[start:], f"{path}/{name}".lstrip("/"))
    except Exception:  # damaged, not just short
        pass
    return path, None


def _array_shape(content: bytes) -> tuple[int, ...] | None:
    """Of the beginning of an array as Flax packs it: ext(shape, dtype, bytes)."""
    import msgpack

    header = {0xC7: 3, 0xC8: 4, 0xC9: 6}.get(content[0] if content else 0, 2)
    unpacker = msgpack.Unpacker()
    unpacker.feed(content[header : header + 100])
    try:
        unpacker.read_array_header()
        return tuple(unpacker.unpack())
    except Exception:  # it ends before its shape
        return None


def _read_npz(file: Path) -> dict[str, np.ndarray]:
    tensors, name = {}, "its table of contents"
    try:
        with zipfile.ZipFile(file) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
        times, more = UNPACKED
        most = times * file.stat().st_size + more
        fault = f"it unpacks to {unpacked:,} bytes, more than {most:,}"
        require_whole(unpacked <= most, file, fault)
        with np.load(file, allow_pickle=False) as archive:
            for name in archive.files:
                tensors[name] = archive[name]
    except Damaged:
        raise
    except Exception as error:  # zipfile, zlib and numpy have their own
        raise Damaged(
            file,
            f"it is no whole .npz of plain arrays: {name} cannot be read "
            f"({type(error).__name__}); object arrays are refused",
        ) from None
    return tensors
