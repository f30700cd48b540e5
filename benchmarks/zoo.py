"""Milliseconds per forward pass and per training step, beside PyTorch's.

    python -m benchmarks.zoo                        # all models, 2 threads
    python -m benchmarks.zoo --models gaitset gaitpart --repeats 5 --store

Published sizes, float32, random input: 8 sequences x 30 frames x 64x44 (skeletons: 30
frames of key points). A step is forward, losses, backward, update. Where PyTorch is
installed, networks of the same shape and size (benchmarks/pytorch/networks.py: eager,
channels last, the same threads) run in the same process, in turns with ours: one call
of ours, one of theirs, and so on. `ratio` is their time divided by ours, above 1 we are
faster; null without PyTorch and for models that have no such network.

Times are medians of this process's CPU time / threads, which other programs on the
machine disturb less than the clock; wall_ratio compares the clock. On a busy machine
take --threads 1: PyTorch's threads spin while they wait for each other, which counts as
CPU time. GiB: what our step needs besides its arguments, from the compiler's memory
plan. The last line is JSON.
--store keeps it in docs/zoo_speed.json and writes the table of docs/zoo.md.
"""

import argparse
import functools
import importlib
import json
import os
import statistics
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import tables

DOCUMENT, STORE = tables.DOCS / "zoo.md", tables.DOCS / "zoo_speed.json"
SEQUENCES, FRAMES = 8, 30
MODELS = {  # config -> variant
    "gaitset": "casia_b",
    "gaitpart": "casia_b",
    "gaitgl": "casia_b",
    "gaitbase": "casia_b",
    "deepgaitv2": "gait3d",
    "swingait": "gait3d",
    "skeletongait": "gait3d",
    "skeletongaitpp": "gait3d",
    "multigaitpp": "gait3d",
    "gaitgraph2": "gait3d",
    "gaittr": "gait3d",
}


def model_config(name: str, sequences: int = SEQUENCES):
    """configs/NAME.py at its published size, with the benchmark's batch."""
    config = importlib.import_module(f"configs.{name}").get_config(MODELS[name])
    config.data.ids_per_batch, config.data.seqs_per_id = 2, sequences // 2
    config.data.num_frames = FRAMES
    config.model.dtype = "float32"
    return config


def random_state(setup):
    """A TrainState of small random values, without compiling the initialisation."""
    import jax
    import numpy as np

    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda x: rng.uniform(0.01, 0.05, x.shape).astype(x.dtype),
        setup.abstract_state,
    )


def our_calls(config) -> tuple[dict, float]:
    """({"forward", "step"}: functions that run one to its end, GiB of a step)."""
    import jax

    from benchmarks.train_step import random_batches
    from gaitjax import state as states
    from gaitjax import train

    setup = states.build(config, states.example_batch(config))
    batch = jax.device_put(next(random_batches(config)))
    state = jax.device_put(random_state(setup))
    rng = jax.random.key(0)

    @jax.jit
    def forward(variables, batch):
        return setup.model.apply(variables, batch, train=False).embeddings

    # not donated: the same state is used again
    step = jax.jit(train.loop_phases(config, setup)[-1].step.__wrapped__)
    step = step.lower(state, batch, rng).compile()
    variables = states.model_variables(state)
    forward = functools.partial(forward, variables, batch)
    step_call = functools.partial(step, state, batch, rng)
    calls = {
        "forward": lambda: jax.block_until_ready(forward()),
        "step": lambda: jax.block_until_ready(step_call()),
    }
    return calls, step.memory_analysis().temp_size_in_bytes / 2**30


def their_network(name: str, config):
    """PyTorch's network of this shape, images and labels for it, or None."""
    import numpy as np

    try:
        from benchmarks.pytorch import networks
    except ImportError:  # PyTorch is not installed
        return None
    if name not in networks.NETWORKS:
        return None
    with_classes = name in ("gaitbase", "deepgaitv2")
    options = {"classes": config.data.num_classes} if with_classes else {}
    network = networks.NETWORKS[name](frames=config.data.num_frames, **options)
    people, walks = config.data.ids_per_batch, config.data.seqs_per_id
    shape = (people * walks * config.data.num_frames, 1, *config.data.silhouette_size)
    images = np.random.default_rng(0).random(shape, np.float32)
    return network, images, np.repeat(np.arange(people), walks)


def their_calls(name: str, config, threads: int) -> dict:
    """As `our_calls`, of PyTorch's network; {} without PyTorch or such a network."""
    theirs = their_network(name, config)
    if theirs is None:
        return {}
    import torch

    from benchmarks.pytorch import networks

    torch.set_num_threads(threads)
    return networks.calls(*theirs)


def timed(calls: dict, repeats: int, threads: int) -> dict[str, tuple[float, float]]:
    """name -> (median CPU ms / threads, median ms by the clock), in turns."""
    for call in calls.values():
        call()  # compiles, allocates
    found = {name: ([], []) for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            wall, own = time.perf_counter(), time.process_time()
            call()
            found[name][0].append(1e3 * (time.process_time() - own) / threads)
            found[name][1].append(1e3 * (time.perf_counter() - wall))
    return {name: tuple(map(statistics.median, x)) for name, x in found.items()}


def measure(name: str, repeats: int, sequences: int, threads: int) -> dict:
    """A row of the store: our times, theirs, the ratios."""
    config = model_config(name, sequences)
    ours, gib = our_calls(config)
    theirs = their_calls(name, config, threads)
    row = {"step_gib": round(gib, 2), "sequences": sequences, "repeats": repeats}
    row["threads"] = threads
    for kind, call in ours.items():
        calls = {"ours": call} | ({"theirs": theirs[kind]} if theirs else {})
        times = timed(calls, repeats, threads)
        own, wall = times["ours"]
        row[f"{kind}_ms"], row[f"{kind}_wall_ms"] = round(own, 1), round(wall, 1)
        theirs_own, theirs_wall = times.get("theirs", (None, None))
        row[f"{kind}_torch_ms"] = theirs_own and round(theirs_own, 1)
        row[f"{kind}_ratio"] = theirs_own and round(theirs_own / own, 2)
        row[f"{kind}_wall_ratio"] = theirs_wall and round(theirs_wall / wall, 2)
    return row


def table(rows: dict[str, dict]) -> str:
    """Markdown of the rows that were measured, in the order of MODELS."""
    head = ["model", "sequences", "threads", "forward ms", "PyTorch", "ratio"]
    head += ["step ms", "PyTorch", "ratio", "step GiB"]
    lines = []
    for name, variant in MODELS.items():
        if name in rows:
            row = rows[name]
            cells = [f"`{name}:{variant}`", row["sequences"], row["threads"]]
            for kind in ("forward", "step"):
                numbers = row[f"{kind}_ms"], row[f"{kind}_torch_ms"]
                cells += [f"{x:,.0f}" if x else "" for x in numbers]
                cells.append(row[f"{kind}_ratio"] or "")
            lines.append([*cells, f"{row['step_gib']:.1f}"])
    return tables.markdown(head, lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="*", default=list(MODELS), choices=MODELS)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--sequences", type=int, default=SEQUENCES, help="even")
    parser.add_argument("--store", action="store_true", help="write it into docs/")
    arguments = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):  # before the backend counts its threads
        cores = sorted(os.sched_getaffinity(0))[: arguments.threads]
        os.sched_setaffinity(0, cores)
    import jax

    sizes = (arguments.repeats, arguments.sequences, arguments.threads)
    print(f"JAX {jax.__version__}, {jax.devices()[0].device_kind}")
    results = {}
    for name in arguments.models:
        results[name] = measure(name, *sizes)
        print(name, json.dumps(results[name]), flush=True)
        if arguments.store:
            tables.add(STORE, name, results[name])
        jax.clear_caches()
    if arguments.store:
        tables.put(DOCUMENT, "zoo.py", table(tables.stored(STORE)))
    else:
        print(table(results))
    print(json.dumps(results))


if __name__ == "__main__":
    main()
