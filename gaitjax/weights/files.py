"""Weights files -> {name: array}, whatever library wrote them.

    tensors = read(Path("model.safetensors"))

Names and layouts stay the file's own (weight_names translates them). Nothing in a file
is run, except in TorchScript archives (`_read_torch`). A file that is not whole raises
`Damaged` with the first tensor that it lacks, as far as its format tells: safetensors
and msgpack do; a PyTorch archive has its table of contents at the end, so a truncated
one names no tensor, but it holds checksums, so that changed weights are found. The
other two have none: a changed value that is still finite goes unnoticed there.
"""

import json
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax import serialization, traverse_util

SUFFIXES = (".safetensors", ".msgpack", ".pth", ".pt", ".bin", ".index.json")
LISTED = 20  # names per kind of fault in an error
DTYPES = ("F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U64", "U32")
DTYPES += ("U16", "U8", "BOOL")  # of safetensors that numpy reads


class Damaged(ValueError):
    """The file is not whole, or not what its name says."""


def read(file: Path) -> dict[str, np.ndarray]:
    """Every tensor of a weights file (or of the shards of an index), flat."""
    name = file.name
    if name.endswith(".index.json"):
        return _read_shards(file)
    if name.endswith(".safetensors"):
        return _read_safetensors(file)
    if name.endswith(".msgpack"):
        return _read_msgpack(file)
    if name.endswith((".pth", ".pt", ".bin")):
        return _read_torch(file)
    raise ValueError(f"{file} must end in one of {', '.join(SUFFIXES)}.")


def read_published(file: Path) -> dict[str, np.ndarray]:
    """Every tensor of a gait model's checkpoint: .pt, .pth, .bin, .safetensors or .npz.

    Nothing in the file is run: PyTorch files are read with `weights_only=True` and
    TorchScript archives are refused, .npz without pickled objects.
    """
    if not file.is_file():
        raise ValueError(f"There is no file {file} (config.checkpoint).")
    if file.suffix == ".npz":
        try:
            with np.load(file, allow_pickle=False) as archive:
                return {name: archive[name] for name in archive.files}
        except Exception as error:  # zipfile, zlib and numpy have their own
            raise Damaged(
                f"{file} is no whole .npz of plain arrays ({error})."
            ) from error
    if file.suffix in (".pt", ".pth", ".bin"):
        return _read_torch(file, scripts=False)
    return read(file)


def shards(index: Path) -> dict[str, str]:
    """{tensor: file name beside the index} of an index of shards."""
    content = _json(index, index.read_bytes())
    names = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(names, dict) or not names:
        raise Damaged(f"{index} must hold a weight_map of {{tensor: shard}}.")
    for name, shard in names.items():
        plain = isinstance(shard, str) and Path(shard).name == shard
        if not plain or not shard.endswith((".safetensors", ".bin")):
            raise Damaged(
                f"{index} must name a .safetensors or .bin file beside it for {name}, "
                f"got {shard!r}."
            )
    return names


def _read_shards(index: Path) -> dict[str, np.ndarray]:
    names, tensors = shards(index), {}
    for shard in sorted(set(names.values())):
        file = index.parent / shard
        if not file.is_file():
            raise FileNotFoundError(
                f"{index} names the shard {shard}, which is not beside it. Fetch it."
            )
        found = read(file)
        listed = {name for name, place in names.items() if place == shard}
        for name in sorted(listed ^ set(found)):
            raise Damaged(
                f"{index} and {shard} do not belong together: {name} is only in the "
                f"{'index' if name in listed else 'shard'}. Fetch both again."
            )
        tensors |= found
    return tensors


def _json(file: Path, text: bytes) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise Damaged(
            f"{file} is damaged: its header is no JSON. Fetch it again."
        ) from error


def _read_safetensors(file: Path) -> dict[str, np.ndarray]:
    from safetensors.numpy import load_file

    _check_header(file)
    try:
        return load_file(file)
    except Exception as error:  # SafetensorError, KeyError of an unknown type, ...
        raise Damaged(f"{file} is damaged: {error}. Fetch it again.") from error


def _check_header(file: Path) -> None:
    """Damaged with the first tensor that a truncated safetensors file lacks."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or length > size - 8:
            raise Damaged(
                f"{file} is damaged: {size} bytes, expected a header of {length} bytes "
                "and the tensors after it. Fetch it again."
            )
        header = _json(file, stream.read(length))
    ends = []
    try:
        for name, entry in header.items():
            if name != "__metadata__":
                _, end = entry["data_offsets"]
                ends.append((end, name, tuple(entry["shape"]), entry["dtype"]))
        ends.sort()
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise Damaged(
            f"{file} is damaged: its header has no {{name: dtype, shape, data_offsets}}"
            f" ({type(error).__name__}: {error}). Fetch it again."
        ) from error
    for end, name, shape, dtype in ends:
        if dtype not in DTYPES:
            raise Damaged(
                f"{file} holds {name} {shape} as {dtype!r}, expected one of "
                f"{', '.join(DTYPES)}."
            )
        if end > size - 8 - length:
            raise Damaged(
                f"{file} is truncated at {name}: expected shape {shape} up to byte "
                f"{8 + length + end}, found {size} bytes. Fetch it again."
            )


def _read_msgpack(file: Path) -> dict[str, np.ndarray]:
    content = file.read_bytes()
    try:
        tree = serialization.msgpack_restore(content)
        tree = tree.get("params", tree)
        flat = traverse_util.flatten_dict(tree, sep="/")
    except Exception as error:  # msgpack raises its own, ValueError and TypeError
        name, shape = _first_broken(content)
        if name:
            raise Damaged(
                f"{file} is truncated at {name}: expected "
                f"{f'shape {shape}' if shape is not None else 'its entries'}, found "
                f"the end of the file after {len(content)} bytes. Fetch it again."
            ) from error
        raise Damaged(
            f"{file} is no whole Flax msgpack ({type(error).__name__}: {error}); "
            "expected a dict of arrays. Fetch it again."
        ) from error
    _only(file, flat, (np.ndarray, np.generic))
    return {name: np.asarray(value) for name, value in flat.items()}


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


def _only(file: Path, tensors: Mapping, kinds) -> None:
    """ValueError unless `tensors` is a non-empty {str: one of kinds}."""
    strange = [
        str(name)
        for name, value in tensors.items()
        if not (isinstance(name, str) and isinstance(value, kinds))
    ]
    if not tensors:
        raise ValueError(f"{file} is empty, expected {{name: tensor}}.")
    if strange:
        raise ValueError(
            f"{file} must hold {{name: tensor}}; these are no tensors: "
            f"{', '.join(strange[:LISTED])}."
        )


def _read_torch(file: Path, scripts: bool = True) -> dict[str, np.ndarray]:
    """Tensors of a `torch.save` file; with `scripts`, of a TorchScript archive too."""
    try:
        import torch
    except ImportError as error:
        raise ValueError(
            f"{file} needs torch to be read; run `pip install torch`, or give the "
            "model.safetensors or flax_model.msgpack of the same model."
        ) from error
    import zipfile

    bad = None
    try:
        names = []
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as archive:
                names, bad = archive.namelist(), archive.testzip()
        if scripts and any(name.endswith("/constants.pkl") for name in names):
            state = torch.jit.load(file, map_location="cpu").state_dict()
        else:
            state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds
        reason = _reason(error)
        if not bad and (refused := _refused(reason)):
            raise ValueError(
                f"{file} holds {refused} besides tensors, which is refused: only "
                "tensors, numbers, strings and containers of them are read, because "
                "more could run code. Fetching it again changes nothing; if you trust "
                "its source, load it in the program that wrote it and save the weights "
                "alone: torch.save(model.state_dict(), FILE), or .safetensors."
            ) from error
        raise Damaged(
            f"{file} is no whole PyTorch file of weights ({file.stat().st_size} bytes; "
            f"{type(error).__name__}: {reason}). Fetch it again."
        ) from error
    if not isinstance(state, Mapping):
        raise ValueError(f"{file} holds a {type(state).__name__}, expected a dict.")
    for key in ("state_dict", "model"):  # beside the optimizer of a training run
        inner = state.get(key)
        state = inner if isinstance(inner, Mapping) else state
    if bad:
        raise Damaged(
            f"{file} is damaged at {_stored_as(bad, names, state)}: its checksum is "
            "not that of its content. Fetch it again."
        )
    _only(file, state, torch.Tensor)
    try:
        return {name: x.detach().float().numpy() for name, x in state.items()}
    except (RuntimeError, TypeError, NotImplementedError) as error:
        raise ValueError(
            f"{file} must hold plain tensors, neither sparse nor quantised ({error})."
        ) from error


def _reason(error: Exception) -> str:
    """One line of what torch says; behind its advice to unpickle without limits."""
    text = str(error)
    if isinstance(error, pickle.UnpicklingError):
        text = text.rpartition("WeightsUnpickler error:")[2]
    return (text.strip().splitlines() or [""])[0]


def _refused(reason: str) -> str:
    """What a reader of weights alone refused, such as a class; "" for other faults."""
    found = re.search(r"Unsupported (?:global: GLOBAL|class) (\S+)", reason)
    if found:
        return found[1]
    return "a TorchScript program" if "TorchScript" in reason else ""


def _stored_as(record: str, names: list[str], state: Mapping) -> str:
    """The tensor of an archive's record, where records and tensors come in pairs."""
    parts = [name.rpartition("/data/")[2] for name in names if "/data/" in name]
    number = record.rpartition("/data/")[2]
    if number in parts and len(parts) == len(state) and number.isdigit():
        name = list(state)[int(number)]
        return f"{name} {tuple(getattr(state[name], 'shape', ()))}"
    return record
