"""Trains and evaluates every row of docs/results.md: rows x seeds x data sets.

    python -m benchmarks.results                    # all rows, seeds 0 1 2, the table
    python -m benchmarks.results --rows lmgait gei  # some rows
    python -m benchmarks.results --table            # only the table of what ran

Each run is a run like any other, under runs/results/ROW/SEED; a row that was cut off
continues. What a finished run measured stands in docs/results.json, from which the
table is made, and is not measured again (--again does). Both data sets must be prepared
(./run.sh build synthetic_gait; ./run.sh build cmu_walk --manual_dir=DIR).

The row "default" is `./run.sh`'s own run. As the paper's rows share one DINOv2, the
LMGait rows of a seed share the encoder that this run has trained on silhouettes, now
frozen: their warm-up trains the decoder alone; they differ in their switches only.
"""

import argparse
import json
import os
import statistics
import sys
import time
from pathlib import Path

import jax

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from configs import gaitbase, gei, lmgait, prompts
from gaitjax import evaluate, restore, state, train
from gaitjax.weights import encoders as pretrained

DOCUMENT = ROOT / "docs" / "results.md"
BEGIN, END = "<!-- made by benchmarks/results.py -->", "<!-- end -->"
TASKS = ("CL", "UP", "DN", "BG", "mean")
DATASETS = ("synthetic", "cmu_walk")
STORE = ROOT / "docs" / "results.json"
# rows that train all their parts themselves
SHARED = ("gei", "gaitbase", "default", "default_biggait")


NO_TEXT, NO_MTCM = {"model.text.enabled": False}, {"model.mtcm.enabled": False}

# row -> (title, the paper's CCPG mean Rank-1 or None, config, its fields that differ);
# the field "prompts" names one of configs/prompts.py's kinds
ROWS = {
    "gei": ("GEI, nothing learned", None, gei, {}),
    "gaitbase": ("GaitBase (silhouettes)", 75.5, gaitbase, {}),
    "default": ("LMGait, the default run", 88.5, lmgait, {}),
    "default_biggait": ("BigGait mode in the default run's budget", 87.2, lmgait,
                        NO_TEXT | NO_MTCM),
    "biggait": ("BigGait mode: no text, no MTCM (Table 4)", 87.2, lmgait,
                NO_TEXT | NO_MTCM),
    "cnn3d": ("no text, 3D-CNN (Table 4)", 86.4, lmgait,
              NO_TEXT | {"model.mtcm.kind": "cnn3d"}),
    "no_text": ("no text, MTCM (Tables 4 and 6)", 86.9, lmgait, NO_TEXT),
    "no_pte": ("no PTE (Table 5)", 87.5, lmgait, {"model.mtcm.pte": False}),
    "no_difference": ("no temporal difference (Table 5)", 88.2, lmgait,
                      {"model.mtcm.difference": False}),
    "no_conv3d": ("no Conv3D (Table 5)", 87.9, lmgait, {"model.mtcm.conv3d": False}),
    "wrong_no_mam": ("wrong text, no MAM (Table 6)", 86.1, lmgait,
                     {"prompts": "wrong", "model.text.mam": False}),
    "wrong": ("wrong text, MAM (Table 6)", 87.1, lmgait, {"prompts": "wrong"}),
    "no_mam": ("correct text, no MAM (Table 6)", 87.6, lmgait,
               {"model.text.mam": False}),
    "random": ("random text, MAM (Table 6)", 88.1, lmgait, {"prompts": "random"}),
    "residual": ("LMGait, MTCM added to its input (ours)", None, lmgait,
                 {"model.mtcm.residual": True}),
    "lmgait": ("LMGait, the rows' budget", 88.5, lmgait, {}),
}  # fmt: skip


def row_config(row: str, seed: int, dataset: str, folder: Path):
    """The row's config; both data sets share one training run."""
    _, _, module, fields = ROWS[row]
    config = module.get_config(dataset)
    fields = dict(fields)
    if kind := fields.pop("prompts", None):
        chosen = prompts.PROMPTS[kind]
        if kind == "random":  # another caption with each seed
            chosen = (chosen[seed % len(chosen)],)
        config.model.text.prompts = chosen
    config.update_from_flattened_dict(fields)
    config.seed = seed
    config.name = row
    config.pictures = False
    config.evaluation.every_steps = 0
    config.data.data_dir = str(ROOT / "data")
    if row not in SHARED:
        config.pretrained.visual_encoder = str(encoder_file(seed, folder))
        config.frozen = (*config.frozen, "^visual_encoder/")
        config.train.trainable = ""
        config.warmup.update(steps=200, trainable="^decoder/")
        config.train.steps = 400
    return config


def encoder_file(seed: int, folder: Path) -> Path:
    """The encoder of the seed's default run, as safetensors; trains it if need be."""
    file = folder / f"encoder_{seed}.safetensors"
    if not file.exists():
        workdir = folder / "default" / str(seed) / "synthetic"
        trained = (workdir / "results.json").exists()
        run_row("default", seed, folder, ["synthetic"], again=not trained)
        config = row_config("default", seed, "synthetic", folder)
        setup = state.build(config, state.example_batch(config))
        trained = restore.load_run(setup, setup.new_state(), str(workdir))
        encoder = jax.device_get(trained.params["visual_encoder"])
        pretrained.save(file, encoder)
    return file


def run_row(row: str, seed: int, folder: Path, datasets, again: bool = False) -> None:
    """Trains the row if it is not finished, evaluates it on each data set."""
    for dataset in datasets:
        key = f"{row}/{seed}/{dataset}"
        if key in stored() and not again:
            continue
        workdir = folder / row / str(seed) / dataset
        config = row_config(row, seed, dataset, folder)
        started = time.time()
        trained = folder / row / str(seed) / "synthetic"
        if dataset == "synthetic" and config.mode == "train":
            results = train.run(config, str(workdir))
        else:
            config.mode = "evaluate"
            config.base_run = str(trained) if row != "gei" else ""
            results = evaluate.run(config, str(workdir))
        entry = {
            "rank1": {
                task: round(results["results"][f"ccpg_gait/{task}/rank1"], 2)
                for task in TASKS
            },
            "steps": results["step"],
            "seconds": round(time.time() - started, 1),
        }
        everything = stored() | {key: entry}
        STORE.write_text(json.dumps(dict(sorted(everything.items())), indent=1) + "\n")


def stored() -> dict:
    """What was measured: "row/seed/dataset" -> rank1 per task, steps, seconds."""
    return json.loads(STORE.read_text()) if STORE.exists() else {}


def described(row: str) -> str:
    """The row's config file and its fields that differ, as the table shows them."""
    _, _, module, fields = ROWS[row]
    name = module.__name__.rpartition(".")[2]
    return " ".join(
        [f"`{name}.py`"]
        + [f"`{key.removeprefix('model.')}={value}`" for key, value in fields.items()]
    )


def table() -> str:
    """Markdown: Rank-1 of the gait protocol, mean ± half the range over the seeds."""
    lines = []
    for dataset in DATASETS:
        lines += ["", f"### {dataset}, CCPG gait protocol, Rank-1 in %", ""]
        columns = ["row", "config", *TASKS, "CCPG mean in the paper", "seeds", "steps"]
        lines.append("| " + " | ".join([*columns, "s"]) + " |")
        lines.append("|---" * (len(columns) + 1) + "|")
        for row, (title, published, _, _) in ROWS.items():
            runs = [
                entry
                for key, entry in stored().items()
                if key.startswith(f"{row}/") and key.endswith(f"/{dataset}")
            ]
            if not runs:
                continue
            cells = [title, described(row)]
            for task in TASKS:
                values = [run["rank1"][task] for run in runs]
                spread = max(values) - min(values)
                cell = f"{statistics.mean(values):.1f}"
                cells.append(cell + (f" ± {spread / 2:.1f}" if len(values) > 1 else ""))
            seconds = statistics.median(run["seconds"] for run in runs)
            cells += [published or "", len(runs), runs[0]["steps"], f"{seconds:.0f}"]
            lines.append("| " + " | ".join(map(str, cells)) + " |")
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
    parser.add_argument(
        "--again", action="store_true", help="measure again what is in results.json"
    )
    arguments = parser.parse_args()
    if not arguments.table:
        os.chdir(ROOT)
        for seed in arguments.seeds:
            for row in arguments.rows:
                if row == "gei" and seed:
                    continue  # nothing random in it
                run_row(
                    row, seed, arguments.folder, arguments.datasets, arguments.again
                )
    text_of_table = table()
    print(text_of_table)
    page = DOCUMENT.read_text()
    before, after = page.index(BEGIN) + len(BEGIN), page.index(END)
    DOCUMENT.write_text(page[:before] + "\n" + text_of_table + page[after:])


if __name__ == "__main__":
    main()
