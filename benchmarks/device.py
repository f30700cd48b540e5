"""What one accelerator does: LMGait, encoders, other models, re-ranking, search.

    python -m benchmarks.device --out=device.json     # one H100, under ten minutes
    python -m benchmarks.device --tiny                # tiny sizes, any machine
    python -m benchmarks.device --parts lmgait search --seconds 200

Needs jax, flax, optax, orbax and ml_collections (one small pure wheel; put its folder
on PYTHONPATH where it is not installed), neither TensorFlow, TFDS, Grain nor data.
Every part is a process of its own with a time limit, so that memory starts empty and a
part that fails, runs out of memory or hangs costs only itself. A line of JSON follows
each part; a result that could not be measured is null, with the reason. Without
PyTorch its columns are null. The last line, and --out after every part, has them all.

A step is the real training step on random arrays that lie on the device. `mfu`: the
work of its matmuls and convolutions, as counted from the program, per second, divided
by the device's dense bfloat16 peak (by the best measured matmul if the device is not in
PEAKS). `ratio`: PyTorch's time divided by ours.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

PEAKS = {"H100": 989e12, "H200": 989e12, "A100": 312e12}  # dense bfloat16 FLOP/s
LIMIT = 570  # seconds of everything
PATIENCE = 20  # limits are so many times longer with --tiny, for slow and busy CPUs
SPARE = 10  # a part that has less is not started


# ---------------------------------------------------------------- parts


def lmgait(tiny: bool, **changes) -> dict:
    """LMGait's training step on CCPG, 48 sequences of 30 frames."""
    from benchmarks import scaling
    from benchmarks.train_step import load_config

    config = scaling.lmgait_config() if tiny else load_config("configs/lmgait.py:ccpg")
    config.update_from_flattened_dict(changes)
    return step_of(config, seconds=1 if tiny else 12)


def lmgait_direct(tiny: bool) -> dict:
    """The same with the extractor on the maps' grid (more memory, more work)."""
    return lmgait(tiny, **{"model.representation.direct": True})


def biggait(tiny: bool) -> dict:
    """LMGait without text and motion module, which is BigGait."""
    return lmgait(tiny, **{"model.text.enabled": False, "model.mtcm.enabled": False})


def biggait_torch(tiny: bool) -> dict | None:
    """A PyTorch eager step of BigGait's shape, bfloat16 autocast; fewer sequences if
    48 do not fit."""
    torch = optional("torch")
    if torch is None:
        return None
    import numpy as np

    from benchmarks.pytorch import networks

    frames, size = (2, (56, 28)) if tiny else (30, (448, 224))
    for sequences in (4,) if tiny else (48, 24, 12):
        narrow = dict(width=32, layers=2, heads=2, taken=(0, 1), hidden=16)
        sizes = (narrow | {"widths": (16, 16, 16)}) if tiny else {}
        network = networks.BigGait(100, frames, size=size, **sizes)
        shape = (sequences * frames, 3, *size)
        images = np.random.default_rng(0).random(shape, np.float32)
        labels = np.repeat(np.arange(sequences // 2), 2)
        try:
            result = their_step(network, images, labels, seconds=1 if tiny else 10)
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            continue
        rate = sequences * frames / result["step_ms"] * 1e3
        return result | {"sequences": sequences, "frames_per_s": round(rate)}
    return None


def encoders_of(tiny: bool, *sizes: str) -> dict:
    """DINOv2's forward pass beside PyTorch's with sdpa (benchmarks/encoders.py)."""
    from benchmarks import encoders

    result = {}
    for size in sizes:
        short, batch = ("f32", 1) if tiny else ("bf16", {"s": 128, "b": 64, "l": 32})
        batches = [batch if tiny else batch[size]]
        result |= encoders.measure(size, short, batches, 1 if tiny else 10)
    return result


def encoders_s(tiny: bool) -> dict:
    """DINOv2-S."""
    return encoders_of(tiny, "s")


def encoders_bl(tiny: bool) -> dict | None:
    """DINOv2-B and -L; not in the tiny form."""
    return None if tiny else encoders_of(tiny, "b", "l")


def zoo_model(tiny: bool, name: str, variant: str) -> dict:
    """The step of a published recipe, and of PyTorch's network of that shape."""
    from benchmarks.train_step import load_config

    config = load_config(f"configs/{name}.py" + ("" if tiny else f":{variant}"))
    if tiny:
        config.data.update(ids_per_batch=2, seqs_per_id=2, num_frames=2)
    result = step_of(config, seconds=1 if tiny else 6)
    theirs = None
    if not tiny and optional("torch"):
        from benchmarks import zoo

        theirs = zoo.their_network(name, config)
    if theirs:
        theirs = their_step(*theirs, seconds=6)
        result["torch"] = theirs
        result["ratio"] = round(theirs["step_ms"] / result["step_ms"], 2)
    return result


def gaitbase(tiny: bool) -> dict:
    """GaitBase on CCPG, 8 x 16 sequences."""
    return zoo_model(tiny, "gaitbase", "ccpg")


def deepgaitv2(tiny: bool) -> dict:
    """DeepGaitV2-P3D on Gait3D, 32 x 4 sequences."""
    return zoo_model(tiny, "deepgaitv2", "gait3d")


def skeletongaitpp(tiny: bool) -> dict:
    """SkeletonGait++ on Gait3D, 32 x 4 sequences."""
    return zoo_model(tiny, "skeletongaitpp", "gait3d")


def biggergait(tiny: bool) -> dict:
    """BiggerGait on CCPG."""
    return zoo_model(tiny, "biggergait", "ccpg")


def rerank(tiny: bool) -> dict:
    """CarGait and KR, ms per probe (benchmarks/rerank.py)."""
    from benchmarks import rerank

    probes, total, turns = (12, 72, 1) if tiny else (1000, 6369, 3)
    return rerank.measure(probes, total, turns, batch1=4 if tiny else 20)


def search(tiny: bool) -> dict:
    """Exact nearest neighbours among 1,000,000 embeddings of 16 x 256 in bfloat16."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from gaitjax.retrieval.distance import nearest

    rows, probes, k = (2_000, 8, 10) if tiny else (1_000_000, 1_024, 10)
    gallery = jax.random.normal(jax.random.key(0), (rows, 16, 256), jnp.bfloat16)
    wanted = np.linspace(0, rows - 1, probes).astype(int)
    probe = np.asarray(gallery[wanted]).astype(np.float32)
    found = nearest(probe, gallery, k=k, metric="euclidean")[1]
    started = time.perf_counter()
    nearest(probe, gallery, k=k, metric="euclidean")
    seconds = time.perf_counter() - started
    return {
        "gallery": rows,
        "probes": probes,
        "ms_per_probe": round(1e3 * seconds / probes, 4),
        "tflop_per_s": round(2 * probes * rows * 4096 / seconds / 1e12, 2),
        "itself_first": float((found[:, 0] == wanted).mean()),
        "peak_gib": peak_gib(),
    }


PARTS = {  # in order of importance -> limit in seconds
    lmgait: 110,
    biggait: 70,
    biggait_torch: 60,
    lmgait_direct: 90,
    encoders_s: 50,
    search: 40,
    gaitbase: 60,
    deepgaitv2: 70,
    rerank: 50,
    encoders_bl: 70,
    skeletongaitpp: 60,
    biggergait: 80,
}
NAMES = {part.__name__: part for part in PARTS}


# ---------------------------------------------------------------- measuring


def optional(name: str):
    """The module, or None if it is not installed."""
    try:
        return __import__(name)
    except ImportError:
        return None


def peak_gib() -> float | None:
    """What this process has had on the device at most; None on CPU."""
    import jax

    memory = jax.devices()[0].memory_stats() or {}
    peak = memory.get("peak_bytes_in_use")
    return peak and round(peak / 2**30, 2)


def step_of(config, seconds: float) -> dict:
    """Compiles the config's training step and runs it for about `seconds`."""
    import jax

    from benchmarks.train_step import matmul_peak, random_batches
    from gaitjax import program
    from gaitjax import state as states
    from gaitjax.data import pipeline
    from gaitjax.engine import sharding
    from gaitjax.train import loop_phases

    started = time.perf_counter()
    setup = states.build(config, states.example_batch(config))
    step, state = loop_phases(config, setup)[-1].step, setup.new_state()
    batch = pipeline.to_global(next(random_batches(config)), setup.mesh)
    rng = sharding.key(1, setup.mesh)
    traced = step.trace(state, batch, rng)
    compiled = traced.lower().compile()
    compile_s = time.perf_counter() - started
    for _ in range(2):
        state, terms = jax.block_until_ready(compiled(state, batch, rng))
    count, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds or not count:
        for _ in range(1 if count == 0 else 3):  # in flight while the next is sent
            state, terms = compiled(state, batch, rng)
            count += 1
        jax.block_until_ready((state, terms))
    step_s = (time.perf_counter() - started) / count
    work = program.flops(traced.jaxpr)
    device = jax.devices()[0].device_kind
    known = [peak for name, peak in PEAKS.items() if name in device]
    best = known[0] if known else matmul_peak(config.model.dtype)
    rows, frames = batch["valid"].shape
    return {
        "sequences": rows,
        "frames": frames,
        "step_ms": round(1e3 * step_s, 2),
        "frames_per_s": round(rows * frames / step_s),
        "step_tflop": round(work / 1e12, 4),
        "mfu": round(work / step_s / best, 4),
        "peak_gib": peak_gib(),
        "planned_gib": round(compiled.memory_analysis().temp_size_in_bytes / 2**30, 2),
        "compile_s": round(compile_s, 1),
        "loss": float(terms["total"]),
        "steps": count,
    }


def their_step(network, images, labels, seconds: float) -> dict:
    """A PyTorch network's step on its device, in bfloat16 there."""
    import torch

    from benchmarks.pytorch import networks

    cuda = torch.cuda.is_available()
    device, dtype = ("cuda", torch.bfloat16) if cuda else ("cpu", torch.float32)
    step = networks.calls(network, images, labels, device, dtype)["step"]
    step(), step()
    count, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds or not count:
        step()
        count += 1
    step_ms = 1e3 * (time.perf_counter() - started) / count
    peak = torch.cuda.max_memory_allocated() / 2**30 if cuda else None
    return {"step_ms": round(step_ms, 2), "peak_gib": peak and round(peak, 2)}


# ---------------------------------------------------------------- processes


def versions() -> dict:
    """Device and versions, in a process of its own, which leaves no memory taken."""
    code = (
        "import json, jax, flax; print(json.dumps({'jax': jax.__version__, "
        "'flax': flax.__version__, 'devices': jax.device_count(), "
        "'device': jax.devices()[0].device_kind}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120
    )
    lines = done.stdout.strip().splitlines()
    return json.loads(lines[-1]) if done.returncode == 0 else {"error": done.stderr}


def run_part(name: str, tiny: bool, limit: float, folder: Path) -> dict:
    """{"part", "seconds", "result", "reason"} of one part."""
    output, errors = folder / f"{name}.json", folder / f"{name}.txt"
    command = [sys.executable, "-m", "benchmarks.device", f"--child={name}"]
    command += [f"--out={output}", *(["--tiny"] if tiny else [])]
    started, reason = time.monotonic(), ""
    with errors.open("w") as file:
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=file, stderr=file, start_new_session=True
        )
        try:
            code = process.wait(timeout=limit)
            reason = f"exit code {code}" if code else ""
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # its own session, its own children
            process.wait()
            reason = f"not ready after {limit:.0f} s"
    result = json.loads(output.read_text()) if output.exists() else None
    if result is None:
        lines = errors.read_text(errors="replace").strip().splitlines()
        reason = ": ".join([reason or "not measurable here", *lines[-1:]])
    return {
        "part": name,
        "seconds": round(time.monotonic() - started, 1),
        "result": result,
        "reason": reason[:400],
    }


def run_all(names: list[str], tiny: bool, seconds: float, out: Path | None) -> dict:
    """Every part in turn, while time is left; prints and stores as it goes."""
    started = time.monotonic()
    report = {"tiny": tiny, "versions": versions(), "parts": {}}
    print(json.dumps(report["versions"]), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            left = seconds - (time.monotonic() - started)
            limit = min(PARTS[NAMES[name]] * (PATIENCE if tiny else 1), left)
            row = {"part": name, "seconds": 0, "result": None, "reason": "no time left"}
            if left > SPARE:
                row = run_part(name, tiny, limit, Path(folder))
            print(json.dumps(row), flush=True)
            report["parts"][name] = row
            report["seconds"] = round(time.monotonic() - started, 1)
            if out:
                out.write_text(json.dumps(report, indent=1) + "\n")
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="*", default=list(NAMES), choices=NAMES)
    parser.add_argument("--tiny", action="store_true", help="sizes of a test, on CPU")
    parser.add_argument("--seconds", type=float, help=f"of everything; {LIMIT}")
    parser.add_argument("--out", type=Path, help="a JSON file, written after each part")
    parser.add_argument("--child", choices=NAMES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # torch needs room
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.95")
    if arguments.tiny:
        os.environ.setdefault("JAX_PLATFORMS", "cpu")
        quick = "--xla_backend_optimization_level=0"  # compiles in half the time
        os.environ.setdefault("XLA_FLAGS", quick)
    if arguments.child:
        result = NAMES[arguments.child](arguments.tiny)
        if result is not None:
            arguments.out.write_text(json.dumps(result))
        return
    seconds = arguments.seconds or LIMIT * (PATIENCE if arguments.tiny else 1)
    report = run_all(arguments.parts, arguments.tiny, seconds, arguments.out)
    print(json.dumps(report))


if __name__ == "__main__":
    main()
