"""DINOv2 at 448x224: frames per second and memory, against transformers' classes.

    python -m benchmarks.encoders [--batches 8] [--sizes s b] [--rounds 7] [--quick]

Compares gaitjax with PyTorch's Dinov2Model (sdpa and eager attention) and with
FlaxDinov2Model (transformers 4.x), if torch and transformers are installed; float32
and bfloat16, random weights. All run in this process with the same threads, in turns;
the first call of each is not counted, times are medians. On CPU the processor time is
compared as well, which is steadier on a shared machine.

The last line is one JSON object: `dinov2_s_f32_ratio_vs_torch` (ours / torch sdpa, in
frames per second; > 1 is faster; null without torch), the same for `b` and `bf16`, and
beside each `_ratio_vs_torch_eager`, `_ratio_vs_flax`, `_cpu_time_ratio_vs_torch`,
`_frames_per_second`, `_batch`, `_share_of_matmul_peak`, `_peak_mib`; `peak_mib` is the
largest of ours. With several batch sizes each side counts with its best one.
"""

import argparse
import importlib
import json
import os
import platform
import statistics
import sys
import time
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # torch needs room

import jax
import jax.numpy as jnp
import numpy as np

from gaitjax.parts.dinov2 import DINOV2_SIZES, DINOv2
from gaitjax.parts.transformer import result_type

HEIGHT, WIDTH, PATCH = 448, 224, 14
DTYPES = {"f32": "float32", "bf16": "bfloat16"}


def flops_per_frame(hidden_size: int, num_layers: int, num_heads: int) -> float:
    """Multiply-adds of all matmuls times two."""
    tokens = HEIGHT * WIDTH // PATCH**2 + 1
    dense = 2 * tokens * 12 * hidden_size**2
    attention = 4 * tokens**2 * hidden_size
    return num_layers * (dense + attention) + 2 * tokens * 3 * PATCH**2 * hidden_size


def optional(name: str):
    """The module, or None if it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def matmul_peak(dtype: str) -> float:
    """Best FLOP/s of a square matrix product on this device."""
    size = 2048 if jax.default_backend() == "cpu" else 8192
    x = jnp.ones((size, size), dtype)
    kind = result_type(dtype)
    product = jax.jit(lambda a: jnp.matmul(a, a, preferred_element_type=kind))
    jax.block_until_ready(product(x))
    best = 0.0
    for _ in range(5):
        start = time.perf_counter()
        jax.block_until_ready(product(x))
        best = max(best, 2 * size**3 / (time.perf_counter() - start))
    return best


def ours(size: str, dtype: str, images: np.ndarray):
    """(call, peak MiB): the compiled encoder on device-resident arrays."""
    model = DINOv2(**DINOV2_SIZES[size], dtype=jnp.dtype(dtype))
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 14, 14, 3)))
    generator = np.random.default_rng(1)
    variables = jax.tree.map(
        lambda leaf: jnp.asarray(
            generator.normal(0, 0.02, leaf.shape).astype(np.float32)
        ),
        shapes,
    )
    images = jnp.asarray(images)
    forward = jax.jit(lambda variables, images: model.apply(variables, images)[0])
    compiled = forward.lower(variables, images).compile()
    memory = compiled.memory_analysis()
    peak = (
        memory.temp_size_in_bytes
        + memory.argument_size_in_bytes
        + memory.output_size_in_bytes
    )
    return lambda: jax.block_until_ready(compiled(variables, images)), peak / 2**20


def flax_reference(size: str, dtype: str, images: np.ndarray):
    """transformers' Flax class under jit, or None (gone in transformers 5)."""
    transformers = optional("transformers")
    if transformers is None or not hasattr(transformers, "FlaxDinov2Model"):
        return None
    try:
        model = transformers.FlaxDinov2Model(
            huggingface_config(transformers, size), dtype=jnp.dtype(dtype)
        )
    except ImportError:  # the installed flax is too new or too old for it
        return None
    pixels = jnp.asarray(images.transpose(0, 3, 1, 2))
    forward = jax.jit(lambda p, x: model(x, params=p).last_hidden_state)
    return lambda: jax.block_until_ready(forward(model.params, pixels))


def torch_reference(size: str, dtype: str, images: np.ndarray, attention: str):
    """transformers' PyTorch class, or None."""
    torch, transformers = optional("torch"), optional("transformers")
    if torch is None or transformers is None:
        return None
    gpu = jax.default_backend() == "gpu"
    if gpu and not torch.cuda.is_available():
        return None
    torch.set_num_threads(threads())
    device, kind = "cuda" if gpu else "cpu", getattr(torch, dtype)
    config = huggingface_config(transformers, size)
    config._attn_implementation = attention
    model = transformers.Dinov2Model(config).eval().to(device, kind)
    pixels = torch.tensor(images.transpose(0, 3, 1, 2).copy()).to(device, kind)

    def call():
        with torch.inference_mode():
            model(pixels)
        if gpu:
            torch.cuda.synchronize()

    return call


def huggingface_config(transformers, size: str):
    fields = DINOV2_SIZES[size]
    return transformers.Dinov2Config(
        hidden_size=fields["hidden_size"],
        num_hidden_layers=fields["num_layers"],
        num_attention_heads=fields["num_heads"],
        image_size=518,
    )


def threads() -> int:
    return len(os.sched_getaffinity(0))


def interleave(calls: dict, rounds: int) -> dict:
    """{name: (median wall s, median processor s)}, one call of each in turn."""
    for call in calls.values():
        call()
    seconds = {name: ([], []) for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            wall, processor = time.perf_counter(), time.process_time()
            call()
            seconds[name][0].append(time.perf_counter() - wall)
            seconds[name][1].append(time.process_time() - processor)
    return {
        name: tuple(statistics.median(column) for column in columns)
        for name, columns in seconds.items()
    }


def measure(size: str, short: str, batches: list[int], rounds: int) -> dict:
    """Fields of one size and type; each side at its best batch size."""
    dtype, best, peaks = DTYPES[short], {}, {}
    for batch in batches:
        shape = (batch, HEIGHT, WIDTH, 3)
        images = np.random.default_rng(0).normal(size=shape).astype(np.float32)
        call, peaks[batch] = ours(size, dtype, images)
        calls = {
            "gaitjax": call,
            "torch": torch_reference(size, dtype, images, "sdpa"),
            "torch_eager": torch_reference(size, dtype, images, "eager"),
            "flax": flax_reference(size, dtype, images),
        }
        calls = {name: call for name, call in calls.items() if call is not None}
        for name, (wall, processor) in interleave(calls, rounds).items():
            rate = (batch / wall, batch / processor, batch)
            best[name] = max(best.get(name, rate), rate)
    rate, processor_rate, batch = best["gaitjax"]

    def ratio(name: str, column: int = 0):
        mine = (rate, processor_rate)[column]
        return round(mine / best[name][column], 3) if name in best else None

    on_cpu = jax.default_backend() == "cpu"
    fields = {k: v for k, v in DINOV2_SIZES[size].items() if k != "swiglu"}
    share = flops_per_frame(**fields) * rate / matmul_peak(dtype)
    prefix = f"dinov2_{size}_{short}"
    print(f"DINOv2-{size.upper()} {dtype}")
    for name, (frames, per_processor, at) in best.items():
        print(
            f"  {name:12} {frames:9.2f} frames/s  batch {at:3}  "
            f"{rate / frames:5.2f} x ours/this"
            + (f"  (processor time {processor_rate / per_processor:5.2f} x)" * on_cpu)
        )
    return {
        f"{prefix}_ratio_vs_torch": ratio("torch"),
        f"{prefix}_ratio_vs_torch_eager": ratio("torch_eager"),
        f"{prefix}_ratio_vs_flax": ratio("flax"),
        f"{prefix}_cpu_time_ratio_vs_torch": ratio("torch", 1) if on_cpu else None,
        f"{prefix}_frames_per_second": round(rate, 3),
        f"{prefix}_batch": batch,
        f"{prefix}_share_of_matmul_peak": round(share, 3),
        f"{prefix}_peak_mib": round(peaks[batch]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batches", type=int, nargs="+", default=[8])
    parser.add_argument(
        "--sizes", nargs="+", default=["s", "b"], choices=["s", "b", "l"]
    )
    parser.add_argument("--dtypes", nargs="+", default=list(DTYPES), choices=DTYPES)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument(
        "--quick", action="store_true", help="S in float32, 2 frames, 3 rounds"
    )
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    if arguments.quick:
        arguments.sizes, arguments.dtypes = ["s"], ["f32"]
        arguments.batches, arguments.rounds = [2], 3
    versions = {
        name: getattr(optional(name), "__version__", None)
        for name in ("jax", "torch", "transformers")
    }
    device = (
        f"{jax.devices()[0].device_kind}, {threads()} threads, {platform.machine()}"
    )
    print(f"{device}; " + ", ".join(f"{k} {v}" for k, v in versions.items()))
    result = {
        f"dinov2_{size}_{short}_ratio_vs_torch": None
        for size in ("s", "b")
        for short in DTYPES
    }
    for size in arguments.sizes:
        for short in arguments.dtypes:
            result |= measure(size, short, arguments.batches, arguments.rounds)
    result["peak_mib"] = max(v for k, v in result.items() if k.endswith("_peak_mib"))
    print(json.dumps(result | {"device": device, "versions": versions}))


if __name__ == "__main__":
    main()
