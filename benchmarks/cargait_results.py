"""CarGait and the other re-rankers on trained models: bases x seeds x data sets.

    python -m benchmarks.cargait_results                      # all, seeds 0 1 2
    python -m benchmarks.cargait_results --bases gaitbase lmgait --seeds 0
    python -m benchmarks.cargait_results --base_runs DIR DIR  # bases trained elsewhere
    python -m benchmarks.cargait_results --table              # only the table
    python -m benchmarks.cargait_results --smoke DIR          # 3 steps each, into DIR

A base is the finished run ROW/SEED/synthetic in one of --base_runs (by default what
benchmarks/results.py and benchmarks/zoo_results.py leave), else it is trained into
--folder. CarGait is `configs/cargait.py` on it, in FOLDER/ROW/SEED/cargait: trained on
the base's train split of synthetic_gait, tested on the people of both test splits, whom
neither has seen; both data sets must be prepared (see benchmarks/results.py).

What finished stands in docs/cargait.json, from which the table in docs/cargait.md is
made, and is not measured again (--again does); what was cut off continues. Several
processes may run this at once: each takes a base and seed that no other works on.
"""

import argparse
import contextlib
import fcntl
import json
import os
import shutil
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from configs import cargait, deepgaitv2, gaitbase, gaitset, lmgait
from gaitjax import train
from gaitjax.rerank import train as train_reranker

DOCUMENT, STORE = ROOT / "docs" / "cargait.md", ROOT / "docs" / "cargait.json"
BEGIN, END = "<!-- made by benchmarks/cargait_results.py -->", "<!-- end -->"
DATASETS = {"synthetic": "", "cmu_walk": "cmu_walk"}  # -> config.data.test_dataset
PROTOCOLS = ("ccpg_reid", "ccpg_gait")
COLUMNS = {  # title -> metric, of the mean over the protocol's tasks
    "Rank-1": "ccpg_reid/mean/rank1",
    "Rank-5": "ccpg_reid/mean/rank5",
    "mAP": "ccpg_reid/mean/mAP",
    "mINP": "ccpg_reid/mean/mINP",
    "gait Rank-1": "ccpg_gait/mean/rank1",
}
RERANKERS = {
    "base": "base model",
    "qe": "alpha-QE",
    "kr": "KR",
    "lbr": "LBR",
    "gcr": "GCR",
    "gcr_views": "GCR with cameras",
    "gnn": "GNN",
    "cargait": "CarGait, K=10",
    "cascade": "LBR K=50, CarGait K=10",
}
SMOKE_STEPS = 3


class BaseModel(NamedTuple):
    """row: its folder in --base_runs and here; config: its module in `configs`."""

    title: str
    row: str
    config: ModuleType


BASES = {
    "gaitset": BaseModel("GaitSet", "gaitset", gaitset),
    "gaitbase": BaseModel("GaitBase", "gaitbase", gaitbase),
    "deepgaitv2": BaseModel("DeepGaitV2-P3D", "deepgaitv2", deepgaitv2),
    "lmgait": BaseModel("LMGait", "default", lmgait),  # as in benchmarks/results.py
}


# ---------------------------------------------------------------- runs


def run_base(name: str, seed: int, folder: Path, base_runs, smoke: bool) -> Path:
    """The folder of the finished base run; trained under `folder` where none is."""
    base = BASES[name]
    own = folder / base.row / str(seed) / "synthetic"
    for parent in (folder, *base_runs):
        found = parent / base.row / str(seed) / "synthetic"
        if (found / "results.json").exists():
            return found
    config = base.config.get_config("synthetic")
    config.seed = seed
    config.name = base.row
    config.pictures = False
    config.data.data_dir = str(ROOT / "data")
    if smoke:
        config.train.steps = SMOKE_STEPS
        config.warmup.steps = min(config.warmup.steps, 2)
        config.evaluation.max_frames = config.evaluation.frame_multiple = 8
    train.run(config, str(own))
    return own


def run_cargait(base_run: Path, seed: int, dataset: str, workdir: Path, smoke: bool):
    """Trains CarGait if it is not finished, re-ranks; returns the row of STORE."""
    config = cargait.get_config("synthetic")
    config.seed = seed
    config.base_run = str(base_run)
    config.pictures = False
    config.data.data_dir = str(ROOT / "data")
    config.data.test_dataset = DATASETS[dataset]
    config.evaluation.protocols = PROTOCOLS
    config.evaluation.rerankers = tuple(name for name in RERANKERS if name != "base")
    if smoke:
        config.train.steps = SMOKE_STEPS
        config.validation.update(batches=2, every_steps=2)
    started = time.process_time()
    report = train_reranker.rerank(config, str(workdir))
    return {
        "results": {
            name: {
                title: round(row["results"][key], 2) for title, key in COLUMNS.items()
            }
            for name, row in report["rerankers"].items()
        },
        "base_step": report["base_step"],
        "step": report["step"],  # of the lowest validation ranking loss
        "validation_ranking_loss": round(report["validation_ranking_loss"], 5),
        "shortlist": report["shortlist"],
        "embedding": report["embedding"],
        "cpu_seconds": round(time.process_time() - started, 1),
    }


def run_all(arguments, store: Path, folder: Path) -> None:
    """Every base and seed that is not in the store and that no other process has."""
    for seed in arguments.seeds:
        for name in arguments.bases:
            workdir = folder / BASES[name].row / str(seed) / "cargait"
            with locked(workdir / "taken", wait=False) as mine:
                if not mine:
                    print(f"{name}/{seed} is another process's work.")
                    continue
                for dataset in arguments.datasets:
                    key = f"{name}/{seed}/{dataset}"
                    if key in stored(store) and not arguments.again:
                        continue
                    base_run = run_base(
                        name, seed, folder, arguments.base_runs, bool(arguments.smoke)
                    )
                    entry = run_cargait(
                        base_run, seed, dataset, workdir, bool(arguments.smoke)
                    )
                    add(store, key, entry)


# ---------------------------------------------------------------- store


@contextlib.contextmanager
def locked(path: Path, wait: bool) -> Iterator[bool]:
    """Holds an exclusive lock on the file `path`; False: not waited, another has it.

    The kernel lets go of it when a process ends, however it ends.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
        else:
            yield True


def stored(store: Path) -> dict:
    """What was measured: "base/seed/dataset" -> see `run_cargait`."""
    return json.loads(store.read_text()) if store.exists() else {}


def write(path: Path, text: str) -> None:
    """Replaces the file at once: nobody ever reads half of it."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    partial.write_text(text)
    os.replace(partial, path)


def add(store: Path, key: str, entry: dict) -> None:
    """Adds an entry to what the store holds now, whoever else has written to it."""
    with locked(ROOT / "runs" / "cargait_results.lock", wait=True):
        everything = stored(store) | {key: entry}
        write(store, json.dumps(dict(sorted(everything.items())), indent=1) + "\n")


# ---------------------------------------------------------------- table


def table(store: Path) -> str:
    """Markdown: per data set, base and re-ranker the mean over seeds of each metric.

    ± half the range over the seeds; in brackets the gain over the base model of the
    same seed, mean ± half the range.
    """
    lines = []
    for dataset in DATASETS:
        block = []
        for name, base in BASES.items():
            runs = [
                entry["results"]
                for key, entry in stored(store).items()
                if key.startswith(f"{name}/") and key.endswith(f"/{dataset}")
            ]
            for reranker, title in RERANKERS.items():
                if not runs:
                    continue
                cells = [base.title, title, str(len(runs))]
                for column in COLUMNS:
                    after = [run[reranker][column] for run in runs]
                    before = [run["base"][column] for run in runs]
                    cell = mean_and_spread(after)
                    if reranker != "base":
                        gains = [new - old for new, old in zip(after, before)]
                        cell += f" ({mean_and_spread(gains, sign='+')})"
                    cells.append(cell)
                bold = "**" if reranker == "cargait" else ""
                cells[1] = f"{bold}{title}{bold}"
                block.append(f"| {' | '.join(cells)} |")
        if block:
            lines += [
                "",
                f"### {dataset}, CCPG protocols, mean of the four tasks, %",
                "",
            ]
            lines += [f"| base | re-ranker | seeds | {' | '.join(COLUMNS)} |"]
            lines += ["|---" * (3 + len(COLUMNS)) + "|", *block]
    return "\n".join(lines) + "\n"


def mean_and_spread(values, sign: str = "") -> str:
    """ "61.2 ± 0.8": mean and half the range; one value stands alone."""
    spread = (max(values) - min(values)) / 2
    mean = f"{statistics.mean(values):{sign}.1f}"
    return mean + (f" ± {spread:.1f}" if len(values) > 1 else "")


def write_table(document: Path, store: Path) -> None:
    with locked(ROOT / "runs" / "cargait_results.lock", wait=True):
        text, page = table(store), document.read_text()
        before, after = page.index(BEGIN) + len(BEGIN), page.index(END)
        write(document, page[:before] + "\n" + text + page[after:])
    print(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bases", nargs="*", default=list(BASES), choices=list(BASES))
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument(
        "--datasets", nargs="*", default=list(DATASETS), choices=list(DATASETS)
    )
    parser.add_argument(
        "--folder", type=Path, default=ROOT / "runs" / "cargait_results"
    )
    parser.add_argument(
        "--base_runs", nargs="*", type=Path, help="folders of ROW/SEED/synthetic",
        default=[ROOT / "runs" / "results", ROOT / "runs" / "zoo"],
    )  # fmt: skip
    parser.add_argument(
        "--table", action="store_true", help="train nothing, only write the table"
    )
    parser.add_argument(
        "--again", action="store_true", help="measure again what is in cargait.json"
    )
    parser.add_argument(
        "--smoke", type=Path, help="a folder: 3 steps each, nothing else is written"
    )
    arguments = parser.parse_args()
    document, store = DOCUMENT, STORE
    folder = arguments.folder.absolute()
    arguments.base_runs = [path.absolute() for path in arguments.base_runs]
    if arguments.smoke:
        folder = arguments.smoke.absolute()
        folder.mkdir(parents=True, exist_ok=True)
        document, store = folder / DOCUMENT.name, folder / STORE.name
        if not document.exists():
            shutil.copy(DOCUMENT, document)
    os.chdir(ROOT)
    if not arguments.table:
        run_all(arguments, store, folder)
    write_table(document, store)


if __name__ == "__main__":
    main()
