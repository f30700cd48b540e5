"""Ordered parallel map over processes, with a progress bar and an estimate."""

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import cv2
import tqdm

AHEAD = 8  # results per worker that may wait for the consumer
PATIENCE = 5.0  # seconds without a result after which workers are looked at


class WorkerKilled(RuntimeError):
    """A process of ordered_map ended by itself, and its task with it."""


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
    on its task alone, so the number of processes never changes the data. Raises
    WorkerKilled where a process was killed: a pool would wait for its result for ever.
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

    others = _children()
    with context.Pool(workers, initializer=_one_thread) as pool:
        born = _children() - others
        try:
            results = _watched(pool.imap(function, metered()), born, description)
            for result in tqdm.tqdm(results, **bar):
                free.release()
                yield result
        finally:  # else the pool would wait for its blocked feeder
            stopped.set()
            free.release()


def _children() -> set[int | None]:
    return {process.pid for process in multiprocessing.active_children()}


def _watched(results, born: set[int | None], description: str) -> Iterator[Any]:
    """The pool's results; WorkerKilled where they stay away and one of `born` died."""
    while True:
        try:
            yield results.next(timeout=PATIENCE)
        except StopIteration:
            return
        except multiprocessing.TimeoutError:
            if born - _children():
                raise WorkerKilled(
                    f"{description}: a reading process was killed, for lack of memory "
                    "perhaps. Try again, with fewer cores (taskset -c 0) if need be."
                ) from None


def _one_thread():
    cv2.setNumThreads(1)
