"""Trains CarGait on the stored embeddings of a finished run.

top-v lists -> triplets -> steps (engine/loop.py logs, checkpoints and calls the hooks
that validate) -> the parameters of the lowest validation ranking loss.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec

from gaitjax import run_folder
from gaitjax.data import pipeline
from gaitjax.engine import cluster, loop, optim, sharding
from gaitjax.engine.checkpoints import Checkpoints, abstract
from gaitjax.engine.guards import require
from gaitjax.engine.log import MetricLog
from gaitjax.losses import ranking_loss
from gaitjax.rerank import cargait
from gaitjax.rerank.base_run import Table
from gaitjax.rerank.lists import (
    RankingLists,
    build_lists,
    draw_triplets,
    held_out_identities,
    warn_of_full_lists,
)


class Best(NamedTuple):
    """The parameters of the lowest validation ranking loss so far, and where."""

    params: Any
    loss: jax.Array
    step: jax.Array


class State(NamedTuple):
    """What a step reads and writes; it passes `best` on, validations replace it."""

    step: jax.Array
    params: Any
    opt_state: Any
    best: Best


class Setup(NamedTuple):
    """What `build` makes of a config. step: jitted, donates its state."""

    mesh: jax.sharding.Mesh
    model: cargait.CarGait
    schedule: optim.Schedule
    step: Any
    abstract_state: State
    shardings: State
    new_state: Callable[[], State]


class Reranker(NamedTuple):
    """A trained re-ranker; step and loss are those of its best validation."""

    model: cargait.CarGait
    params: Any
    step: int
    loss: float


def triplet_batches(
    table: Table, lists: RankingLists, labels, config, mesh, steps: range
) -> Iterator[dict[str, jax.Array]]:
    """One batch per step, global arrays, a function of (config.seed, step).

    probe f32 [B S D], candidates f32 [B 2 S D] (positive, negative), probe_label
    i32 [B], candidate_labels i32 [B 2]; every host reads its share of the B anchors.
    """
    count, parts = config.train.anchors, config.train.accumulate
    check_batch(config, mesh)
    order = pipeline.part_order(count, parts, mesh.shape["data"])
    own = order[sharding.own_rows(count, mesh)]
    for step in steps:
        drawn = draw_triplets(lists, count=count, seed=config.seed, step=step)
        anchor = drawn.anchor[own]
        pair = np.stack([drawn.positive[own], drawn.negative[own]], axis=1)  # [B 2]
        batch = {
            "probe": np.asarray(table.embeddings[anchor]),
            "candidates": np.asarray(table.embeddings[pair]),
            "probe_label": labels[anchor],
            "candidate_labels": labels[pair],
        }
        yield pipeline.to_global(batch, mesh, count)


def check_batch(config, mesh) -> None:
    """Raises ValueError where a batch cannot be split over devices and parts."""
    count, parts = config.train.anchors, config.train.accumulate
    sharding.check_divides(count, mesh, "config.train.anchors", parts)


def distances_and_logits(model, params, batch, rngs):
    """Distances f32 [B 2] to positive and negative, logits f32 [B 4 N] of both pairs.

    With rngs=None the model runs as in evaluation.
    """
    *pair, probe_logits, candidate_logits = model.apply(
        {"params": params}, batch["probe"], batch["candidates"],
        train=rngs is not None, rngs=rngs, method="pairs_and_logits",
    )  # fmt: skip
    logits = jnp.concatenate([probe_logits, candidate_logits], axis=1)
    return model.pair_distance(*pair), logits


def ranking_terms(distances, logits, batch, loss) -> dict[str, jax.Array]:
    """Scalars f32 of a batch: ranking, classification, their sum "total", ordered.

    ordered: share of the triplets whose positive is nearer than its negative. The first
    two arguments are what `distances_and_logits` returns.
    """
    positive, negative = distances.T  # [B], [B]
    ranking = ranking_loss(positive, negative, easy_weight=loss.easy_weight).mean()
    own = jnp.tile(batch["probe_label"][:, None], (1, 2))  # [B 2]
    labels = jnp.concatenate([own, batch["candidate_labels"]], axis=1)  # [B 4]
    entropy = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    classification = entropy.mean()
    return {
        "total": ranking + loss.classification_weight * classification,
        "ranking": ranking,
        "classification": classification,
        "ordered": jnp.mean(positive < negative, dtype=jnp.float32),
    }


def train_step(
    state: State, batch, rng, *, model, tx, loss, parts: int = 1, devices: int = 1
):
    """One update; returns the new state and the terms with the gradient's norm.

    parts: so many parts of the batch go through the model one after another.
    """
    step_key = jax.random.fold_in(rng, state.step)

    def terms_of(outputs):
        terms = ranking_terms(*outputs, batch, loss)
        return terms["total"], terms

    def of_params(params):
        rngs = {"dropout": step_key}
        return terms_of(distances_and_logits(model, params, batch, rngs))

    def of_part(params, part, statistics, number):
        rngs = {"dropout": jax.random.fold_in(step_key, number)}
        return distances_and_logits(model, params, part, rngs), statistics

    if parts == 1:
        gradients, terms = jax.grad(of_params, has_aux=True)(state.params)
    else:
        gradients, (terms, _) = optim.accumulate(
            of_part, terms_of, state.params, batch, {}, parts=parts, devices=devices
        )
    updates, opt_state = tx.update(gradients, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    state = state._replace(step=state.step + 1, params=params, opt_state=opt_state)
    return state, {**terms, "gradient_norm": optax.global_norm(gradients)}


def build(
    config, strips: int, width: int, num_classes: int, metric: str, devices=None
) -> Setup:
    """CarGait on embeddings [S D] of `num_classes` identities, and its state.

    metric: of the base model, "euclidean" or "cosine". devices: of the mesh; None
    means all of this run.
    """
    mesh = sharding.make_mesh(config.mesh, devices)
    fields = {name: value for name, value in config.model.items() if name != "name"}
    model = cargait.CarGait(num_classes, metric=metric, **fields)
    schedule = optim.make_schedule(config.optimizer, config.train.steps)
    tx = optim.make_optimizer(config.optimizer, schedule)

    def init(rng) -> State:
        probe = jnp.zeros((1, strips, width))
        params = model.init(
            rng, probe, probe[:, None], train=False, method="pairs_and_logits"
        )["params"]
        best = Best(params, jnp.float32(jnp.inf), jnp.int32(0))
        return State(jnp.zeros((), jnp.int32), params, tx.init(params), best)

    made = sharding.sharded_init(init, config.seed, sharding.rules_of(config), mesh)
    abstract_state, shardings, new_state = made
    step = functools.partial(
        train_step, model=model, tx=tx, loss=config.loss,
        parts=config.train.accumulate, devices=mesh.shape["data"],
    )  # fmt: skip
    whole = NamedSharding(mesh, PartitionSpec())
    step = jax.jit(step, donate_argnums=0, out_shardings=(shardings, whole))
    return Setup(mesh, model, schedule, step, abstract_state, shardings, new_state)


def fit(config, workdir: str, table: Table) -> Reranker:
    """Trains (or continues) the re-ranker in `workdir` on the embeddings of `table`.

    A share of the identities is set apart; every `validation.every_steps` steps, and
    before the first, their ranking loss decides which parameters are kept. A re-ranker
    that never gets better than the base model is therefore the base model.
    """
    identities = table.subject
    held_out = held_out_identities(
        identities, share=config.validation.share, seed=config.seed
    )
    known, own = np.unique(identities[~held_out], return_inverse=True)
    labels = np.full(len(identities), -1, np.int32)  # held out: never classified
    labels[~held_out] = own
    shape = table.embeddings.shape[1:]
    setup = build(config, *shape, len(known), table.metric)
    lists, held_out_lists = (
        build_lists(table, np.flatnonzero(side), config.lists, setup.mesh)
        for side in (~held_out, held_out)
    )
    phase = loop.Phase(
        name="training",
        last=config.train.steps,
        step=setup.step,
        batches=lambda start, stop: triplet_batches(
            table, lists, labels, config, setup.mesh, range(start, stop)
        ),
        rate=setup.schedule,
        name_rows=lambda step: _name_triplets(config, table, lists, step),
    )
    validate = _validation(config, setup, table, held_out_lists, labels)

    def started(state: State, step: int, log: MetricLog) -> State:
        cluster.say(_summary(config, setup, table, lists, step))
        warn_of_full_lists(lists, config.lists)
        return validate(state, step, log) if step == 0 else state

    def after_step(state: State, step: int, log: MetricLog):
        due = step % config.validation.every_steps == 0 or step == config.train.steps
        return validate(state, step, log) if due else state, None

    task = loop.Task(
        name=config.name,
        phases=(phase,),
        new_state=setup.new_state,
        target=_stored(abstract(setup.abstract_state, setup.shardings)),
        stored=_stored,
        restored=_restored,
        describe=lambda state: _description(config, table),
        differences=run_folder.differences,
        started=started,
        after_step=after_step,
    )
    rng = sharding.key(config.seed + 1, setup.mesh)
    state = loop.fit(task, workdir, rng, config.train)
    best = state.best
    if jax.process_count() > 1:  # re-ranking is each process's own, on its own devices
        best = multihost_utils.process_allgather(best, tiled=True)
    return Reranker(setup.model, best.params, int(best.step), float(best.loss))


def load(config, workdir: str, shape: tuple[int, int], metric: str) -> Reranker:
    """The trained re-ranker in `workdir`, without the data of its training.

    config: of that run. shape: (S, D) of the base model's embeddings. metric: its own.
    Raises ValueError if no checkpoint can be read, or if it was trained on embeddings
    of another size.
    """
    checkpoints = Checkpoints(workdir, None, read_only=True)
    (classes,) = checkpoints.shape("best", "params", "logits", "bias")
    values, _ = checkpoints.shape("best", "params", "hidden", "kernel")
    require(
        values == shape[0] * shape[1],
        f"The re-ranker in {workdir} was trained on embeddings of {values} numbers, "
        f"this base run's are {shape[0]} x {shape[1]}. Choose a base run whose model "
        "has as many strips of the same width.",
    )
    setup = build(config, *shape, classes, metric, jax.devices()[:1])
    target = _stored(abstract(setup.abstract_state, setup.shardings))
    restored = checkpoints.restore(target)
    checkpoints.close()
    require(restored is not None, f"No checkpoint in {workdir} can be read.")
    assert restored is not None
    best = Best(**restored[0]["best"])
    return Reranker(setup.model, best.params, int(best.step), float(best.loss))


def _description(config, table: Table) -> dict[str, Any]:
    """What identifies the training; the data set to be re-ranked is no part of it."""
    description = run_folder.describe(config, table.fingerprint)
    del description["config"]["data"]["test_dataset"]
    if table.metric != "euclidean":
        description["config"]["base_metric"] = table.metric
    return description


def _stored(state: State) -> dict[str, Any]:
    """The state as checkpoints hold it."""
    train = {"step": state.step, "params": state.params, "batch_stats": {}}
    train["opt_state"] = state.opt_state
    return {"train": train, "best": state.best._asdict()}


def _restored(state: State, stored: dict[str, Any]) -> State:
    train = stored["train"]
    best = Best(**stored["best"])
    return State(train["step"], train["params"], train["opt_state"], best)


def _validation(config, setup: Setup, table: Table, lists, labels):
    """A function (state, step, log) -> state with the best parameters so far."""
    terms_of = jax.jit(
        lambda params, batch: ranking_terms(
            *distances_and_logits(setup.model, params, batch, None), batch, config.loss
        )
    )
    steps = range(config.validation.batches)

    def validate(state: State, step: int, log: MetricLog) -> State:
        # the same triplets each time
        batches = triplet_batches(table, lists, labels, config, setup.mesh, steps)
        rows = [jax.device_get(terms_of(state.params, batch)) for batch in batches]
        means = {
            f"validation/held_out/{name}": float(np.mean([row[name] for row in rows]))
            for name in ("ranking", "ordered")
        }
        loop.check_finite(
            step, means, lambda _: "They are means over held-out triplets"
        )
        log.write(step, "eval", means)
        loss = np.float32(means["validation/held_out/ranking"])
        if not loss < np.float32(state.best.loss):
            return state
        kept = jax.tree.map(jnp.copy, state.params)  # the step donates its state
        whole = NamedSharding(setup.mesh, PartitionSpec())
        numbers = sharding.place((loss, np.int32(step)), (whole, whole))
        return state._replace(best=Best(kept, *numbers))

    return validate


def _name_triplets(config, table: Table, lists, step: int) -> str:
    drawn = draw_triplets(
        lists, count=config.train.anchors, seed=config.seed, step=step - 1
    )
    rows = "; ".join(", ".join(table.key[list(row)]) for row in zip(*drawn))
    return f"The sequences of its triplets (anchor, positive, negative): {rows}"


def _summary(config, setup: Setup, table: Table, lists, step: int) -> str:
    count = sum(x.size for x in jax.tree.leaves(setup.abstract_state.params))
    return (
        f"{config.name}: {count:,} parameters over embeddings "
        f"{table.embeddings.shape[1:]} of {config.base_run}; "
        f"{lists.usable.sum():,} of {len(lists.anchor):,} training sequences are "
        f"anchors, {lists.positive.mean():.0%} of their lists are positives; "
        f"{config.train.anchors} anchors a step, step {step} of {config.train.steps}."
    )
