"""A trained model in two files that can be carried anywhere: tensors and a card.

NAME.safetensors  the variables, flat: "params/a/b/kernel", "batch_stats/a/b/mean"
NAME.json         the card: the run's config, and what a user must know of the model

The card is JSON: `name`, `config` (the whole config of the run), `weights` (SHA-256,
count and type of the numbers in the other file), and three parts that are free in form:
`data` (trained on what), `results` (which protocol gave which number), `licences`.
Nothing in either file is code.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from flax import traverse_util

from gaitjax.engine.atomic import replacing
from gaitjax.engine.guards import reading, require, require_whole
from gaitjax.weights import files

FORMAT = "gaitjax-weights-1"
SHIPPED = Path(__file__).parent / "pocket"  # weights that come with gaitjax
PARTS = ("config", "weights", "data", "results", "licences")


class Pocket(NamedTuple):
    """card: the content of NAME.json. variables: for model.apply, float32 numpy."""

    card: dict[str, Any]
    variables: dict[str, Any]


def save_pocket(
    folder: str | Path,
    name: str,
    variables: Mapping[str, Any],
    config: Mapping[str, Any],
    *,
    data: Any,
    results: Any,
    licences: Any,
    dtype: Literal["float32", "float16"] = "float32",
) -> Path:
    """Writes FOLDER/NAME.safetensors and FOLDER/NAME.json; returns the card's path.

    variables: as for model.apply (`state.model_variables`), on one host. config: of the
    run, as plain JSON (`run_folder.plain`). data, results, licences: any JSON.
    dtype: of the file; "float16" halves it. Reading gives float32 again.
    """
    from safetensors.numpy import save

    flat = traverse_util.flatten_dict(dict(variables), sep="/")
    tensors = {key: np.asarray(x, dtype, order="C") for key, x in flat.items()}
    content = save(tensors)
    card = {
        "format": FORMAT,
        "name": name,
        "config": config,
        "weights": {
            "sha256": hashlib.sha256(content).hexdigest(),
            "parameters": sum(
                x.size for key, x in tensors.items() if key.startswith("params/")
            ),
            "dtype": dtype,
        },
        "data": data,
        "results": results,
        "licences": licences,
    }
    text = json.dumps(card, indent=1)
    path = Path(folder) / f"{name}.json"
    with replacing(path.with_suffix(".safetensors"), "wb") as file:
        file.write(content)
    with replacing(path) as file:
        file.write(text + "\n")
    return path


def load_pocket(path: str | Path) -> Pocket:
    """The model of a card NAME.json, of NAME.safetensors, or of a folder with one card.

    Raises FileNotFoundError if there is none; ValueError if a folder has several, if
    the card is no such card, or if the tensors are not those that the card describes.
    """
    path = _card_path(Path(path))
    with reading(path, "it is no card of weights"):
        card = json.loads(path.read_text())
        kind = card.get("format")
        lacking = [part for part in PARTS if part not in card]
        digest = card["weights"]["sha256"] if not lacking else ""
    require_whole(kind == FORMAT, path, f"format {kind!r}, expected {FORMAT!r}")
    require_whole(not lacking, path, f"it lacks {', '.join(lacking)}")
    tensors = path.with_suffix(".safetensors")
    require(
        tensors.is_file(),
        f"There is no {tensors} beside the card {path.name}; fetch it.",
        FileNotFoundError,
    )
    found = hashlib.sha256(tensors.read_bytes()).hexdigest()
    require_whole(found == digest, tensors, f"SHA-256 {found}, the card says {digest}")
    flat = {key: x.astype(np.float32) for key, x in files.read(tensors).items()}
    variables = traverse_util.unflatten_dict(flat, sep="/")
    return Pocket(card, {"batch_stats": {}, "params": {}} | variables)


def is_pocket(path: str | Path) -> bool:
    """Whether `load_pocket` would look for a card there."""
    path = Path(path)
    if path.is_dir():
        return not (path / "config.json").exists() and bool(_cards(path))
    return path.suffix in (".json", ".safetensors")


def shipped() -> dict[str, Path]:
    """{name: card} of the weights that come with gaitjax."""
    return {card.stem: card for card in _cards(SHIPPED)}


def _cards(folder: Path) -> list[Path]:
    cards = folder.glob("*.json") if folder.is_dir() else ()
    return sorted(x for x in cards if x.with_suffix(".safetensors").exists())


def _card_path(path: Path) -> Path:
    if path.is_dir():
        cards = _cards(path)
        names = ", ".join(card.name for card in cards)
        require(
            len(cards) == 1,
            f"{path} has {len(cards)} models ({names}); name one of the files."
            if cards
            else f"{path} has no model: no NAME.json with NAME.safetensors beside it.",
            ValueError if cards else FileNotFoundError,
        )
        return cards[0]
    card = path.with_suffix(".json")
    require(os.path.isfile(card), f"There is no file {card}.", FileNotFoundError)
    return card
