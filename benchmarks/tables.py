"""What the programs that fill docs/ share: stores of measurements, tables, pages.

A store is a JSON file {"row/seed/dataset": entry}; several processes may add to it. A
page has one block per program between two comments, which the program rewrites.
"""

import argparse
import contextlib
import fcntl
import json
import os
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from gaitjax.engine.atomic import replacing

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
TASKS = ("CL", "UP", "DN", "BG", "mean")
DATASETS = ("synthetic", "cmu_walk")
END = "<!-- end -->"


# ---------------------------------------------------------------- stores


def stored(store: Path) -> dict[str, Any]:
    """What was measured so far; {} if there is no file yet."""
    return json.loads(store.read_text()) if store.exists() else {}


def add(store: Path, key: str, entry) -> None:
    """Adds an entry to what the store holds now, whoever else has written to it."""
    with locked(store.parent):
        everything = dict(sorted((stored(store) | {key: entry}).items()))
        with replacing(store) as file:
            file.write(json.dumps(everything, indent=1) + "\n")


def entries(store: Path, row: str, dataset: str) -> list[dict]:
    """One entry per seed of this row on this data set."""
    return [
        entry
        for key, entry in stored(store).items()
        if key.startswith(f"{row}/") and key.endswith(f"/{dataset}")
    ]


@contextlib.contextmanager
def locked(folder: Path, wait: bool = True) -> Iterator[bool]:
    """Holds an exclusive lock on a folder; False: another process has it (no `wait`).

    The kernel releases the lock when a process ends, however it ends.
    """
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        yield False
    else:
        yield True
    finally:
        os.close(handle)


# ---------------------------------------------------------------- entries


def rank1_entry(results: Mapping[str, Any], started: float) -> dict[str, Any]:
    """What a store keeps of a run: Rank-1 of the gait protocol, steps, wall seconds."""
    found = results["results"]
    return {
        "rank1": {task: round(found[f"ccpg_gait/{task}/rank1"], 2) for task in TASKS},
        "steps": results["step"],
        "seconds": round(time.time() - started, 1),
        "parameters": results["parameters"],
    }


def mean_and_spread(values: Sequence[float], sign: str = "") -> str:
    """ "61.2 ± 0.8": mean and half the range; one value stands alone."""
    mean = f"{statistics.mean(values):{sign}.1f}"
    return mean + (f" ± {half_range(values):.1f}" if len(values) > 1 else "")


def half_range(values: Sequence[float]) -> float:
    return (max(values) - min(values)) / 2


# ---------------------------------------------------------------- tables


def markdown(head: Sequence, rows: Sequence[Sequence]) -> str:
    """A table; nothing if there are no rows."""
    lines = [head, ["---"] * len(head), *rows] if rows else []
    return "".join(f"| {' | '.join(map(str, cells))} |\n" for cells in lines)


def rank1_tables(store: Path, head: Sequence, rows: Mapping[str, Sequence]) -> str:
    """Per data set a table of Rank-1 by the gait protocol, of the rows that ran.

    rows: row of the store -> its first cells, under `head`.
    """
    parts = []
    for dataset in DATASETS:
        lines = []
        for row, first in rows.items():
            runs = entries(store, row, dataset)
            if not runs:
                continue
            ranks = [[run["rank1"][task] for run in runs] for task in TASKS]
            seconds = statistics.median(run["seconds"] for run in runs)
            last = [len(runs), f"{runs[0]['steps']:,}", f"{seconds:,.0f}"]
            lines.append([*first, *map(mean_and_spread, ranks), *last])
        if lines:
            columns = [*head, *TASKS, "seeds", "steps", "s"]
            title = f"**{dataset}**, Rank-1 in % (`ccpg_gait`)\n\n"
            parts.append(title + markdown(columns, lines))
    return "\n".join(parts)


def rank1_bars(store: Path, titles: Mapping[str, str], path: Path) -> None:
    """The tables' mean column as bars: a group per row, a bar per data set."""
    from gaitjax.pictures import charts

    table: dict[str, dict[str, tuple[float, float]]] = {}
    for dataset in DATASETS:
        for row, title in titles.items():
            values = [run["rank1"]["mean"] for run in entries(store, row, dataset)]
            if values:
                bar = statistics.mean(values), half_range(values)
                table.setdefault(dataset, {})[title] = bar
    label = "Rank-1 (%), ccpg_gait, mean of the four tasks"
    charts.grouped_bars(table, path, label=label)


def put(document: Path, program: str, text: str) -> None:
    """Replaces the block of a program ("zoo.py") in a page, and prints it."""
    begin = f"<!-- made by benchmarks/{program} -->"
    with locked(document.parent):
        page = document.read_text()
        before = page.index(begin) + len(begin)
        after = page.index(END, before)
        with replacing(document) as file:
            file.write(f"{page[:before]}\n{text.rstrip()}\n{page[after:]}")
    print(text)


# ---------------------------------------------------------------- flags


def parser(
    description: str, kind: str, rows: Sequence[str], folder: str, seeds: Sequence[int]
) -> argparse.ArgumentParser:
    """The flags that the programs share; `kind`: what a row is, as a flag ("rows")."""
    made = argparse.ArgumentParser(description=description)
    made.add_argument(f"--{kind}", nargs="*", default=list(rows), choices=list(rows))
    made.add_argument("--seeds", nargs="*", type=int, default=list(seeds))
    made.add_argument("--datasets", nargs="*", default=list(DATASETS), choices=DATASETS)
    made.add_argument("--folder", type=Path, default=ROOT / "runs" / folder)
    made.add_argument(
        "--table", action="store_true", help="train nothing; only table and picture"
    )
    made.add_argument(
        "--again", action="store_true", help="measure again what is in the store"
    )
    return made
