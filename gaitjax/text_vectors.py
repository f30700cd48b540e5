"""What the language branch gives a trained model: constants, kept with its checkpoints.

A run that has them needs neither the text tower nor its file.
"""

import functools
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from gaitjax import run_folder
from gaitjax.parts.model import TEXT_VECTORS
from gaitjax.state import TrainState, model_variables


@functools.partial(jax.jit, static_argnames="model")
def compute(model, variables) -> dict[str, jax.Array]:
    """The model's `text_vectors`; those among the variables, if they have them."""
    return model.apply(variables, method="text_vectors")


def to_description(model, state: TrainState) -> dict[str, Any]:
    """{TEXT_VECTORS: lists} for a checkpoint's description; {} of a model without text.

    JSON's floats give the same float32 again. On several hosts a collective.
    """
    if not getattr(model, "uses_text", False):
        return {}
    vectors = compute(model, model_variables(state))
    vectors = multihost_utils.process_allgather(vectors, tiled=True)
    return {TEXT_VECTORS: jax.tree.map(lambda x: np.asarray(x).tolist(), vectors)}


def from_description(config, description: dict) -> dict[str, np.ndarray] | None:
    """The vectors in a checkpoint; None if it has none, or if config has other texts.

    Where CLIP's vocabulary lies (`vocabulary`) makes no difference.
    """
    if TEXT_VECTORS not in description:
        return None
    configs = run_folder.renewed(description["config"]), run_folder.plain(config)
    old, new = (
        run_folder.flat({"model": {"text": tree["model"]["text"]}}) for tree in configs
    )
    differing = {name for name, _, _ in run_folder.changes(old, new)}
    if differing - {"model.text.vocabulary", "model.text.shipped"}:
        return None
    vectors = description[TEXT_VECTORS]
    return {name: np.asarray(rows, np.float32) for name, rows in vectors.items()}


def origin(model, state: TrainState) -> dict[str, str]:
    """{"text": "stored" | "computed"} for results.json; {} of a model without text."""
    if not getattr(model, "uses_text", False):
        return {}
    return {"text": "stored" if TEXT_VECTORS in state.frozen else "computed"}
