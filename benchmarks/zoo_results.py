"""Every model at the embedded size: a part of docs/zoo.md.

    python -m benchmarks.zoo_results                    # all models, seed 0
    python -m benchmarks.zoo_results --rows gaitset swingait --seeds 0 1 2
    python -m benchmarks.zoo_results --datasets synthetic
    python -m benchmarks.zoo_results --table            # only table and picture
    python -m benchmarks.zoo_results --smoke DIR        # 3 steps each, all into DIR

Each run is `configs/ROW.py` under runs/zoo/ROW/SEED; one that was interrupted
continues. The results of finished runs are kept in docs/zoo.json and not measured again
(--again does). Several processes may share the work, each with its --rows.
`s` is the wall time of a run since its last start; give each process a core of its own
(taskset) for times that compare. Both data sets must be prepared:
./run.sh build synthetic_gait; ./run.sh build cmu_walk --manual_dir=DIR. cmu_walk is
only tested on.
"""

import importlib
import os
import shutil
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import tables
from gaitjax import evaluate, train
from gaitjax.engine import checkpoints

DOCUMENT, STORE = tables.DOCS / "zoo.md", tables.DOCS / "zoo.json"
PICTURE = tables.DOCS / "pictures" / "models.png"
# config -> (what it reads, its name in the picture)
ROWS = {
    "gei": ("silhouettes", "GEI"),  # nothing is learned
    "gaitset": ("silhouettes", "GaitSet"),
    "gaitpart": ("silhouettes", "GaitPart"),
    "gaitgl": ("silhouettes", "GaitGL"),
    "gaitbase": ("silhouettes", "GaitBase"),
    "deepgaitv2": ("silhouettes", "DeepGait\nV2"),
    "swingait": ("silhouettes", "SwinGait"),
    "skeletongait": ("skeleton maps", "Skeleton\nGait"),
    "gaitgraph2": ("key points", "Gait\nGraph2"),
    "gaittr": ("key points", "GaitTR"),
    "skeletongaitpp": ("silhouettes + skeleton maps", "Skeleton\nGait++"),
    "multigaitpp": ("silhouettes + skeleton maps", "Multi\nGait++"),
    "gaitedge": ("RGB + masks", "GaitEdge"),
    "biggait": ("RGB", "BigGait"),
    "biggergait": ("RGB", "Bigger\nGait"),
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
        if "warmup" in config:
            config.warmup.steps = min(config.warmup.steps, 2)
        config.optimizer.rise_steps = min(config.optimizer.rise_steps, 1)
        config.evaluation.max_frames = config.evaluation.frame_multiple = 8
    return config


def run_row(row, seed, datasets, folder: Path, store: Path, smoke, again) -> None:
    """Trains the row if it is not finished, evaluates it on each data set."""
    trained = folder / row / str(seed) / "synthetic"
    for dataset in datasets:
        key = f"{row}/{seed}/{dataset}"
        if key in tables.stored(store) and not again:
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
        tables.add(store, key, tables.rank1_entry(results, started))


def table(store: Path) -> str:
    """Markdown: Rank-1 of the gait protocol, mean ± half the range over the seeds."""
    found = tables.stored(store)
    rows = {}
    for row, (reads, _) in ROWS.items():
        sizes = [
            x["parameters"] for key, x in found.items() if key.startswith(f"{row}/")
        ]
        if sizes:
            rows[row] = [f"`configs/{row}.py`", reads, f"{sizes[0]:,}"]
    return tables.rank1_tables(store, ["config", "reads", "parameters"], rows)


def write(document: Path, store: Path, picture: Path) -> None:
    tables.put(document, "zoo_results.py", table(store))
    titles = {row: title for row, (_, title) in ROWS.items()}
    tables.rank1_bars(store, titles, picture)


def main() -> None:
    parser = tables.parser(__doc__.splitlines()[0], "rows", ROWS, "zoo", (0,))
    parser.add_argument(
        "--smoke", type=Path, help="a folder: 3 steps per row, nothing else is written"
    )
    arguments = parser.parse_args()
    document, store, picture, folder = DOCUMENT, STORE, PICTURE, arguments.folder
    if arguments.smoke:
        folder = arguments.smoke.absolute()
        folder.mkdir(parents=True, exist_ok=True)
        document, store, picture = (folder / x.name for x in (document, store, picture))
        shutil.copy(DOCUMENT, document)
    os.chdir(ROOT)
    for seed in [] if arguments.table else arguments.seeds:
        for row in arguments.rows:
            if row == "gei" and seed:
                continue  # nothing random in it
            run_row(
                row, seed, arguments.datasets, folder, store,
                bool(arguments.smoke), arguments.again,
            )  # fmt: skip
    write(document, store, picture)


if __name__ == "__main__":
    main()
