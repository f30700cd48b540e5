"""LMGait's extractor on the tokens' grid beside the direct way, in one process.

    python -m benchmarks.extractor             # the default run's step
    python -m benchmarks.extractor --full      # a sequence of the paper's size, too
    python -m benchmarks.extractor --table     # only the table of what is stored

The steps of both ways are taken in turns, so that what else the machine does falls on
both; the seconds are those of this process's threads, not the clock's. Memory is XLA's
plan for this CPU. The sequence of full size has 30 frames, in float32. Results are kept
in docs/scaling.json, the table is that of docs/scaling.md.
"""

import argparse
import statistics
import time

import jax

from benchmarks import tables
from benchmarks.memory import DOCUMENT, keep, stored
from benchmarks.train_step import load_config, random_batches
from gaitjax import state as states
from gaitjax.data import pipeline
from gaitjax.train import loop_phases

WAYS = {"direct": True, "tokens": False}
TITLES = {"default": "a step of the default run", "full": "a sequence of full size"}


def config_of(case: str, direct: bool):
    config = load_config("configs/lmgait.py" + (":ccpg" if case == "full" else ""))
    config.model.representation.direct = direct
    if case == "full":
        config.data.ids_per_batch, config.data.seqs_per_id = 1, 1
        config.model.dtype, config.model.visual_encoder.frames_per_chunk = "float32", 0
        config.pretrained = {}  # drawn at random
    return config


def prepared(case: str, direct: bool):
    """(function that takes a step, GiB of temporaries, TFLOP)."""
    config = config_of(case, direct)
    setup = states.build(config, states.example_batch(config))
    state, rng = setup.new_state(), jax.random.key(1)
    batch = pipeline.to_global(next(random_batches(config)), setup.mesh)
    compiled = loop_phases(config, setup)[-1].step.lower(state, batch, rng).compile()

    def step():
        nonlocal state
        state, logged = compiled(state, batch, rng)
        jax.block_until_ready((state, logged))

    flops = (compiled.cost_analysis() or {}).get("flops", 0)
    return step, compiled.memory_analysis().temp_size_in_bytes / 2**30, flops / 1e12


def measure(case: str, steps: int) -> dict:
    """Medians of `steps` steps of each way, after one that does not count."""
    ways = {name: prepared(case, direct) for name, direct in WAYS.items()}
    seconds = {name: [] for name in ways}
    for _ in range(steps + 1):
        for name, (step, _, _) in ways.items():
            started = time.process_time()
            step()
            seconds[name].append(time.process_time() - started)
    return {
        name: {
            "cpu_s": round(statistics.median(seconds[name][1:]), 4),
            "temporaries_gib": round(memory, 4),
            "step_tflop": round(tflop, 5),
        }
        for name, (_, memory, tflop) in ways.items()
    }


def table() -> str:
    head = ["", "CPU seconds, direct", "on tokens", "ratio", "temporaries, MiB, direct",
            "on tokens", "ratio"]  # fmt: skip
    lines = []
    for case, found in stored("extractor").items():
        line = [TITLES[case]]
        for field, unit in (("cpu_s", 1), ("temporaries_gib", 1024)):
            old, new = (unit * found[name][field] for name in WAYS)
            line += [f"{old:,.3g}", f"{new:,.3g}", f"{new / old:.2f}"]
        lines.append(line)
    return tables.markdown(head, lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--full", action="store_true", help="the full size, too")
    parser.add_argument("--table", action="store_true", help="only write the table")
    parser.add_argument("--steps", type=int, default=20, help="of the default run")
    arguments = parser.parse_args()
    cases = {"default": arguments.steps} | ({"full": 1} if arguments.full else {})
    for case, steps in {} if arguments.table else cases.items():
        keep("extractor", case, measure(case, steps))
        print(case, stored("extractor")[case], flush=True)
    tables.put(DOCUMENT, "extractor", table())


if __name__ == "__main__":
    main()
