"""Embed a split once, run its protocols, write results.json and the pictures."""

import functools
import json
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import logging
from flax import traverse_util
from jax.experimental import multihost_utils
from tqdm import tqdm

from gaitjax.data import pipeline, source
from gaitjax.engine import cluster, log
from gaitjax.engine.checkpoints import Checkpoints, abstract
from gaitjax.pictures import charts as report
from gaitjax.retrieval import grew_submission, protocols
from gaitjax.retrieval.distance import METRICS
from gaitjax.run_folder import is_free, write_config, write_json
from gaitjax.state import (
    Setup,
    TrainState,
    build,
    example_batch,
    model_variables,
    stored_part,
)


class Evaluation(NamedTuple):
    """metrics: "protocol/task/metric" -> value. embeddings: [n S D] in row order."""

    metrics: dict[str, float]
    embeddings: np.ndarray
    data: source.Source
    seconds: float


def embed_split(model, variables, data: source.Source, config, mesh) -> np.ndarray:
    """Embeddings f32 [n S D] of every sequence of `data`, in record order.

    All frames in order, whole sequences padded to length buckets. Whatever the model
    can compute once instead of per batch (LMGait's text vectors) is computed once.
    Raises cluster.Stopped between batches where the run was asked to end.
    """
    constants = {}
    if getattr(model, "uses_text", False):
        constants["text"] = _text_vectors(model, variables)
    rows = np.arange(len(data.index.key))
    embeddings = None
    with tqdm(
        total=len(rows), unit="seq", desc=f"embed {data.name}", dynamic_ncols=True,
        disable=jax.process_index() > 0, mininterval=1.0,
    ) as bar:  # fmt: skip
        for batch, batch_rows in pipeline.eval_batches(data, rows, config, mesh):
            cluster.leave_if_asked()
            block = _embed(model, variables, constants, batch)
            block = np.asarray(multihost_utils.process_allgather(block, tiled=True))
            real = batch_rows >= 0
            if embeddings is None:
                shape = (len(rows), *block.shape[1:])
                embeddings = np.full(shape, np.nan, np.float32)
            embeddings[batch_rows[real]] = block[real]
            bar.update(int(real.sum()))
    return embeddings


# compiled once per model and shape, however often a run is evaluated
@functools.partial(jax.jit, static_argnames="model")
def _embed(model, variables, constants, batch):
    return model.apply(variables, batch, train=False, **constants).embeddings


@functools.partial(jax.jit, static_argnames="model")
def _text_vectors(model, variables):
    return model.apply(variables, method="text_vectors")


def open_test_split(config) -> source.Source:
    """The test split, or a ValueError where config.evaluation does not fit it."""
    if config.evaluation.metric not in METRICS:
        raise ValueError(
            f"Unknown config.evaluation.metric {config.evaluation.metric!r}; choose "
            f"from {', '.join(METRICS)}."
        )
    data = source.open_split(
        config.data.data_dir, config.data.test_dataset, config.data.test_split,
        (*config.data.modalities, *config.evaluation.modalities),
    )  # fmt: skip
    source.check_modalities(data, pipeline.eval_modalities(config))
    for protocol in config.evaluation.protocols:
        protocols.tasks(protocol, data.index)
    return data


def evaluate_state(config, setup: Setup, state: TrainState) -> Evaluation:
    """Every protocol of config.evaluation on the test split, with `state`'s model."""
    started = time.time()
    data = open_test_split(config)
    variables = model_variables(state)
    embeddings = embed_split(setup.model, variables, data, config, setup.mesh)
    flat = {}
    for protocol in config.evaluation.protocols:
        flat |= protocols.evaluate(
            protocol, embeddings, data.index, metric=config.evaluation.metric,
            split=jax.process_count() > 1,
        )  # fmt: skip
    return Evaluation(flat, embeddings, data, time.time() - started)


def run(config, workdir: str) -> dict[str, Any]:
    """Mode "evaluate": the newest checkpoint of a run, on the config's test split.

    The run is config.base_run where that is set (to test one run on several data sets,
    each into its own workdir), else the one in `workdir`. A model without parameters
    (GEI) needs none. Raises ValueError where a model with parameters has no checkpoint,
    or none of this model.
    """
    setup = build(config, example_batch(config))
    if jax.tree.leaves(setup.abstract_state.params):
        folder = config.base_run or workdir
        made = made_otherwise(config, setup.abstract_state.frozen, folder)
        state = load_run(
            setup, setup.new_state(), folder,
            config.evaluation.checkpoint, config.train.keep_best, made,
        )  # fmt: skip
        if made:
            logging.warning("%s It is evaluated as this config says.", made)
    else:
        state = setup.new_state()
        write_config(config, workdir)
    return finish(config, setup, state, workdir)


def made_otherwise(config, frozen, folder: str) -> str:
    """A sentence on the fields of model, encoders and seed in which the run in `folder`
    differs from `config`; "" where none does, or no config.json tells.

    Raises ValueError where the run is of another model, and where frozen weights of it
    came from another seed: they are in no checkpoint, and nothing else would tell.
    """
    path = Path(folder) / "config.json"
    if not path.is_file():
        return ""
    trees = json.loads(path.read_text()), json.loads(config.to_json_best_effort())
    old, new = (
        traverse_util.flatten_dict(
            {name: tree.get(name) for name in ("model", "pretrained", "seed")}, sep="."
        )
        for tree in trees
    )
    if old["model.name"] != new["model.name"]:
        raise ValueError(
            f"The run in {folder} is of the model {old['model.name']}, the config is "
            f"of {new['model.name']}. Evaluate it with the config of its training."
        )
    sources = config.get("pretrained", {})
    drawn = [name for name in frozen if not sources.get(name)]
    if drawn and old["seed"] != new["seed"]:
        raise ValueError(
            f"The run in {folder} has frozen weights ({', '.join(drawn)}) of its seed "
            f"{old['seed']}, the config says {new['seed']}. Add --config.seed="
            f"{old['seed']}."
        )
    changed = [
        f"config.{name}={old.get(name)} (here {new.get(name)})"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name) and name != "seed" and not is_free(name)
    ]
    if not changed:
        return ""
    more = f" and {len(changed) - 8} others" if len(changed) > 8 else ""
    return f"The run in {folder} was trained with {', '.join(changed[:8])}{more}."


def load_run(
    setup: Setup,
    state: TrainState,
    workdir: str,
    first: str = "newest",
    best: str = "",
    made: str = "",
) -> TrainState:
    """`state` with the parameters of a readable checkpoint in `workdir`.

    first: "newest", or "best" by the metric `best` (train.keep_best of that run). made:
    a sentence for the error where no checkpoint fits.
    """
    if not (Path(workdir) / "checkpoints").is_dir():
        raise ValueError(
            f"There is no trained run in {workdir}. Train it first: the same command "
            "with --config.mode=train, or name its folder with --workdir."
        )
    checkpoints = Checkpoints(workdir, None, best, read_only=True)  # it may yet run
    target = stored_part(abstract(setup.abstract_state, setup.shardings))
    restored = checkpoints.restore(target, first=first)
    checkpoints.close()
    if restored is None:
        raise ValueError(f"No checkpoint in {workdir} can be read. {made}".strip())
    return state._replace(**restored[0])


def finish(config, setup: Setup, state: TrainState, workdir: str) -> dict[str, Any]:
    """Evaluates, writes WORKDIR/results.json and pictures/, prints the table."""
    evaluation = evaluate_state(config, setup, state)
    index = evaluation.data.index
    results = {
        "config": config.name,
        "model": config.model.name,
        "step": int(state.step),
        "dataset": config.data.test_dataset,
        "split": config.data.test_split,
        "identities": len(np.unique(index.subject)),
        "sequences": len(index.key),
        "metric": config.evaluation.metric,
        "parameters": sum(x.size for x in jax.tree.leaves(state.params)),
        "evaluation_seconds": round(evaluation.seconds, 1),
        "results": evaluation.metrics,
    }
    variables = model_variables(state)
    if config.pictures and jax.process_count() > 1:  # process 0 draws alone
        variables = multihost_utils.process_allgather(variables, tiled=True)
    if jax.process_index() > 0:
        return results
    folder = Path(workdir)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "results.json", results)
    print(
        f"\n{config.name} at step {results['step']:,} on {results['dataset']}/"
        f"{results['split']}: {results['sequences']:,} sequences of "
        f"{results['identities']} identities never seen in training."
    )
    print(log.results_table(evaluation.metrics))
    print(f"results: {folder / 'results.json'}")
    if config.pictures:
        pictures = draw(config, setup.model, variables, evaluation, folder / "pictures")
        print(f"pictures: {folder / 'pictures'}/ ({', '.join(pictures)})")
    if "grew" in config.evaluation.protocols and (index.subject == "probe").any():
        path = folder / "grew_submission.csv"
        grew_submission.write(
            path, evaluation.embeddings, index, metric=config.evaluation.metric
        )
        print(f"for GREW's server, which alone knows the probes: {path}")
    return results


def draw(config, model, variables, evaluation: Evaluation, folder: Path) -> list[str]:
    """Learning curves, CMC, ranked lists and, for RGB, what the model sees in a walk.

    Ranked lists and CMC are those of the first protocol; the CMC is averaged as that
    averages Rank-1, so that the curves begin at its numbers. Returns the file names.
    """
    folder.mkdir(parents=True, exist_ok=True)
    data, drawn = evaluation.data, []
    history = folder.parent / "metrics.jsonl"
    if history.exists():
        rows = log.read_metrics(history)
        report.learning_curves(rows, folder / "learning.png", config.warmup.steps)
        drawn.append("learning.png")

    protocol, curves, chance = config.evaluation.protocols[0], {}, {}
    for result in protocols.evaluate_tasks(
        protocol, evaluation.embeddings, data.index, metric=config.evaluation.metric
    ):
        task, curve = result.task, protocols.cmc(protocol, result, CMC_RANKS)
        if not len(curve):
            continue
        if not curves:
            path = folder / f"ranked_{task.name}.png"
            title = f"{config.name}, {protocol}, {task.name}: {RANKED_TITLE}"
            report.filmstrips(_ranked_lists(config, evaluation, task), path, title)
            drawn.append(path.name)
        curves[task.name], chance[task.name] = curve, protocols.chance(task)
    report.cmc_curves(curves, folder / "cmc.png", protocol=protocol, chance=chance)
    drawn.append("cmc.png")
    if "frames" in config.data.modalities:
        title = f"{config.name} on {data.index.key[0]} of {data.name}"
        report.frame_maps(*_maps(model, variables, data), folder / "maps.png", title)
        drawn.append("maps.png")
    return drawn


PROBES_SHOWN, RANKS_SHOWN, CMC_RANKS = 6, 5, 50
RANKED_TITLE = (
    f"probe and its {RANKS_SHOWN} nearest (✓ same person, ✗ another; number: distance)"
)


def _ranked_lists(config, evaluation: Evaluation, task: protocols.Task):
    """Rows for report.filmstrips: evenly chosen probes with their top matches."""
    data, index, rows = evaluation.data, evaluation.data.index, []
    chosen = np.linspace(0, len(task.probe) - 1, PROBES_SHOWN).round().astype(int)
    task = task.probes(np.unique(chosen))
    matrix = task.distances(evaluation.embeddings, config.evaluation.metric)
    matrix = np.where(task.excluded, np.inf, matrix)
    for number, probe in enumerate(task.probe.tolist()):
        cells: list[Any] = [
            ("probe\n" + index.key[probe], _strip(config, data, probe), None)
        ]
        order = np.argsort(matrix[number], kind="stable")[:RANKS_SHOWN]
        for column in order[np.isfinite(matrix[number][order])]:
            match = int(task.gallery[column])
            caption = f"{index.key[match]}\n{matrix[number, column]:.2f}"
            right = bool(index.subject[match] == index.subject[probe])
            cells.append((caption, _strip(config, data, match), right))
        rows.append(("", cells))
    return rows


def _strip(config, data: source.Source, row: int) -> np.ndarray:
    """Frames of a sequence as uint8 RGB [t H W 3], whatever the modality."""
    frames = np.linspace(0, data.index.num_frames[row] - 1, 3).round().astype(int)
    name = config.data.modalities[0]
    name = "heatmaps" if name == "keypoints" else name  # drawn from them
    images = pipeline.load_clip(data, row, frames, (name,))[name]
    images = images.max(-1) if name == "heatmaps" else images  # limbs and joints
    return images if images.ndim == 4 else np.stack([images] * 3, axis=-1)


def _maps(model, variables, data: source.Source):
    """(frames [T H W 3], {name: [T h w]}) of the first sequence of the split."""
    frames = np.arange(min(8, data.index.num_frames[0]))
    clip = pipeline.load_clip(data, 0, frames, ("frames",))
    batch = {name: value[None] for name, value in clip.items()}
    batch["valid"] = np.ones((1, len(frames)), bool)
    aux = model.apply(variables, batch, train=False).aux
    shown = {
        "text mask": aux.get("text_mask"),
        "decoder silhouette": aux.get("foreground_probability"),
        "motion": aux.get("motion"),
    }
    maps = {name: np.asarray(x[0]) for name, x in shown.items() if x is not None}
    return clip["frames"], maps
