"""Ordered parallel map over processes, with a progress bar and an estimate."""

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import cv2
import tqdm

AHEAD = 8  # results per worker that may wait for the consumer


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
    # results wait for the consumer: without a bound all of them would, in memory
    free, stopped = threading.Semaphore(AHEAD * workers), threading.Event()

    def metered():
        for task in tasks:
            free.acquire()
            if stopped.is_set():
                return
            yield task

    with context.Pool(workers, initializer=_one_thread) as pool:
        try:
            for result in tqdm.tqdm(pool.imap(function, metered()), **bar):
                free.release()
                yield result
        finally:  # else the pool would wait for its blocked feeder
            stopped.set()
            free.release()


def _one_thread():
    cv2.setNumThreads(1)
