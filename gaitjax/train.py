"""The train loop, in the order things happen.

mesh -> data -> model -> abstract state -> shardings -> state born sharded -> frozen
weights -> restore -> steps (log, check, save, evaluate) -> final evaluation.
"""

import functools
import re
import time
from typing import Any

import jax
import numpy as np
import optax
from flax import traverse_util
from jax.sharding import NamedSharding, PartitionSpec
from tqdm import tqdm

from gaitjax import evaluate
from gaitjax.checkpoints import Checkpoints, abstract, describe
from gaitjax.data import pipeline, source
from gaitjax.log import MetricLog
from gaitjax.losses import total_loss
from gaitjax.state import (
    Setup,
    TrainState,
    build,
    example_batch,
    model_variables,
    stored_part,
)


def train_step(
    state: TrainState, batch, rng, *, model, tx, losses, method=None, trainable=""
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One update; returns the new state and f32 scalars (loss terms, gradient norm).

    rng: the run's key; the step number is folded in, so a resumed run draws the same.
    method: run instead of the model's __call__ (the decoder's warm-up, METHODS 1.3).
    trainable: only parameters whose path matches this regex, and their optimizer state,
    move; "" lets all of them.
    """
    keys = jax.random.split(jax.random.fold_in(rng, state.step))
    rngs = dict(zip(("dropout", "augment"), keys))

    def loss_fn(params):
        variables = model_variables(state._replace(params=params))
        output, mutated = model.apply(
            variables, batch, train=True, rngs=rngs, mutable=["batch_stats"],
            method=method,
        )  # fmt: skip
        total, terms = total_loss(output, batch, losses)
        return total, (terms, mutated.get("batch_stats", {}))

    gradients, (terms, batch_stats) = jax.grad(loss_fn, has_aux=True)(state.params)
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


def restore_or_new(setup: Setup, checkpoints: Checkpoints, description):
    """(state, step). Precedence: 1. the newest readable checkpoint of this run;
    2. a fresh state. Frozen weights come from their files (or the seed) either way."""
    target = abstract(setup.abstract_state, setup.shardings)
    restored = checkpoints.restore(stored_part(target), description)
    state = setup.new_state()
    if restored is None:
        return state, 0
    stored, step = restored
    return state._replace(**stored), step


def run(config, workdir: str) -> dict[str, Any]:
    """Trains (or continues) the run in `workdir`, evaluates it, returns its results."""
    data = source.open_split(
        config.data.data_dir, config.data.train_dataset, config.data.train_split
    )
    identities = len(np.unique(data.index.subject))
    if identities != config.data.num_classes:
        raise ValueError(
            f"{data.name} was prepared with {identities} training identities, the "
            f"config says {config.data.num_classes}. Set "
            f"--config.data.num_classes={identities}."
        )
    setup = build(config, example_batch(config))
    if jax.process_index() == 0:
        print(summary(setup, config, data), flush=True)

    checkpoints = Checkpoints(workdir, keep=config.train.keep)
    description = describe(config, data.fingerprint)
    state, step = restore_or_new(setup, checkpoints, description)
    evaluate.write_config(config, workdir)
    last = config.warmup.steps + config.train.steps
    if step:
        print(f"Continuing the run in {workdir} from step {step} of {last}.")
    if step == last:
        print(f"The run in {workdir} is finished ({last} steps); evaluating it.")

    losses = config.loss.to_dict()
    plain = functools.partial(train_step, model=setup.model, tx=setup.tx)
    jit = functools.partial(
        jax.jit, donate_argnums=0, out_shardings=(setup.shardings, None)
    )
    main_step = jit(
        functools.partial(plain, losses=losses, trainable=config.train.trainable)
    )
    warm_losses = {name: losses[name] for name in config.warmup.losses}
    warm_step = jit(
        functools.partial(
            plain,
            losses=warm_losses,
            method="warm_up",
            trainable=config.warmup.trainable,
        )
    )
    rng = jax.device_put(
        jax.random.key(config.seed + 1), NamedSharding(setup.mesh, PartitionSpec())
    )
    batches = pipeline.train_batches(
        data, config, setup.mesh, start_step=step, stop_step=last
    )
    started, waited, previous = time.time(), 0.0, None
    with MetricLog(workdir, step) as log, tqdm(
        total=last, initial=step, unit="step", dynamic_ncols=True, smoothing=0.1,
        desc=f"train {config.name}", disable=jax.process_index() > 0, mininterval=1.0,
    ) as bar:  # fmt: skip
        for batch in _timed(batches):
            batch, seconds = batch
            waited += seconds
            one_step = warm_step if step < config.warmup.steps else main_step
            state, metrics = one_step(state, batch, rng)
            step += 1
            if previous is not None:  # a step late, so the device is never idle
                _check_finite(*previous, config, data)
            previous = (step, metrics)
            bar.update()
            if step % config.train.log_every == 0 or step == last:
                row = {name: float(value) for name, value in metrics.items()}
                row["learning_rate"] = float(setup.schedule(step - 1))
                row["wait_share"] = waited / max(time.time() - started, 1e-9)
                log.write(step, "train", row)
                bar.set_postfix(loss=f"{row['total']:.3f}")
            every = config.evaluation.every_steps
            if every and step % every == 0 and step < last:
                results = evaluate.evaluate_state(config, setup, state)
                log.write(step, "eval", results.metrics)
            if step % config.train.checkpoint_every == 0 or step == last:
                _check_finite(*previous, config, data)
                checkpoints.save(step, stored_part(state), description)
    checkpoints.wait()
    checkpoints.close()
    return evaluate.finish(config, setup, state, workdir)


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
        rows = pipeline.train_rows(data, config.data, config.seed, step - 1)
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
