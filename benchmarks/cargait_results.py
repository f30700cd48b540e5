"""Re-rankers on four trained models: a part of docs/reranking.md.

    python -m benchmarks.cargait_results                      # all, seeds 0 1 2
    python -m benchmarks.cargait_results --bases gaitbase lmgait --seeds 0
    python -m benchmarks.cargait_results --base_runs DIR DIR  # bases trained elsewhere
    python -m benchmarks.cargait_results --table              # only tables and pictures
    python -m benchmarks.cargait_results --smoke DIR          # 3 steps each, into DIR

A base is the finished run ROW/SEED/synthetic in one of --base_runs (by default what
benchmarks/results.py and benchmarks/zoo_results.py leave); if there is none, it is
trained into --folder. CarGait is `configs/cargait.py` on it, in
FOLDER/ROW/SEED/cargait: trained on the train split of synthetic_gait, tested on the
people of both test splits, whom neither model has seen. Both data sets must be prepared
(benchmarks/results.py).

Finished measurements are kept in docs/cargait.json and not repeated (--again does); one
that was interrupted continues. Several processes may run this at once: each takes a
base and seed that no other works on.
"""

import os
import shutil
import statistics
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import tables
from configs import cargait, deepgaitv2, gaitbase, gaitset, lmgait
from gaitjax import train
from gaitjax.rerank import train as train_reranker

DOCUMENT, STORE = tables.DOCS / "reranking.md", tables.DOCS / "cargait.json"
PICTURES = tables.DOCS / "pictures"
TEST_DATASETS = {"synthetic": "", "cmu_walk": "cmu_walk"}  # of config.data.test_dataset
PROTOCOLS = ("ccpg_reid", "ccpg_gait")
COLUMNS = {  # title -> metric, of the mean over the protocol's tasks
    "Rank-1": "ccpg_reid/mean/rank1",
    "Rank-5": "ccpg_reid/mean/rank5",
    "mAP": "ccpg_reid/mean/mAP",
    "mINP": "ccpg_reid/mean/mINP",
    "gait Rank-1": "ccpg_gait/mean/rank1",
}
SHOWN = ("Rank-1", "mAP", "gait Rank-1")  # in the tables; the store has all
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
    """The folder of the finished base run; trained under `folder` if there is none."""
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
        if "warmup" in config:
            config.warmup.steps = min(config.warmup.steps, 2)
        config.evaluation.max_frames = config.evaluation.frame_multiple = 8
    train.run(config, str(own))
    return own


def run_cargait(base_run: Path, seed: int, dataset: str, workdir: Path, smoke: bool):
    """Trains CarGait unless it is finished, re-ranks; returns the entry of STORE."""
    config = cargait.get_config("synthetic")
    config.seed = seed
    config.base_run = str(base_run)
    config.pictures = False
    config.data.data_dir = str(ROOT / "data")
    config.data.test_dataset = TEST_DATASETS[dataset]
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
    smoke = bool(arguments.smoke)
    for seed in arguments.seeds:
        for name in arguments.bases:
            place = folder / BASES[name].row / str(seed)
            with tables.locked(place, wait=False) as mine:
                if not mine:
                    print(f"{name}/{seed} is another process's work.")
                    continue
                for dataset in arguments.datasets:
                    key = f"{name}/{seed}/{dataset}"
                    if key in tables.stored(store) and not arguments.again:
                        continue
                    base = run_base(name, seed, folder, arguments.base_runs, smoke)
                    entry = run_cargait(base, seed, dataset, place / "cargait", smoke)
                    tables.add(store, key, entry)


# ---------------------------------------------------------------- tables, pictures


def values(store: Path, base: str, dataset: str, reranker: str, column: str):
    """(of the re-ranker, its gain over the base model): one each per seed."""
    runs = [entry["results"] for entry in tables.entries(store, base, dataset)]
    after = [run[reranker][column] for run in runs]
    gains = [new - run["base"][column] for new, run in zip(after, runs)]
    return after, gains


def table(store: Path) -> str:
    """Markdown: per data set and metric, re-rankers x base models.

    A cell is the mean over the seeds and, in brackets, the gain over the base model of
    the same seed, ± half the range over the seeds.
    """
    parts = []
    for dataset in TEST_DATASETS:
        bases = [name for name in BASES if tables.entries(store, name, dataset)]
        for column in SHOWN if bases else ():
            rows = []
            for reranker, title in RERANKERS.items():
                cells = [title]
                for base in bases:
                    after, gains = values(store, base, dataset, reranker, column)
                    if reranker == "base":
                        cells.append(tables.mean_and_spread(after))
                    else:
                        gain = tables.mean_and_spread(gains, sign="+")
                        cells.append(f"{statistics.mean(after):.1f} ({gain})")
                bold = "**" if reranker == "cargait" else ""
                rows.append([f"{bold}{cell}{bold}" for cell in cells])
            head = ["re-ranker", *(BASES[base].title for base in bases)]
            name = COLUMNS[column].rpartition("/")[0]
            title = f"**{dataset}**, {column} in % (`{name}`)\n\n"
            parts.append(title + tables.markdown(head, rows))
    return "\n".join(parts)


def draw(store: Path, dataset: str, path: Path) -> None:
    """Rank-1 of each re-ranker over each base model as bars."""
    from gaitjax.pictures import charts

    bars: dict[str, dict[str, tuple[float, float]]] = {}
    for reranker, title in RERANKERS.items():
        for name, base in BASES.items():
            after, _ = values(store, name, dataset, reranker, "Rank-1")
            if after:
                bar = statistics.mean(after), tables.half_range(after)
                bars.setdefault(title, {})[base.title] = bar
    label = f"Rank-1 (%), ccpg_reid, {dataset}"
    charts.grouped_bars(bars, path, label=label)


def main() -> None:
    summary = __doc__.splitlines()[0]
    parser = tables.parser(summary, "bases", BASES, "cargait_results", (0, 1, 2))
    parser.add_argument(
        "--base_runs", nargs="*", type=Path, help="folders of ROW/SEED/synthetic",
        default=[ROOT / "runs" / "results", ROOT / "runs" / "zoo"],
    )  # fmt: skip
    parser.add_argument(
        "--smoke", type=Path, help="a folder: 3 steps each, nothing else is written"
    )
    arguments = parser.parse_args()
    document, store, pictures = DOCUMENT, STORE, PICTURES
    folder = arguments.folder.absolute()
    arguments.base_runs = [path.absolute() for path in arguments.base_runs]
    if arguments.smoke:
        pictures = folder = arguments.smoke.absolute()
        folder.mkdir(parents=True, exist_ok=True)
        document, store = folder / DOCUMENT.name, folder / STORE.name
        shutil.copy(DOCUMENT, document)
    os.chdir(ROOT)
    if not arguments.table:
        run_all(arguments, store, folder)
    tables.put(document, "cargait_results.py", table(store))
    for dataset in TEST_DATASETS:
        draw(store, dataset, pictures / f"rerankers_{dataset}.png")


if __name__ == "__main__":
    main()
