"""Trains and evaluates every model of docs/zoo.md at the embedded size.

    python -m benchmarks.zoo_results                    # all models, seed 0, the table
    python -m benchmarks.zoo_results --rows gaitset swingait --seeds 0 1 2
    python -m benchmarks.zoo_results --datasets synthetic cmu_walk
    python -m benchmarks.zoo_results --table              # only the table of what ran
    python -m benchmarks.zoo_results --smoke DIR          # 3 steps each, all into DIR

Each run is a run like any other, of `configs/ROW.py`, under runs/zoo/ROW/SEED; one that
was cut off continues. What finished runs measured stands in docs/zoo.json, from which
the table is made, and is not measured again (--again does). Several processes may share
the work, each with its --rows: a finished run is merged into the file under a lock.
`s` is the wall time of a run from its last start; give each process a core of its own
(taskset) for times that compare.
Data must be prepared:
./run.sh build synthetic_gait; ./run.sh build cmu_walk --manual_dir=DIR, on which the
runs are tested only.
"""

import argparse
import contextlib
import fcntl
import importlib
import json
import os
import shutil
import statistics
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from gaitjax import evaluate, train
from gaitjax.engine import checkpoints

DOCUMENT, STORE = ROOT / "docs" / "zoo.md", ROOT / "docs" / "zoo.json"
BEGIN, END = "<!-- made by benchmarks/zoo_results.py -->", "<!-- end -->"
TASKS = ("CL", "UP", "DN", "BG", "mean")
DATASETS = ("synthetic", "cmu_walk")
# row = config -> what it reads
ROWS = {
    "gei": "silhouettes",  # nothing is learned
    "gaitset": "silhouettes",
    "gaitpart": "silhouettes",
    "gaitgl": "silhouettes",
    "gaitbase": "silhouettes",
    "deepgaitv2": "silhouettes",
    "swingait": "silhouettes",
    "skeletongait": "skeleton maps",
    "gaitgraph2": "key points",
    "gaittr": "key points",
    "skeletongaitpp": "silhouettes + skeleton maps",
    "multigaitpp": "silhouettes + skeleton maps",
    "gaitedge": "RGB + masks",
    "biggait": "RGB",
    "biggergait": "RGB",
}
SMOKE_STEPS = 3


def row_config(row: str, seed: int, dataset: str, smoke: bool):
    """configs/ROW.py at the embedded size; smoke: a few steps, short evaluation."""
    config = importlib.import_module(f"configs.{row}").get_config(dataset)
    config.seed = seed
    config.pictures = False
    config.data.data_dir = str(ROOT / "data")
    if smoke and config.model.name != "gei":
        config.train.steps = SMOKE_STEPS
        config.warmup.steps = min(config.warmup.steps, 2)
        config.optimizer.rise_steps = min(config.optimizer.rise_steps, 1)
        config.evaluation.max_frames = config.evaluation.frame_multiple = 8
    return config


def run_row(row, seed, datasets, folder: Path, store: Path, smoke, again) -> None:
    """Trains the row if it is not finished, evaluates it on each data set."""
    trained = folder / row / str(seed) / "synthetic"
    for dataset in datasets:
        key = f"{row}/{seed}/{dataset}"
        if key in stored(store) and not again:
            continue
        config = row_config(row, seed, dataset, smoke)
        workdir = str(folder / row / str(seed) / dataset)
        checkpoints.check_folder(workdir)
        started = time.time()
        if dataset == "synthetic" and row != "gei":
            results = train.run(config, workdir)
        else:
            config.base_run = "" if row == "gei" else str(trained)
            results = evaluate.run(config, workdir)
        found = results["results"]
        entry = {
            "rank1": {
                task: round(found[f"ccpg_gait/{task}/rank1"], 2) for task in TASKS
            },
            "steps": results["step"],
            "seconds": round(time.time() - started, 1),
            "parameters": results["parameters"],
        }
        merge(store, key, entry)


def merge(store: Path, key: str, entry: dict) -> None:
    """Adds one run to the store, whatever other processes have added meanwhile."""
    with locked(store.parent):
        everything = dict(sorted((stored(store) | {key: entry}).items()))
        replace_text(store, json.dumps(everything, indent=1) + "\n")


@contextlib.contextmanager
def locked(folder: Path):
    """Within it no other process of this program reads and writes files of `folder`."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)  # lets the lock go


def replace_text(path: Path, text: str) -> None:
    """Writes a file that others see whole, before or after."""
    new = path.with_name(f".{path.name}.{os.getpid()}")
    new.write_text(text)
    os.replace(new, path)


def stored(store: Path) -> dict:
    """What was measured: "row/seed/dataset" -> rank1, steps, seconds, parameters."""
    return json.loads(store.read_text()) if store.exists() else {}


def table(store: Path) -> str:
    """Markdown: Rank-1 of the gait protocol, mean ± half the range over the seeds."""
    lines = []
    for dataset in DATASETS:
        runs = {
            row: [
                entry
                for key, entry in stored(store).items()
                if key.startswith(f"{row}/") and key.endswith(f"/{dataset}")
            ]
            for row in ROWS
        }
        if not any(runs.values()):
            continue
        lines += ["", f"### {dataset}, CCPG gait protocol, Rank-1 in %", ""]
        lines += [
            "| config | reads | parameters | steps | s | seeds | "
            + " | ".join(TASKS) + " |",
            "|---" * (6 + len(TASKS)) + "|",
        ]  # fmt: skip
        for row, entries in runs.items():
            if not entries:
                continue
            cells = [f"`configs/{row}.py`", ROWS[row]]
            cells += [f"{entries[0]['parameters']:,}", str(entries[0]["steps"])]
            seconds = statistics.median(entry["seconds"] for entry in entries)
            cells += [f"{seconds:.0f}", str(len(entries))]
            for task in TASKS:
                values = [entry["rank1"][task] for entry in entries]
                half = (max(values) - min(values)) / 2
                cell = f"{statistics.mean(values):.1f}"
                cells.append(cell + (f" ± {half:.1f}" if len(values) > 1 else ""))
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def write_table(document: Path, store: Path) -> None:
    with locked(document.parent):
        text, page = table(store), document.read_text()
        before, after = page.index(BEGIN) + len(BEGIN), page.index(END)
        replace_text(document, page[:before] + "\n" + text + page[after:])
    print(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", nargs="*", default=list(ROWS), choices=list(ROWS))
    parser.add_argument("--seeds", nargs="*", type=int, default=[0])
    parser.add_argument(
        "--datasets", nargs="*", default=["synthetic"], choices=DATASETS
    )
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "zoo")
    parser.add_argument(
        "--table", action="store_true", help="train nothing, only write the table"
    )
    parser.add_argument(
        "--again", action="store_true", help="measure again what is in zoo.json"
    )
    parser.add_argument(
        "--smoke", type=Path, help="a folder: 3 steps per row, nothing else is written"
    )
    arguments = parser.parse_args()
    document, store, folder = DOCUMENT, STORE, arguments.folder
    if arguments.smoke:
        folder = arguments.smoke.absolute()
        folder.mkdir(parents=True, exist_ok=True)
        document, store = folder / DOCUMENT.name, folder / STORE.name
        shutil.copy(DOCUMENT, document)
    if arguments.table:
        write_table(document, store)
        return
    os.chdir(ROOT)
    for seed in arguments.seeds:
        for row in arguments.rows:
            if row == "gei" and seed:
                continue  # nothing random in it
            run_row(
                row, seed, arguments.datasets, folder, store,
                bool(arguments.smoke), arguments.again,
            )  # fmt: skip
            write_table(document, store)


if __name__ == "__main__":
    main()
