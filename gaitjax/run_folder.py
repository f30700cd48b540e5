"""The folder of a run: what lies in it, one reader, one writer.

config.json      the config, as plain JSON
checkpoints/     steps and their descriptions (`describe`)
metrics.jsonl    rows of the training
results.json     of the last evaluation; rerank.json, import.json of those modes
pictures/        what was drawn
"""

import json
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from gaitjax.engine.atomic import replacing


def write_json(path: str | Path, content: Any) -> None:
    """`content` as JSON, whole or not at all; on process 0 only."""
    if jax.process_index() == 0:
        with replacing(path) as file:
            file.write(json.dumps(content, indent=2) + "\n")


def plain(config) -> dict[str, Any]:
    """A config as JSON has it: tuples are lists."""
    return json.loads(config.to_json_best_effort())


def write_config(config, workdir: str | Path) -> None:
    """WORKDIR/config.json, by which re-rankers and evaluations read a run."""
    write_json(Path(workdir) / "config.json", plain(config))


def read_config(workdir: str | Path) -> ConfigDict | None:
    """The config of the run in `workdir`, with tuples; None where there is none."""
    path = Path(workdir) / "config.json"
    if not path.is_file():
        return None
    return ConfigDict(_with_tuples(json.loads(path.read_text())))


def _with_tuples(value):
    """JSON's lists as the tuples that configs have."""
    if isinstance(value, dict):
        return {name: _with_tuples(item) for name, item in value.items()}
    return tuple(map(_with_tuples, value)) if isinstance(value, list) else value
