"""The one training loop: restore, then step, log, save and evaluate until done.

It is handed a task: step functions, batches, a state and hooks. It decides in which
order things happen, so that a kill at any moment loses nothing; it does not know what
is trained.
"""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from tqdm import tqdm

from gaitjax.engine import sharding
from gaitjax.engine.checkpoints import Checkpoints, Differences, check_space
from gaitjax.engine.cluster import Stop, Stopped, asked, end, say
from gaitjax.engine.log import MetricLog

State = Any  # a NamedTuple of trees of arrays, the field `step` among them


class Phase(NamedTuple):
    """Steps of one kind: those after the phase before, up to step `last`.

    step: jitted (state, batch, rng) -> (state, {name: f32 scalar}).
    batches: (start, stop) -> the batches of steps start .. stop - 1.
    rate: number of finished steps -> learning rate, for the log.
    name_rows: step -> a phrase that names the rows of its batch, for errors.
    enter: state -> state before the phase's first step.
    """

    name: str
    last: int
    step: Callable[[State, Any, jax.Array], tuple[State, dict[str, jax.Array]]]
    batches: Callable[[int, int], Iterator[Any]]
    rate: Callable[[int], Any]
    name_rows: Callable[[int], str]
    enter: Callable[[State], State] = lambda state: state


class Task(NamedTuple):
    """What `fit` runs.

    new_state: makes the state of step 0.
    target: what checkpoints hold of it, as ShapeDtypeStructs with shardings.
    stored: state -> what checkpoints hold. restored: (state, that) -> state.
    describe: state -> JSON that identifies the run. differences: of two descriptions.
    derived: state -> JSON that each checkpoint's description also holds.
    gauges: more entries of a logged row.

    Hooks: started(state, step, log) -> state, before the first step. after_step(state,
    step, log) -> (state, metrics), after each step and before its checkpoint; metrics
    that are not None go into a checkpoint, which is then written whether due or not.
    after_save(state, step, log), after each step and its checkpoint, if one was due.
    """

    name: str
    phases: Sequence[Phase]
    new_state: Callable[[], State]
    target: Any
    stored: Callable[[State], Any]
    restored: Callable[[State, Any], State]
    describe: Callable[[State], dict]
    differences: Differences
    derived: Callable[[State], dict[str, Any]] = lambda state: {}
    gauges: Callable[[], dict[str, Any]] = dict
    started: Callable[[State, int, MetricLog], State] = lambda state, step, log: state
    after_step: Callable[[State, int, MetricLog], tuple[State, dict | None]] = (
        lambda state, step, log: (state, None)
    )
    after_save: Callable[[State, int, MetricLog], None] = lambda state, step, log: None


def fit(task: Task, workdir: str, rng: jax.Array, config) -> State:
    """Trains, or continues, `task` in `workdir`; returns the state after its last step.

    config: how often to log and save, and what to keep: log_every, checkpoint_every,
    keep and, if the task evaluates, keep_best (see `Checkpoints`).

    A signal to end (SIGTERM, Ctrl-C) lets the running step finish, saves it and leaves
    the program with code 0. An evaluation in after_step or after_save may raise Stopped
    if the signal interrupts it.

    Raises FloatingPointError if a metric is not finite, and what `Checkpoints` does.
    """
    check_space(workdir, task.target)
    state, step, first = task.new_state(), 0, 0
    description = task.describe(state)
    store = Checkpoints(workdir, config.keep, config.get("keep_best", ""))
    with contextlib.closing(store), Stop():
        found = store.restore(task.target, description, task.differences)
        if found is not None:
            stored, step = found
            state = task.restored(state, stored)
        with MetricLog(workdir, step) as log:
            state = task.started(state, step, log)
            run = _Run(task, workdir, rng, config, store, description, log)
            with run.bar_from(step) as run.bar:
                for phase in task.phases:
                    if step == first > 0:
                        state = phase.enter(state)
                    if step < phase.last:
                        state = run.steps(phase, state, step)
                        step = phase.last
                    first = phase.last
        store.wait()
    return state


class _Run:
    """One call of `fit`: what its steps share."""

    def __init__(self, task: Task, workdir, rng, config, store, description, log):
        self.task, self.workdir, self.rng, self.config = task, workdir, rng, config
        self.store, self.description, self.log = store, description, log
        self.last = task.phases[-1].last
        self.started, self.waited = time.time(), 0.0
        self.newest: Any = None  # arguments of `check_finite` for the newest step
        self.bar: Any = None

    def bar_from(self, step: int) -> tqdm:
        return tqdm(
            total=self.last, initial=step, unit="step", dynamic_ncols=True,
            smoothing=0.1, desc=f"train {self.task.name}", mininterval=1.0,
            disable=jax.process_index() > 0,
        )  # fmt: skip

    def steps(self, phase: Phase, state: State, step: int) -> State:
        """The phase's steps after `step`."""
        compiled = None
        for batch in self._waiting(phase.batches(step, phase.last)):
            if compiled is None:
                compiled = phase.step.lower(state, batch, self.rng).compile()
                parts = sharding.memory(state, compiled)
                say(f"{phase.name}: {sharding.memory_line(parts)}")
            state, metrics = compiled(state, batch, self.rng)
            step += 1
            self._check_finite()  # of the step before, so the device is never idle
            self.newest = step, metrics, phase.name_rows
            self.bar.update()
            if step % self.config.log_every == 0 or step == self.last:
                self._log_row(phase, step, metrics)
            state = self._close(state, step)
        return state

    def _close(self, state: State, step: int) -> State:
        """What follows a step: hooks, its checkpoint, and the end if one was asked."""
        results, saved = None, False
        try:
            state, results = self.task.after_step(state, step, self.log)
            stopping = asked()
        except Stopped:
            stopping = True
        due = step % self.config.checkpoint_every == 0 or step == self.last
        if due or stopping or results is not None:
            self._save(state, step, results)
            saved = True
        if not stopping:
            try:
                self.task.after_save(state, step, self.log)
            except Stopped:
                stopping = True
                if not saved:
                    self._save(state, step, None)
        if stopping:
            self.store.wait()
            end(step, self.last, self.workdir)
        return state

    def _save(self, state: State, step: int, results: dict | None) -> None:
        self._check_finite()
        description = self.description | self.task.derived(state)
        self.store.save(step, self.task.stored(state), description, results)

    def _log_row(self, phase: Phase, step: int, metrics) -> None:
        self._check_finite()
        row = {name: float(value) for name, value in metrics.items()}
        row["learning_rate"] = float(phase.rate(step - 1))
        row["wait_share"] = self.waited / max(time.time() - self.started, 1e-9)
        self.log.write(step, "train", row | self.task.gauges())
        self.bar.set_postfix(loss=f"{row['total']:.3f}")

    def _check_finite(self) -> None:
        if self.newest is not None:
            check_finite(*self.newest)

    def _waiting(self, batches: Iterator[Any]) -> Iterator[Any]:
        """The batches; adds up the seconds waited for them."""
        while True:
            before = time.time()
            batch = next(batches, None)
            self.waited += time.time() - before
            if batch is None:
                return
            yield batch


def check_finite(step: int, metrics, name_rows: Callable[[int], str]) -> None:
    """Raises FloatingPointError at NaN or infinity, naming step, metrics and rows."""
    values = {name: float(value) for name, value in metrics.items()}
    broken = [name for name, value in values.items() if not np.isfinite(value)]
    if broken:
        raise FloatingPointError(
            f"Step {step}: {', '.join(broken)} not finite ({values}). "
            f"{name_rows(step)}. The last checkpoint is kept; lower "
            "config.optimizer.learning_rate or look at these sequences."
        )
