"""Ordered parallel map over processes, with a progress bar and an estimate."""

import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import cv2
import tqdm


def ordered_map(
    function: Callable[[Any], Any],
    tasks: Iterable[Any],
    description: str,
    *,
    unit: str = "walk",
    min_per_worker: int = 60,
) -> Iterator[Any]:
    """Yields function(task) in the order of `tasks`, computed on all cores.

    `function` is a module-level function. Lists shorter than two workers' minimum run
    in this process: fewer tasks are done before a worker has started. A result depends
    on its task alone, so the number of processes never changes the data.
    """
    tasks = list(tasks)
    workers = min(len(os.sched_getaffinity(0)), len(tasks) // min_per_worker)
    bar = {"total": len(tasks), "desc": description, "unit": unit, "mininterval": 1.0}
    if workers < 2:
        yield from tqdm.tqdm(map(function, tasks), **bar)
        return
    # spawn: a fork of a process with running threads (JAX, cv2) may hang
    context = multiprocessing.get_context("spawn")
    with context.Pool(workers, initializer=_one_thread) as pool:
        yield from tqdm.tqdm(pool.imap(function, tasks, chunksize=1), **bar)


def _one_thread():
    cv2.setNumThreads(1)
