"""What a re-ranker costs: time per probe, time of preparation, peak memory."""

import contextlib
import ctypes
import gc
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np

TIMED_PROBES = 8  # probes that are re-ranked one at a time


def costs(method, distance, probe, gallery, views) -> dict[str, float]:
    """Time and memory of a `compare.Method` on one task, after a first call compiled.

    ms_alone: milliseconds per probe if probes come one at a time and the gallery is
    prepared; median. A method that looks at the whole gallery does so for every probe.
    ms_batched: milliseconds per probe, all probes at once. preparation_s: seconds, once
    per gallery. peak_mib: highest growth of memory during the batched call, sampled
    every 2 ms (of the accelerator if there is one, else of this process).

    The base model's costs are those of its distances; a re-ranker's come on top.
    """
    method.prepare(gallery)
    began = time.perf_counter()
    prepared = method.prepare(gallery)
    preparation = time.perf_counter() - began

    method.apply(distance, probe, gallery, prepared, views)
    with _peak_memory() as peak:
        began = time.perf_counter()
        method.apply(distance, probe, gallery, prepared, views)
        batched = time.perf_counter() - began

    alone = []
    chosen = np.linspace(0, len(probe) - 1, TIMED_PROBES).round().astype(int)
    for row in (chosen[0], *chosen):  # the first compiles
        began = time.perf_counter()
        one = (views[0][[row]], views[1])
        method.apply(distance[[row]], probe[[row]], gallery, prepared, one)
        alone.append(time.perf_counter() - began)
    return {
        "ms_alone": 1e3 * float(np.median(alone[1:])),
        "ms_batched": 1e3 * batched / len(probe),
        "preparation_s": preparation,
        "peak_mib": peak[0] / 2**20,
    }


@contextlib.contextmanager
def _peak_memory() -> Iterator[list[int]]:
    """A list of one number: bytes, highest growth of memory inside the block."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # other libraries lack it
        ctypes.CDLL(None).malloc_trim(0)
    start, peak, done = _memory(), [0], threading.Event()

    def watch():
        while not done.wait(0.002):
            peak[0] = max(peak[0], _memory() - start)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        peak[0] = max(peak[0], _memory() - start)
        done.set()
        thread.join()


def _memory() -> int:
    """Bytes in use on the accelerator, or resident on the host; 0 if unknown."""
    statistics = jax.local_devices()[0].memory_stats()
    if statistics is not None:
        return statistics["bytes_in_use"]
    with contextlib.suppress(OSError):
        return 4096 * int(Path("/proc/self/statm").read_text().split()[1])
    return 0
