"""What a trained run reaches with the embedding before its BN neck, and after it.

    python -m benchmarks.retrieve RUN [--data_dir=data] [--dataset=cmu_walk]

Prints a table in Markdown; the folder is only read. One pass over the test split makes
the embeddings before the neck. The neck's own weights and statistics make the others of
them, which is what `config.model.retrieve="after_neck"` returns.
"""

import argparse
import sys
from pathlib import Path

import jax
import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import tables
from gaitjax import evaluate, restore
from gaitjax.parts.heads import SeparateBNNeck
from gaitjax.retrieval import protocols
from gaitjax.state import model_variables

SHOWN = ("rank1", "rank5", "mAP")


def after_neck(variables, before: np.ndarray) -> np.ndarray:
    """Embeddings [N S D] before the only BN neck of a model -> those after it."""
    (params,), (stats,) = (
        list(_necks(variables[name])) for name in ("params", "batch_stats")
    )
    neck = SeparateBNNeck(params["kernel"].shape[-1])
    after, _ = jax.jit(lambda x: neck.apply(
        {"params": params, "batch_stats": stats}, x, train=False
    ))(before)  # fmt: skip
    return np.asarray(after)


def _necks(tree):
    for name, part in tree.items():
        if name == "neck":
            yield part
        elif isinstance(part, dict):
            yield from _necks(part)


def rows(config, setup, state):
    """One row of the table per protocol: its mean task, or its first."""
    variables = model_variables(state)
    data = evaluate.open_test_split(config)
    before = evaluate.embed_split(setup.model, variables, data, config, setup.mesh)
    for protocol in config.evaluation.protocols:
        found = [
            protocols.evaluate(protocol, x, data.index, metric=config.evaluation.metric)
            for x in (before, after_neck(variables, before))
        ]
        tasks = list(dict.fromkeys(key.split("/")[1] for key in found[0]))
        task = "mean" if "mean" in tasks else tasks[0]
        values = [
            f"{numbers[f'{protocol}/{task}/{name}']:.2f}"
            for name in SHOWN
            for numbers in found
        ]
        yield [f"`{protocol}/{task}`", *values]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run")
    parser.add_argument("--data_dir", default="")
    parser.add_argument("--dataset", default="", help="default: the run's test set")
    arguments = parser.parse_args()
    config = restore.read_config(arguments.run)
    config.model.retrieve = "before_neck"
    config.data.data_dir = arguments.data_dir or config.data.data_dir
    config.data.test_dataset = arguments.dataset or config.data.test_dataset
    setup, state = restore.open_run(config, arguments.run)
    sides = [f"{name}, {side}" for name in SHOWN for side in ("before", "after")]
    print(tables.markdown([config.name, *sides], list(rows(config, setup, state))))


if __name__ == "__main__":
    main()
