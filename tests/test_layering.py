"""Who may import whom: the table and the rules of docs/design.md, read with `ast`."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

SHARED = {
    "models.output",
    "models.convolution",
    "models.heads",
    "models.layers",
    "models.resnet",
    "models.skeleton",
    "models.transformer",
    "models.dinov2",
    "models.clip_text",
    "models.clip_tokenizer",
}
EVALUATE = {"state", "data", "models", "retrieval", "report", "log", "checkpoints"}
# module or package -> what of gaitjax it may import, its own package's files included
MAY_IMPORT = {
    "train": EVALUATE | {"evaluate", "losses", "cluster", "optim", "sharding"},
    "train_reranker": EVALUATE
    | {"evaluate", "losses", "base_run", "compare_rerankers", "rerank_pictures"}
    | {"cluster", "optim", "sharding"},
    "base_run": {"evaluate", "data", "state"},
    "compare_rerankers": {"models.cargait", "retrieval", "report", "log"},
    "rerank_pictures": {"data", "report"},
    "evaluate": EVALUATE | {"cluster"},
    "import_checkpoint": EVALUATE
    | {"evaluate", "pretrained", "weight_files", "weight_names", "cluster"}
    | {"sharding"},
    "pretrained": {"weight_files", "weight_names"},
    "weight_files": set(),
    "weight_names": set(),
    "state": {"models", "optim", "sharding", "pretrained"},
    "models": SHARED,
    "models.__init__": {"models"},
    "models.convolution": set(),
    "models.layers": set(),
    # one model in several files; a wrapper over a stated base goes here too
    "models.lmgait": SHARED
    | {
        "models.clip_image",
        "models.gait_network",
        "models.mtcm",
        "models.representation",
    },
    "models.biggergait": SHARED | {"models.representation"},
    "models.gaitedge": SHARED
    | {"models.gaitgl", "models.representation", "models.unet"},
    "losses": {"models.output"},
    "retrieval": {"retrieval"},
    "plan": EVALUATE | {"base_run", "train", "train_reranker", "sharding"},
    "cluster": set(),
    "optim": set(),
    "sharding": set(),
    "data": {"data", "sharding"},
    "data.sampling": set(),
    "data.transforms": set(),
    "report": set(),
    "log": set(),
}
ENTRY = {"main", "train", "train_reranker", "evaluate", "state", "import_checkpoint"}

NEVER = {"tensorflow", "transformers", "torch"}
INSIDE_FUNCTIONS = {
    "tensorflow_datasets",
    "grain",
    "array_record",
    "cv2",
    "matplotlib",
    "tensorboardX",
    "huggingface_hub",
    "tokenizers",
}
PURE = ("models", "losses", "retrieval", "optim", "sharding", "state")
PURE_IMPORTS = {"jax", "flax", "optax", "orbax", "numpy", "ml_collections", "jaxtyping"}


def imports(tree: ast.AST, package: str, deferred: bool = False):
    """(line, dotted name, inside a function) of each; `from a import b` is a.b."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name, deferred) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1]
            base = ".".join([*(above if node.level else []), node.module or ""])
            names = [f"{base.strip('.')}.{alias.name}" for alias in node.names]
            yield from ((node.lineno, name, deferred) for name in names)
        else:
            function = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
            yield from imports(node, package, deferred or function)


def within(name: str, allowed) -> bool:
    return any(name == prefix or name.startswith(prefix + ".") for prefix in allowed)


def broken_rule(path: str, name: str, deferred: bool) -> str | None:
    """Why the file at `path` may not import `name`; None where it may."""
    package, _, module = path.removesuffix(".py").replace("/", ".").partition(".")
    top, _, target = name.partition(".")
    if package != "gaitjax":
        if top == "gaitjax":
            return f"{package} imports nothing of gaitjax"
        allowed = sys.stdlib_module_names | {"ml_collections", "configs"}
        if package == "configs" and top not in allowed:
            return "configs import ml_collections and configs only, never jax"
        return None
    if top in ("configs", "tfds_builders", "tests", "benchmarks"):
        return f"gaitjax imports nothing of {top}"
    # a .pt file is read with torch, where the user gives one and has it
    if top in NEVER and (top, module, deferred) != ("torch", "weight_files", True):
        return f"{top} is imported by nothing in training or evaluation"
    if top in INSIDE_FUNCTIONS and not deferred:
        return f"{top} is imported inside the functions that use it"
    if top != "gaitjax":
        allowed = sys.stdlib_module_names | PURE_IMPORTS | INSIDE_FUNCTIONS
        if within(module, PURE) and top not in allowed:
            return f"{module} imports only {', '.join(sorted(PURE_IMPORTS))}"
        return None
    if module in ("main", "__init__") or target == "__version__":
        return None
    rules = [key for key in MAY_IMPORT if within(module, [key])]
    if not rules and within(target, ENTRY):
        return f"only entry modules know {target}"
    allowed = MAY_IMPORT[max(rules, key=len)] if rules else {target}
    if not within(target, allowed):
        return f"{module} may import {', '.join(sorted(allowed)) or 'nothing'}"
    return None


def violations(path: str, source: str) -> list[str]:
    package = path.rpartition("/")[0].replace("/", ".")
    found = imports(ast.parse(source), package)
    broken = [(line, name, broken_rule(path, name, late)) for line, name, late in found]
    return [
        f"{path}:{line}: imports {name}; {why}" for line, name, why in broken if why
    ]


def test_every_import_follows_the_design():
    folders = ("gaitjax", "configs", "tfds_builders")
    files = [file for folder in folders for file in (ROOT / folder).rglob("*.py")]
    assert files
    found = [
        line
        for file in sorted(files)
        for line in violations(file.relative_to(ROOT).as_posix(), file.read_text())
    ]
    assert not found, "docs/design.md forbids:\n" + "\n".join(found)


@pytest.mark.parametrize(
    "path, source",
    [
        ("gaitjax/losses.py", "import jax\nfrom gaitjax.models import lmgait"),
        ("gaitjax/losses.py", "import jax\nimport scipy"),
        ("gaitjax/data/source.py", "import os\nimport tensorflow_datasets as tfds"),
        ("gaitjax/data/source.py", "import os\nfrom gaitjax import train"),
        ("gaitjax/data/sampling.py", "import os\nfrom . import source"),
        ("gaitjax/checkpoints.py", "import os\nfrom gaitjax.state import TrainState"),
        ("gaitjax/checkpoints.py", "import os\nfrom tests import fake_datasets"),
        ("gaitjax/models/gaitset.py", "import os\nfrom gaitjax.models import gaitbase"),
        ("gaitjax/models/gaitset.py", "import os\nfrom .gaitbase import GaitBase"),
        ("gaitjax/models/gaitset.py", "def f():\n    from ..train import run"),
        ("gaitjax/models/layers.py", "import os\nfrom gaitjax.models import resnet"),
        ("gaitjax/train.py", "def f():\n    import tensorflow as tf"),
        ("gaitjax/weight_files.py", "import os\nimport torch"),
        ("gaitjax/pretrained.py", "def f():\n    import torch"),
        ("gaitjax/evaluate.py", "import os\nfrom gaitjax import train"),
        ("gaitjax/evaluate.py", "if True:\n    from configs.common import DATASETS"),
        ("configs/lmgait.py", "import ml_collections\nimport jax"),
        ("configs/lmgait.py", "def f():\n    from gaitjax.models import MODELS"),
        ("tfds_builders/ccpg/ccpg.py", "import cv2\nfrom gaitjax.data import source"),
    ],
)
def test_a_bad_import_is_caught_at_its_line(path, source):
    (line,) = violations(path, source)
    assert line.startswith(f"{path}:2: imports ")


@pytest.mark.parametrize(
    "path, source",
    [
        ("gaitjax/losses.py", "from gaitjax.models.output import GaitOutput"),
        ("gaitjax/models/gaitset.py", "from .layers import set_pool\nimport jax"),
        ("gaitjax/models/__init__.py", "from gaitjax.models import gaitset, lmgait"),
        (
            "gaitjax/retrieval/rerank.py",
            "from gaitjax.retrieval.distance import nearest",
        ),
        ("gaitjax/data/source.py", "def f():\n    import tensorflow_datasets, cv2"),
        ("gaitjax/pretrained.py", "from gaitjax import weight_files\nimport jax"),
        ("gaitjax/weight_files.py", "def f():\n    import torch"),
        ("gaitjax/train.py", "from gaitjax import evaluate, losses\nimport tqdm"),
        ("gaitjax/checkpoints.py", "from gaitjax import __version__"),
        ("gaitjax/main.py", "from gaitjax import evaluate, train"),
        (
            "tfds_builders/ccpg/ccpg.py",
            "import cv2\nfrom tfds_builders import features",
        ),
    ],
)
def test_a_good_import_passes(path, source):
    assert violations(path, source) == []
