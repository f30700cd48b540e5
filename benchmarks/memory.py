"""What published recipes need on accelerators: the table of docs/scaling.md.

    ./run.sh target                                   # the compilers, once
    python -m benchmarks.memory                       # every row that is missing
    python -m benchmarks.memory --rows lmgait:ccpg/h100x8 gaitbase:ccpg/v5e:4x4
    python -m benchmarks.memory --table               # only the table of what is stored

A row is `--dry_run --target=...` of a config: the step is compiled for the target,
nothing is computed. It takes a minute of CPU time for an H100 and several for a TPU,
and is stored in docs/scaling.json when it is ready, so an interrupted run continues.
"""

import argparse
import importlib
import json
import resource
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import tables

DOCUMENT, STORE = tables.DOCS / "scaling.md", tables.DOCS / "scaling.json"
PYTHON = ROOT / ".venv-target" / "bin" / "python"
if not PYTHON.exists():  # this Python may have the compilers itself
    PYTHON = sys.executable
RECIPES = (
    "lmgait:ccpg", "biggait:ccpg", "biggergait:ccpg", "gaitbase:ccpg",
    "deepgaitv2:gait3d", "gaitset:casia_b", "gaitpart:casia_b", "gaitgl:casia_b",
    "swingait:gait3d", "skeletongait:gait3d", "skeletongaitpp:gait3d",
    "multigaitpp:gait3d", "gaitgraph2:casia_b", "gaittr:casia_b", "gaitedge:ccpg",
    "gpgait:ccpg", "gpgaitpp:ccpg", "biggerlmgait:ccpg",
)  # fmt: skip
ON_TPU = ("lmgait:ccpg", "biggait:ccpg", "biggergait:ccpg", "gaitbase:ccpg")
ROWS = [f"{config}/{target}" for config in RECIPES for target in ("h100x1", "h100x8")]
ROWS += [f"{config}/v5e:4x4" for config in ON_TPU]
# target -> bfloat16 TFLOP/s of all its devices, by the makers' data sheets
PEAK = {"h100x1": 989, "h100x8": 8 * 989, "v5e:4x4": 16 * 197}
REACHED = 0.4  # share of it that "hours" assumes


def measure(row: str) -> dict:
    """The last line of the row's dry run, and the CPU seconds that it took, "cpu_s"."""
    config, target = row.replace(":", ".py:", 1).split("/")
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [PYTHON, "-m", "gaitjax.main", f"--config=configs/{config}", "--dry_run",
         f"--target={target}"],
        cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return json.loads(done.stdout.strip().splitlines()[-1]) | {"cpu_s": round(spent)}


def stored(part: str) -> dict:
    """A part of docs/scaling.json: "targets", "growth" (benchmarks/growth.py),
    "layouts" (benchmarks/scaling.py)."""
    return tables.stored(STORE).get(part, {})


def keep(part: str, name: str, value) -> None:
    """Adds an entry to a part of docs/scaling.json."""
    tables.add(STORE, part, stored(part) | {name: value})


def recipe(row: str):
    """The config of "gaitbase:ccpg"."""
    name, _, variant = row.partition(":")
    return importlib.import_module(f"configs.{name}").get_config(variant)


def batch_of(config) -> str:
    """ "6 x 8 x 30": identities x sequences x frames."""
    data = config.data
    return f"{data.ids_per_batch} x {data.seqs_per_id} x {data.num_frames}"


def hours(config, target: str, tflop: float) -> str:
    """Of all steps of the main phase at REACHED; "-" for a model in float32."""
    if config.model.dtype != "bfloat16":
        return "-"
    return f"{tflop * config.train.steps / (REACHED * PEAK[target]) / 3600:,.1f}"


def table() -> str:
    """Markdown of all rows; memory is per device, the work that of all devices."""
    head = [
        "config", "target", "batch", "fits", "arguments, GiB", "temporaries, GiB",
        "TFLOP", "hours", "in collectives, MiB", "CPU, s",
    ]  # fmt: skip
    found, lines = stored("targets"), []
    for row in ROWS:
        (name, target), entry, unknown = row.split("/"), found.get(row), "-"
        config = recipe(name)
        start = [f"`{name}`", f"`{target}`", batch_of(config)]
        if entry is None:
            blank = [unknown] * (len(head) - 4)
            lines.append([*start, "not compiled", *blank])
            continue
        numbers = entry["arguments_gib"], entry["temporaries_gib"]
        sent = entry["collectives"]
        lines.append([
            *start,
            "yes" if entry["fits"] else "no",
            *(unknown if x is None else f"{x:,.2f}" for x in numbers),
            f"{entry['step_tflop']:,.1f}",
            hours(config, target, entry["step_tflop"]),
            unknown if sent is None
            else f"{sum(x['bytes'] for x in sent.values()) / 2**20:,.0f}",
            f"{entry['cpu_s']:,.0f}",
        ])  # fmt: skip
    return tables.markdown(head, lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", nargs="*", default=ROWS, choices=ROWS)
    parser.add_argument("--again", action="store_true", help="also stored rows")
    parser.add_argument("--table", action="store_true", help="only write the table")
    arguments = parser.parse_args()
    for row in [] if arguments.table else arguments.rows:
        if arguments.again or row not in stored("targets"):
            keep("targets", row, measure(row))
            print(row, stored("targets")[row], flush=True)
    tables.put(DOCUMENT, "memory.py", table())


if __name__ == "__main__":
    main()
