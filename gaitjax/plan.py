"""`main --dry_run`: what a run would take, and how to start it, without any data.

    JAX_NUM_CPU_DEVICES=64 python -m gaitjax.main --config=configs/lmgait.py:ccpg \
        --config.sharding=fsdp --dry_run

plans for 64 devices on a laptop: nothing is computed or allocated, the step is only
compiled. The activations are those of the backend it is compiled for: CPU writes
attention scores and keeps bfloat16 in float32, so GPU and TPU need less.
"""

import re
import shlex
import sys
from collections import Counter, defaultdict
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from gaitjax import train
from gaitjax.engine import log, sharding
from gaitjax.engine.checkpoints import abstract
from gaitjax.rerank import base_run
from gaitjax.rerank import train as train_reranker
from gaitjax.state import Setup, build, example_batch, merge_frozen

FLAGS = r"^--?(no)?(dry_run|multihost|coordinator|num_processes|process_id)\b"


def dry_run(config, workdir: str) -> str:
    """Mesh, shardings, bytes per device, commands, as text."""
    setup, batch, step = _planned(config)
    compiled = compile_step(setup, batch, step)
    state = abstract(setup.abstract_state, setup.shardings)
    parts = sharding.memory(state, compiled)
    memory = {
        name: {"MiB per device": f"{size / 2**20:,.1f}"} for name, size in parts.items()
    }
    lines = [
        f"{config.name} in {workdir}: mesh {dict(setup.mesh.shape)} of "
        f"{jax.device_count()} {jax.devices()[0].platform} devices in "
        f"{jax.process_count()} processes, config.sharding={config.sharding!r}",
        log.table(sharding_rows(setup)),
        log.table(memory),
        f"Collectives of a step: {collectives(compiled.as_text()) or 'none'}",
        "\n".join(f"{title}:\n  {line}" for title, line in commands().items()),
    ]
    return "\n\n".join(lines)


def _planned(config) -> tuple[Setup, Any, Any]:
    """(setup, abstract global batch, jitted step) of the main phase of training."""
    if config.model.name != "cargait":
        batch = example_batch(config)
        setup = build(config, batch)
        return setup, batch, train.loop_phases(config, setup)[-1].step
    base = base_run.read_config(config)
    strips, width = _embedding_shape(base)
    setup = train_reranker.build(
        config, strips, width, base.data.num_classes, base.evaluation.metric
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


def compile_step(setup: Setup, batch, step):
    """The compiled step for abstract arguments on the setup's mesh."""
    place = lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s)  # noqa: E731
    split = NamedSharding(setup.mesh, sharding.BATCH)
    whole = NamedSharding(setup.mesh, PartitionSpec())
    state = jax.tree.map(place, setup.abstract_state, setup.shardings)
    batch = {name: place(x, split) for name, x in batch.items()}
    rng = jax.eval_shape(lambda: jax.random.key(0))
    return step.lower(state, batch, place(rng, whole)).compile()


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


COLLECTIVES = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
)
_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "f64": 8, "s64": 8}


def collectives(hlo: str) -> dict[str, dict[str, int]]:
    """{kind: {count, bytes}} of compiled HLO text; bytes of the results, per device.

    Those in the body of a loop count as often as it runs, where the compiler knows how
    often that is (all loops of fixed length), else once.
    """
    found: dict[str, dict[str, int]] = {}
    times, inside = _executions(hlo), ""
    for line in hlo.splitlines():
        if header := re.match(_COMPUTATION, line):
            inside = header[2]
        match = re.search(rf"= (.*?) ({'|'.join(COLLECTIVES)})(-start)?\(", line)
        if not match:
            continue
        total = found.setdefault(match[2], {"count": 0, "bytes": 0})
        total["count"] += times[inside]
        for kind, sizes in re.findall(r"(\w+)\[([\d,]*)\]", match[1]):
            elements = np.prod([int(n) for n in sizes.split(",") if n], dtype=np.int64)
            size = int(elements) * _BYTES.get(kind, 4)
            total["bytes"] += times[inside] * size
    return found


_COMPUTATION = r"(ENTRY )?%?([\w.-]+) \(.*-> .*\{$"
_CALL = r"(?:body|calls|to_apply|computation)s?=\{?((?:%?[\w.-]+(?:, )?)+)"
_TRIPS = r'"known_trip_count":\{"n":"(\d+)"'


def _executions(hlo: str) -> Counter[str]:
    """{computation: how often the program runs it}; text outside of any, "": once."""
    calls, entry, inside = defaultdict(list), "", ""
    for line in hlo.splitlines():
        if header := re.match(_COMPUTATION, line):
            inside = header[2]
            entry = inside if header[1] else entry
        elif "= " in line:
            trips = re.search(_TRIPS, line)
            for names in re.findall(_CALL, line):
                for name in re.findall(r"[\w.-]+", names):
                    calls[inside].append((name, int(trips[1]) if trips else 1))
    times = Counter({"": 1})

    def run(name: str, count: int) -> None:
        times[name] += count
        for callee, trips in calls[name]:
            run(callee, count * trips)

    run(entry or "", 1 if entry else 0)
    return times


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
