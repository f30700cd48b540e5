"""Loads what `python -m gaitjax.export RUN` wrote; needs jax and safetensors alone.

    embed = load("runs/lmgait/export")
    embeddings = embed(frames=frames, ratios=ratios, valid=valid)  # f32 [B S D]

card.json says which arrays the function takes, and what their entries mean.
"""

import json
from pathlib import Path

import jax
import jax.export
import jax.numpy as jnp
from safetensors.numpy import load_file


def load(folder=Path(__file__).parent):
    """The function in `folder`, for the backend of this process, with its weights."""
    platform = {"gpu": "cuda"}.get(jax.default_backend(), jax.default_backend())
    file = Path(folder) / f"function_{platform}.bin"
    function = jax.jit(jax.export.deserialize(bytearray(file.read_bytes())).call)
    weights = jax.device_put(load_file(Path(folder) / "weights.safetensors"))
    least = json.loads((Path(folder) / "card.json").read_text())["least_frames"]

    def call(**inputs):
        short = least - next(iter(inputs.values())).shape[1]
        if short > 0:  # frames that `valid` marks, by its zeros, as padding
            for name, x in inputs.items():
                margins = [(0, 0), (0, short)] + [(0, 0)] * (x.ndim - 2)
                inputs[name] = jnp.pad(x, margins)
        return function(weights, inputs)

    return call
