"""The finished run that a re-ranker builds on: its model, and stored embeddings."""

import hashlib
import json
import time
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from gaitjax import evaluate, restore, run_folder, settings
from gaitjax.data import pipeline, source
from gaitjax.engine.atomic import replacing
from gaitjax.engine.guards import Damaged, require
from gaitjax.state import Setup, TrainState, build, example_batch, model_variables


class Base(NamedTuple):
    """A finished run: its config, model and weights; fingerprint: hash of all three."""

    config: ConfigDict
    setup: Setup
    state: TrainState
    fingerprint: str


class Table(NamedTuple):
    """Embeddings f32 [n S D] (memory-mapped or not) of n sequences.

    subject, view, key: [n] identity, view and name of each sequence. metric: the base
    model's ("euclidean", "cosine"). fingerprint: equal for equal embeddings.
    """

    embeddings: np.ndarray
    subject: np.ndarray
    view: np.ndarray
    key: np.ndarray
    metric: str
    fingerprint: str


def read_config(config) -> ConfigDict:
    """The config of the run that config.base_run names, on the devices of `config`.

    Raises:
      ValueError: there is no such run, or its config is damaged.
    """
    base_config = run_folder.read_config(config.base_run) if config.base_run else None
    require(
        base_config is not None,
        f"config.base_run={config.base_run!r} is no trained run: there is no "
        f"{Path(config.base_run) / 'config.json'}. Train one, for instance ./run.sh "
        "train configs/gaitbase.py, and name its folder with "
        "--config.base_run=runs/gaitbase.",
    )
    with base_config.unlocked(), base_config.ignore_type():
        # the devices of this run, not those of the base run's training
        for name in ("mesh", "sharding", "sharding_rules"):
            base_config[name] = config[name]
        base_config["mode"] = "evaluate"  # nothing of it is trained
    try:
        settings.check(base_config)
    except ValueError as error:
        file = Path(config.base_run) / "config.json"
        raise Damaged(
            file, str(error).rstrip("."), "Name another --config.base_run."
        ) from error
    if config.data.data_dir:
        base_config.data.data_dir = config.data.data_dir
    return base_config


def load_base(config) -> Base:
    """The newest checkpoint of the run that config.base_run names.

    Raises:
      ValueError: there is no such run.
    """
    base_config = read_config(config)
    setup = build(base_config, example_batch(base_config))
    state = restore.load_run(setup, base_config, config.base_run)
    what = {
        "model": base_config.model.to_dict(),
        "modalities": base_config.data.modalities,
        "max_frames": base_config.evaluation.max_frames,
    }
    digest = hashlib.sha256(json.dumps(what, sort_keys=True).encode())
    weights = (state.params, state.frozen, state.batch_stats)
    for leaf in jax.tree.leaves(multihost_utils.process_allgather(weights, tiled=True)):
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return Base(base_config, setup, state, digest.hexdigest()[:16])


def open_base_split(base: Base, split: str, dataset: str = "") -> source.Source:
    """Split "train" or "test" of the base run's data set, or of `dataset`."""
    data = base.config.data
    name, part = {
        "train": (data.train_dataset, data.train_split),
        "test": (data.test_dataset, data.test_split),
    }[split]
    read = (*data.modalities, *base.config.evaluation.modalities)
    opened = source.open_split(data.data_dir, dataset or name, part, read)
    if split == "test":
        source.check_modalities(opened, pipeline.eval_modalities(base.config))
    return opened


def stored_embeddings(base: Base, data: source.Source, workdir: str) -> Table:
    """The split's embeddings under the base model, from WORKDIR/embeddings.

    Computed if no file of this model and data is there; a file appears only whole.
    Process 0 says whether there is one: others may see the folder as it was (NFS).
    """
    digest = hashlib.sha256((base.fingerprint + data.fingerprint).encode())
    fingerprint = digest.hexdigest()[:16]
    path = Path(workdir) / "embeddings" / f"{fingerprint}.npy"
    if not multihost_utils.broadcast_one_to_all(np.array(path.exists())):
        embeddings = evaluate.embed_split(
            base.setup.model,
            model_variables(base.state),
            data,
            base.config,
            base.setup.mesh,
        )
        if jax.process_index() == 0:
            with replacing(path, "wb") as file:
                np.save(file, embeddings)
        multihost_utils.sync_global_devices(f"embeddings {fingerprint}")
    return Table(
        _load(path),
        data.index.subject,
        data.index.view,
        data.index.key,
        base.config.evaluation.metric,
        fingerprint,
    )


def _load(path: Path, seconds: float = 60) -> np.ndarray:
    """The array of a file, memory-mapped; waits for one that another host wrote."""
    deadline = time.monotonic() + seconds
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    return np.load(path, mmap_mode="r")
