"""Who may import whom: the table of docs/design.md, read from the code with `ast`."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# module or folder -> what of gaitjax it may import; the longest matching key counts
MAY_IMPORT = {
    "engine": {"engine"},
    # a model's options are typed fields, which `engine.fields` checks
    "parts": {"parts", "engine.fields", "engine.guards"},
    "models": {"parts", "engine.fields", "engine.guards"},
    "models.__init__": {"models", "parts", "engine.fields", "engine.guards"},
    # a wrapper over a stated base
    "models.gaitedge": {"parts", "models.gaitgl", "engine.fields", "engine.guards"},
    "losses": {"losses", "engine.guards", "parts.output"},
    "retrieval": {"retrieval", "engine.guards"},
    "retrieval.grew_submission": {"retrieval", "engine.atomic", "engine.guards"},
    "data": {"data", "engine"},
    "weights": {"weights", "engine.guards", "engine.atomic"},
    "run_folder": {"engine"},
    "state": {"engine", "models", "parts.model", "phases", "weights"},
    "text_vectors": {"parts.model", "run_folder", "state"},
    "text_masks": {"data", "state", "text_vectors"},
    "pictures": {"pictures", "data", "retrieval"},
    "pictures.charts": {"engine.atomic"},
    "pictures.page": {"engine.atomic"},
    "phases": {"engine.guards"},
    "restore": {"engine", "run_folder", "state", "text_vectors"},
    "settings": {
        "data.faults",
        "engine",
        "losses",
        "models",
        "parts.model",
        "phases",
        "rerank",
        "retrieval",
    },
    "evaluate": {
        "data",
        "engine",
        "phases",
        "pictures",
        "restore",
        "retrieval",
        "run_folder",
        "state",
        "text_masks",
        "text_vectors",
    },
    "train": {"data", "engine", "evaluate", "losses", "phases", "run_folder", "state"}
    | {"text_vectors"},
    "rerank": {"rerank", "retrieval", "engine.guards"},
    "rerank.cargait": {"parts", "engine.fields"},
    "rerank.graph_methods": {"retrieval.distance"},
    "rerank.compare": {"rerank", "retrieval", "engine"},
    "rerank.base_run": {"engine", "data", "evaluate", "restore", "run_folder", "state"}
    | {"settings"},
    "rerank.train": {"rerank", "engine", "data", "losses", "run_folder"},
    "rerank.run": {"rerank", "engine", "pictures", "retrieval", "run_folder"},
    "use": {"use", "engine", "data", "retrieval", "run_folder"},
    "use.archive": {"use", "engine", "data", "evaluate"},
    "use.index": {"engine.guards"},
    "use.recogniser": {
        "use",
        "engine",
        "data",
        "models",
        "rerank",
        "restore",
        "retrieval",
        "run_folder",
        "settings",
        "state",
        "text_vectors",
        "weights",
    },
    "use.answers": {"pictures", "retrieval", "use"},
    "use.commands": {"command_line", "engine", "use"},
    "import_checkpoint": {"engine", "run_folder", "state", "weights"},
    # what an export's user gets: it must not need gaitjax
    "exported": set(),
    "export": {"data", "engine", "exported", "parts.backend", "parts.model"}
    | {"models", "rerank", "restore", "run_folder", "state", "text_vectors"}
    | {"weights"},
    "export_onnx": {"engine", "exported", "models", "parts.convolution"},
    "report": {"data", "engine", "evaluate", "phases", "pictures", "restore"}
    | {"retrieval", "run_folder", "state"},
    "program": set(),
    "targets": {"engine.guards", "parts.backend"},
    "plan": {
        "engine",
        "parts.backend",
        "program",
        "rerank",
        "state",
        "targets",
        "train",
    },
    "command_line": {"engine"},
    "__main__": {"export", "main", "report", "use.commands"},
    "main": {
        "command_line",
        "data.embedded",
        "engine",
        "evaluate",
        "import_checkpoint",
        "plan",
        "rerank.run",
        "run_folder",
        "settings",
        "targets",
        "train",
    },
}
NEVER = {"tensorflow", "transformers", "torch"}
INSIDE_FUNCTIONS = {
    "tensorflow_datasets",
    "grain",
    "array_record",
    "cv2",
    "matplotlib",
    "tensorboardX",
    "huggingface_hub",
    "pymilvus",
    "ai_edge_litert",
}
# what the engine and the folders of pure functions may import from other projects
PURE = ("engine", "models", "parts", "losses", "retrieval")
PURE_IMPORTS = {"jax", "flax", "optax", "orbax", "numpy", "ml_collections"}
ENGINE_IMPORTS = PURE_IMPORTS | {"absl", "etils", "tqdm"}


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
    if top in NEVER and (top, module, deferred) != (
        "torch",
        "weights.torch_files",
        True,
    ):
        return f"{top} is imported by nothing in training or evaluation"
    if top in INSIDE_FUNCTIONS and not deferred:
        return f"{top} is imported inside the functions that use it"
    if top != "gaitjax":
        pure = ENGINE_IMPORTS if within(module, ["engine"]) else PURE_IMPORTS
        allowed = sys.stdlib_module_names | pure | INSIDE_FUNCTIONS
        if within(module, PURE) and top not in allowed:
            return f"{module} imports only {', '.join(sorted(pure))}"
        return None
    if module == "__init__" or target == "__version__":
        return None
    rules = [key for key in MAY_IMPORT if within(module, [key])]
    if not rules:
        return f"{module} has no row in MAY_IMPORT"
    allowed = MAY_IMPORT[max(rules, key=len)]
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


def sources() -> dict[str, str]:
    """{path from the repository: text} of every file the rules are about."""
    folders = ("gaitjax", "configs", "tfds_builders")
    files = [file for folder in folders for file in (ROOT / folder).rglob("*.py")]
    return {x.relative_to(ROOT).as_posix(): x.read_text() for x in sorted(files)}


def circle(files: dict[str, str]) -> list[str]:
    """Modules of gaitjax that import each other in a circle, one such; [] if none.

    Imports inside functions count: they hide a circle, they do not open it.
    """
    modules = {
        path.removesuffix(".py").removesuffix("/__init__").replace("/", "."): path
        for path in files
        if path.startswith("gaitjax/")
    }
    arrows = {}
    for module, path in modules.items():
        package = path.rpartition("/")[0].replace("/", ".")
        names = {name for _, name, _ in imports(ast.parse(files[path]), package)}
        names -= {"gaitjax.__version__"}  # there before anything is imported
        found = {name if name in modules else name.rpartition(".")[0] for name in names}
        arrows[module] = (found & modules.keys()) - {module}
    done: set[str] = set()

    def walk(module: str, way: list[str]) -> list[str]:
        if module in way:
            return [*way[way.index(module) :], module]
        if module in done:
            return []
        for target in sorted(arrows[module]):
            if found := walk(target, [*way, module]):
                return found
        done.add(module)
        return []

    return next(filter(None, (walk(module, []) for module in sorted(arrows))), [])


def test_every_import_follows_the_design():
    files = sources()
    assert len(files) > 100
    found = [line for path, text in files.items() for line in violations(path, text)]
    assert not found, "docs/design.md forbids:\n" + "\n".join(found)


def test_no_modules_import_each_other_in_a_circle():
    assert circle(sources()) == []


def test_a_circle_is_found():
    files = {
        "gaitjax/a.py": "from gaitjax import b",
        "gaitjax/b.py": "def f():\n    from gaitjax.c.d import x",
        "gaitjax/c/__init__.py": "",
        "gaitjax/c/d.py": "from ..a import y",
    }
    way = ["gaitjax.a", "gaitjax.b", "gaitjax.c.d", "gaitjax.a"]
    assert circle(files) == way


@pytest.mark.parametrize(
    "path, source",
    [
        ("gaitjax/losses/metric.py", "import jax\nfrom gaitjax.models import lmgait"),
        ("gaitjax/losses/metric.py", "import jax\nimport scipy"),
        ("gaitjax/data/source.py", "import os\nimport tensorflow_datasets as tfds"),
        ("gaitjax/data/source.py", "import os\nfrom gaitjax import train"),
        ("gaitjax/retrieval/metrics.py", "import os\nfrom ..data import source"),
        ("gaitjax/engine/loop.py", "import os\nfrom gaitjax.state import TrainState"),
        ("gaitjax/engine/loop.py", "import os\nfrom gaitjax.data import pipeline"),
        ("gaitjax/engine/loop.py", "import os\nfrom tests import fake_datasets"),
        ("gaitjax/models/gaitset.py", "import os\nfrom gaitjax.models import gaitbase"),
        ("gaitjax/models/gaitset.py", "import os\nfrom .gaitbase import GaitBase"),
        ("gaitjax/models/gaitset.py", "def f():\n    from ..train import run"),
        ("gaitjax/parts/layers.py", "import os\nfrom gaitjax.models import gaitbase"),
        ("gaitjax/train.py", "def f():\n    import tensorflow as tf"),
        ("gaitjax/weights/torch_files.py", "import os\nimport torch"),
        ("gaitjax/weights/files.py", "def f():\n    import torch"),
        ("gaitjax/weights/encoders.py", "def f():\n    import torch"),
        ("gaitjax/evaluate.py", "import os\nfrom gaitjax import train"),
        ("gaitjax/evaluate.py", "if True:\n    from configs.common import DATASETS"),
        ("gaitjax/new.py", "import os\nfrom gaitjax import losses"),
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
        ("gaitjax/losses/__init__.py", "from gaitjax.parts.output import GaitOutput"),
        (
            "gaitjax/models/gaitset.py",
            "from ..parts.layers import set_pool\nimport jax",
        ),
        ("gaitjax/models/__init__.py", "from gaitjax.models import gaitset, lmgait"),
        ("gaitjax/rerank/methods.py", "from gaitjax.retrieval.distance import nearest"),
        ("gaitjax/data/source.py", "def f():\n    import tensorflow_datasets, cv2"),
        (
            "gaitjax/weights/encoders.py",
            "from gaitjax.weights import files\nimport jax",
        ),
        ("gaitjax/weights/torch_files.py", "def f():\n    import torch"),
        ("gaitjax/train.py", "from gaitjax import evaluate, losses\nimport tqdm"),
        ("gaitjax/engine/checkpoints.py", "from gaitjax import __version__"),
        ("gaitjax/main.py", "from gaitjax import evaluate, train"),
        (
            "tfds_builders/ccpg/ccpg.py",
            "import cv2\nfrom tfds_builders import features",
        ),
    ],
)
def test_a_good_import_passes(path, source):
    assert violations(path, source) == []
