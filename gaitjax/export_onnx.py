"""Writes model.onnx into the folder of an export, and compares the two.

    python -m gaitjax.export runs/gaitset            (in the usual environment)
    python -m gaitjax.export_onnx runs/gaitset/export     (in one of its own)
    python -m gaitjax.export_onnx runs/gaittr/export --sequences=1 --frames=30

jax2onnx needs an older orbax than gaitjax, hence the other environment: see
requirements-onnx.txt. docs/export.md says for which models it works, and for which it
needs fixed numbers of sequences and frames.
"""

import argparse
import json
import sys
from pathlib import Path
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from ml_collections import ConfigDict

from gaitjax import exported, models
from gaitjax.engine.atomic import replacing
from gaitjax.engine.guards import require
from gaitjax.parts.convolution import use_formulation

SHAPES = ((2, 8), (1, 4), (3, 11))  # sequences and frames that are compared
TOLERANCE = 1e-4  # of the largest number of an embedding, or of 1


class Input:
    """Shape, with names for the sizes that may vary, and type of an input."""

    def __init__(self, shape, dtype):
        self.shape, self.dtype = tuple(shape), np.dtype(dtype)


def to_onnx(folder: Path, shape: tuple[int, int] | None = None) -> bytes:
    """The export in `folder` as an ONNX model with its weights.

    shape: numbers of sequences and frames that it takes; None: any.
    """
    import jax2onnx
    from safetensors.numpy import load_file

    card = json.loads((folder / "card.json").read_text())
    require(
        "training_data" in card,
        f"{folder} is the export of a re-ranker, which has no ONNX form.",
    )
    classes = card["training_data"]["identities"]
    config = dict(model=_tuples(card["model"]), data=dict(num_classes=classes))
    model = models.make(ConfigDict(config))
    inputs = card["inputs"]
    batch = {
        name: jax.ShapeDtypeStruct((2, 16, *x["shape"][2:]), x["dtype"])
        for name, x in inputs.items()
    }
    key = jax.random.key(0)
    shapes = jax.eval_shape(lambda x: model.init(key, x, train=False), batch)
    weights = load_file(folder / "weights.safetensors")
    for name, x in traverse_util.flatten_dict(shapes, sep="/").items():
        if name not in weights:  # the embedding does not depend on it
            weights[name] = np.zeros(x.shape, x.dtype)
    variables = traverse_util.unflatten_dict(weights, sep="/")

    def embed(*arrays):
        return model.apply(variables, dict(zip(inputs, arrays)), train=False).embeddings

    # jax2onnx has no 3-D convolutions; "matmul" makes them of 2-D ones. It promotes
    # types as numpy does, so that int32 and float32 gave float64, which is in no model
    threed = any(x.ndim == 5 for x in weights.values())
    with (
        use_formulation("matmul" if threed else "stock"),
        mock.patch.object(np, "promote_types", jnp.promote_types),
    ):
        made = jax2onnx.to_onnx(
            embed,
            inputs=[
                Input((*(shape or x["shape"][:2]), *x["shape"][2:]), x["dtype"])
                for x in inputs.values()
            ],
            input_names=list(inputs),
            output_names=["embeddings"],
        )
    return made.SerializeToString()


def _tuples(value):
    if isinstance(value, dict):
        return {name: _tuples(item) for name, item in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def largest_difference(folder: Path, onnx: bytes, shapes=SHAPES) -> float:
    """Between ONNX in onnxruntime and the function of the export, over shapes: as a
    share of the largest number, or of 1 if that is smaller."""
    import onnxruntime

    card = json.loads((folder / "card.json").read_text())
    session = onnxruntime.InferenceSession(onnx, providers=["CPUExecutionProvider"])
    function, worst = exported.load(folder), 0.0
    for shape in shapes:
        shape = (shape[0], max(shape[1], card["least_frames"]))
        given = random_inputs(card["inputs"], shape)
        ours = np.asarray(function(**{k: jnp.asarray(v) for k, v in given.items()}))
        theirs = session.run(None, given)[0]
        largest = max(1.0, float(np.abs(ours).max()))
        worst = max(worst, float(np.abs(ours - theirs).max()) / largest)
    return worst


def random_inputs(inputs: dict, shape: tuple[int, int]) -> dict[str, np.ndarray]:
    """Arrays as a card describes them, [B T ...]."""
    random = np.random.default_rng(0)
    found = {}
    for name, x in inputs.items():
        size = (*shape, *x["shape"][2:])
        if name == "valid":
            found[name] = np.ones(size, bool)
        elif np.issubdtype(np.dtype(x["dtype"]), np.integer):
            found[name] = random.integers(0, 256, size).astype(x["dtype"])
        else:
            high = 64 if name == "keypoints" else 0.6
            found[name] = random.uniform(0.3, high, size).astype(x["dtype"])
    return found


def main(arguments: list[str] | None = None) -> int:
    """Exit codes: 0; 1 if ONNX differs; 2 after a mistake of the user."""
    parser = argparse.ArgumentParser(
        prog="python -m gaitjax.export_onnx", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("export", type=Path, help="what gaitjax.export wrote")
    parser.add_argument("--sequences", type=int, help="a fixed number; any")
    parser.add_argument("--frames", type=int, help="a fixed number; any")
    given = parser.parse_args(arguments)
    shape = (given.sequences, given.frames)
    try:
        require(all(shape) or not any(shape), "Give both --sequences and --frames.")
        fixed = shape if all(shape) else None
        onnx = to_onnx(given.export, fixed)
        worst = largest_difference(given.export, onnx, [shape] if fixed else SHAPES)
    except (ValueError, OSError) as error:
        print(f"gaitjax: {error}", file=sys.stderr)
        return 2
    if worst > TOLERANCE:
        print(
            f"ONNX differs by {worst:.1g}, more than {TOLERANCE}: nothing is written."
        )
        return 1
    with replacing(given.export / "model.onnx", "wb") as file:
        file.write(onnx)
    print(f"{given.export / 'model.onnx'}: {len(onnx):,} bytes; differs by {worst:.1g}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
