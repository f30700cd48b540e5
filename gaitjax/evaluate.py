"""Embeds the test split once, runs its protocols, writes results.json, draws."""

import functools
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import logging
from jax.experimental import multihost_utils
from tqdm import tqdm

from gaitjax import restore, run_folder, text_masks, text_vectors
from gaitjax.data import clips, pipeline, source
from gaitjax.engine import cluster, log
from gaitjax.phases import phases_of
from gaitjax.pictures.run import draw
from gaitjax.retrieval import grew_submission, protocols
from gaitjax.state import Setup, TrainState, build, example_batch, model_variables


class Evaluation(NamedTuple):
    """metrics: "protocol/task/metric" -> value. embeddings: [n S D] in row order."""

    metrics: dict[str, float]
    embeddings: np.ndarray
    data: source.Source
    seconds: float


def embed_split(model, variables, data: source.Source, config, mesh) -> np.ndarray:
    """Embeddings f32 [n S D] of every sequence of `data`, in record order.

    All frames in order, whole sequences padded to length buckets. Text vectors do not
    depend on the batch, so a model that uses text computes them once.
    Raises cluster.Stopped between batches if the run was asked to end.
    """
    constants = {}
    if getattr(model, "uses_text", False):
        constants["text"] = text_vectors.compute(model, variables)
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


def open_test_split(config) -> source.Source:
    """The test split; a ValueError if config.evaluation does not fit it."""
    data = source.open_split(
        config.data.data_dir, config.data.test_dataset, config.data.test_split,
        (*config.data.modalities, *config.evaluation.modalities),
    )  # fmt: skip
    source.check_modalities(data, pipeline.eval_modalities(config))
    for protocol in config.evaluation.protocols:
        protocols.tasks(protocol, data.index)
    first = clips.load_clip(data, 0, np.arange(1), pipeline.eval_modalities(config))
    clips.check_sizes(data.name, first, config)
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
    """Mode "evaluate": a checkpoint of a run, on the config's test split.

    The run is the one in config.base_run, or in `workdir` if that field is empty; with
    base_run, one run can be tested on several data sets, each into its own workdir. A
    model without parameters (GEI) needs no run. Raises ValueError if a model with
    parameters has no checkpoint, or only one of another model.
    """
    setup = build(config, example_batch(config))
    if jax.tree.leaves(setup.abstract_state.params):
        folder = config.base_run or workdir
        made = restore.made_otherwise(config, setup.abstract_state.frozen, folder)
        state = restore.load_run(
            setup, config, folder, first=config.evaluation.checkpoint, made=made
        )
        if made:
            logging.warning("%s It is evaluated as this config says.", made)
    else:
        state = setup.new_state()
        run_folder.write_config(config, workdir)
    return finish(config, setup, state, workdir)


def finish(config, setup: Setup, state: TrainState, workdir: str) -> dict[str, Any]:
    """Evaluates, writes WORKDIR/results.json and pictures/, prints the table."""
    evaluation = evaluate_state(config, setup, state)
    embeddings, index = evaluation.embeddings, evaluation.data.index
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
        **text_masks.report(config, setup, state, evaluation.data),
        "results": evaluation.metrics,
    }
    variables = model_variables(state)
    if config.pictures and jax.process_count() > 1:  # process 0 draws alone
        variables = multihost_utils.process_allgather(variables, tiled=True)
    if jax.process_index() > 0:
        return results
    folder = Path(workdir)
    run_folder.write_json(folder / "results.json", results)
    print(
        f"\n{config.name} at step {results['step']:,} on {results['dataset']}/"
        f"{results['split']}: {results['sequences']:,} sequences of "
        f"{results['identities']} identities never seen in training."
    )
    tables = protocols.by_protocol(evaluation.metrics)
    print("\n\n".join(f"{name}\n{log.table(tasks)}" for name, tasks in tables.items()))
    print(f"results: {folder / 'results.json'}")
    if config.pictures:
        path = folder / log.FILE_NAME
        history = log.read_metrics(path) if path.exists() else ()
        phases = {phase.name: phase.last for phase in phases_of(config)[:-1]}
        texts = text_masks.vectors(config, setup.model, variables)
        names = draw(
            config, setup.model, variables, evaluation.data, embeddings,
            folder / "pictures", history=history, phases=phases, texts=texts,
        )  # fmt: skip
        print(f"pictures: {folder / 'pictures'}/ ({', '.join(names)})")
    if grew_submission.has_probes(config.evaluation.protocols, index):
        path = folder / "grew_submission.csv"
        grew_submission.write(path, embeddings, index, metric=config.evaluation.metric)
        print(f"for GREW's server, which alone knows the probes: {path}")
    return results
