"""Trains a gait model: what `engine.loop.fit` is handed, in the order things happen.

data -> mesh, model, state (`state.build`) -> phases -> steps (engine/loop.py, which
logs, checkpoints and calls the hooks below) -> evaluation.
"""

import functools
from typing import Any

import jax
import numpy as np
import optax

from gaitjax import evaluate, run_folder, text_vectors
from gaitjax.data import pipeline, source
from gaitjax.engine import cluster, loop, optim, sharding
from gaitjax.engine.checkpoints import abstract
from gaitjax.engine.guards import require
from gaitjax.losses import total_loss
from gaitjax.phases import PhaseConfig, phases_of
from gaitjax.state import (
    Setup,
    build,
    check_backend,
    check_batch,
    example_batch,
    model_variables,
    optimizer_of,
    stored_part,
)


def train_step(
    state, batch, rng, *, model, tx, losses, method=None, trainable="", parts=1,
    devices=1,
):  # fmt: skip
    """One update: (new TrainState, {name: f32 scalar} to log).

    Logged are the loss terms, the gradient norm and what the model gives beside them
    (aux["logged"], of several parts their means).

    rng: the run's key; the step number is folded in, so a resumed run draws the same.
    losses: {name of LOSSES: its fields}. method: called in place of the model's
    __call__. trainable: regex; only parameters whose path matches it, and their
    optimizer state, change ("": all). parts: so many parts of the batch go through the
    model one after another (`optim.accumulate`), each of `devices` holding its share of
    each; the losses see the whole batch.
    """
    step_key = jax.random.fold_in(rng, state.step)

    def apply(params, batch, batch_stats, key):
        variables = model_variables(
            state._replace(params=params, batch_stats=batch_stats)
        )
        output, changed = model.apply(
            variables, batch, train=True, mutable=["batch_stats"], method=method,
            rngs=dict(zip(("dropout", "augment"), jax.random.split(key))),
        )  # fmt: skip
        return output, changed.get("batch_stats", {})

    def loss(output):
        total, terms = total_loss(output, batch, losses)
        return total, terms | output.aux.get("logged", {})

    def of_params(params):
        output, batch_stats = apply(params, batch, state.batch_stats, step_key)
        total, logged = loss(output)
        return total, (logged, batch_stats)

    if parts == 1:
        found = jax.grad(of_params, has_aux=True)(state.params)
    else:
        found = optim.accumulate(
            lambda *args: apply(*args[:3], jax.random.fold_in(step_key, args[3])),
            loss, state.params, batch, state.batch_stats, parts=parts, devices=devices,
        )  # fmt: skip
    gradients, (logged, batch_stats) = found
    updates, opt_state = tx.update(gradients, state.opt_state, state.params)
    new = state._replace(
        step=state.step + 1,
        params=optax.apply_updates(state.params, updates),
        batch_stats=batch_stats,
        opt_state=opt_state,
    )
    new = optim.hold_others(trainable, new, state)
    return new, {**logged, "gradient_norm": optax.global_norm(gradients)}


def loop_phases(config, setup: Setup, data=None, damaged=None) -> list[loop.Phase]:
    """`phases_of(config)` as the loop runs them.

    data: the training split; planning and benchmarks, which bring their own batches,
    have none. damaged: filled with the rows that could not be read.
    """
    return [_loop_phase(phase, setup, data, damaged) for phase in phases_of(config)]


def _loop_phase(phase: PhaseConfig, setup: Setup, data, damaged) -> loop.Phase:
    config = phase.config
    check_batch(config, setup.mesh)
    schedule, tx = optimizer_of(config, setup.model)
    losses = config.loss.to_dict()
    parts, devices = config.train.accumulate, setup.mesh.shape["data"]
    if "triplet" in losses:
        losses["triplet"]["seqs_per_id"] = config.data.seqs_per_id
        if parts > 1:  # the order in which its rows are grouped by identity
            rows = config.data.ids_per_batch * config.data.seqs_per_id
            order = np.argsort(pipeline.part_order(rows, parts, devices))
            losses["triplet"]["order"] = order
    step = functools.partial(
        train_step, model=setup.model, tx=tx, losses=losses, method=phase.method,
        trainable=config.train.trainable, parts=parts, devices=devices,
    )  # fmt: skip
    new_moments = jax.jit(tx.init, out_shardings=setup.shardings.opt_state)
    return loop.Phase(
        name=phase.name,
        last=phase.last,
        step=jax.jit(step, donate_argnums=0, out_shardings=(setup.shardings, None)),
        batches=lambda start, stop: pipeline.train_batches(
            data, config, setup.mesh, start_step=start, stop_step=stop, damaged=damaged
        ),
        rate=lambda done: schedule(done - phase.first),
        name_rows=lambda step: (
            "Its sequences: "
            + ", ".join(data.index.key[pipeline.train_rows(data, config, step - 1)])
        ),
        enter=lambda state: state._replace(opt_state=new_moments(state.params)),
    )


def run(config, workdir: str) -> dict[str, Any]:
    """Trains (or continues) the run in `workdir`, evaluates it, returns its results."""
    check_backend(config)
    data = source.open_split(
        config.data.data_dir, config.data.train_dataset, config.data.train_split,
        config.data.modalities,
    )  # fmt: skip
    identities = len(np.unique(data.index.subject))
    require(
        identities == config.data.num_classes,
        f"{data.name} was prepared with {identities} training identities, the config "
        f"says {config.data.num_classes}. Set --config.data.num_classes={identities}.",
    )
    evaluate.open_test_split(config)  # what cannot be evaluated is not trained
    setup, damaged = build(config, example_batch(config)), {}
    task = loop.Task(
        name=config.name,
        phases=loop_phases(config, setup, data, damaged),
        new_state=setup.new_state,
        target=stored_part(abstract(setup.abstract_state, setup.shardings)),
        stored=stored_part,
        restored=lambda state, stored: state._replace(**stored),
        describe=lambda x: run_folder.describe(config, data.fingerprint, x.frozen),
        differences=run_folder.differences,
        derived=lambda state: text_vectors.to_description(setup.model, state),
        gauges=lambda: {"damaged_sequences": len(damaged)} if damaged else {},
    )
    cluster.say(summary(setup, config, data))
    task = task._replace(**_hooks(config, setup, workdir))
    rng = sharding.key(config.seed + 1, setup.mesh)
    state = loop.fit(task, workdir, rng, config.train)
    return evaluate.finish(config, setup, state, workdir)


def _hooks(config, setup: Setup, workdir: str) -> dict[str, Any]:
    """The hooks of `loop.Task`: what is said at the start, evaluations in between.

    A checkpoint is written before the evaluation of its step, which a signal to end may
    interrupt. With keep_best the results are part of the checkpoint and come first.
    """
    every, best = config.evaluation.every_steps, config.train.keep_best
    training = phases_of(config)[-1]
    first, last = training.first, training.last

    def started(state, step, log):
        run_folder.write_config(config, workdir)
        if step:
            cluster.say(f"Continuing the run in {workdir} from step {step} of {last}.")
        if step == last:
            cluster.say(f"The run in {workdir} is finished ({last} steps).")
        return state

    def evaluated(state, step, log):
        due = every and step % every == 0 and step > first and (step < last or best)
        if not due:  # after the last step, `run` evaluates
            return None
        metrics = evaluate.evaluate_state(config, setup, state).metrics
        log.write(step, "eval", metrics)
        return metrics

    if best:
        return {"started": started, "after_step": lambda *x: (x[0], evaluated(*x))}
    return {"started": started, "after_save": evaluated}


def summary(setup: Setup, config, data) -> str:
    """One paragraph printed at the start: sizes, so that surprises are seen early."""
    trainable, frozen = (
        sum(x.size for x in jax.tree.leaves(tree))
        for tree in (setup.abstract_state.params, setup.abstract_state.frozen)
    )
    steps = " + ".join(str(phase.last - phase.first) for phase in phases_of(config))
    return (
        f"{config.name}: {trainable:,} trainable and {frozen:,} frozen parameters; "
        f"{data.name}: {len(data.index.key):,} sequences of {config.data.num_classes} "
        f"identities; batch {config.data.ids_per_batch} ids x "
        f"{config.data.seqs_per_id} sequences x {config.data.num_frames} frames; "
        f"{steps} steps on {dict(setup.mesh.shape)} {jax.devices()[0].platform} "
        "devices."
    )
