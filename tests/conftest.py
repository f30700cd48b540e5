"""Shared by all tests: CPU, quick compilation and its cache, strict rank promotion.

Programs that the tests start inherit the environment variables set here.
"""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
# One folder per process of pytest-xdist: JAX does not write its files atomically.
WORKER = os.environ.get("PYTEST_XDIST_WORKER", "")
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(ROOT / ".cache" / f"jax{WORKER}")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Tests compile much and compute little: code that LLVM does not optimise is ready in
# half the time.
FLAGS = f"--xla_backend_optimization_level=0 {os.environ.get('XLA_FLAGS', '')}"
os.environ["XLA_FLAGS"] = FLAGS.strip()

import jax  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)

# Two processes share the tests file by file. The longest files come first, so that
# neither process works long after the other has nothing left to do.
LONGEST = (
    "test_end_to_end",
    "test_preemption",
    "test_zoo",
    "test_goldens",
    "test_lmgait",
    "test_encoders",
    "test_multihost",
    "test_layers",
)


def pytest_collection_modifyitems(items):
    if WORKER:
        rank = {name: place for place, name in enumerate(LONGEST)}
        items.sort(key=lambda item: rank.get(item.path.stem, len(rank)))
