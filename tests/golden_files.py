"""Golden files: numbers of reference implementations, checked within a fair tolerance.

A golden file holds outputs only; weights and inputs come from the folder's
`formula.py`. A family module `tests/golden_<family>.py` exposes
`KINDS: {kind: check(golden)}`, where `kind` is `meta["kind"]`;
`tests/test_goldens.py` collects families and files.

    golden = golden_files.read(path)
    weights = golden.weights()                       # {torch name: array}
    images = golden.tensor(golden.meta["inputs"]["224x224"])
    golden.check("224x224/last", ours)               # torch layout; whole or sampled
    assert not golden.unchecked()
"""

import importlib.util
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

import numpy as np

OWN_FOLDER = Path(__file__).parent / "goldens"
SUFFIXES = ("@sample", "@digest", "@tokens")


def folders() -> list[Path]:
    """Those that GAITJAX_GOLDENS names (FOLDER:FOLDER), else tests/goldens."""
    named = os.environ.get("GAITJAX_GOLDENS") or str(OWN_FOLDER)
    return [Path(name) for name in named.split(":") if name]


def load_formula(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("golden_formula", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def read(path: Path) -> "GoldenFile":
    """One golden file with the formula of its folder (or ours)."""
    with np.load(path, allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    meta = json.loads(str(arrays.pop("meta")))
    formula = path.parent / "formula.py"
    formula = formula if formula.is_file() else OWN_FOLDER / "formula.py"
    return GoldenFile(path, meta, arrays, load_formula(formula))


@dataclass
class GoldenFile:
    path: Path
    meta: dict
    arrays: dict[str, np.ndarray]
    formula: ModuleType
    checked: set = field(default_factory=set)

    @property
    def seed(self) -> int:
        return self.meta["seed"]

    def weights(self, state_dict=None, prefix: str = "") -> dict[str, np.ndarray]:
        """{torch name: float32 array in torch layout} of a state_dict listing.

        Entries that keep their constructed value (counters, index tables) are left out;
        an entry that shares another's tensor gets the first one's values.

        Args:
          state_dict: [[name, shape, role]]; default meta["state_dict"].
          prefix: put before the name in the formula (modules.npz: "CASE/").
        """
        out = {}
        for name, shape, role in state_dict or self.meta["state_dict"]:
            first = role.partition("shared=")[2] or name
            value = self.formula.weight(prefix + first, tuple(shape), self.seed)
            if value is not None and not role.endswith(":kept"):
                out[name] = value
        return out

    def tensor(self, expression: str) -> np.ndarray:
        """An input from its expression in the metadata; float32 where it says so."""
        code, _, rest = expression.partition(" as float32")
        names = {
            name: getattr(self.formula, name)
            for name in ("u", "u01", "silhouettes", "binary_sils")
        }
        names |= {"SEED": self.seed, "np": np, "__builtins__": {}}
        value = eval(code, names)  # an arithmetic expression of the formula's functions
        return np.asarray(value, np.float32)

    def names(self) -> list[str]:
        """Every stored tensor's name, without the @suffix."""
        return sorted({key.partition("@")[0] for key in self.arrays})

    def unchecked(self, start: str = "") -> list[str]:
        """Stored tensors whose name begins with `start` that `check` has not seen."""
        return [
            k for k in self.names() if k.startswith(start) and k not in self.checked
        ]

    def tolerance(self, key: str) -> float:
        """The README's fair test: 10 x tol + 1e-5, relative to max|golden|."""
        return 10 * self.meta.get("tol", {}).get(key, 0.0) + 1e-5

    def check(self, key: str, value, tolerance: float | None = None) -> None:
        """Asserts that `value` (torch layout, whole tensor) is the stored `key`.

        Compares whatever is stored of it: the whole, the @sample, the @tokens of axis
        1, the @digest. `tolerance` is relative to the largest magnitude; default:
        `self.tolerance(key)`.
        """
        value = np.asarray(value)
        tolerance = self.tolerance(key) if tolerance is None else tolerance
        shape = self.meta.get("shapes", {}).get(key)
        if shape is not None:
            assert list(value.shape) == shape, f"{key}: shape {value.shape} not {shape}"
        stored = [
            key + suffix for suffix in ("", *SUFFIXES) if key + suffix in self.arrays
        ]
        assert stored, (
            f"{self.path.name} holds no {key}; it has {', '.join(self.names())}"
        )
        for name in stored:
            golden = self.arrays[name]
            if name.endswith("@digest"):
                self._check_digest(key, value, golden, tolerance)
                continue
            if name.endswith("@sample"):
                ours = value.reshape(-1)[self.formula.sample_index(value.size)]
            elif name.endswith("@tokens"):
                ours = self._tokens(value, golden)
            else:
                ours = value
            assert ours.shape == golden.shape, f"{name}: {ours.shape} {golden.shape}"
            worst = relative_error(ours, golden)
            assert worst <= tolerance, (
                f"{self.path.name} {name}: relative error {worst:.2e} > {tolerance:.2e}"
            )
        self.checked.add(key)

    def _tokens(self, value: np.ndarray, golden: np.ndarray) -> np.ndarray:
        """The first items, every step-th of axis 1; the file does not store the step,
        so the one of those with the right number of tokens that fits best."""
        items, kept = golden.shape[:2]
        steps = [
            step
            for step in range(1, value.shape[1] + 1)
            if -(-value.shape[1] // step) == kept
        ]
        choices = [value[:items, ::step] for step in steps]
        assert choices, f"no step keeps {kept} of {value.shape[1]} tokens"
        return min(choices, key=lambda ours: relative_error(ours, golden))

    def _check_digest(self, key, value, golden, tolerance):
        seed = self.meta.get("digest_seed", self.seed)
        ours = self.formula.digest(value, key, seed)
        self.check_digest(key, ours, golden, tolerance)

    def check_digest(self, name, ours, golden, tolerance) -> None:
        """Sums and dot product within tolerance x sum|.|; l2 norm relative."""
        scale = np.array([golden[1], golden[1], golden[2], golden[1]])
        worst = np.max(np.abs(ours - golden) / np.maximum(scale, 1e-30))
        assert worst <= tolerance, (
            f"{self.path.name} {name}@digest: {ours} not {golden}, relative error "
            f"{worst:.2e} > {tolerance:.2e}"
        )


def relative_error(ours, golden) -> float:
    """max |ours - golden| / max |golden|."""
    ours, golden = np.asarray(ours, np.float64), np.asarray(golden, np.float64)
    if not golden.size:
        return 0.0
    scale = np.abs(golden).max()
    return float(np.abs(ours - golden).max() / (scale if scale > 0 else 1.0))
