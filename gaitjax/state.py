"""From a config to a training state: model, optimizer, shardings, parameters."""

import functools
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax import traverse_util
from jax.sharding import NamedSharding, PartitionSpec

from gaitjax import models
from gaitjax.engine import optim, sharding
from gaitjax.engine.guards import require
from gaitjax.parts.model import TEXT_VECTORS
from gaitjax.phases import phases_of
from gaitjax.weights import encoders

CAPTION_LENGTH = 32  # tokens, as the builders store captions


class TrainState(NamedTuple):
    """Everything a step reads and writes; `frozen` is never written to checkpoints."""

    step: jax.Array
    params: Any
    frozen: Any
    batch_stats: Any
    opt_state: Any


def split_frozen(params, patterns) -> tuple[Any, Any]:
    """(trainable, frozen): a leaf is frozen where a regex matches its "a/b/c" path."""
    flat = traverse_util.flatten_dict(params, sep="/")
    frozen = {k: v for k, v in flat.items() if any(re.search(p, k) for p in patterns)}
    trainable = {k: v for k, v in flat.items() if k not in frozen}
    unflatten = functools.partial(traverse_util.unflatten_dict, sep="/")
    return unflatten(trainable), unflatten(frozen)


def merge_frozen(params, frozen):
    """The inverse of `split_frozen`: what the model sees."""
    flat = traverse_util.flatten_dict(params, sep="/")
    return traverse_util.unflatten_dict(
        flat | traverse_util.flatten_dict(frozen, sep="/"), sep="/"
    )


def model_variables(state: TrainState) -> dict[str, Any]:
    """Variables for model.apply."""
    params = merge_frozen(state.params, state.frozen)
    return {"params": params, "batch_stats": state.batch_stats}


def stored_part(state: TrainState) -> dict[str, Any]:
    """The state as checkpoints hold it: without the frozen weights."""
    return {k: v for k, v in state._asdict().items() if k != "frozen"}


def init_state(rng, batch, *, model, tx, frozen_patterns) -> TrainState:
    """A fresh state; `batch` gives shapes only."""
    keys = dict(zip(("params", "dropout", "augment"), jax.random.split(rng, 3)))
    variables = model.init(keys, batch, train=True)
    params, frozen = split_frozen(variables.get("params", {}), frozen_patterns)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        frozen=frozen,
        batch_stats=variables.get("batch_stats", {}),
        opt_state=tx.init(params),
    )


def optimizer_of(config, model):
    """(schedule, optimizer) of a phase: its config's, as the model needs them."""
    schedule = optim.make_schedule(config.optimizer, config.train.steps)
    tx = optim.make_optimizer(config.optimizer, schedule, model.no_decay)
    return schedule, model.optimizer(tx, config.train.steps)


class Setup(NamedTuple):
    """What `build` makes of a config: shared by training, evaluation and benchmarks.

    new_state(): step 0, with the weights of config.pretrained.
    new_state(stored, text_vectors): what a checkpoint holds (`stored_part`) beside the
    frozen weights, the only ones read from files; without those of the text tower if
    its result is given.
    """

    mesh: jax.sharding.Mesh
    model: nn.Module
    tx: optax.GradientTransformation
    abstract_state: TrainState
    shardings: TrainState
    new_state: Callable[..., TrainState]


def build(config, example_batch, devices=None) -> Setup:
    """Mesh, model, optimizer, shardings and the state's maker; nothing is computed yet.

    example_batch: {name: ShapeDtypeStruct or array}, global shapes of a train batch.
    devices: of the mesh; None means all of this run. config: one that `settings.check`
    accepts. Raises ValueError where its mesh or sharding does not fit the devices.
    """
    mesh = sharding.make_mesh(config.mesh, devices)
    model = models.make(config)
    _, tx = optimizer_of(config, model)

    def init(rng) -> TrainState:
        batch = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), example_batch)
        return init_state(
            rng, batch, model=model, tx=tx, frozen_patterns=tuple(config.frozen)
        )

    abstract_state, shardings, drawn_state = sharding.sharded_init(
        init, config.seed, sharding.rules_of(config), mesh
    )

    check_patterns(config, model, abstract_state)
    check_sources(config, model, abstract_state)

    def new_state(stored=None, text_vectors=None) -> TrainState:
        if stored is not None and not abstract_state.frozen:
            return abstract_state._replace(**stored)
        state = drawn_state()
        unread = model.text_tower if text_vectors else ()
        whole = merge_frozen(state.params, state.frozen)
        wanted = whole if stored is None else state.frozen
        wanted = {part: whole[part] for part in wanted if part not in unread}
        loaded = encoders.load_pretrained(config, wanted, state.frozen)
        params, frozen = split_frozen(whole | loaded, config.frozen)
        state = state._replace(
            params=sharding.place(params, shardings.params),
            frozen=sharding.place(frozen, shardings.frozen),
        )
        if text_vectors:
            whole = NamedSharding(mesh, PartitionSpec())
            replicated = jax.tree.map(lambda _: whole, text_vectors)
            frozen = {k: v for k, v in state.frozen.items() if k not in unread}
            frozen[TEXT_VECTORS] = sharding.place(text_vectors, replicated)
            state = state._replace(frozen=frozen)
        return state._replace(**(stored or {}))

    return Setup(mesh, model, tx, abstract_state, shardings, new_state)


def check_patterns(config, model, state: TrainState) -> None:
    """Raises ValueError for a regex in the config that no parameter's path matches.

    Parts that a switch of the model leaves out (`optional`) may be named all the same.
    """
    named = {
        "frozen": config.frozen,
        "optimizer.no_decay": config.optimizer.no_decay,
        "optimizer.rates": [pattern for pattern, _ in config.optimizer.rates],
        "optimizer.adam_for": config.optimizer.adam_for,
    }
    for phase in phases_of(config):
        if pattern := phase.config.train.trainable:
            named[f"{phase.section}.trainable"] = [pattern]
    params = merge_frozen(state.params, state.frozen)
    names = list(traverse_util.flatten_dict(params, sep="/"))
    require(
        config.mode != "train" or not names or jax.tree.leaves(state.params),
        f"config.frozen={config.frozen} matches every parameter: nothing is trained.",
    )
    names += [f"{part}/" for part in model.optional]
    for field, patterns in named.items():
        for pattern in patterns:
            require(
                any(re.search(pattern, name) for name in names),
                f"config.{field}: {pattern!r} matches no parameter of this model, "
                f"whose parts are {', '.join(params)}. Several patterns are written "
                "('a','b').",
            )


def check_sources(config, model, state: TrainState) -> None:
    """Raises ValueError for a source in config.pretrained that nothing would read.

    That of a part which a switch of the model leaves out (`optional`) may stay.
    """
    parts = merge_frozen(state.params, state.frozen)
    for part, source in (config.get("pretrained") or {}).items():
        require(
            not source or part in parts or part in model.optional,
            f"config.pretrained.{part}={source!r} would not be read: the model's parts "
            f"are {', '.join(parts) or 'none'}. Name one of them, or set it to ''.",
        )


def example_batch(config) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of one global training batch under `config`."""
    data = config.data
    sequences, frames = data.ids_per_batch * data.seqs_per_id, data.num_frames
    lead = (sequences, frames)
    height, width = data.image_size
    joints = 18 if config.model.get("joint_format") == "alphapose" else 17
    shapes = {
        "frames": (lead + (height, width, 3), jnp.uint8),
        "masks": (lead + (height, width), jnp.uint8),
        "silhouettes": (lead + tuple(data.silhouette_size), jnp.uint8),
        "heatmaps": (lead + tuple(data.silhouette_size) + (2,), jnp.uint8),
        "parsing": (lead + tuple(data.silhouette_size), jnp.uint8),
        "keypoints": (lead + (joints, 3), jnp.float32),  # x, y, confidence
        "regions": (lead + (height, width), jnp.uint8),
        "captions": (lead + (CAPTION_LENGTH,), jnp.int32),
        "ratios": (lead, jnp.float32),
        "valid": (lead, jnp.bool_),
        "labels": ((sequences,), jnp.int32),
    }
    wanted = [*data.modalities, "ratios", "valid", "labels"]
    return {name: jax.ShapeDtypeStruct(*shapes[name]) for name in wanted}


def check_backend(config) -> None:
    """Raises ValueError for a training of full size without an accelerator.

    Full size is config.model.dtype="bfloat16", as the published recipes of all models
    with convolutions have it.
    """
    small = config.model.get("dtype") != "bfloat16" or config.get("allow_cpu")
    require(
        small or jax.default_backend() != "cpu",
        "This training is of full size (config.model.dtype=bfloat16), but JAX finds a "
        "CPU only. Install JAX for the accelerator with ./run.sh setup cuda or tpu, or "
        "train here, very slowly, with --config.allow_cpu=True.",
    )


def check_batch(config, mesh) -> None:
    """Raises ValueError if a batch's parts cannot be split over the devices."""
    identities, parts = config.data.ids_per_batch, config.train.accumulate
    size = identities * config.data.seqs_per_id
    sharding.check_divides(size, mesh, "config.data.ids_per_batch x seqs_per_id", parts)
