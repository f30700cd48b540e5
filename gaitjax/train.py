"""The train loop, in the order things happen.

mesh -> data -> model -> abstract state -> shardings -> state born sharded -> frozen
weights -> restore -> steps (log, check, save, evaluate) -> final evaluation.
"""

import contextlib
import functools
import re
import time
from typing import Any

import jax
import numpy as np
import optax
from flax import traverse_util
from tqdm import tqdm

from gaitjax import evaluate
from gaitjax.data import pipeline, source
from gaitjax.engine import cluster, optim, sharding
from gaitjax.engine.checkpoints import (
    Checkpoints,
    abstract,
    check_space,
    describe,
    weights_of_files,
)
from gaitjax.engine.cluster import Stop
from gaitjax.engine.log import MetricLog
from gaitjax.losses import total_loss
from gaitjax.run_folder import write_config
from gaitjax.state import (
    Setup,
    TrainState,
    build,
    example_batch,
    model_variables,
    stored_part,
)


def train_step(
    state: TrainState,
    batch,
    rng,
    *,
    model,
    tx,
    losses,
    method=None,
    trainable="",
    parts=1,
    devices=1,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One update; returns the new state and f32 scalars (loss terms, gradient norm).

    rng: the run's key; the step number is folded in, so a resumed run draws the same.
    method: run instead of the model's __call__ (the decoder's warm-up, METHODS 1.3).
    trainable: only parameters whose path matches this regex, and their optimizer state,
    move; "" lets all of them.
    parts: the batch is worked through in so many parts (gradient accumulation, see
    `optim.accumulate`), of which each of `devices` holds its share.
    """
    step_key = jax.random.fold_in(rng, state.step)

    def loss_fn(params, batch, batch_stats, rngs):
        variables = model_variables(
            state._replace(params=params, batch_stats=batch_stats)
        )
        output, mutated = model.apply(
            variables, batch, train=True, rngs=rngs, mutable=["batch_stats"],
            method=method,
        )  # fmt: skip
        total, terms = total_loss(output, batch, losses)
        return total, (terms, mutated.get("batch_stats", {}))

    def gradients_of(batch, batch_stats, key):
        rngs = dict(zip(("dropout", "augment"), jax.random.split(key)))
        return jax.grad(loss_fn, has_aux=True)(state.params, batch, batch_stats, rngs)

    if parts == 1:
        found = gradients_of(batch, state.batch_stats, step_key)
    else:
        found = optim.accumulate(
            lambda part, statistics, number: gradients_of(
                part, statistics, jax.random.fold_in(step_key, number)
            ),
            optim.split_parts(batch, parts, devices),
            state.batch_stats,
        )
    gradients, (terms, batch_stats) = found
    updates, opt_state = tx.update(gradients, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    if trainable:
        names = traverse_util.flatten_dict(state.params, sep="/")
        held = {name for name in names if not re.search(trainable, name)}
        params = _keep(held, params, state.params)
        opt_state = _keep(held, opt_state, state.opt_state)
    metrics = {**terms, "gradient_norm": optax.global_norm(gradients)}
    new_state = state._replace(
        step=state.step + 1, params=params, batch_stats=batch_stats, opt_state=opt_state
    )
    return new_state, metrics


def _keep(held: set[str], new, old):
    """`new` with the leaves of `old` where the path is, or ends in, one of `held`."""

    def pick(path, new_leaf, old_leaf):
        parts = jax.tree_util.keystr(path, simple=True, separator="/").split("/")
        tails = ("/".join(parts[i:]) for i in range(len(parts)))
        return old_leaf if any(tail in held for tail in tails) else new_leaf

    return jax.tree_util.tree_map_with_path(pick, new, old)


def restore_or_new(config, setup: Setup, checkpoints: Checkpoints, description: dict):
    """(state, step), by the precedence in words at the top of checkpoints.py.

    Frozen weights come from their files (or the seed) either way; what came from files
    is added to `description`."""
    target = abstract(setup.abstract_state, setup.shardings)
    state = setup.new_state()
    description |= weights_of_files(config, state.frozen)
    restored = checkpoints.restore(stored_part(target), description)
    if restored is None:
        return state, 0
    stored, step = restored
    return state._replace(**stored), step


def run(config, workdir: str) -> dict[str, Any]:
    """Trains (or continues) the run in `workdir`, evaluates it, returns its results."""
    data = source.open_split(
        config.data.data_dir, config.data.train_dataset, config.data.train_split,
        config.data.modalities,
    )  # fmt: skip
    identities = len(np.unique(data.index.subject))
    if identities != config.data.num_classes:
        raise ValueError(
            f"{data.name} was prepared with {identities} training identities, the "
            f"config says {config.data.num_classes}. Set "
            f"--config.data.num_classes={identities}."
        )
    evaluate.open_test_split(config)  # what cannot be evaluated is not trained
    setup = build(config, example_batch(config))
    check_batch(config, setup.mesh)
    cluster.say(summary(setup, config, data))
    stored = stored_part(setup.abstract_state)
    check_space(workdir, stored)
    description = describe(config, data.fingerprint)
    last = config.warmup.steps + config.train.steps
    rng = sharding.key(config.seed + 1, setup.mesh)
    with contextlib.closing(
        Checkpoints(workdir, config.train.keep, config.train.keep_best)
    ) as checkpoints, Stop():  # fmt: skip
        state, step = restore_or_new(config, setup, checkpoints, description)
        write_config(config, workdir)
        if step:
            cluster.say(f"Continuing the run in {workdir} from step {step} of {last}.")
        if step == last:
            cluster.say(
                f"The run in {workdir} is finished ({last} steps); evaluating it."
            )
        state = _fit(
            config, setup, state, step, last, rng, data,
            workdir, checkpoints, description,
        )  # fmt: skip
        checkpoints.wait()
    return evaluate.finish(config, setup, state, workdir)


def step_functions(config, setup: Setup):
    """(warm-up step, main step), jitted (state, batch, rng) -> (state, metrics).

    The state's buffers are donated.
    """
    losses = losses_of(config)
    plain = functools.partial(
        train_step, model=setup.model,
        parts=config.train.accumulate, devices=setup.mesh.shape["data"],
    )  # fmt: skip
    jit = functools.partial(
        jax.jit, donate_argnums=0, out_shardings=(setup.shardings, None)
    )
    warm_up = functools.partial(
        plain,
        tx=setup.warm_tx,
        losses={name: losses[name] for name in config.warmup.losses},
        method="warm_up",
        trainable=config.warmup.trainable,
    )
    main = functools.partial(
        plain, tx=setup.tx, losses=losses, trainable=config.train.trainable
    )
    return jit(warm_up), jit(main)


def losses_of(config) -> dict[str, dict[str, Any]]:
    """config.loss, and that batches and their parts hold whole identities."""
    losses = config.loss.to_dict()
    if "triplet" in losses:
        losses["triplet"]["seqs_per_id"] = config.data.seqs_per_id
    return losses


def check_batch(config, mesh) -> None:
    """Raises ValueError where a batch cannot be split over devices and parts."""
    parts = config.train.accumulate
    for phase in ("data", "warmup"):
        identities = config[phase].ids_per_batch or config.data.ids_per_batch
        name = f"config.{phase}.ids_per_batch"
        if parts < 1 or identities % parts:
            raise ValueError(
                f"config.train.accumulate={parts} does not divide {name}={identities}; "
                "a part holds whole identities, choose a divisor."
            )
        size = identities * config.data.seqs_per_id
        sharding.check_divides(size, mesh, f"{name} x seqs_per_id", parts)


def _fit(
    config, setup, state, step, last, rng, data, workdir, checkpoints, description
) -> TrainState:
    """The steps from `step` to `last`; ends the program where it was asked to.

    What is due is saved before the evaluation of a step, which a signal to end cuts
    off. With keep_best the results are part of the checkpoint, so the evaluation comes
    first; one that is cut off is not made up for: its step cannot be the best.
    """
    jitted, compiled, damaged = step_functions(config, setup), {}, {}
    batches = pipeline.train_batches(
        data, config, setup.mesh, start_step=step, stop_step=last, damaged=damaged
    )
    fresh = jax.jit(setup.tx.init, out_shardings=setup.shardings.opt_state)
    started, waited, previous = time.time(), 0.0, None
    every, best = config.evaluation.every_steps, config.train.keep_best

    def save(results=None) -> None:
        _check_finite(*previous, config, data)
        checkpoints.save(step, stored_part(state), description, results)

    with MetricLog(workdir, step) as log, tqdm(
        total=last, initial=step, unit="step", dynamic_ncols=True, smoothing=0.1,
        desc=f"train {config.name}", disable=jax.process_index() > 0, mininterval=1.0,
    ) as bar:  # fmt: skip
        for batch, seconds in _timed(batches):
            waited += seconds
            main = step >= config.warmup.steps
            if step == config.warmup.steps > 0:  # the main phase has its own optimizer
                state = state._replace(opt_state=fresh(state.params))
            if main not in compiled:
                compiled[main] = jitted[main].lower(state, batch, rng).compile()
                parts = sharding.memory(state, setup.shardings, compiled[main])
                phase = "training" if main else "warm-up"
                cluster.say(f"{phase}: {sharding.memory_line(parts)}")
            state, metrics = compiled[main](state, batch, rng)
            step += 1
            if previous is not None:  # a step late, so the device is never idle
                _check_finite(*previous, config, data)
            previous = (step, metrics)
            bar.update()
            if step % config.train.log_every == 0 or step == last:
                row = {name: float(value) for name, value in metrics.items()}
                row["learning_rate"] = float(setup.schedule(step - 1))
                row["wait_share"] = waited / max(time.time() - started, 1e-9)
                if damaged:
                    row["damaged_sequences"] = len(damaged)
                log.write(step, "train", row)
                bar.set_postfix(loss=f"{row['total']:.3f}")
            evaluated = main and every and step % every == 0  # a warm-up knows nobody
            evaluated = evaluated and (step < last or best)
            due = step % config.train.checkpoint_every == 0 or step == last
            stopping = cluster.asked()
            saved = stopping or (due and not (evaluated and best))
            if saved:
                save()
            if evaluated and not stopping:
                results = _results(config, setup, state)
                stopping = results is None
                if results is not None:
                    log.write(step, "eval", results)
                if not saved and (best or stopping):
                    save(results)
            if stopping:
                checkpoints.wait()
                cluster.end(step, last, workdir)
    return state


def _results(config, setup: Setup, state: TrainState) -> dict[str, float] | None:
    """Metrics of an evaluation, None where a signal to end cuts it off."""
    try:
        return evaluate.evaluate_state(config, setup, state).metrics
    except cluster.Stopped:
        return None


def summary(setup: Setup, config, data) -> str:
    """One paragraph printed at the start: sizes, so that surprises are seen early."""
    count = lambda tree: sum(x.size for x in jax.tree.leaves(tree))  # noqa: E731
    state = setup.abstract_state
    return (
        f"{config.name}: {count(state.params):,} trainable and "
        f"{count(state.frozen):,} frozen parameters; {data.name}: "
        f"{len(data.index.key):,} sequences of {config.data.num_classes} identities; "
        f"batch {config.data.ids_per_batch} ids x {config.data.seqs_per_id} sequences "
        f"x {config.data.num_frames} frames; "
        f"{config.warmup.steps} + {config.train.steps} steps on "
        f"{dict(setup.mesh.shape)} {jax.devices()[0].platform} devices."
    )


def _check_finite(step: int, metrics, config, data) -> None:
    """Stops at NaN or Inf, naming the step, the terms and the batch's sequences."""
    values = {name: float(value) for name, value in metrics.items()}
    broken = [name for name, value in values.items() if not np.isfinite(value)]
    if broken:
        rows = pipeline.train_rows(data, config, step - 1)
        raise FloatingPointError(
            f"Step {step}: {', '.join(broken)} not finite ({values}). Its sequences: "
            f"{', '.join(data.index.key[rows])}. The last checkpoint is kept; lower "
            "config.optimizer.learning_rate or look at these sequences."
        )


def _timed(iterator):
    """(item, seconds waited for it)."""
    iterator = iter(iterator)
    while True:
        before = time.time()
        item = next(iterator, None)
        if item is None:
            return
        yield item, time.time() - before
