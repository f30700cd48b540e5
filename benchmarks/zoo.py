"""Milliseconds per forward pass and per training step of the models.

    python -m benchmarks.zoo                        # all models, 2 threads
    python -m benchmarks.zoo --models gaitset gaitpart --repeats 3

Published sizes, float32, random input: 8 sequences x 30 frames x 64x44 (skeletons: 30
frames of key points). A step is forward, losses, backward, update. `ratio` is the time
of OpenGait's PyTorch (2.13, eager, 2 threads, forward + loss + backward) divided by
ours: above 1 we are faster, the goal is 0.9. PyTorch was measured on another idle
machine with 2 cores, to about 25 %, as CPU time / threads. `CPU` is the ratio with our
CPU time / threads, which other programs on the machine disturb little.
GiB: what a step needs besides its arguments, from the compiler's memory plan.
The last line is JSON: {model: {forward_ms, step_ms, step_gib}}.
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

SEQUENCES, FRAMES, THREADS = 8, 30, 2
# config -> (variant, PyTorch's (forward ms, step ms) or None)
MODELS = {
    "gaitset": ("casia_b", (920, 2_240)),
    "gaitpart": ("casia_b", (1_340, 3_740)),
    "gaitgl": ("casia_b", None),
    "gaitbase": ("casia_b", (4_820, 14_980)),
    "deepgaitv2": ("gait3d", (11_825, 37_455)),
    "swingait": ("gait3d", None),
    "skeletongait": ("gait3d", None),
    "skeletongaitpp": ("gait3d", (15_655, 45_530)),
    "multigaitpp": ("gait3d", None),
    "gaitgraph2": ("gait3d", None),
    "gaittr": ("gait3d", None),
}


def model_config(name: str):
    """configs/NAME.py at its published size, with the benchmark's batch."""
    config = importlib.import_module(f"configs.{name}").get_config(MODELS[name][0])
    config.data.ids_per_batch, config.data.seqs_per_id = 2, SEQUENCES // 2
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


def measure(name: str, repeats: int) -> tuple[dict[str, float], dict[str, float]]:
    """{"forward_ms", "step_ms", "step_gib"}, medians after compilation and one warm
    call: of wall time, and of the process's CPU time / THREADS."""
    import jax

    from benchmarks.train_step import random_batches
    from gaitjax import state as states
    from gaitjax import train

    config = model_config(name)
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
    calls = {
        "forward_ms": functools.partial(forward, variables, batch),
        "step_ms": functools.partial(step, state, batch, rng),
    }
    wall, processor = {}, {}
    for kind, call in calls.items():
        jax.block_until_ready(call())  # compiles
        seconds, own = [], []
        for _ in range(repeats):
            started, started_own = time.perf_counter(), time.process_time()
            jax.block_until_ready(call())
            seconds.append(time.perf_counter() - started)
            own.append((time.process_time() - started_own) / THREADS)
        wall[kind] = round(1e3 * statistics.median(seconds), 1)
        processor[kind] = round(1e3 * statistics.median(own), 1)
    planned = step.memory_analysis().temp_size_in_bytes
    return wall | {"step_gib": round(planned / 2**30, 2)}, processor


def ratio(reference: float | None, ours: float) -> str:
    return f"{reference / ours:.2f}" if reference else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="*", default=list(MODELS), choices=MODELS)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):  # before the backend counts its threads
        cores = sorted(os.sched_getaffinity(0))[:THREADS]
        os.sched_setaffinity(0, cores)
    import jax

    print(f"JAX {jax.__version__}, {jax.devices()[0].device_kind}, {THREADS} threads")
    print("| model | forward ms | ratio | CPU | step ms | ratio | CPU | GiB |")
    print("|---" * 8 + "|")
    results = {}
    for name in arguments.models:
        results[name], own = measure(name, arguments.repeats)
        reference = MODELS[name][1] or (None, None)
        cells = [
            f"{results[name][kind]:,.0f} | {ratio(torch, results[name][kind])} | "
            f"{ratio(torch, own[kind])}"
            for torch, kind in zip(reference, own)
        ]
        cells.append(f"{results[name]['step_gib']:.1f}")
        print(f"| {name} {MODELS[name][0]} | {' | '.join(cells)} |", flush=True)
        jax.clear_caches()
    print(json.dumps(results))


if __name__ == "__main__":
    main()
