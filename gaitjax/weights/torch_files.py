"""PyTorch's weights files -> {name: array}; torch is imported where one is read.

No code in a file is run: torch reads with `weights_only=True`. TorchScript archives are
programs; they are refused unless the caller allows them.
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

COPIES = 4  # tensors may take so many times their file: some share their memory
OPERATIONS = 1_000_000  # of a pickle, read to say what it holds
# what a file of plain weights names
TENSORS = (
    r"torch\.\w+|torch\.(_utils\._rebuild|storage\.|nn\.parameter\.)\w+"
    r"|collections\.OrderedDict"
)


def read_torch(file: Path, *, scripts: bool) -> dict[str, Any]:
    """{name: array, None for what is no tensor} of a `torch.save` file.

    scripts: a TorchScript archive is run by torch, not refused. Raises Damaged where
    the file is not whole; ValueError where it holds more than weights, which would have
    to be run. torch's own messages are not repeated: they advise to run it.
    """
    try:
        import torch
    except ImportError as error:
        raise ValueError(
            f"{file} needs torch to be read; run `pip install torch`, or give the "
            "model.safetensors or flax_model.msgpack of the same model."
        ) from error
    names, broken = _entries(file)
    script = any(name.endswith("constants.pkl") for name in names)
    if script and not scripts:
        raise _refused(file, "a TorchScript program")
    try:
        if script:
            state = torch.jit.load(file, map_location="cpu").state_dict()
        else:
            state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds, other ones in each version
        found = [] if broken else _not_of_tensors(file)
        fault = _refused(file, found[0]) if found else _damaged(file, error)
        raise fault from None
    require(
        isinstance(state, Mapping),
        f"{file} holds a {type(state).__name__}, expected a dict.",
    )
    for key in ("state_dict", "model"):  # beside the optimizer of a training run
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


def _entries(file: Path) -> tuple[list[str], str]:
    """(entries of a zip archive, the first whose checksum is wrong or ""); [] if none.

    torch does not compress what it saves, so an archive that unpacks to more than its
    size is refused before it is unpacked.
    """
    with file.open("rb") as stream:
        zipped = stream.read(2) == b"PK"
    if not zipped and not zipfile.is_zipfile(file):
        return [], ""  # torch before 1.6 wrote pickles one after the other
    try:
        with zipfile.ZipFile(file) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
            fault = f"it unpacks to {unpacked:,} bytes, more than its size"
            require_whole(unpacked <= file.stat().st_size, file, fault)
            return archive.namelist(), archive.testzip() or ""
    except Damaged:
        raise
    except Exception as error:  # zipfile and zlib have their own
        raise _damaged(file, error) from None


def _damaged(file: Path, error: Exception) -> Damaged:
    text = str(error).rpartition("WeightsUnpickler error:")[2].strip()
    line = (text.splitlines() or [""])[0]
    if re.search(r"weights_only|safe_globals|torch\.load", line):
        line = ""  # advice to load it with less care
    kind = f"{type(error).__name__}{line and ': '}{line}"
    size = file.stat().st_size
    return Damaged(
        file, f"it is no whole PyTorch file of weights ({size} bytes; {kind})"
    )


def _refused(file: Path, what: str) -> ValueError:
    return ValueError(
        f"{file} holds {what[:100]} besides tensors, which is refused: only tensors, "
        "numbers, strings and containers of them are read, because more could run "
        "code. Fetching it again changes nothing; if you trust its source, load it in "
        "the program that wrote it and save the weights alone: "
        "torch.save(model.state_dict(), FILE), or .safetensors."
    )


def _not_of_tensors(file: Path) -> list[str]:
    """Classes and functions that the pickles of `file` name, besides those of tensors.

    [] where a pickle is not whole: the file is damaged. Pickles are read, never run.
    """
    names: list[str] = []
    try:
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as archive:
                entries = [x for x in archive.namelist() if x.endswith("data.pkl")]
                for entry in entries:
                    names += _globals(pickletools.genops(archive.read(entry)))
        else:
            with file.open("rb") as stream:
                for _ in range(4):  # magic number, version, system, the object
                    if stream.tell() < file.stat().st_size:
                        names += _globals(pickletools.genops(stream))
    except Exception:  # pickletools raises ValueError, struct and Unicode errors
        return []
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


def _stored_as(record: str, names: list[str], state: Mapping) -> str:
    """The tensor of an archive's record, where records and tensors come in pairs."""
    parts = [name.rpartition("/data/")[2] for name in names if "/data/" in name]
    number = record.rpartition("/data/")[2]
    if number in parts and len(parts) == len(state) and number.isdigit():
        name = list(state)[int(number)]
        return f"{name} {tuple(getattr(state[name], 'shape', ()))}"
    return record
