"""LMGait and its ablations at the embedded size: a part of docs/results.md.

    python -m benchmarks.results                    # all rows, seeds 0 1 2
    python -m benchmarks.results --rows lmgait gei  # some rows
    python -m benchmarks.results --table            # only table and picture

Runs lie under runs/results/ROW/SEED; one that was interrupted continues. The results of
finished runs are kept in docs/results.json and not measured again (--again does).
Both data sets must be prepared: ./run.sh build synthetic_gait; ./run.sh build cmu_walk
--manual_dir=DIR. cmu_walk is only tested on.

The row "default" is the run that ./run.sh makes. As in the paper, all rows share one
frozen visual encoder, here the pocket one. The ablations train for half of the default
run's steps, so they compare with each other and with the row "lmgait". What is nearest
without a network (chance, mean image, GEI, joints; the last two also after PCA and LDA)
comes from tfds_builders/synthetic_gait/fairness.py.
"""

import os
import sys
import textwrap
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import tables
from configs import biggerlmgait, gaitbase, lmgait, prompts
from gaitjax import evaluate, train
from tfds_builders.synthetic_gait import fairness

DOCUMENT, STORE = tables.DOCS / "results.md", tables.DOCS / "results.json"
PICTURES, REAL = tables.DOCS / "pictures", tables.DOCS / "real_people.json"
# rows with a budget of their own; the others have half of the default run's
WHOLE = ("gaitbase", "default", "default_biggait", "longer", "above", "above_no_text",
         "above_no_mtcm", "above_plain")  # fmt: skip
BASELINES = {  # row -> its name in fairness.py; nothing trained, or a linear map
    "chance": "chance",
    "mean_image": "mean image",
    "gei": "GEI",
    "joints": "joints",
    "gei_lda": "GEI, PCA + LDA",
    "joints_lda": "joints, PCA + LDA",
}

NO_TEXT, NO_MTCM = {"model.text.enabled": False}, {"model.mtcm.enabled": False}

# row -> (title, the paper's CCPG mean Rank-1 or None, config, its fields that differ);
# the field "prompts" names one of configs/prompts.py's kinds
ROWS = {
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
                     {"prompts": "wrong", "model.text.adapter": "none"}),
    "wrong": ("wrong text, MAM (Table 6)", 87.1, lmgait, {"prompts": "wrong"}),
    "no_mam": ("correct text, no MAM (Table 6)", 87.6, lmgait,
               {"model.text.adapter": "none"}),
    "lora": ("LoRA in place of MAM", None, lmgait, {"model.text.adapter": "lora"}),
    "adalora": ("AdaLoRA in place of MAM", None, lmgait,
                {"model.text.adapter": "adalora"}),
    "prompt": ("learned vectors in place of MAM", None, lmgait,
               {"model.text.adapter": "prompt"}),
    "dpt": ("learned vectors in both encoders (DPT)", None, lmgait,
            {"model.text.adapter": "prompt", "model.visual_prompts": 16}),
    "random": ("random text, MAM (Table 6)", 88.1, lmgait, {"prompts": "random"}),
    "residual": ("LMGait, MTCM added to its input (ours)", None, lmgait,
                 {"model.mtcm.residual": True}),
    "after_norm": ("text mask after the norm (ours)", None, lmgait,
                   {"model.text.place": "after_norm"}),
    "before_mtcm": ("text mask before MTCM (ours)", None, lmgait,
                    {"model.text.place": "before_mtcm"}),
    "lmgait": ("LMGait, the rows' budget", 88.5, lmgait, {}),
    "longer": ("LMGait, twice the default run's steps", 88.5, lmgait, {}),
    "above": ("LMGait's parts on BiggerGait's heads (ours)", None, biggerlmgait, {}),
    "above_no_text": ("the same without text", None, biggerlmgait, NO_TEXT),
    "above_no_mtcm": ("the same without MTCM", None, biggerlmgait, NO_MTCM),
    "above_plain": ("the same without both: BiggerGait", 93.3, biggerlmgait,
                    NO_TEXT | NO_MTCM),
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
    if row == "longer":
        config.train.steps *= 2
    elif row not in WHOLE:
        config.train.steps //= 2
    return config


def add_baselines(datasets, again: bool = False) -> None:
    """Nearest neighbours of simple features, for each data set that lacks them."""
    for dataset in datasets:
        keys = {f"{row}/0/{dataset}": name for row, name in BASELINES.items()}
        if keys.keys() <= tables.stored(STORE).keys() and not again:
            continue
        started = time.time()
        data = lmgait.get_config(dataset).data
        found = fairness.of_prepared(
            data.test_dataset, str(ROOT / "data"), fitted_on=data.train_dataset
        )
        for key, name in keys.items():
            ranks = {task: cross for task, (cross, _) in found[name].items()}
            ranks["mean"] = sum(ranks.values()) / len(ranks)
            entry = {
                "rank1": {task: round(value, 2) for task, value in ranks.items()},
                "steps": 0,
                "seconds": round(time.time() - started, 1),
                "parameters": 0,
            }
            tables.add(STORE, key, entry)


def run_row(row: str, seed: int, folder: Path, datasets, again: bool = False) -> None:
    """Trains the row if it is not finished, evaluates it on each data set."""
    for dataset in datasets:
        key = f"{row}/{seed}/{dataset}"
        if key in tables.stored(STORE) and not again:
            continue
        workdir = folder / row / str(seed) / dataset
        config = row_config(row, seed, dataset, folder)
        started = time.time()
        trained = folder / row / str(seed) / "synthetic"
        if dataset == "synthetic" and config.mode == "train":
            results = train.run(config, str(workdir))
        else:
            config.mode = "evaluate"
            config.base_run = str(trained)
            results = evaluate.run(config, str(workdir))
        tables.add(STORE, key, tables.rank1_entry(results, started))


def described(row: str) -> str:
    """The row's config file and its fields that differ, as the table shows them."""
    _, _, module, fields = ROWS[row]
    name = module.__name__.rpartition(".")[2]
    return " ".join(
        [f"`{name}.py`"]
        + [f"`{key.removeprefix('model.')}={value}`" for key, value in fields.items()]
    )


def parts() -> dict[str, dict[str, list]]:
    """The rows of each table, with their first cells: title, config, the paper's."""
    every = {
        row: [title, described(row), published or ""]
        for row, (title, published, _, _) in ROWS.items()
    }
    simple = {row: [name, "", ""] for row, name in BASELINES.items()}
    whole = {row: cells for row, cells in every.items() if row in WHOLE}
    half = {row: cells for row, cells in every.items() if row not in WHOLE}
    return {"default": simple | whole, "ablations": simple | half}


def table(part: str) -> str:
    """Markdown: Rank-1 of the gait protocol, mean ± half the range over the seeds."""
    head = ["row", "config", "CCPG mean in paper"]
    return tables.rank1_tables(STORE, head, parts()[part])


def draw() -> None:
    """A picture per table, and one of real people (docs/real_people.json)."""
    from gaitjax.pictures import charts

    for part, rows in parts().items():
        titles = {
            row: _wrapped(cells[0].partition(" (")[0]) for row, cells in rows.items()
        }
        tables.rank1_bars(STORE, titles, PICTURES / f"{part}.png")
    bars = {
        test: {_wrapped(row): (value, 0.0) for row, value in found.items()}
        for test, found in tables.stored(REAL)["rank1"].items()
    }
    label = "Rank-1 (%), people 07 to 12"
    charts.grouped_bars(bars, PICTURES / "real_people.png", label=label)


def _wrapped(title: str) -> str:
    return textwrap.fill(title, 11, break_long_words=False)


def main() -> None:
    parser = tables.parser(__doc__.splitlines()[0], "rows", ROWS, "results", (0, 1, 2))
    arguments = parser.parse_args()
    if not arguments.table:
        os.chdir(ROOT)
        add_baselines(arguments.datasets, arguments.again)
        for seed in arguments.seeds:
            for row in arguments.rows:
                run_row(
                    row, seed, arguments.folder, arguments.datasets, arguments.again
                )
    for part in parts():
        tables.put(DOCUMENT, f"results.py, {part}", table(part))
    draw()


if __name__ == "__main__":
    main()
