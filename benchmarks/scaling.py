"""The same steps on different layouts of devices: results, time, bytes sent.

    python -m benchmarks.scaling            # 1, 8 and 2 x 4 virtual CPU devices
    python -m benchmarks.scaling --model cargait --layouts one fsdp processes

Each layout trains the same few steps in float32 with SGD from the same seed on the same
random batches; `one` is a single device. The last line is one JSON object:
max_rel_diff (of the losses, over all layouts), state_diff (of parameters and batch
statistics, max |a - b| / (1 + |b|)), learned (how much the norm of the parameters
changed), and per layout step_ms and the collectives of the compiled step (count and
bytes per device). --store keeps that object in docs/scaling.json.
benchmarks/growth.py has more devices and larger batches, benchmarks/memory.py the
paper's size.
"""

import argparse
import contextlib
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import jax
import numpy as np
import optax
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec

from benchmarks import memory
from gaitjax import plan, state
from gaitjax.data import pipeline
from gaitjax.engine import checkpoints, sharding

# name -> (devices, data, model, name in config.sharding_rules)
LAYOUTS = {
    "one": (1, 1, 1, "data_parallel"),
    "data": (8, 8, 1, "data_parallel"),
    "fsdp": (8, 8, 1, "fsdp"),
    "tensor": (8, 2, 4, "tensor_parallel"),
    "processes": (8, 8, 1, "data_parallel"),  # 2 processes x 4 devices
    "processes_fsdp": (8, 8, 1, "fsdp"),
    "processes_tensor": (8, 1, 8, "tensor_parallel"),  # heads across processes
}
ALONE = [name for name in LAYOUTS if not name.startswith("processes")]


def lmgait_config(accumulate: int = 1):
    """The embedded LMGait at a size that compiles in seconds, with SGD as published.

    Adam would scale rounding errors of zero gradients up to full steps. The learning
    rate is small because LMGait's binary masks and maxima occasionally turn rounding
    into another gradient: at 100 times this rate the first losses still agree to 1e-6,
    the fifth only to 1e-2.
    """
    from configs import lmgait

    config = lmgait.get_config()
    config.data.update(ids_per_batch=4, seqs_per_id=4, num_frames=3, num_classes=6)
    config.data.image_size = (32, 16)
    model = config.model
    model.image_size, model.feature_grid = (32, 16), (8, 4)
    model.visual_encoder.update(
        hidden_size=16, num_layers=1, blocks=(0,), patch_size=4, num_heads=4
    )
    model.text.update(width=16, num_layers=1, num_heads=4, adapter_size=4)
    model.representation.update(channels=8, hidden=8)
    model.gait.update(
        stem=8, channels=(8,), strides=(1,), num_strips=2, embedding_size=8
    )
    config.optimizer.update(
        name="sgd",
        learning_rate=2e-4,
        schedule="constant",
        clip_norm=0.0,
        rates=(),
    )
    config.pretrained = {part: "" for part in config.pretrained}
    config.frozen = ("^text_encoder/",)
    config.train.trainable = ""
    config.train.accumulate = accumulate
    return config


def cargait_config(accumulate: int = 1):
    from configs import cargait

    config = cargait.get_config()
    config.model.update(num_heads=8, hidden_size=16, classifier_size=16)
    config.optimizer.update(name="sgd", learning_rate=0.5, schedule="constant")
    config.train.update(anchors=16, accumulate=accumulate)
    return config


def lmgait_run(config):
    """(setup, jitted step, batches) of LMGait; batch s is a function of s."""
    from gaitjax import train

    example = state.example_batch(config)
    setup = state.build(config, example)

    def batch(step: int):
        rng = np.random.default_rng([7, step])
        arrays = {
            name: rng.integers(0, 2, x.shape).astype(x.dtype)
            for name, x in example.items()
        }
        arrays["frames"] = rng.integers(0, 255, example["frames"].shape, np.uint8)
        arrays["valid"][:] = True
        arrays["valid"][1::3, -1] = False  # uneven lengths: statistics must be global
        arrays["ratios"][:] = 0.4
        ids = rng.choice(config.data.num_classes, config.data.ids_per_batch, False)
        arrays["labels"] = np.repeat(ids, config.data.seqs_per_id).astype(np.int32)
        return arrays

    return setup, train.loop_phases(config, setup)[-1].step, batch


def cargait_run(config):
    """As `lmgait_run`, for the re-ranker on random embeddings of 8 strips."""
    from gaitjax.rerank import train as train_reranker

    strips, width, classes = 8, 16, 10
    setup = train_reranker.build(config, strips, width, classes, "euclidean")

    def batch(number: int):
        rng = np.random.default_rng([9, number])
        count = config.train.anchors
        return {
            "probe": rng.normal(size=(count, strips, width)).astype(np.float32),
            "candidates": rng.normal(size=(count, 2, strips, width)).astype(np.float32),
            "probe_label": rng.integers(0, classes, count).astype(np.int32),
            "candidate_labels": rng.integers(0, classes, (count, 2)).astype(np.int32),
        }

    return setup, setup.step, batch


MODELS = {
    "lmgait": (lmgait_config, lmgait_run),
    "cargait": (cargait_config, cargait_run),
}
RETRIEVAL = "retrieval"  # besides MODELS: what follows training, see run_retrieval


def run_layout(model: str, layout: str, steps: int, output: Path, accumulate=1) -> None:
    """Trains `steps` steps in this process (or these); writes losses, state, times."""
    if model == RETRIEVAL:
        return run_retrieval(layout, output)
    count, data, model_axis, rules = LAYOUTS[layout]
    make_config, make_run = MODELS[model]
    config = make_config(accumulate)
    config.mesh.update(data=data, model=model_axis)
    config.sharding = rules
    with on_devices(count):
        setup, step, batch = make_run(config)

    def global_batch(number: int):
        arrays = batch(number)
        rows = len(next(iter(arrays.values())))
        order = pipeline.part_order(rows, accumulate, data)
        own = order[sharding.own_rows(rows, setup.mesh)]
        return pipeline.to_global(
            {k: v[own] for k, v in arrays.items()}, setup.mesh, rows
        )

    whole = NamedSharding(setup.mesh, PartitionSpec())
    rng = sharding.key(1, setup.mesh)
    state = start_state(setup, output / f"{model}_start.npz")
    compiled = step.lower(state, global_batch(0), rng).compile()
    losses, times, norm = [], [], jax.jit(optax.global_norm, out_shardings=whole)
    first_norm = float(norm(state.params))
    for number in range(steps):
        arrays = jax.block_until_ready(global_batch(number))
        started = time.perf_counter()
        state, terms = jax.block_until_ready(compiled(state, arrays, rng))
        times.append(1e3 * (time.perf_counter() - started))
        # without what a model logs beside them: statistics over binary masks jump
        losses.append({k: float(v) for k, v in terms.items() if "/" not in k})
    kept = {"params": state.params, "batch_stats": getattr(state, "batch_stats", {})}
    kept = jax.jit(lambda x: x, out_shardings=whole)(kept)
    learned = abs(float(norm(state.params)) - first_norm)  # on all: a collective
    if jax.process_index() == 0:
        placed = checkpoints.abstract(setup.abstract_state, setup.shardings)
        leaves = jax.tree_util.tree_leaves_with_path(kept)
        arrays = {jax.tree_util.keystr(path): np.asarray(x) for path, x in leaves}
        report = {
            "losses": losses,
            "learned": learned,
            "step_ms": round(statistics.median(times[1:] or times), 1),
            "collectives": plan.collectives(compiled.as_text()),
            "memory": sharding.memory(placed, compiled),
        }
        write(output, model, layout, report, arrays)


def write(output: Path, model: str, layout: str, report: dict, arrays: dict) -> None:
    file = output / f"{model}_{layout}.npz"
    np.savez(file, report=json.dumps(report), **arrays)


def run_retrieval(layout: str, output: Path) -> None:
    """What follows training, on 24 random sequences: embeddings, a protocol's results,
    nearest neighbours, and a re-ranker trained on them (its best parameters, its log).

    learned: the smallest gradient norm of the re-ranker's steps.
    """
    from configs import gaitbase
    from gaitjax import evaluate
    from gaitjax.data import source
    from gaitjax.engine import log
    from gaitjax.rerank import base_run
    from gaitjax.rerank import train as train_reranker
    from gaitjax.retrieval import distance, protocols

    rng = np.random.default_rng(3)
    lengths = rng.integers(3, 9, 24)
    subject = np.repeat([f"{number:02}" for number in range(8)], 3)
    key = np.array([f"{name}/{row}" for row, name in enumerate(subject)])
    condition = np.where(np.arange(24) % 3 == 0, "probe", "gallery")
    records = [
        {"silhouettes": rng.integers(0, 255, (length, 64, 64)).astype(np.uint8),
         "ratios": np.full(length, 0.4, np.float32)}
        for length in lengths
    ]  # fmt: skip
    index = source.Index(subject, condition, key, key, lengths)
    data = source.Source("random", records, index, "random")
    count, data_axis, model_axis, rules = LAYOUTS[layout]
    config, ranking = gaitbase.get_config(), cargait_config()
    config.data.update(ids_per_batch=4, seqs_per_id=2, num_frames=3, num_classes=8)
    config.evaluation.update(batch_size=8, frame_multiple=8)
    config.model.update(
        channels=(4,), layers=(1,), strides=(2,), num_strips=2, embedding_size=4
    )
    ranking.lists.update(size=6, without_negative="nearest")
    ranking.train.update(steps=4, anchors=8, log_every=1, checkpoint_every=2)
    ranking.validation.update(share=0.25, batches=2, every_steps=1)
    for chosen in (config, ranking):
        chosen.mesh.update(data=data_axis, model=model_axis)
        chosen.sharding = rules
    with on_devices(count):
        setup = state.build(config, state.example_batch(config))
        fresh = start_state(setup, output / f"{RETRIEVAL}_start.npz")
        variables = state.model_variables(fresh)
        embeddings = evaluate.embed_split(
            setup.model, variables, data, config, setup.mesh
        )
        metrics = protocols.evaluate(
            "gait3d", embeddings, index, split=jax.process_count() > 1
        )
        values, rows = distance.nearest(
            embeddings, embeddings, k=5, metric="euclidean", mesh=setup.mesh
        )
        table = base_run.Table(embeddings, subject, key, key, "euclidean", "random")
        reranker = train_reranker.fit(ranking, str(output / layout), table)
    if jax.process_index() == 0:
        leaves = jax.tree_util.tree_leaves_with_path(reranker.params)
        arrays = {jax.tree_util.keystr(path): np.asarray(x) for path, x in leaves}
        arrays |= {"embeddings": embeddings, "rows": rows}
        arrays["values"] = values[:, 1:]  # a distance to itself is rounding alone
        logged = log.read_metrics(output / layout)
        for row in logged:
            row.pop("wait_share", None)  # seconds of this machine
        numbers = [x for row in logged for x in row.values() if not isinstance(x, str)]
        arrays["history"] = np.array(numbers)
        norms = [row["gradient_norm"] for row in logged if row["kind"] == "train"]
        report = {"losses": [metrics], "learned": min(norms)}
        report |= {"step_ms": 0.0, "collectives": {}, "memory": {}}
        write(output, RETRIEVAL, layout, report, arrays)


@contextlib.contextmanager
def on_devices(count: int):
    """Within this block meshes are made of the first `count` devices."""
    make = sharding.make_mesh
    first = jax.devices()[:count]
    sharding.make_mesh = lambda axes, devices=None: make(axes, devices or first)
    try:
        yield
    finally:
        sharding.make_mesh = make


def start_state(setup, path: Path):
    """A fresh state. The first layout writes it to `path`, the others read it there."""
    if not path.exists():
        state = setup.new_state()
        leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(state)]
        np.savez(path, *leaves)
        return state
    with np.load(path) as stored:
        leaves = [stored[f"arr_{number}"] for number in range(len(stored.files))]
    leaves = jax.tree.unflatten(jax.tree.structure(setup.abstract_state), leaves)
    return sharding.place(leaves, setup.shardings)


def start(
    arguments: list[str], devices: int, quick: bool, program="benchmarks.scaling"
) -> subprocess.Popen:
    """quick: without the compiler's slow passes, with a cache of programs."""
    environment = {
        **os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)
    }  # fmt: skip
    if quick:
        flags = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes"
        environment |= {
            "XLA_FLAGS": f"{flags}=true {os.environ.get('XLA_FLAGS', '')}",
            "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".cache" / "jax"),
        }
    return subprocess.Popen(
        [sys.executable, "-m", program, *arguments],
        cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True,
    )  # fmt: skip


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def measure(
    layouts: dict[str, list[str]], steps: int, accumulate: int = 1, quick: bool = False
) -> dict[str, dict]:
    """Compares the layouts of each model with its first: {model: JSON object}.

    One process with 8 devices runs the layouts in ALONE, then two processes with 4
    devices each run the others. quick: for tests; step_ms is then meaningless.
    """
    jobs = [(model, name) for model, names in layouts.items() for name in names]
    alone = [f"{model}:{name}" for model, name in jobs if name in ALONE]
    several = [f"{model}:{name}" for model, name in jobs if name not in ALONE]
    with tempfile.TemporaryDirectory() as folder:
        common = ["--steps", str(steps), "--accumulate", str(accumulate)]
        common += ["--worker", folder, "--jobs"]
        if alone:
            finish([start([*common, *alone], 8, quick)])
        if several:
            address = f"127.0.0.1:{free_port()}"
            workers = [
                [*common, *several, "--coordinator", address, "--process_id", str(i)]
                for i in range(2)
            ]
            finish([start(arguments, 4, quick) for arguments in workers])
        found = {}
        for model, names in layouts.items():
            files = {x: np.load(Path(folder) / f"{model}_{x}.npz") for x in names}
            found[model] = compare({name: dict(x) for name, x in files.items()})
        return found


def finish(processes, seconds: float = 1800) -> None:
    """Waits for all; raises RuntimeError with their output if one failed.

    After `seconds` all are killed, in case they wait for each other.
    """
    timer = threading.Timer(seconds, lambda: [process.kill() for process in processes])
    timer.start()
    outputs = [process.communicate()[0] for process in processes]
    timer.cancel()
    if any(process.returncode for process in processes):
        raise RuntimeError("\n\n".join(output[-4000:] for output in outputs))


def compare(results: dict[str, dict]) -> dict:
    """The JSON object, from {layout: arrays with the entry `report`}."""
    reports = {name: json.loads(str(x.pop("report"))) for name, x in results.items()}
    first = next(iter(results))
    losses = {
        name: np.array([list(step.values()) for step in report["losses"]])
        for name, report in reports.items()
    }
    reference = losses[first]
    rows = {}
    for name, report in reports.items():
        relative = np.abs(losses[name] - reference) / np.maximum(
            np.abs(reference), 1e-3
        )
        rows[name] = {
            "step_ms": report["step_ms"],
            "max_rel_diff": float(relative.max()),
            "state_diff": max(
                float(np.max(np.abs(x - results[first][key]) / (1 + np.abs(x))))
                for key, x in results[name].items()
            ),
            "collectives": report["collectives"],
            "memory": report["memory"],
        }
    return {
        "max_rel_diff": max(row["max_rel_diff"] for row in rows.values()),
        "state_diff": max(row["state_diff"] for row in rows.values()),
        "learned": reports[first]["learned"],
        "step_ms": {name: row["step_ms"] for name, row in rows.items()},
        "layouts": rows,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="lmgait", choices=[*MODELS, RETRIEVAL])
    parser.add_argument("--layouts", nargs="*", default=list(LAYOUTS), choices=LAYOUTS)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--accumulate", type=int, default=1)
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--jobs", nargs="*", help=argparse.SUPPRESS)
    parser.add_argument("--coordinator", help=argparse.SUPPRESS)
    parser.add_argument("--process_id", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--store", action="store_true", help="in docs/scaling.json")
    arguments = parser.parse_args()
    if arguments.worker:
        if arguments.coordinator:
            from gaitjax.engine import cluster

            cluster.join(arguments.coordinator, 2, arguments.process_id)
        for job in arguments.jobs:
            model, layout = job.split(":")
            run_layout(
                model, layout, arguments.steps, arguments.worker, arguments.accumulate
            )
            if arguments.coordinator:
                multihost_utils.sync_global_devices(job)
        return
    layouts = {arguments.model: arguments.layouts}
    result = measure(layouts, arguments.steps, arguments.accumulate)[arguments.model]
    for name, row in result["layouts"].items():
        sent = sum(x["bytes"] for x in row["collectives"].values())
        print(
            f"{name:18} {row['step_ms']:8.1f} ms/step  losses {row['max_rel_diff']:.1e}"
            f"  state {row['state_diff']:.1e}  {sent / 2**20:8.2f} MiB in collectives"
        )
    if arguments.store:
        memory.keep("layouts", arguments.model, result)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
