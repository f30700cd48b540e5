"""The same steps on other layouts of devices: equal results, time, bytes sent.

    python -m benchmarks.scaling            # 1, 8 and 2 x 4 virtual CPU devices
    python -m benchmarks.scaling --model cargait --layouts one fsdp processes
    python -m benchmarks.scaling --memory   # the table of docs/scaling.md

Each layout trains the same few steps in f32 with SGD from the same seed on the same
random batches; `one` is a single device. The last line is one JSON object:
max_rel_diff of the losses over all layouts, the same of parameters and batch
statistics (state_diff: max |a - b| / (1 + |b|)), and per layout step_ms and the
collectives of the compiled step (count and bytes per device). learned: by how
much the norm of the parameters changed.
"""

import argparse
import functools
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

import jax  # noqa: E402
import numpy as np  # noqa: E402
import optax  # noqa: E402
from jax.experimental import multihost_utils  # noqa: E402
from jax.sharding import NamedSharding, PartitionSpec  # noqa: E402

from gaitjax import plan, sharding  # noqa: E402
from gaitjax.data import pipeline  # noqa: E402

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
    """LMGait's embedded variant at a size that compiles in seconds; SGD as published.

    Adam would turn rounding of gradients that are zero into steps of full length; and
    the steps are small, because LMGait's binary masks and maxima turn rounding into
    other gradients once in a while: at 40 times this rate the first losses agree to
    1e-6 too, the fifth only to 1e-2.
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
        name="sgd", learning_rate=5e-4, schedule="constant", clip_norm=0.0
    )
    config.train.trainable = ""
    config.train.accumulate = accumulate
    return config


def cargait_config():
    from configs import cargait

    config = cargait.get_config()
    config.model.update(num_heads=8, hidden_size=16, classifier_size=16)
    config.optimizer.update(name="sgd", learning_rate=0.5, schedule="constant")
    config.train.anchors = 16
    return config


def lmgait_run(config):
    """(setup, jitted step, batches) of LMGait; batch s is a function of s."""
    from gaitjax import state, train

    example = state.example_batch(config)
    setup = state.build(config, example)
    train.check_batch(config, setup.mesh)

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

    return setup, train.step_functions(config, setup)[1], batch


def cargait_run(config):
    """As `lmgait_run`, for the re-ranker on random embeddings of 8 strips."""
    from gaitjax import train_reranker

    strips, width, classes = 8, 16, 10
    setup = train_reranker.build_reranker(config, strips, width, classes)
    step = train_reranker.step_function(config, setup)

    def batch(number: int):
        rng = np.random.default_rng([9, number])
        count = config.train.anchors
        return {
            "probe": rng.normal(size=(count, strips, width)).astype(np.float32),
            "candidates": rng.normal(size=(count, 2, strips, width)).astype(np.float32),
            "probe_label": rng.integers(0, classes, count).astype(np.int32),
            "candidate_labels": rng.integers(0, classes, (count, 2)).astype(np.int32),
        }

    return setup, step, batch


MODELS = {
    "lmgait": (lmgait_config, lmgait_run),
    "cargait": (cargait_config, cargait_run),
}


def run_layout(model: str, layout: str, steps: int, output: Path, accumulate=1) -> None:
    """Trains `steps` steps in this process (or these); writes losses, state, times."""
    count, data, model_axis, rules = LAYOUTS[layout]
    make_config, make_run = MODELS[model]
    config = make_config(accumulate) if model == "lmgait" else make_config()
    config.mesh.update(data=data, model=model_axis)
    config.sharding = rules
    devices = jax.devices()[:count]
    sharding.make_mesh = functools.partial(sharding.make_mesh, devices=devices)
    setup, step, batch = make_run(config)
    sharding.make_mesh = sharding.make_mesh.func

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
    state = start_state(setup, output / "start.npz")
    compiled = step.lower(state, global_batch(0), rng).compile()
    losses, times, norm = [], [], jax.jit(optax.global_norm, out_shardings=whole)
    first_norm = float(norm(state.params))
    for number in range(steps):
        arrays = jax.block_until_ready(global_batch(number))
        started = time.perf_counter()
        state, terms = jax.block_until_ready(compiled(state, arrays, rng))
        times.append(1e3 * (time.perf_counter() - started))
        losses.append({name: float(value) for name, value in terms.items()})
    kept = {"params": state.params, "batch_stats": state.batch_stats}
    kept = jax.jit(lambda x: x, out_shardings=whole)(kept)
    learned = abs(float(norm(state.params)) - first_norm)  # on all: a collective
    if jax.process_index() == 0:
        leaves = jax.tree_util.tree_leaves_with_path(kept)
        arrays = {jax.tree_util.keystr(path): np.asarray(x) for path, x in leaves}
        report = {
            "losses": losses,
            "learned": learned,
            "step_ms": round(statistics.median(times[1:] or times), 1),
            "collectives": plan.collectives(compiled.as_text()),
            "memory": sharding.memory(setup.abstract_state, setup.shardings, compiled),
        }
        np.savez(output / f"{layout}.npz", report=json.dumps(report), **arrays)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(layout)


def start_state(setup, path: Path):
    """A fresh state; the first layout keeps it in `path`, the others only place it."""
    if not path.exists():
        state = setup.new_state()
        leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(state)]
        np.savez(path, *leaves)
        return state
    with np.load(path) as stored:
        leaves = [stored[f"arr_{number}"] for number in range(len(stored.files))]
    leaves = jax.tree.unflatten(jax.tree.structure(setup.abstract_state), leaves)
    return sharding.place(leaves, setup.shardings)


def start(arguments: list[str], devices: int, quick: bool) -> subprocess.Popen:
    environment = {
        **os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)
    }  # fmt: skip
    if quick:  # compiles in half the time, runs slowly
        flags = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes"
        environment |= {
            "XLA_FLAGS": f"{flags}=true {os.environ.get('XLA_FLAGS', '')}",
            "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".cache" / "jax"),
        }
    return subprocess.Popen(
        [sys.executable, "-m", "benchmarks.scaling", *arguments],
        cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True,
    )  # fmt: skip


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def measure(
    model: str, layouts: list[str], steps: int, accumulate: int = 1, quick: bool = False
) -> dict:
    """Runs the layouts in processes of their own and compares them with the first.

    quick: without the compiler's slow passes, for tests; step_ms then means nothing.
    """
    with tempfile.TemporaryDirectory() as folder:
        common = ["--model", model, "--steps", str(steps), "--worker", folder]
        common += ["--accumulate", str(accumulate)]
        alone = [name for name in layouts if name in ALONE]
        several = [name for name in layouts if name not in ALONE]
        if alone:
            finish([start([*common, "--layouts", *alone], 8, quick)])
        if several:
            address = f"127.0.0.1:{free_port()}"
            workers = [
                [*common, "--layouts", *several, "--coordinator", address,
                 "--process_id", str(number)]
                for number in range(2)
            ]  # fmt: skip
            finish([start(arguments, 4, quick) for arguments in workers])
        stored = {name: np.load(Path(folder) / f"{name}.npz") for name in layouts}
        return compare({name: dict(arrays) for name, arrays in stored.items()})


def finish(processes, outputs: list[str] | None = None) -> None:
    """Waits for all; raises RuntimeError with the output of one that failed.

    outputs: filled with what they printed. After ten minutes all are killed, so that
    processes that wait for each other end as an error.
    """
    outputs = [] if outputs is None else outputs
    timer = threading.Timer(600, lambda: [process.kill() for process in processes])
    timer.start()
    outputs += [process.communicate()[0] for process in processes]
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


# ---------------------------------------------------------------- memory table

BEGIN, END = "<!-- made by benchmarks/scaling.py --memory -->", "<!-- end -->"
DOCUMENT = ROOT / "docs" / "scaling.md"
BATCHES = {1: (6, 8), 8: (6, 8), 64: (8, 8)}  # devices -> identities x sequences


def memory_row(size: str, devices: int, activations: bool) -> dict[str, int]:
    """Bytes per device of LMGait at the paper's size (CCPG: 30 frames, 448x224).

    The encoder is DINOv2 `size`; its MLP is GELU throughout, which for g has as many
    parameters as the released SwiGLU. Needs `devices` devices where `activations`,
    which are those of the compiled step under fsdp.
    """
    from configs import lmgait
    from gaitjax import state, train
    from gaitjax.models.dinov2 import DINOV2_SIZES

    config = lmgait.get_config("ccpg")
    fields = {k: v for k, v in DINOV2_SIZES[size].items() if k != "swiglu"}
    layers = fields["num_layers"]
    blocks = tuple(layers * quarter // 4 - 1 for quarter in (1, 2, 3, 4))
    config.model.visual_encoder.update(fields, blocks=blocks)
    config.data.ids_per_batch, config.data.seqs_per_id = BATCHES[devices]
    config.sharding = "fsdp"
    make = sharding.make_mesh
    if not activations:
        axes = (jax.sharding.AxisType.Auto,) * 2
        mesh = jax.sharding.AbstractMesh(
            (devices, 1), ("data", "model"), axis_types=axes
        )
        sharding.make_mesh = lambda _: mesh
    example = state.example_batch(config)
    setup = state.build(config, example)
    sharding.make_mesh = make
    row = {}
    for rules in ("data_parallel", "fsdp"):
        places = sharding.infer_shardings(
            setup.abstract_state, config.sharding_rules[rules], setup.mesh
        )
        for name in ("params", "opt_state", "frozen"):
            leaves = getattr(setup.abstract_state, name)
            row[f"{name} {rules}"] = sharding.device_bytes(
                leaves, getattr(places, name)
            )
    if activations:
        step = train.step_functions(config, setup)[1]
        compiled = plan.compile_step(setup, example, step)
        parts = sharding.memory(setup.abstract_state, setup.shardings, compiled)
        row |= {name: parts[name] for name in ("batch", "activations")}
    return row


def memory_table(sizes, counts, activations: bool) -> str:
    """Markdown; each row is computed in a process with so many devices."""
    lines = [
        "| DINOv2 | devices | batch | parameters + optimizer, replicated / fsdp | "
        "frozen encoders, replicated / fsdp | batch | activations |",
        "|---|---|---|---|---|---|---|",
    ]
    for size in sizes:
        for devices in counts:
            arguments = ["--memory_row", size, str(devices)]
            arguments += [] if activations else ["--shapes_only"]
            process = start(arguments, devices if activations else 1, quick=True)
            finish([process], outputs := [])
            row = json.loads(outputs[0].strip().splitlines()[-1])
            cells = [
                f"ViT-{size}",
                str(devices),
                "{} x {} x 30".format(*BATCHES[devices]),
            ]
            trained = [
                row[f"params {rules}"] + row[f"opt_state {rules}"]
                for rules in ("data_parallel", "fsdp")
            ]
            frozen = [row[f"frozen {rules}"] for rules in ("data_parallel", "fsdp")]
            for pair in (trained, frozen):
                cells.append(" / ".join(f"{x / 2**20:,.1f}" for x in pair))
            for name in ("batch", "activations"):
                cells.append(f"{row[name] / 2**20:,.0f}" if name in row else "-")
            lines.append(f"| {' | '.join(cells)} |")
            print(lines[-1], flush=True)
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="lmgait", choices=list(MODELS))
    parser.add_argument("--layouts", nargs="*", default=list(LAYOUTS), choices=LAYOUTS)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--accumulate", type=int, default=1)
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--coordinator", help=argparse.SUPPRESS)
    parser.add_argument("--process_id", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--memory", action="store_true", help="write the memory table")
    parser.add_argument("--sizes", nargs="*", default=["s", "b", "l", "g"])
    parser.add_argument("--devices", nargs="*", type=int, default=list(BATCHES))
    parser.add_argument(
        "--shapes_only", action="store_true", help="memory without activations"
    )
    parser.add_argument("--memory_row", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory_row:
        size, devices = arguments.memory_row
        print(json.dumps(memory_row(size, int(devices), not arguments.shapes_only)))
        return
    if arguments.memory:
        table = memory_table(
            arguments.sizes, arguments.devices, not arguments.shapes_only
        )
        page = DOCUMENT.read_text()
        before, after = page.index(BEGIN) + len(BEGIN), page.index(END)
        DOCUMENT.write_text(f"{page[:before]}\n{table}\n{page[after:]}")
        return
    if arguments.worker:
        if arguments.coordinator:
            from gaitjax import cluster

            cluster.join(arguments.coordinator, 2, arguments.process_id)
        for layout in arguments.layouts:
            run_layout(
                arguments.model, layout, arguments.steps, arguments.worker,
                arguments.accumulate,
            )  # fmt: skip
        return
    result = measure(
        arguments.model, arguments.layouts, arguments.steps, arguments.accumulate
    )
    for name, row in result["layouts"].items():
        sent = sum(x["bytes"] for x in row["collectives"].values())
        print(
            f"{name:18} {row['step_ms']:8.1f} ms/step  losses {row['max_rel_diff']:.1e}"
            f"  state {row['state_diff']:.1e}  {sent / 2**20:8.2f} MiB in collectives"
        )
    print(json.dumps(result))


if __name__ == "__main__":
    main()
