"""Ordered parallel map over processes, with a progress bar and an estimate."""

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import cv2
import tqdm

AHEAD = 8  # results per worker that may wait for the consumer
PATIENCE = 5.0  # seconds without a result before checking that the workers live


class WorkerKilled(RuntimeError):
    """A worker process of ordered_map died, and its task was lost."""


def ordered_map(
    function: Callable[[Any], Any],
    tasks: Iterable[Any],
    description: str,
    *,
    unit: str = "walk",
    min_per_worker: int = 60,
) -> Iterator[Any]:
    """Yields function(task) in the order of `tasks`, computed on all cores.

    `function` is a module-level function whose result depends on its task alone, so the
    number of processes does not change the data. Lists too short for two workers run in
    this process, because they are done before a worker has started. Raises WorkerKilled
    if a process was killed; multiprocessing.Pool would wait for its result for ever.
    """
    tasks = list(tasks)
    workers = min(len(os.sched_getaffinity(0)), len(tasks) // min_per_worker)
    bar = {"total": len(tasks), "desc": description, "unit": unit, "mininterval": 1.0}
    if workers < 2:
        yield from tqdm.tqdm(map(function, tasks), **bar)
        return
    # spawn, because a fork of a process with running threads (JAX, cv2) may hang
    context = multiprocessing.get_context("spawn")
    # bounds the results that wait in memory for the consumer
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
        finally:  # wakes the pool's feeder thread, which the pool would wait for
            stopped.set()
            free.release()


def _children() -> set[int | None]:
    return {process.pid for process in multiprocessing.active_children()}


def _watched(results, born: set[int | None], description: str) -> Iterator[Any]:
    """The pool's results; raises WorkerKilled if they stop and one of `born` died."""
    while True:
        try:
            yield results.next(timeout=PATIENCE)
        except StopIteration:
            return
        except multiprocessing.TimeoutError:
            if born - _children():
                raise WorkerKilled(
                    f"{description}: a reading process was killed, perhaps for lack of "
                    "memory. Try again, or use fewer cores: taskset -c 0 COMMAND."
                ) from None


def _one_thread():
    cv2.setNumThreads(1)
