"""Step time and bytes in collectives as devices and the batch grow.

    python -m benchmarks.growth            # every missing row, and the table
    python -m benchmarks.growth --bytes    # compile only, without times
    python -m benchmarks.growth --table    # only the table of stored rows

The small LMGait of benchmarks/scaling.py on 1 to 8 virtual CPU devices. They share the
same cores, so a step takes as long as its work and its collectives together; the bytes
are those of the compiled step's collectives, which a cluster would send. Each row is
stored in docs/scaling.json when it is ready, so an interrupted run continues.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import jax

from benchmarks import memory, scaling, tables
from gaitjax import plan, state
from gaitjax.data import pipeline
from gaitjax.engine import sharding

# (rules, devices, sequences of a batch): more devices, then more devices with as many
# sequences each, then a larger batch
GROWTH = [
    ("data_parallel", 1, 16), ("data_parallel", 2, 16), ("data_parallel", 4, 16),
    ("data_parallel", 8, 16), ("data_parallel", 8, 32), ("data_parallel", 8, 64),
    ("fsdp", 2, 16), ("fsdp", 4, 16), ("fsdp", 8, 16), ("fsdp", 8, 32),
    ("tensor_parallel", 4, 16), ("tensor_parallel", 8, 16),
]  # fmt: skip
GROWTH_STEPS = 12


def growth(timed: bool) -> None:
    """Stores {step_ms, collectives} of each missing row; needs 8 devices.

    timed: runs the steps; False: compiles them only.
    """
    for rules, count, sequences in GROWTH:
        name = f"{rules}/{count}/{sequences}"
        found = memory.stored("growth").get(name, {})
        if found.get("step_ms") or (found and not timed):
            continue
        config = scaling.lmgait_config()
        config.data.update(ids_per_batch=sequences // 4, num_classes=16)
        config.sharding = rules
        if rules == "tensor_parallel":
            config.mesh.update(data=1, model=-1)
        with scaling.on_devices(count):
            setup, step, batch = scaling.lmgait_run(config)
        example = state.example_batch(config)
        compiled = plan.compile_step(setup, example, step)
        row = {"collectives": plan.collectives(compiled.as_text())}
        if timed:
            row["step_ms"] = step_time(setup, compiled, batch)
        memory.keep("growth", name, row)
        print(name, row, flush=True)


def step_time(setup, compiled, batch) -> float:
    """Median ms of GROWTH_STEPS steps after two."""
    state, rng, times = setup.new_state(), sharding.key(1, setup.mesh), []
    arrays = pipeline.to_global(batch(0), setup.mesh)
    for _ in range(GROWTH_STEPS + 2):
        started = time.perf_counter()
        state, terms = jax.block_until_ready(compiled(state, arrays, rng))
        times.append(1e3 * (time.perf_counter() - started))
    return round(statistics.median(times[2:]), 1)


def growth_table() -> str:
    """Markdown of the stored rows."""
    head = ["rules", "devices", "sequences", "ms per step", "collectives of a step"]
    lines, stored = [], memory.stored("growth")
    for rules, count, sequences in GROWTH:
        row = stored.get(f"{rules}/{count}/{sequences}")
        if row is None:
            continue
        kinds = row["collectives"].items()
        sent = sum(x["bytes"] for _, x in kinds) / 2**10
        listed = ", ".join(f"{x['count']} {kind}" for kind, x in kinds) or "none"
        cells = [rules, count, sequences, row.get("step_ms", "-"), listed]
        lines.append([*cells, f"{sent:,.1f}"])
    return tables.markdown([*head, "KiB in them, per device"], lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bytes", action="store_true", help="compile only")
    parser.add_argument("--table", action="store_true", help="only write the table")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        growth(timed=not arguments.bytes)
        return
    if not arguments.table:
        flags = ["--worker", *(["--bytes"] if arguments.bytes else [])]
        process = scaling.start(flags, 8, arguments.bytes, "benchmarks.growth")
        scaling.finish([process], seconds=3600)
    tables.put(memory.DOCUMENT, "growth.py", growth_table())


if __name__ == "__main__":
    main()
