"""`main --dry_run`: what a run would take, and how to start it, without any data.

    JAX_NUM_CPU_DEVICES=64 python -m gaitjax.main --config=configs/lmgait.py:ccpg \
        --config.sharding=fsdp --dry_run
    ./run.sh target h100x8 configs/lmgait.py:ccpg

The first line plans for 64 devices on a laptop, the second for a machine with eight
H100 (`targets`): nothing is computed or allocated, the step is only compiled. The
activations are those of the backend it is compiled for: CPU writes attention scores and
keeps bfloat16 in float32, so GPU and TPU need less.
"""

import contextlib
import json
import math
import re
import shlex
import sys
import time
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from gaitjax import train
from gaitjax.engine import log, sharding
from gaitjax.engine.checkpoints import abstract
from gaitjax.parts.backend import Backend, tracing_for
from gaitjax.program import collectives, flops, largest_buffers
from gaitjax.rerank import base_run
from gaitjax.rerank import train as train_reranker
from gaitjax.state import Setup, build, example_batch, merge_frozen, split_frozen
from gaitjax.targets import TARGETS, Target

FLAGS = r"^--?(no)?(dry_run|target|multihost|coordinator|num_processes|process_id)\b"
GIB = 2**30
REMEDY = (
    "Take more devices, a smaller batch, a larger config.train.accumulate, or remat of "
    "the model (docs/scaling.md)."
)


class Plan(NamedTuple):
    """A step compiled, or why not. flops: of all devices; seconds: of compiling."""

    setup: Setup | train_reranker.Setup
    batch: dict[str, jax.ShapeDtypeStruct]
    flops: int
    seconds: float
    compiled: Any
    error: str

    @property
    def hlo(self) -> str:
        return self.compiled.as_text() if self.compiled else ""

    def memory(self) -> dict[str, int]:
        """Bytes per device: `sharding.memory`; the arguments alone without a step."""
        state = abstract(self.setup.abstract_state, self.setup.shardings)
        if self.compiled:
            return sharding.memory(state, self.compiled)
        places = jax.tree.map(lambda leaf: leaf.sharding, state)
        rows = sharding.device_bytes(self.batch, _over(self.setup.mesh, self.batch))
        return {"state": sharding.device_bytes(state, places), "batch": rows}


class Size(NamedTuple):
    """Parameters that are trained and frozen, and the work of embedding one sequence.

    flops: of the matmuls and convolutions of one sequence of `frames` frames in
    evaluation, the classifier included; without a text tower, whose vectors are
    constants of a trained model.
    """

    trained: int
    frozen: int
    flops: int
    frames: int

    @property
    def words(self) -> str:
        return (
            f"{self.trained:,} parameters are trained, {self.frozen:,} frozen. "
            f"Embedding a sequence of {self.frames} frames takes "
            f"{self.flops / 1e9:,.2f} GFLOP ({self.flops / 2e9:,.2f} G multiply-adds, "
            "which papers often print as FLOPs, some of one frame)."
        )


def size_of(config, model, frames: int = 0) -> Size:
    """The size of the config's gait model; frames: of a sequence, 0: data.num_frames.

    Nothing is computed or compiled. Convolutions are counted as a GPU has them.
    """
    shape = jax.ShapeDtypeStruct
    frames = frames or config.data.num_frames
    batch = {
        name: shape((1, frames, *x.shape[2:]), x.dtype)
        for name, x in example_batch(config).items()
        if name != "labels"
    }
    with tracing_for(Backend("gpu")):
        variables = jax.eval_shape(
            lambda b: model.init(jax.random.key(0), b, train=False), batch
        )
        constants = {}
        if getattr(model, "uses_text", False):
            vectors = lambda v: model.apply(v, method="text_vectors")  # noqa: E731
            constants["text"] = jax.eval_shape(vectors, variables)
        embed = lambda v, b, k: model.apply(v, b, train=False, **k).embeddings  # noqa: E731
        jaxpr = jax.make_jaxpr(embed)(variables, batch, constants).jaxpr
    params = variables.get("params", {})
    counts = [
        sum(x.size for x in jax.tree.leaves(part))
        for part in split_frozen(params, config.frozen)
    ]
    return Size(*counts, flops(jaxpr), frames)


def dry_run(config, workdir: str, target: str = "") -> str:
    """Mesh, shardings, bytes per device, work of a step, commands, as text.

    target: in `targets.TARGETS`, once `targets.prepare` was called; the text then says
    whether the step fits there and ends with a line of JSON. "": this run's devices.
    """
    plan = make_plan(config, TARGETS[target] if target else None)
    devices, tflop, hlo = plan.setup.mesh.devices, plan.flops / 1e12, plan.hlo
    processes = len({device.process_index for device in devices.flat})
    cargait = config.model.name == "cargait"
    lines = [
        f"{config.name} in {workdir}: mesh {dict(plan.setup.mesh.shape)} of "
        f"{devices.size} {devices.flat[0].platform} devices in {processes} processes, "
        f"config.sharding={config.sharding!r}",
        log.table(sharding_rows(plan.setup)),
    ]
    if plan.compiled:
        memory = {
            name: {"MiB per device": f"{size / 2**20:,.1f}"}
            for name, size in plan.memory().items()
        }
        largest = log.table(buffer_rows(hlo))
        lines += [
            log.table(memory),
            f"Largest results in memory (several may share a place):\n{largest}",
            f"Collectives of a step: {collectives(hlo) or 'none'}",
        ]
    lines += [
        f"Matmuls and convolutions of a step: {tflop:,.4f} TFLOP on all devices",
        *(() if cargait else [size_of(config, plan.setup.model).words]),
        "\n".join(f"{title}:\n  {line}" for title, line in commands().items()),
    ]
    return "\n\n".join(lines + (verdict(plan, target) if target else []))


def make_plan(config, target: Target | None) -> Plan:
    """The main phase's step, compiled for the target or for this process's devices.

    A TPU's compiler refuses a step that needs more memory than there is: `error`.
    """
    with tracing_for(target.backend) if target else contextlib.nullcontext():
        setup, batch, step = _planned(config, target.devices() if target else None)
        traced = trace_step(setup, batch, step)
        started, compiled, error = time.time(), None, ""
        platforms = (target.platform,) if target else None
        try:
            compiled = traced.lower(lowering_platforms=platforms).compile()
        except jax.errors.JaxRuntimeError as full:
            error = str(full)
            if not target or "RESOURCE_EXHAUSTED" not in error:
                raise
    seconds = time.time() - started
    return Plan(setup, batch, flops(traced.jaxpr.jaxpr), seconds, compiled, error)


def verdict(plan: Plan, name: str) -> list[str]:
    """Whether the step fits into the target's memory, in words and as JSON."""
    target, memory = TARGETS[name], plan.memory()
    temporaries, total = memory.pop("activations", None), memory.pop("total", math.inf)
    offered = target.memory_of(plan.setup.mesh.devices.size)
    taken = offered * target.share
    fits = total / GIB <= taken
    words = f"{total / GIB:,.2f} GiB" if plan.compiled else "more memory than it has"
    words = f"{name}: a device needs {words}; JAX takes {target.share:.0%} of its "
    words += f"{offered:,.2f} GiB, {taken:,.2f}: the step "
    words += "fits." if fits else f"does not fit. {REMEDY}"
    if taken < total / GIB <= 0.95 * offered:
        words += " With XLA_PYTHON_CLIENT_MEM_FRACTION=0.95 in the environment it fits."
    row = {
        "target": name,
        "fits": fits,
        "arguments_gib": round(sum(memory.values()) / GIB, 4),
        "temporaries_gib": temporaries and round(temporaries / GIB, 4),
        "step_tflop": round(plan.flops / 1e12, 6),
        "collectives": collectives(plan.hlo) if plan.compiled else None,
        "compile_s": round(plan.seconds, 1),
    }
    reason = [f"The compiler: {plan.error}"] if plan.error else []
    return [*reason, words, json.dumps(row)]


def _planned(config, devices=None) -> tuple[Setup, Any, Any]:
    """(setup, abstract global batch, jitted step) of the main phase of training."""
    if config.model.name != "cargait":
        batch = example_batch(config)
        setup = build(config, batch, devices)
        return setup, batch, train.loop_phases(config, setup)[-1].step
    base = base_run.read_config(config)
    strips, width = _embedding_shape(base)
    setup = train_reranker.build(
        config, strips, width, base.data.num_classes, base.evaluation.metric, devices
    )
    anchors = config.train.anchors
    train_reranker.check_batch(config, setup.mesh)
    shape = jax.ShapeDtypeStruct
    batch = {
        "probe": shape((anchors, strips, width), np.float32),
        "candidates": shape((anchors, 2, strips, width), np.float32),
        "probe_label": shape((anchors,), np.int32),
        "candidate_labels": shape((anchors, 2), np.int32),
    }
    return setup, batch, setup.step


def _embedding_shape(config) -> tuple[int, int]:
    """(strips, width) of a base model's embeddings."""
    batch = example_batch(config)
    setup = build(config, batch)
    state = setup.abstract_state
    variables = {
        "params": merge_frozen(state.params, state.frozen),
        "batch_stats": state.batch_stats,
    }
    output = jax.eval_shape(
        lambda v, b: setup.model.apply(v, b, train=False), variables, batch
    )
    return output.embeddings.shape[1:]


def trace_step(setup, batch, step):
    """The step traced for abstract arguments on the setup's mesh."""
    place = lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s)  # noqa: E731
    state = jax.tree.map(place, setup.abstract_state, setup.shardings)
    rng = jax.eval_shape(lambda: jax.random.key(0))
    whole = NamedSharding(setup.mesh, PartitionSpec())
    batch = jax.tree.map(place, batch, _over(setup.mesh, batch))
    return step.trace(state, batch, place(rng, whole))


def compile_step(setup, batch, step):
    """The compiled step for abstract arguments on the setup's mesh."""
    return trace_step(setup, batch, step).lower().compile()


def _over(mesh, batch):
    """The sharding of each entry of a batch."""
    return {name: NamedSharding(mesh, sharding.BATCH) for name in batch}


def buffer_rows(hlo: str) -> dict[str, dict[str, str]]:
    """{name: MiB per device, shape, operation} of the ten largest results."""
    return {
        f"{place}. {buffer.name}": {
            "MiB per device": f"{buffer.bytes / 2**20:,.1f}",
            "shape": buffer.shape,
            "operation": buffer.operation[-80:],
        }
        for place, buffer in enumerate(largest_buffers(hlo), start=1)
    }


def sharding_rows(setup: Setup) -> dict[str, dict[str, str]]:
    """{path: shape, spec, leaves, MiB per device} of all parameters.

    Numbered layers share a row. The optimizer's state lies as its parameters do.
    """
    trees = [{"params": x.params, "frozen": x.frozen}
             for x in (setup.abstract_state, setup.shardings)]  # fmt: skip
    leaves = jax.tree_util.tree_leaves_with_path(trees[0])
    rows = {}
    for (path, leaf), place in zip(leaves, jax.tree.leaves(trees[1])):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        name = re.sub(r"(?<=/)(\d+)(?=/\D)", "*", name)
        key = (name, leaf.shape, str(tuple(place.spec)))
        count, size = rows.get(key, (0, 0))
        rows[key] = count + 1, size + sharding.device_bytes(leaf, place)
    return {
        name: {
            "shape": str(shape),
            "spec": spec,
            "leaves": count,
            "MiB per device": f"{size / 2**20:,.3f}",
        }
        for (name, shape, spec), (count, size) in rows.items()
    }


def _joined(arguments: list[str]) -> list[str]:
    """Pairs --name value as single words --name=value."""
    joined: list[str] = []
    for word in arguments:
        if joined and "=" not in joined[-1] and not re.match(r"--?[a-z]", word):
            joined[-1] += f"={word}"
        else:
            joined.append(word)
    return joined


def commands() -> dict[str, str]:
    """How to start this run: {where: command line}; docs/scaling.md explains them."""
    arguments = [x for x in _joined(sys.argv[1:]) if not re.match(FLAGS, x)]
    config = next((x for x in arguments if x.startswith("--config=")), "--config=FILE")
    rest = [x for x in arguments if x != config]
    program = shlex.join(["python", "-m", "gaitjax.main", config, *rest])
    launch = shlex.join(["./run.sh", "launch", "2", config[len("--config=") :], *rest])
    given = "--coordinator=HOST:PORT --num_processes=N --process_id=I"
    remote = f"cd gaitjax && .venv/bin/{program} --multihost"
    return {
        "One process, all its devices": program,
        "2 processes on this machine": launch,
        "Slurm, in the job": f"srun {program} --multihost",
        "Open MPI": f"mpirun {program} --multihost",
        "Any cluster, on each host": f"{program} --multihost {given}",
        "TPU VM": "gcloud compute tpus tpu-vm ssh NAME --zone=ZONE --worker=all "
        f"--command={shlex.quote(remote)}",
    }
