"""Memory of the LMGait step at the paper's size: the table of docs/scaling.md.

    python -m benchmarks.memory                     # every row that is missing
    python -m benchmarks.memory --sizes s --devices 8 64
    python -m benchmarks.memory --sizes s --devices 8 --remat   # printed, not stored
    python -m benchmarks.memory --table             # only the table of what is stored

CCPG's batches: clips of 30 frames of 448x224, DINOv2 of each size, fsdp, on as many
virtual CPU devices as a row says. Nothing is computed or allocated: bytes come from
`eval_shape`, those of activations from the compiled step (40 seconds to minutes a row
on one core). Each row is stored in docs/scaling.json when it is ready, so an
interrupted run continues.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import tables
from configs import lmgait
from gaitjax import plan, state, train
from gaitjax.engine import checkpoints, sharding
from gaitjax.parts.dinov2 import DINOV2_SIZES

DOCUMENT, STORE = tables.DOCS / "scaling.md", tables.DOCS / "scaling.json"
BATCHES = {1: (6, 8), 8: (6, 8), 64: (8, 8)}  # devices -> identities x sequences
SIZES = ("s", "b", "l", "g")
FLAGS = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"


def row(size: str, devices: int, remat: bool) -> dict[str, int]:
    """Bytes per device; needs `devices` devices.

    size: of DINOv2; its MLP is GELU in all sizes (for g that has as many parameters as
    the released SwiGLU). remat: config.model.representation.remat.
    Returns "params RULES", "opt_state RULES" and "frozen RULES" for both rule sets, and
    for fsdp "batch", "activations" and "sent" (results of the step's collectives).
    """
    config = lmgait.get_config("ccpg")
    fields = {k: v for k, v in DINOV2_SIZES[size].items() if k != "swiglu"}
    layers = fields["num_layers"]
    blocks = tuple(layers * quarter // 4 - 1 for quarter in (1, 2, 3, 4))
    config.model.visual_encoder.update(fields, blocks=blocks)
    config.data.ids_per_batch, config.data.seqs_per_id = BATCHES[devices]
    config.model.representation.remat = remat
    config.sharding = "fsdp"
    example = state.example_batch(config)
    setup = state.build(config, example)
    found = {}
    for rules in ("data_parallel", "fsdp"):
        places = sharding.infer_shardings(
            setup.abstract_state, config.sharding_rules[rules], setup.mesh
        )
        for name in ("params", "opt_state", "frozen"):
            leaves = getattr(setup.abstract_state, name)
            size_of = sharding.device_bytes(leaves, getattr(places, name))
            found[f"{name} {rules}"] = size_of
    step = train.loop_phases(config, setup)[-1].step
    compiled = plan.compile_step(setup, example, step)
    placed = checkpoints.abstract(setup.abstract_state, setup.shardings)
    parts = sharding.memory(placed, compiled)
    sent = sum(x["bytes"] for x in plan.collectives(compiled.as_text()).values())
    return found | {x: parts[x] for x in ("batch", "activations")} | {"sent": sent}


def measure(size: str, devices: int, remat: bool) -> dict[str, int]:
    """`row` in a process of its own, with that many virtual CPU devices."""
    environment = {
        **os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices),
        "XLA_FLAGS": f"{FLAGS} {os.environ.get('XLA_FLAGS', '')}",
    }  # fmt: skip
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)  # has no byte counts
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.memory", "--row", size, str(devices)]
        + ["--remat"] * remat,
        cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    return json.loads(done.stdout.strip().splitlines()[-1])


def stored(part: str) -> dict:
    """A part of docs/scaling.json: "memory", "growth" (benchmarks/growth.py), "layouts"
    (benchmarks/scaling.py)."""
    return tables.stored(STORE).get(part, {})


def keep(part: str, name: str, value) -> None:
    """Adds an entry to a part of docs/scaling.json."""
    tables.add(STORE, part, stored(part) | {name: value})


def table() -> str:
    """Markdown of the stored rows, MiB per device."""
    head = [
        "DINOv2", "devices", "batch", "sequences per device",
        "parameters + optimizer, replicated / fsdp",
        "frozen encoders, replicated / fsdp", "batch", "activations",
        "sent in collectives",
    ]  # fmt: skip
    lines, rows = [], stored("memory")
    for size in SIZES:
        for devices, (identities, sequences) in BATCHES.items():
            if f"{size}/{devices}" not in rows:
                continue
            found = rows[f"{size}/{devices}"]
            sums = [
                [sum(found[f"{name} {rules}"] for name in names)
                 for rules in ("data_parallel", "fsdp")]
                for names in (("params", "opt_state"), ("frozen",))
            ]  # fmt: skip
            cells = [f"ViT-{size}", f"{devices}", f"{identities} x {sequences} x 30"]
            cells.append(f"{identities * sequences // devices}")
            cells += [" / ".join(f"{x / 2**20:,.1f}" for x in pair) for pair in sums]
            last = ("batch", "activations", "sent")
            lines.append(cells + [f"{found[x] / 2**20:,.0f}" for x in last])
    return tables.markdown(head, lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="*", default=SIZES, choices=SIZES)
    parser.add_argument(
        "--devices", nargs="*", type=int, default=list(BATCHES), choices=BATCHES
    )
    parser.add_argument("--again", action="store_true", help="also stored rows")
    parser.add_argument(
        "--remat", action="store_true",
        help="with model.representation.remat; print the rows, store nothing",
    )  # fmt: skip
    parser.add_argument("--table", action="store_true", help="only write the table")
    parser.add_argument("--row", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.row:
        size, devices = arguments.row
        print(json.dumps(row(size, int(devices), arguments.remat)))
        return
    for size in [] if arguments.table else arguments.sizes:
        for devices in arguments.devices:
            name = f"{size}/{devices}"
            if arguments.remat:
                print(name, measure(size, devices, True), flush=True)
            elif arguments.again or name not in stored("memory"):
                keep("memory", name, measure(size, devices, False))
                print(name, stored("memory")[name], flush=True)
    tables.put(DOCUMENT, "memory", table())


if __name__ == "__main__":
    main()
