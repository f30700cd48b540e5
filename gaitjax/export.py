"""Exports a trained model: a function, its weights and a card, usable without gaitjax.

    python -m gaitjax.export runs/lmgait                  (writes runs/lmgait/export)
    python -m gaitjax.export runs/lmgait --out=DIR --platforms=cpu,cuda
    python -m gaitjax.export recogniser           (weights: a name, or a card NAME.json)

The folder then holds
  function_PLATFORM.bin   jax.export: (weights, inputs) -> embeddings f32 [B S D], any
                          number of sequences B and frames T
  weights.safetensors     the weights that embeddings depend on
  card.json               model, inputs, training data, protocol numbers, licences
  load.py                 reads them; needs jax and safetensors alone (docs/export.md)

Of a model with texts, their vectors are exported and the text tower is not. The run of
a re-ranker gives the function of a distance instead.
"""

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jax.extend.core import Var

from gaitjax import __version__, exported, models, restore, run_folder, text_vectors
from gaitjax.data import pipeline
from gaitjax.engine.atomic import replacing
from gaitjax.engine.guards import choose, reading, require
from gaitjax.parts.backend import Backend, tracing_for
from gaitjax.parts.model import TEXT_VECTORS
from gaitjax.rerank import train as rerank_train
from gaitjax.rerank.cargait import CarGait
from gaitjax.state import TrainState, example_batch, model_variables
from gaitjax.weights import pocket_files

PLATFORMS = {"cpu": "cpu", "cuda": "gpu", "tpu": "tpu"}  # jax.export's name -> jax's
# lower bounds of T that are tried in turn: some models compare T with a fixed length
LEAST_FRAMES = (1, 2, 4, 8, 16)
SIZES = {"b": 2, "t": 16, "k": 3}  # where any will do
LICENCES = {"dinov2": "Apache-2.0", "clip": "MIT"}  # of published encoder weights
MEANINGS = {
    "frames": "RGB crops of a walking person, 0 to 255, consecutive",
    "silhouettes": "0 to 255, cut to the person's height, centred by mass",
    "heatmaps": "limbs and joints drawn from key points, 0 to 255",
    "keypoints": "x, y in pixels and confidence of each joint",
    "ratios": "width / height of the person's crop before it was padded or squashed",
    "masks": "1 on the person, else 0",
    "valid": "true frames, first; others are padding",
    "probe": "embeddings of the probes",
    "candidates": "embeddings of each probe's shortlist",
}


class Function(NamedTuple):
    """What is exported. call(weights, inputs) -> array; weights: {"a/b/c": array};
    inputs: {name: (symbolic shape, type)}, for instance ("b, t, 64, 44", uint8)."""

    call: Callable[..., jax.Array]
    weights: Mapping[str, Any]
    inputs: Mapping[str, tuple[str, Any]]


def embedding(model, variables, batch: Mapping[str, Any]) -> Function:
    """The embedding of a batch of walks under `model`.

    batch: arrays or shapes [B T ...]; those that the embedding does not depend on are
    no inputs. The same holds for weights, for instance a classifier's.
    """
    whole = _flat(variables)

    def call(weights, inputs):
        rest = {k: jnp.zeros(v.shape, v.dtype) for k, v in whole.items()}
        tree = traverse_util.unflatten_dict(rest | weights, sep="/")
        return model.apply(tree, inputs, train=False).embeddings

    inputs = {
        name: (", ".join(map(str, ("b", "t", *x.shape[2:]))), x.dtype)
        for name, x in batch.items()
    }
    return _without_unused(Function(call, whole, inputs))


def reranking(model, params, embedding_shape) -> Function:
    """CarGait's distance f32 [B K] of probes [B S D] to K candidates of each."""

    def call(weights, inputs):
        tree = traverse_util.unflatten_dict(dict(weights), sep="/")
        pair = inputs["probe"], inputs["candidates"]
        return model.apply(tree, *pair, method="distance")

    strips = ", ".join(map(str, embedding_shape))
    shapes = {"probe": f"b, {strips}", "candidates": f"b, k, {strips}"}
    inputs = {name: (shape, jnp.float32) for name, shape in shapes.items()}
    return _without_unused(Function(call, _flat({"params": params}), inputs))


def trace(function: Function, platform: str) -> tuple[jax.export.Exported, int]:
    """The function for one of PLATFORMS, and the lower bound of T that it needs."""
    for least in LEAST_FRAMES:
        scope = jax.export.SymbolicScope([f"t >= {least}"] if least > 1 else [])
        try:
            with tracing_for(Backend(PLATFORMS[platform])):
                made = jax.export.export(_jitted(function), platforms=[platform])(
                    *_shapes(function, scope)
                )
            return made, least
        except jax.errors.InconclusiveDimensionOperation as error:
            undecided = error
    raise undecided


def _jitted(function: Function):
    return jax.jit(lambda weights, inputs: function.call(weights, inputs))


def _shapes(function: Function, scope: jax.export.SymbolicScope | None):
    """Arguments as shapes. scope: of symbolic sizes; None replaces them by SIZES."""

    def shape_of(shape: str):
        if scope is not None:
            return jax.export.symbolic_shape(shape, scope=scope)
        return tuple(SIZES.get(x) or int(x) for x in shape.split(", "))

    inputs = {
        name: jax.ShapeDtypeStruct(shape_of(shape), dtype)
        for name, (shape, dtype) in function.inputs.items()
    }
    return jax.tree.map(jax.typeof, dict(function.weights)), inputs


def _without_unused(function: Function) -> Function:
    """Without the weights and inputs that the result does not depend on."""
    jaxpr = _jitted(function).trace(*_shapes(function, None)).jaxpr.jaxpr
    needed = set(jaxpr.outvars)
    for equation in reversed(jaxpr.eqns):
        if needed & set(equation.outvars):
            needed |= {x for x in equation.invars if isinstance(x, Var)}
    names = [("weights", name) for name in sorted(function.weights)]
    names += [("inputs", name) for name in sorted(function.inputs)]  # as jax flattens
    used = {name for name, x in zip(names, jaxpr.invars, strict=True) if x in needed}
    return function._replace(
        weights={k: v for k, v in function.weights.items() if ("weights", k) in used},
        inputs={k: v for k, v in function.inputs.items() if ("inputs", k) in used},
    )


def _flat(variables) -> dict[str, Any]:
    return traverse_util.flatten_dict(variables, sep="/")


def write(function: Function, card: dict, folder: Path, platforms) -> dict[str, Any]:
    """Writes an export to `folder`; returns its card: `card`, and the inputs."""
    from safetensors.numpy import save

    for platform in platforms:
        made, least = trace(function, platform)
        with replacing(folder / f"function_{platform}.bin", "wb") as file:
            file.write(made.serialize())
    weights = {k: np.asarray(v) for k, v in function.weights.items()}
    with replacing(folder / "weights.safetensors", "wb") as file:
        file.write(save(weights))
    with replacing(folder / "load.py") as file:
        file.write(Path(exported.__file__).read_text())
    inputs = {
        name: {
            "shape": _dimensions(shape.split(", ")),
            "dtype": np.dtype(dtype).name,
            "meaning": MEANINGS[name],
        }
        for name, (shape, dtype) in function.inputs.items()
    }
    output = {"shape": _dimensions(made.out_avals[0].shape), "dtype": "float32"}
    card = card | {
        "inputs": inputs,
        "output": output,
        "least_frames": least,
        "platforms": list(platforms),
        "parameters": sum(x.size for x in weights.values()),
    }
    run_folder.write_json(folder / "card.json", card)
    return card


def _dimensions(shape) -> list[int | str]:
    return [int(x) if str(x).isdigit() else str(x) for x in shape]


def of_run(folder: Path) -> tuple[Function, dict[str, Any]]:
    """The function of the run in `folder`, and what a card says of that run.

    Raises ValueError if there is no such run.
    """
    config = restore.read_config(folder)
    of_kind = _of_reranker if config.model.name == "cargait" else _of_model
    return of_kind(config, folder)


def of_weights(path: Path) -> tuple[Function, dict[str, Any]]:
    """The function of a card of weights, and what the function's own card says.

    Raises ValueError or FileNotFoundError as `pocket_files.load_pocket` does.
    """
    pocket = pocket_files.load_pocket(path)
    with reading(path, "its config is not understood"):
        config = run_folder.from_plain(pocket.card["config"])
        _all_at_once(config)
        function = of_variables(config, models.make(config), pocket.variables)
    return function, {
        **_named(config),
        "results": pocket.card["results"],
        "licences": pocket.card["licences"],
        "training_data": _training_data(config) | {"about": pocket.card["data"]},
        **_compared(config),
    }


def _of_model(config, folder: Path) -> tuple[Function, dict[str, Any]]:
    _all_at_once(config)
    setup, state = restore.open_run(config, folder)
    step = int(state.step)
    return of_state(config, setup.model, state), {
        **_described(config, folder, step),
        "training_data": _training_data(config)
        | {"fingerprint": _fingerprint(folder, step)},
        **_compared(config),
    }


def _all_at_once(config) -> None:
    """Frames in chunks save memory, but only where their number is known."""
    for name in run_folder.flat(config.model.to_dict()):
        if name.endswith("frames_per_chunk"):
            config.model.update_from_flattened_dict({name: 0})


def of_state(config, model, state: TrainState) -> Function:
    """The embedding under `config`'s model with the weights of `state`."""
    return of_variables(config, model, model_variables(state))


def of_variables(config, model, variables) -> Function:
    """The embedding under `config`'s model with these variables."""
    if getattr(model, "uses_text", False):
        vectors = text_vectors.compute(model, variables)
        tower = model.text_tower
        params = {k: v for k, v in variables["params"].items() if k not in tower}
        variables = variables | {"params": params | {TEXT_VECTORS: vectors}}
    read = (*pipeline.eval_modalities(config), "ratios", "valid")
    example = example_batch(config)
    return embedding(model, variables, {name: example[name] for name in read})


def _of_reranker(config, folder: Path) -> tuple[Function, dict[str, Any]]:
    report = _json(folder / "rerank.json")
    require(
        report,
        f"{folder} has no rerank.json: that re-ranker is not trained. Finish it first: "
        f"./run.sh train configs/cargait.py --workdir={folder}.",
    )
    options = {name: value for name, value in config.model.items() if name != "name"}
    model = CarGait(1, metric=report["metric"], **options)  # without its classifier
    shape, metric = tuple(report["embedding"]), report["metric"]
    trained = rerank_train.load(config, str(folder), shape, metric)
    function = reranking(model, trained.params, report["embedding"])
    return function, {
        **_described(config, folder, trained.step),
        "base_run": config.base_run,
        "shortlist": report["shortlist"],
        "distance": "the result; it re-orders a shortlist of the base model",
    }


def _named(config) -> dict[str, Any]:
    return {
        "format": 1,
        "made_by": f"gaitjax {__version__}, jax {jax.__version__}",
        "config": config.name,
        "model": run_folder.plain(config.model),
    }


def _training_data(config) -> dict[str, Any]:
    return {
        "dataset": config.data.train_dataset,
        "split": config.data.train_split,
        "identities": config.data.num_classes,
    }


def _compared(config) -> dict[str, Any]:
    """How embeddings are compared."""
    return {
        "distance": f"{config.evaluation.metric} between corresponding rows of two "
        "embeddings [S D], mean over S",
        "max_frames": config.evaluation.max_frames,
    }


def _described(config, folder: Path, step: int) -> dict[str, Any]:
    """What the card of either kind says of a run."""
    results = _json(folder / "results.json")
    sources = dict(config.get("pretrained") or {})
    known = {s: v for v in sources.values() for s in LICENCES if s in str(v).lower()}
    return _named(config) | {
        "step": step,
        "results": results if results.get("step") == step else {},
        "licences": {
            "code": "Apache-2.0",
            "encoders": {source: LICENCES[kind] for kind, source in known.items()},
            "training data": "the licence of the data set applies to what was trained "
            "on it: tfds_builders/NAME/README.md says which",
        },
    }


def _fingerprint(folder: Path, step: int) -> str:
    """Of the training data, as the checkpoint of `step` describes them."""
    described = folder / "checkpoints" / str(step) / "description" / "metadata"
    return _json(described).get("data", "")


def _json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.exists() else {}


def main(arguments: list[str] | None = None) -> int:
    """Exit codes: 0; 2 after a mistake of the user."""
    parser = argparse.ArgumentParser(
        prog="python -m gaitjax.export", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument(
        "run", type=Path,
        help="folder of a finished run, card of weights NAME.json, or the name of "
        "shipped weights",
    )  # fmt: skip
    parser.add_argument(
        "--out",
        type=Path,
        help="folder to write; RUN/export, or NAME_export of weights",
    )
    parser.add_argument(
        "--platforms", default="cpu,cuda,tpu", help="of cpu, cuda, tpu, with commas"
    )
    given = parser.parse_args(arguments)
    weights = pocket_files.shipped().get(str(given.run), given.run)
    of_kind, folder = of_run, given.out or given.run / "export"
    if pocket_files.is_pocket(weights):
        of_kind, folder = of_weights, given.out or Path(f"{weights.stem}_export")
    try:
        platforms = given.platforms.split(",")
        for name in platforms:
            choose(name, PLATFORMS, "--platforms")
        function, card = of_kind(weights)
        folder.mkdir(parents=True, exist_ok=True)
        card = write(function, card, folder, platforms)
    except (ValueError, OSError) as error:
        print(f"gaitjax: {error}", file=sys.stderr)
        return 2
    step = f" at step {card['step']:,}" if "step" in card else ""
    print(
        f"{folder}: {card['config']}{step}, {card['parameters']:,} weights; takes "
        f"{', '.join(card['inputs'])}; for {', '.join(platforms)}"
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
