"""Damaged copies of a file, the same ones in every run, and how a reader takes them."""

import resource
import time
from collections.abc import Callable, Iterable, Iterator

import numpy as np

EXTREMES = (
    b"\0",
    b"\xff",
    b"\x7f\xff\xff\xff",
    b"\xff" * 8,
    b'"',
    b"{" * 9,
    b"[" * 5000,
)


def mutants(content: bytes, count: int, seed: int = 0) -> Iterator[bytes]:
    """`count` copies with one to four changes: bits, extremes, cuts, moves, repeats."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        data = bytearray(content)
        for _ in range(rng.integers(1, 5)):
            # headers are small and matter most: half of the changes are near the front
            near = len(data) if rng.random() < 0.5 else min(len(data), 200)
            place = int(rng.integers(0, max(near, 1)))
            length = int(rng.integers(1, 40))
            kind = rng.integers(6)
            if kind == 0 and data:
                data[place] ^= 1 << int(rng.integers(8))
            elif kind == 1:
                extreme = EXTREMES[int(rng.integers(len(EXTREMES)))]
                data[place : place + len(extreme)] = extreme
            elif kind == 2:
                del data[place : place + length]
            elif kind == 3:
                data[place:place] = data[place : place + length] * 3
            elif kind == 4:
                data[place:place] = rng.bytes(length)
            elif rng.random() < 0.3:
                del data[place:]
        yield bytes(data)


def read_all(
    files: Iterable[bytes],
    path,
    read: Callable,
    allowed: type[Exception] | tuple,
    named=None,
) -> list[str]:
    """Reads each of `files` from `path`; the messages of `allowed` errors.

    Each must have `named` in it (None: the path). Any other error fails the test, and
    so do 2 seconds or 500 MB for one file.
    """
    messages = []
    for number, content in enumerate(files):
        path.write_bytes(content)
        start, before = time.monotonic(), peak()
        try:
            read(path)
        except allowed as error:
            messages.append(str(error))
            assert str(named or path) in messages[-1], messages[-1]
            assert len(messages[-1]) < 2000
        except Exception as error:
            raise AssertionError(f"mutant {number} of {path.name}") from error
        assert time.monotonic() - start < 2, number
        assert peak() - before < 500e6, number
    return messages


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
