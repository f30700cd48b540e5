"""Where the time of a training step goes: data wait, host to device, compute.

    python -m benchmarks.train_step --config configs/lmgait.py [--steps 20] [--quick]
    python -m benchmarks.train_step --config configs/lmgait.py:ccpg --random

--random feeds random arrays, for machines without the data set or TFDS; the wait is
then null. The last line is one JSON object: step_ms, wait_share, host_to_device_ms,
compute_ms, compile_s, peak_mib, flops_per_step, flops_share_of_peak, device. If the
config has a warm-up of the decoder: warmup_step_ms, warmup_wait_share, and
run_wait_share, the share of waiting in the whole run (both phases).
"""

import argparse
import importlib.util
import json
import resource
import statistics
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import jax
import jax.numpy as jnp
import numpy as np

from gaitjax import state as states
from gaitjax.data import pipeline
from gaitjax.phases import phases_of
from gaitjax.train import loop_phases

TIMES = ("wait", "transfer", "compute")


def load_config(name: str):
    """configs/X.py[:variant] -> config."""
    path, _, variant = name.partition(":")
    spec = importlib.util.spec_from_file_location("config", ROOT / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(variant) if variant else module.get_config()


def random_batches(config):
    """Random arrays shaped as a batch of `config`, labels grouped by identity."""
    rng = np.random.default_rng(0)
    people, frames = config.data.ids_per_batch, config.data.num_frames
    rows = people * config.data.seqs_per_id
    batch = {}
    for name, shape in states.example_batch(config).items():
        shape, dtype = (rows, frames, *shape.shape[2:])[: shape.ndim], shape.dtype
        batch[name] = rng.integers(0, 2, shape).astype(dtype)
    batch["valid"][:] = True
    batch["ratios"][:] = 0.4
    batch["labels"] = np.repeat(np.arange(people), config.data.seqs_per_id).astype(
        np.int32
    )
    while True:
        yield batch


def data_batches(config, first, steps):
    """The batches that training takes from step `first` on."""
    from gaitjax.data import source

    data = source.open_split(
        config.data.data_dir,
        config.data.train_dataset,
        config.data.train_split,
        config.data.modalities,
    )
    return pipeline.host_batches(
        data, config, start_step=first, stop_step=first + steps
    )


def matmul_peak(dtype) -> float:
    """Best FLOP/s of a square matrix product in `dtype` on this device."""
    size = 1536 if jax.default_backend() == "cpu" else 8192
    x = jnp.ones((size, size), dtype)
    product = jax.jit(lambda a: a @ a)
    product(x).block_until_ready()
    best = 0.0
    for _ in range(7):
        start = time.perf_counter()
        product(x).block_until_ready()
        best = max(best, 2 * size**3 / (time.perf_counter() - start))
    return best


def measure_phase(config, setup, step_function, first, steps, random) -> dict:
    """Times `steps` steps from step `first` on, after three that do not count.

    config: of the phase.

    Returns lists of seconds "wait", "transfer", "compute", and "compile_s", "flops".
    """
    state, warm = setup.new_state(), 3
    rng = jax.random.key(1)
    if random:
        batches = random_batches(config)
    else:
        batches = data_batches(config, first, steps + warm)
    example = pipeline.to_global(next(batches), setup.mesh)
    started = time.perf_counter()
    compiled = step_function.lower(state, example, rng).compile()
    compile_s = time.perf_counter() - started
    times = {name: [] for name in TIMES}
    for number in range(steps + warm - 1):
        t0 = time.perf_counter()
        host = next(batches)
        t1 = time.perf_counter()
        batch = jax.block_until_ready(pipeline.to_global(host, setup.mesh))
        t2 = time.perf_counter()
        state, metrics = compiled(state, batch, rng)
        jax.block_until_ready((state, metrics))
        t3 = time.perf_counter()
        if number >= warm - 1:
            for name, seconds in zip(TIMES, (t1 - t0, t2 - t1, t3 - t2)):
                times[name].append(seconds)
    flops = (compiled.cost_analysis() or {}).get("flops")
    return times | {"compile_s": compile_s, "flops": flops}


def measure(config, steps: int, random: bool) -> dict:
    """Both phases of training; see the module's docstring for the names."""
    setup = states.build(config, states.example_batch(config))
    *before, training = zip(phases_of(config), loop_phases(config, setup))
    first = training[0].first
    main = measure_phase(config, setup, training[1].step, first, steps, random)
    median = {name: statistics.median(main[name]) for name in TIMES}
    step_s = sum(sum(main[name]) for name in TIMES) / steps
    memory = jax.devices()[0].memory_stats() or {}
    peak = memory.get("peak_bytes_in_use")  # none on CPU
    peak = peak or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    flops, best = main["flops"], matmul_peak(jnp.dtype(config.model.dtype))
    result = {
        "step_ms": round(1e3 * step_s, 1),
        "wait_ms": None if random else round(1e3 * median["wait"], 2),
        "wait_share": None if random else round(sum(main["wait"]) / steps / step_s, 4),
        "host_to_device_ms": round(1e3 * median["transfer"], 2),
        "compute_ms": round(1e3 * median["compute"], 1),
        "compile_s": round(main["compile_s"], 1),
        "peak_mib": round(peak / 2**20),
        "flops_per_step": flops,
        "flops_share_of_peak": (
            round(flops / median["compute"] / best, 4) if flops else None
        ),
        "matmul_peak_gflops": round(best / 1e9, 1),
        "steps": steps,
        "device": f"{jax.devices()[0].device_kind}, {jax.device_count()} device(s)",
    }
    if before:
        phase, in_loop = before[0]
        warm = measure_phase(phase.config, setup, in_loop.step, 0, 3 * steps, random)
        warm_s = sum(sum(warm[name]) for name in TIMES) / (3 * steps)
        result["warmup_step_ms"] = round(1e3 * warm_s, 1)
        if not random:
            waits = [sum(warm["wait"]) / (3 * steps), sum(main["wait"]) / steps]
            result["warmup_wait_share"] = round(waits[0] / warm_s, 4)
            counts = (first, config.train.steps)
            waited = sum(n * wait for n, wait in zip(counts, waits))
            total = sum(n * each for n, each in zip(counts, (warm_s, step_s)))
            result["run_wait_share"] = round(waited / total, 4)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="configs/lmgait.py")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--quick", action="store_true", help="8 steps")
    parser.add_argument("--random", action="store_true", help="random input arrays")
    parser.add_argument("--data_dir", default=str(ROOT / "data"))
    arguments = parser.parse_args()
    config = load_config(arguments.config)
    config.data.data_dir = arguments.data_dir
    steps = 8 if arguments.quick else arguments.steps
    result = measure(config, steps, arguments.random)
    print(f"{arguments.config}: {jax.__version__} {result['device']}")
    for name, value in result.items():
        print(f"  {name:22} {value}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
