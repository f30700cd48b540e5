"""PyTorch's weights files -> {name: array}; torch is imported where one is read.

No code in a file is run. The names in a file's pickles are read first; a file that
names anything but tensors is refused, whatever the version of torch would do. Then
torch reads, with `weights_only=True`. TorchScript archives are programs; the caller
must allow them.
"""

import itertools
import pickletools
import re
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gaitjax.engine.guards import Damaged, require, require_whole

COPIES = 4  # tensors may take 4 times the size of their file: some share memory
OPERATIONS = 1_000_000  # of a pickle; a tensor takes about twenty
# what the pickles of weights name: tensors, their types, and containers
TENSORS = (
    r"torch\.\w{1,50}|torch\.(cuda|sparse|storage|nn\.parameter)\.\w{1,50}"
    r"|torch\.(_utils|_tensor)\._rebuild\w{1,50}|torch\.serialization\._get_layout"
    r"|collections\.(OrderedDict|Counter)|_codecs\.encode"
    r"|(builtins|__builtin__)\.(set|bytearray|complex)"
)


class Refused(ValueError):
    """A file that holds more than weights."""

    def __init__(self, file: Path, what: str):
        super().__init__(
            f"{file} holds {what[:100]} besides tensors, which is refused: only "
            "tensors, numbers, strings and containers of them are read, because more "
            "could run code. Fetching it again changes nothing; if you trust its "
            "source, load it in the program that wrote it and save the weights alone: "
            "torch.save(model.state_dict(), FILE), or .safetensors."
        )


def read_torch(file: Path, *, scripts: bool) -> dict[str, Any]:
    """{name: array, or None if it is no tensor} of a `torch.save` file.

    scripts: a TorchScript archive is run by torch, not refused. Raises Damaged if
    the file is not whole, Refused if it holds more than weights. torch's advice to
    run such a file is not repeated.
    """
    try:
        import torch
    except ImportError as error:
        raise ValueError(
            f"{file} needs torch to be read; run `pip install torch`, or give the "
            "model.safetensors or flax_model.msgpack of the same model."
        ) from error
    try:
        names, broken = _entries(file)
        script = any(name.endswith("constants.pkl") for name in names)
        others = ["a TorchScript program"] if script else _not_of_tensors(file)
        if others and not (script and scripts):
            raise Refused(file, others[0])
        if script:
            state = torch.jit.load(file, map_location="cpu").state_dict()
        else:
            state = torch.load(file, map_location="cpu", weights_only=True)
    except (Damaged, Refused):
        raise
    except Exception as error:  # zipfile, pickletools and torch raise many kinds
        raise _damaged(file, error) from None
    require(
        isinstance(state, Mapping),
        f"{file} holds a {type(state).__name__}, expected a dict.",
    )
    for key in ("state_dict", "model"):  # a training run's file has more
        inner = state.get(key)
        state = inner if isinstance(inner, Mapping) else state
    place = _stored_as(broken, names, state) if broken else ""
    fault = f"the checksum of {place} is not that of its content"
    require_whole(not broken, file, fault)
    tensors = {k: v for k, v in state.items() if isinstance(v, torch.Tensor)}
    return dict.fromkeys(state) | _arrays(file, tensors)


def _arrays(file: Path, tensors: Mapping) -> dict[str, np.ndarray]:
    """Float32 arrays of plain tensors that fit in their file: views can claim more."""
    try:
        needed = sum(x.numel() * x.element_size() for x in tensors.values())
        fault = f"its tensors would take {needed:,} bytes, the file has far fewer"
        require_whole(needed <= COPIES * file.stat().st_size, file, fault)
        return {name: x.detach().float().numpy() for name, x in tensors.items()}
    except (RuntimeError, TypeError, NotImplementedError) as error:
        raise ValueError(
            f"{file} must hold plain tensors, neither sparse nor quantised ({error})."
        ) from error


def _zipped(file: Path) -> bool:
    """Whether torch reads it as a zip archive; before 1.6 it wrote bare pickles."""
    with file.open("rb") as stream:
        return stream.read(4) == b"PK\3\4"


def _entries(file: Path) -> tuple[list[str], str]:
    """(entries of a zip archive, the first whose checksum is wrong or ""); [] if none.

    torch does not compress what it saves, so an archive that unpacks to more than its
    size is refused before it is unpacked.
    """
    if not _zipped(file):
        return [], ""
    with zipfile.ZipFile(file) as archive:
        unpacked = sum(entry.file_size for entry in archive.infolist())
        fault = f"it unpacks to {unpacked:,} bytes, more than its size"
        require_whole(unpacked <= file.stat().st_size, file, fault)
        return archive.namelist(), archive.testzip() or ""


def _not_of_tensors(file: Path) -> list[str]:
    """Classes and functions that the pickles of `file` name, besides those of tensors.

    Pickles are read, never run. Raises errors of many kinds if one is not whole.
    """
    names: list[str] = []
    if _zipped(file):
        with zipfile.ZipFile(file) as archive:
            for entry in archive.infolist():
                if entry.filename.endswith("data.pkl"):
                    names += _globals(pickletools.genops(archive.read(entry)))
    else:
        with file.open("rb") as stream:
            for _ in range(4):  # magic number, version, system, the object
                if stream.tell() < file.stat().st_size:
                    names += _globals(pickletools.genops(stream))
    return [name for name in names if not re.fullmatch(TENSORS, name)]


def _globals(operations: Iterable) -> list[str]:
    """What one pickle names, in order; ValueError if it has more than OPERATIONS."""
    names, texts = [], ["", ""]
    for operation, value, _ in itertools.islice(operations, OPERATIONS):
        if operation.name in ("GLOBAL", "INST"):
            names.append(value.replace(" ", "."))
        elif operation.name == "STACK_GLOBAL":
            names.append(".".join(texts))
        elif isinstance(value, str):
            texts = [texts[1], value]
        elif operation.name == "STOP":
            return names
    raise ValueError("The pickle is too long to be read.")


def _damaged(file: Path, error: Exception) -> Damaged:
    """With torch's first line, unless it advises to load the file anyway."""
    text = str(error).rpartition("WeightsUnpickler error:")[2].strip()
    line = (text.splitlines() or [""])[0]
    if re.search(r"weights_only|safe_globals|torch\.load", line):
        line = ""
    kind = f"{type(error).__name__}{line and ': '}{line}"
    size = file.stat().st_size
    return Damaged(
        file, f"it is no whole PyTorch file of weights ({size} bytes; {kind})"
    )


def _stored_as(record: str, names: list[str], state: Mapping) -> str:
    """The tensor of an archive's record, where records and tensors come in pairs."""
    parts = [name.rpartition("/data/")[2] for name in names if "/data/" in name]
    number = record.rpartition("/data/")[2]
    paired = {str(i): name for i, name in enumerate(state)}
    if number in parts and len(parts) == len(state) and number in paired:
        name = paired[number]
        return f"{name} {tuple(getattr(state[name], 'shape', ()))}"
    return record
