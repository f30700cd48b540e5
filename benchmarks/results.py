"""LMGait and its ablations at the embedded size: a part of docs/results.md.

    python -m benchmarks.results                    # all rows, seeds 0 1 2
    python -m benchmarks.results --rows lmgait gei  # some rows
    python -m benchmarks.results --table            # only table and picture

Runs lie under runs/results/ROW/SEED; one that was interrupted continues. The results of
finished runs are kept in docs/results.json and not measured again (--again does).
Both data sets must be prepared: ./run.sh build synthetic_gait; ./run.sh build cmu_walk
--manual_dir=DIR. cmu_walk is only tested on.

The row "default" is the run that ./run.sh makes. In the paper all rows share one frozen
DINOv2; here all LMGait rows of a seed share the encoder that this run has trained on
silhouettes, frozen. So their warm-up trains the decoder alone, and they differ in their
switches only.
"""

import os
import sys
import textwrap
import time
from pathlib import Path

import jax

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import tables
from configs import biggerlmgait, gaitbase, gei, lmgait, prompts
from gaitjax import evaluate, restore, state, train
from gaitjax.weights import encoders

DOCUMENT, STORE = tables.DOCS / "results.md", tables.DOCS / "results.json"
PICTURE = tables.DOCS / "pictures" / "ablations.png"
# rows that train all their parts themselves
ALONE = ("gei", "gaitbase", "default", "default_biggait", "above", "above_no_text",
         "above_no_mtcm", "above_plain")  # fmt: skip

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
    "lmgait": ("LMGait, the rows' budget", 88.5, lmgait, {}),
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
    if row not in ALONE:
        config.pretrained.visual_encoder = str(encoder_file(seed, folder))
        config.frozen = (*config.frozen, "^visual_encoder/")
        config.train.trainable = ""
        config.warmup.update(steps=200, trainable="^decoder/")
        config.train.steps = 400
    return config


def encoder_file(seed: int, folder: Path) -> Path:
    """The encoder of the seed's default run, as safetensors; trained if missing."""
    file = folder / f"encoder_{seed}.safetensors"
    if not file.exists():
        workdir = folder / "default" / str(seed) / "synthetic"
        trained = (workdir / "results.json").exists()
        run_row("default", seed, folder, ["synthetic"], again=not trained)
        config = row_config("default", seed, "synthetic", folder)
        setup = state.build(config, state.example_batch(config))
        trained = restore.load_run(setup, config, str(workdir))
        encoder = jax.device_get(trained.params["visual_encoder"])
        encoders.save(file, encoder)
    return file


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
            config.base_run = str(trained) if row != "gei" else ""
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


def table() -> str:
    """Markdown: Rank-1 of the gait protocol, mean ± half the range over the seeds."""
    rows = {
        row: [title, described(row), published or ""]
        for row, (title, published, _, _) in ROWS.items()
    }
    return tables.rank1_tables(STORE, ["row", "config", "CCPG mean in paper"], rows)


def picture() -> None:
    titles = {
        row: textwrap.fill(title.partition(" (")[0], 11, break_long_words=False)
        for row, (title, _, _, _) in ROWS.items()
    }
    tables.rank1_bars(STORE, titles, PICTURE)


def main() -> None:
    parser = tables.parser(__doc__.splitlines()[0], "rows", ROWS, "results", (0, 1, 2))
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
    tables.put(DOCUMENT, "results", table())
    picture()


if __name__ == "__main__":
    main()
