"""Trains and evaluates every row of docs/results.md: rows x seeds x data sets.

    python -m benchmarks.results                    # all rows, seeds 0 1 2, the table
    python -m benchmarks.results --rows lmgait gei  # some rows
    python -m benchmarks.results --table            # only the table of what ran

Each run is a run like any other, under runs/results/ROW/SEED, and is not repeated when
it is finished; a row that was cut off continues. Both data sets must be prepared
(./run.sh build synthetic_gait; ./run.sh build cmu_walk --manual_dir=DIR); without
cmu_walk that half of the table stays empty.
"""

import argparse
import json
import os
import statistics
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from configs import gaitbase, gei, lmgait, prompts  # noqa: E402

DOCUMENT = ROOT / "docs" / "results.md"
BEGIN, END = "<!-- made by benchmarks/results.py -->", "<!-- end -->"
TASKS = ("CL", "UP", "DN", "BG", "mean")
DATASETS = ("synthetic", "cmu_walk")


def text(kind: str, **fields):
    """Overrides for other prompts; "random" takes another caption with each seed."""

    def override(config, seed):
        chosen = prompts.PROMPTS[kind]
        if kind == "random":
            chosen = (chosen[seed % len(chosen)],)
        config.model.text.prompts = chosen
        config.model.text.update(fields)

    return override


def model(**groups):
    """Overrides of config.model groups: model(mtcm=dict(enabled=False))."""

    def override(config, seed):
        for name, fields in groups.items():
            config.model[name].update(fields)

    return override


NO_TEXT, NO_MTCM = dict(text=dict(enabled=False)), dict(mtcm=dict(enabled=False))

# row -> (title, the paper's CCPG mean Rank-1 or None, get_config, override)
ROWS = {
    "gei": ("GEI, nothing learned", None, gei, None),
    "gaitbase": ("GaitBase (silhouettes)", 75.5, gaitbase, None),
    "biggait": ("BigGait mode: no text, no MTCM (Table 4)", 87.2, lmgait,
                model(**NO_TEXT, **NO_MTCM)),
    "cnn3d": ("no text, 3D-CNN (Table 4)", 86.4, lmgait,
              model(**NO_TEXT, mtcm=dict(kind="cnn3d"))),
    "no_text": ("no text, MTCM (Tables 4 and 6)", 86.9, lmgait, model(**NO_TEXT)),
    "no_pte": ("no PTE (Table 5)", 87.5, lmgait, model(mtcm=dict(pte=False))),
    "no_difference": ("no temporal difference (Table 5)", 88.2, lmgait,
                      model(mtcm=dict(difference=False))),
    "no_conv3d": ("no Conv3D (Table 5)", 87.9, lmgait, model(mtcm=dict(conv3d=False))),
    "wrong_no_mam": ("wrong text, no MAM (Table 6)", 86.1, lmgait,
                     text("wrong", mam=False)),
    "wrong": ("wrong text, MAM (Table 6)", 87.1, lmgait, text("wrong")),
    "no_mam": ("correct text, no MAM (Table 6)", 87.6, lmgait,
               text("correct", mam=False)),
    "random": ("random text, MAM (Table 6)", 88.1, lmgait, text("random")),
    "lmgait": ("LMGait", 88.5, lmgait, None),
}  # fmt: skip


def row_config(row: str, seed: int, dataset: str):
    """The row's config; both data sets share one training run."""
    _, _, module, override = ROWS[row]
    config = module.get_config(dataset)
    if override:
        override(config, seed)
    config.seed = seed
    config.name = f"{row}"
    config.pictures = row == "lmgait"
    config.data.data_dir = str(ROOT / "data")
    return config


def run_row(row: str, seed: int, folder: Path, datasets) -> None:
    """Trains the row if it is not finished, evaluates it on each data set."""
    from gaitjax import evaluate, train

    for dataset in datasets:
        workdir = folder / row / str(seed) / dataset
        if (workdir / "results.json").exists():
            continue
        config = row_config(row, seed, dataset)
        started = time.time()
        if dataset == "synthetic" and config.mode == "train":
            train.run(config, str(workdir))
        else:
            config.mode = "evaluate"
            config.base_run = str(folder / row / str(seed) / "synthetic")
            evaluate.run(config, str(workdir))
        seconds = round(time.time() - started, 1)
        (workdir / "seconds.json").write_text(json.dumps(seconds))


def table(folder: Path) -> str:
    """Markdown: Rank-1 of the gait protocol, mean ± half the range over the seeds."""
    lines = []
    for dataset in DATASETS:
        lines += ["", f"### {dataset}, CCPG gait protocol, Rank-1 in %", ""]
        lines += [
            "| row | CL | UP | DN | BG | mean | CCPG mean in the paper | steps | s |"
        ]
        lines += ["|---|---|---|---|---|---|---|---|---|"]
        for row, (title, published, _, _) in ROWS.items():
            runs = sorted((folder / row).glob(f"*/{dataset}/results.json"))
            if not runs:
                continue
            results = [json.loads(path.read_text()) for path in runs]
            cells = []
            for task in TASKS:
                key = f"ccpg_gait/{task}/rank1"
                values = [result["results"][key] for result in results]
                spread = max(values) - min(values)
                cell = f"{statistics.mean(values):.1f}"
                cells.append(cell + (f" ± {spread / 2:.1f}" if len(values) > 1 else ""))
            seconds = statistics.median(
                json.loads((path.parent / "seconds.json").read_text()) for path in runs
            )
            steps = results[0]["step"]
            seeds = f" ({len(runs)} seeds)" if len(runs) > 1 else ""
            lines.append(
                f"| {title}{seeds} | {' | '.join(cells)} | {published or ''} | {steps} "
                f"| {seconds:.0f} |"
            )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", nargs="*", default=list(ROWS), choices=list(ROWS))
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "results")
    parser.add_argument("--datasets", nargs="*", default=list(DATASETS))
    parser.add_argument(
        "--table", action="store_true", help="train nothing, only write the table"
    )
    arguments = parser.parse_args()
    if not arguments.table:
        os.chdir(ROOT)
        for seed in arguments.seeds:
            for row in arguments.rows:
                if row == "gei" and seed:
                    continue  # nothing random in it
                run_row(row, seed, arguments.folder, arguments.datasets)
    text_of_table = table(arguments.folder)
    print(text_of_table)
    page = DOCUMENT.read_text()
    before, after = page.index(BEGIN) + len(BEGIN), page.index(END)
    DOCUMENT.write_text(page[:before] + "\n" + text_of_table + page[after:])


if __name__ == "__main__":
    main()
