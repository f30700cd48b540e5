"""Puts a trained pocket recogniser and its card into gaitjax/weights/pocket.

    python -m benchmarks.pocket_recogniser RUN EVALUATED... --hours=0.5

RUN is the folder of a run of configs/pocket_recogniser.py; EVALUATED are folders of its
evaluations on other data (`--config.mode=evaluate`), whose results.json go on the card.
"""

import argparse
import json
from pathlib import Path

import jax

from gaitjax import restore, run_folder
from gaitjax.state import model_variables
from gaitjax.weights import pocket_files
from tfds_builders.seen_gait import seen_gait_dataset_builder as builder

NAME = "recogniser"
IS_NOT = (
    "No benchmark number: nothing here was trained or tested on the field's data sets.",
    "No identification for decisions about people: see docs/responsible_use.md.",
    "It learned from rendered people only; other cameras, heights and clothes than "
    "those of seen_gait were never seen, and running or carrying loads neither.",
)
LICENCES = {
    "weights": "as gaitjax (LICENSE); trained on data that gaitjax renders",
    "person model": "BlazePose landmark (Apache-2.0) looked at the rendered walks; it "
    "is not part of the weights",
    "tested on": "KTH actions (non-commercial use, cite Schuldt et al. 2004) and CMU "
    "motion capture; nothing of either is in the weights",
}


def identities() -> dict:
    """Which rendered people trained and which chose: subject numbers of one seed."""
    config = builder.Builder.BUILDER_CONFIGS[0]
    numbers = {
        split: [task.subject for task in config.tasks(split)]
        for split in ("train", "test")
    }
    return {"builder": "seen_gait/default", "seed": config.seed, "people": numbers}


def curve(run: Path, every: int = 50) -> list[dict]:
    """Every 50th logged row of the training."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").open()]
    kept = ("step", "total", "triplet", "cross_entropy")
    return [
        {name: row[name] for name in kept if name in row}
        for row in rows
        if row.get("kind") == "train" and row["step"] % every == 0
    ]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.pocket_recogniser")
    parser.add_argument("run", type=Path)
    parser.add_argument("evaluated", nargs="*", type=Path)
    parser.add_argument("--hours", type=float, required=True, help="of the training")
    parser.add_argument("--notes", type=Path, help="JSON with more results")
    parser.add_argument("--out", type=Path, default=pocket_files.SHIPPED)
    given = parser.parse_args(arguments)
    config = run_folder.read_config(given.run)
    assert config is not None, f"{given.run} is no run"
    setup, state = restore.open_run(config, given.run)
    data = identities() | {
        "seed of the training": config.seed,
        "steps": int(state.step),
        "hours": given.hours,
        "curve": curve(given.run),
        "is not": IS_NOT,
    }
    results = json.loads(given.notes.read_text()) if given.notes else {}
    for folder in given.evaluated:
        found = json.loads((folder / "results.json").read_text())
        results[folder.name] = found
    plain = run_folder.plain(config)
    plain["data"]["data_dir"] = "data"
    print(
        pocket_files.save_pocket(
            given.out, NAME, jax.device_get(model_variables(state)), plain,
            data=data, results=results, licences=LICENCES, dtype="float16",
        )
    )  # fmt: skip


if __name__ == "__main__":
    main()
