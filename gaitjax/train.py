"""Trains a gait model: what `engine.loop.fit` is handed, in the order things happen.

data -> mesh, model, state (`state.build`) -> phases -> steps (engine/loop.py, which
logs, checkpoints and calls the hooks below) -> evaluation.
"""

import functools
from typing import Any

import jax
import numpy as np
import optax

from gaitjax import evaluate, run_folder
from gaitjax.data import pipeline, source
from gaitjax.engine import cluster, loop, optim, sharding
from gaitjax.engine.checkpoints import abstract
from gaitjax.engine.guards import require, require_regex
from gaitjax.losses import total_loss
from gaitjax.state import Setup, build, example_batch, model_variables, stored_part


def train_step(
    state, batch, rng, *, model, tx, losses, method=None, trainable="", parts=1,
    devices=1,
):  # fmt: skip
    """One update: (new TrainState, {name: f32 scalar} of loss terms and gradient norm).

    rng: the run's key; the step number is folded in, so a resumed run draws the same.
    losses: {name of LOSSES: its fields}. method: called in place of the model's
    __call__. trainable: regex; only parameters whose path matches it, and their
    optimizer state, change ("": all). parts: the batch is worked through in so many
    parts (gradient accumulation, `optim.accumulate`), of which each of `devices` holds
    its share.
    """
    step_key = jax.random.fold_in(rng, state.step)

    def loss_fn(params, batch, batch_stats, key):
        variables = model_variables(
            state._replace(params=params, batch_stats=batch_stats)
        )
        output, changed = model.apply(
            variables, batch, train=True, mutable=["batch_stats"], method=method,
            rngs=dict(zip(("dropout", "augment"), jax.random.split(key))),
        )  # fmt: skip
        total, terms = total_loss(output, batch, losses)
        return total, (terms, changed.get("batch_stats", {}))

    gradients_of = jax.grad(loss_fn, has_aux=True)
    if parts == 1:
        found = gradients_of(state.params, batch, state.batch_stats, step_key)
    else:
        found = optim.accumulate(
            lambda part, statistics, number: gradients_of(
                state.params, part, statistics, jax.random.fold_in(step_key, number)
            ),
            optim.split_parts(batch, parts, devices),
            state.batch_stats,
        )
    gradients, (terms, batch_stats) = found
    updates, opt_state = tx.update(gradients, state.opt_state, state.params)
    new = state._replace(
        step=state.step + 1,
        params=optax.apply_updates(state.params, updates),
        batch_stats=batch_stats,
        opt_state=opt_state,
    )
    new = optim.hold_others(trainable, new, state)
    return new, {**terms, "gradient_norm": optax.global_norm(gradients)}


def warm_up_config(config):
    """The config of the decoder's warm-up: the run's, with what config.warmup changes.

    Its learning rate is constant; with the schedules "cosine" and "onecycle" it rises
    over a twentieth of the steps and falls to zero.
    """
    own, warm = config.warmup, config.copy_and_resolve_references()
    require_regex(own.trainable, "config.warmup.trainable")
    unknown = [name for name in own.losses if name not in config.loss]
    require(
        not unknown,
        f"config.warmup.losses names {', '.join(map(repr, unknown))}, config.loss has "
        f"{', '.join(sorted(config.loss)) or 'none'}.",
    )
    with warm.unlocked():
        warm.loss = {name: config.loss[name] for name in own.losses}
    for size in ("ids_per_batch", "num_frames"):
        warm.data[size] = own[size] or config.data[size]
    cycle = config.optimizer.schedule in ("cosine", "onecycle") and own.steps > 1
    warm.optimizer.update(
        schedule="onecycle" if cycle else "constant", rise_steps=own.steps // 20,
        learning_rate=own.learning_rate or config.optimizer.learning_rate,
        final_learning_rate=0.0,
    )  # fmt: skip
    warm.train.update(steps=own.steps, trainable=own.trainable)
    return warm


def phases(config, setup: Setup, data=None, damaged=None) -> list[loop.Phase]:
    """The decoder's warm-up, where the config has one, and the training itself.

    data: the training split; planning and benchmarks, which bring their own batches,
    have none. damaged: filled with the rows that could not be read.
    """
    warm, found = config.get("warmup"), []
    if warm and warm.steps:
        own = warm_up_config(config)
        found.append(_phase("warm-up", own, setup, 0, data, damaged, method="warm_up"))
    first = found[-1].last if found else 0
    found.append(_phase("training", config, setup, first, data, damaged))
    return found


def _phase(name, config, setup: Setup, first, data, damaged, method=None) -> loop.Phase:
    """The phase after step `first` that `config` describes."""
    check_batch(config, setup.mesh)
    schedule = optim.make_schedule(config.optimizer, config.train.steps)
    tx = optim.make_optimizer(config.optimizer, schedule)
    losses = config.loss.to_dict()
    if "triplet" in losses:  # batches and their parts hold whole identities
        losses["triplet"]["seqs_per_id"] = config.data.seqs_per_id
    step = functools.partial(
        train_step, model=setup.model, tx=tx, losses=losses, method=method,
        trainable=config.train.trainable, parts=config.train.accumulate,
        devices=setup.mesh.shape["data"],
    )  # fmt: skip
    new_moments = jax.jit(tx.init, out_shardings=setup.shardings.opt_state)
    return loop.Phase(
        name=name,
        last=first + config.train.steps,
        step=jax.jit(step, donate_argnums=0, out_shardings=(setup.shardings, None)),
        batches=lambda start, stop: pipeline.train_batches(
            data, config, setup.mesh, start_step=start, stop_step=stop, damaged=damaged
        ),
        rate=lambda done: schedule(done - first),
        name_rows=lambda step: (
            "Its sequences: "
            + ", ".join(data.index.key[pipeline.train_rows(data, config, step - 1)])
        ),
        enter=lambda state: state._replace(opt_state=new_moments(state.params)),
    )


def check_batch(config, mesh) -> None:
    """Raises ValueError where a batch cannot be split over devices and parts."""
    identities, parts = config.data.ids_per_batch, config.train.accumulate
    require(
        parts >= 1 and identities % parts == 0,
        f"config.train.accumulate={parts} does not divide config.data.ids_per_batch="
        f"{identities} (or config.warmup's); a part holds whole identities, choose a "
        "divisor.",
    )
    size = identities * config.data.seqs_per_id
    sharding.check_divides(size, mesh, "config.data.ids_per_batch x seqs_per_id", parts)


def run(config, workdir: str) -> dict[str, Any]:
    """Trains (or continues) the run in `workdir`, evaluates it, returns its results."""
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
        phases=phases(config, setup, data, damaged),
        new_state=setup.new_state,
        target=stored_part(abstract(setup.abstract_state, setup.shardings)),
        stored=stored_part,
        restored=lambda state, stored: state._replace(**stored),
        describe=lambda state: run_folder.describe(
            config, data.fingerprint, state.frozen
        ),
        differences=run_folder.differences,
        gauges=lambda: {"damaged_sequences": len(damaged)} if damaged else {},
    )
    cluster.say(summary(setup, config, data, task.phases))
    state = loop.fit(
        task._replace(**_hooks(config, setup, task.phases, workdir)),
        workdir,
        sharding.key(config.seed + 1, setup.mesh),
        log_every=config.train.log_every,
        checkpoint_every=config.train.checkpoint_every,
        keep=config.train.keep,
        keep_best=config.train.keep_best,
    )
    return evaluate.finish(config, setup, state, workdir)


def _hooks(config, setup: Setup, phases, workdir: str) -> dict[str, Any]:
    """The hooks of `loop.Task`: what is said at the start, evaluations in between.

    A checkpoint is written before the evaluation of its step, which a signal to end may
    interrupt. With keep_best the results are part of the checkpoint and come first.
    """
    every, best = config.evaluation.every_steps, config.train.keep_best
    last, first = phases[-1].last, phases[-1].last - config.train.steps

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


def summary(setup: Setup, config, data, phases) -> str:
    """One paragraph printed at the start: sizes, so that surprises are seen early."""
    count = lambda tree: sum(x.size for x in jax.tree.leaves(tree))  # noqa: E731
    state, steps = setup.abstract_state, [phase.last for phase in phases]
    steps = [stop - start for start, stop in zip([0, *steps], steps)]
    return (
        f"{config.name}: {count(state.params):,} trainable and "
        f"{count(state.frozen):,} frozen parameters; {data.name}: "
        f"{len(data.index.key):,} sequences of {config.data.num_classes} identities; "
        f"batch {config.data.ids_per_batch} ids x {config.data.seqs_per_id} sequences "
        f"x {config.data.num_frames} frames; {' + '.join(map(str, steps))} steps on "
        f"{dict(setup.mesh.shape)} {jax.devices()[0].platform} devices."
    )
