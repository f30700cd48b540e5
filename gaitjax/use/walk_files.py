"""The files of a gallery: one for each enrolment, safetensors with facts in the header.

`embeddings` float32 [n S D], `thumbnail_0` and on (bytes of image files), and under ROWS
in the header, as JSON, the model's fingerprint and the facts of each walk.
"""

import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gaitjax import run_folder
from gaitjax.engine.atomic import replacing
from gaitjax.engine.guards import Damaged, require, require_whole

ROWS = "gaitjax_rows"  # of a file's header
PATIENCE = 30.0  # seconds to wait for another writer


class Row(NamedTuple):
    """One enrolled walk. id: of its embedding. enrolled: UTC. part, place: where it
    lies. Other fields as in `recogniser.Sample`."""

    id: str
    name: str
    source: str
    number: int
    start: float
    end: float
    heading: str
    quality: dict[str, float]
    enrolled: str
    part: Path
    place: int

    def facts(self) -> dict[str, Any]:
        """All but where it lies."""
        facts = self._asdict()
        del facts["part"], facts["place"]
        return facts


class Part(NamedTuple):
    """One file. state: changes when the file does. embeddings: float32 [n S D], mapped
    into memory. images: {place: (first byte, byte after the last)}."""

    state: tuple
    rows: list[Row]
    embeddings: np.ndarray
    images: dict[int, tuple[int, int]]

    def thumbnail(self, row: Row) -> bytes:
        """The image file that was kept of one of its walks; b"" if none was."""
        start, stop = self.images.get(row.place, (0, 0))
        with row.part.open("rb") as file:
            file.seek(start)
            return file.read(stop - start)


def state_of(path: Path) -> tuple:
    stat = path.stat()
    return stat.st_mtime_ns, stat.st_size, stat.st_ino


def read(path: Path, fingerprint: str, shape: tuple[int, ...]) -> Part:
    """A file of walks of one model; its embeddings are read when they are needed.

    Raises Damaged if it is not whole, or of another model; FileNotFoundError.
    """
    repair = "Move it away; the walks in the other files stay."
    state = state_of(path)
    try:
        with path.open("rb") as file:
            start, size = 8 + int.from_bytes(file.read(8), "little"), state[1]
            require(start <= size, f"{size} bytes, expected {start} and more")
            header = json.loads(file.read(start - 8))
        head = json.loads(header.pop("__metadata__")[ROWS])
        rows = [Row(**x, part=path, place=i) for i, x in enumerate(head["rows"])]
        end = start + max(entry["data_offsets"][1] for entry in header.values())
        require(end == size, f"{size} bytes, expected {end}")
        entry = header.pop("embeddings")
        expected = (len(rows), *shape)
        found = entry["dtype"], tuple(entry["shape"])
        require(found == ("F32", expected), f"embeddings {found}, expected {expected}")
        images = {}
        for name, image in header.items():
            first, last = image["data_offsets"]
            images[int(name.rpartition("_")[2])] = start + first, start + last
        first = start + entry["data_offsets"][0]
        embeddings = np.memmap(path, np.float32, "r", first, expected)
        model = head["fingerprint"]
    except FileNotFoundError:
        raise
    except Exception as error:  # whatever a damaged header makes Python raise
        fault = f"it is no file of enrolled walks ({type(error).__name__}: {error})"
        raise Damaged(path, fault, repair) from error
    own = model == fingerprint
    require_whole(own, path, f"it is of another model ({model})", repair)
    return Part(state, rows, embeddings, images)


def write(
    path: Path,
    fingerprint: str,
    facts: list[dict],
    embeddings,
    images: dict[int, bytes],
) -> None:
    """A file of walks, whole or not at all. images: {place: image file}."""
    from safetensors.numpy import save

    head = json.dumps({"fingerprint": fingerprint, "rows": facts})
    tensors = {
        f"thumbnail_{place}": np.frombuffer(image, np.uint8)
        for place, image in images.items()
    }
    content = save({"embeddings": embeddings, **tensors}, {ROWS: head})
    with replacing(path, "wb") as file:
        file.write(content)


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[None]:
    """One writer at a time; another one is waited for."""
    deadline = time.monotonic() + PATIENCE
    with contextlib.ExitStack() as stack:
        while True:
            try:
                stack.enter_context(run_folder.locked(folder))
                break
            except ValueError as error:
                if time.monotonic() > deadline:
                    raise ValueError(
                        f"Another process writes in the gallery {folder} for over "
                        f"{PATIENCE:.0f} s ({error})."
                    ) from error
                time.sleep(0.05)
        yield
