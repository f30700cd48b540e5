"""LMGait's extractor on the tokens' grid beside the direct way, in one process.

    python -m benchmarks.extractor           # both cases
    python -m benchmarks.extractor --cases sequence
    python -m benchmarks.extractor --table   # only the table of what is stored

The cases are the default run's step, and text mask, denoising and appearance branch
with their backward pass on one sequence of the paper's size (30 frames, float32; the
encoder, which is the same both ways, left out). Both ways take turns, so that what else
the machine does falls on both; the seconds are those of this process's threads, not the
clock's. Memory is XLA's plan for this CPU. Results are kept in docs/scaling.json, the
table is that of docs/scaling.md.
"""

import argparse
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from benchmarks import tables
from benchmarks.memory import DOCUMENT, keep, stored
from benchmarks.train_step import load_config, random_batches
from gaitjax import state as states
from gaitjax.data import pipeline
from gaitjax.parts import representation
from gaitjax.parts.token_grid import Features
from gaitjax.train import loop_phases

WAYS = {"direct": True, "tokens": False}
CASES = {
    "default": "the default run, a step",
    "sequence": "a sequence of full size, the extractor",
}


class Extractor(nn.Module):
    """Text mask, denoising and appearance branch: both maps."""

    direct: bool

    @nn.compact
    def __call__(self, tokens, vectors, where):
        features = Features(tokens, size=where.shape[1:], direct=self.direct)
        mask = representation.text_attention(features, vectors, where, "mask")
        features = features.replace(before=representation.text_gain(mask, "mask"))
        return [
            branch(features, where, train=True)
            for branch in (representation.Denoising(), representation.Appearance())
        ]


def sequence(direct: bool):
    """(compiled gradient, its arguments) of the extractor on 30 frames."""
    rng, model = np.random.default_rng(0), Extractor(direct)
    tokens = jnp.asarray(rng.normal(size=(30, 32, 16, 1536)), jnp.float32)
    vectors = jnp.asarray(rng.normal(size=(1, 1536)), jnp.float32)
    where = jnp.asarray(rng.random((30, 64, 32)) < 0.3)
    variables = jax.jit(model.init)(jax.random.key(0), tokens, vectors, where)

    def loss(params, vectors, tokens, where):
        maps, changed = model.apply(
            variables | {"params": params}, tokens, vectors, where,
            mutable=["batch_stats"],
        )  # fmt: skip
        return sum(jnp.sum(jnp.square(x[..., 0])) for x in maps), changed

    arguments = variables["params"], vectors, tokens, where
    gradient = jax.grad(loss, (0, 1), has_aux=True)
    return jax.jit(gradient).lower(*arguments).compile(), arguments


def default(direct: bool):
    """(compiled step, its arguments) of the default run."""
    config = load_config("configs/lmgait.py")
    config.model.representation.direct = direct
    setup = states.build(config, states.example_batch(config))
    batch = pipeline.to_global(next(random_batches(config)), setup.mesh)
    arguments = setup.new_state(), batch, jax.random.key(1)
    step = jax.jit(loop_phases(config, setup)[-1].step)  # that keeps its arguments
    return step.lower(*arguments).compile(), arguments


def measure(case: str, steps: int) -> dict:
    """Medians of `steps` steps of each way, after one that does not count."""
    make = {"default": default, "sequence": sequence}[case]
    ways = {name: make(direct) for name, direct in WAYS.items()}
    seconds = {name: [] for name in ways}
    for _ in range(steps + 1):
        for name, (compiled, arguments) in ways.items():
            started = time.process_time()
            jax.block_until_ready(compiled(*arguments))
            seconds[name].append(time.process_time() - started)
    return {
        name: {
            "cpu_s": round(statistics.median(seconds[name][1:]), 4),
            "temporaries_mib": round(
                compiled.memory_analysis().temp_size_in_bytes / 2**20, 1
            ),
        }
        for name, (compiled, _) in ways.items()
    }


def table() -> str:
    head = ["", "CPU seconds, direct", "on tokens", "ratio", "temporaries, MiB, direct",
            "on tokens", "ratio"]  # fmt: skip
    lines = []
    for case, found in stored("extractor").items():
        line = [CASES[case]]
        for field in ("cpu_s", "temporaries_mib"):
            old, new = (found[name][field] for name in WAYS)
            line += [f"{old:,.2f}", f"{new:,.2f}", f"{new / old:.2f}"]
        lines.append(line)
    return tables.markdown(head, lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", nargs="*", default=list(CASES), choices=CASES)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--table", action="store_true", help="only write the table")
    arguments = parser.parse_args()
    for case in [] if arguments.table else arguments.cases:
        keep("extractor", case, measure(case, arguments.steps))
        print(case, stored("extractor")[case], flush=True)
    tables.put(DOCUMENT, "extractor.py", table())


if __name__ == "__main__":
    main()
