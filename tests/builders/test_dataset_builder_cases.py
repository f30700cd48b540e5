"""TFDS's own checks of each benchmark's builder, if TensorFlow is installed.

test_benchmark_builders.py checks what is in the records, without TensorFlow.
"""

import importlib.util
import tempfile
import warnings
from pathlib import Path

import fake_benchmarks
import pytest

from tfds_builders.prepare import builder_class

MISSING = [m for m in ("tensorflow", "dill") if importlib.util.find_spec(m) is None]
# builder[/config] -> sequences of its fake archive by split
SPLITS = {
    "ccpg": {"train": 3, "test": 3},
    "casia_b": {"train": 3, "test": 3},
    "casia_b_star": {"train": 3, "test": 3},
    "oumvlp": {"train": 3, "test": 6},
    "sustech1k": {"train": 2, "test": 2},
    "gait3d": {"train": 2, "test": 2},
    "grew": {"train": 2, "test": 4},
    "ccgr_mini": {"train": 2, "test": 2},
    "kinect_gait": {"train": 8, "test": 8},
    "ccpg/opengait": {"train": 3, "test": 3},
    "oumvlp/opengait": {"train": 3, "test": 3},
}


def make_case(full_name: str) -> type:
    """The DatasetBuilderTestCase of a builder; its archive is written first."""
    import tensorflow_datasets as tfds

    name, _, config = full_name.partition("/")
    writer = fake_benchmarks.__dict__[f"{name}_pickles" if config else name]

    with warnings.catch_warnings():  # TensorFlow's imports
        warnings.simplefilter("ignore")
        base = tfds.testing.DatasetBuilderTestCase

    def set_up_class(cls):
        cls.EXAMPLE_DIR = tempfile.mkdtemp(prefix=f"fake_{name}_")
        writer(Path(cls.EXAMPLE_DIR))
        super(cls, cls).setUpClass()

    fields = {
        "DATASET_CLASS": builder_class(name),
        "BUILDER_CONFIG_NAMES_TO_TEST": [config or "default"],
        "SPLITS": SPLITS[full_name],
        "SKIP_CHECKSUMS": True,
        "setUpClass": classmethod(set_up_class),
    }
    return type(f"Test_{name}", (base,), fields)


@pytest.mark.skipif(bool(MISSING), reason=f"{MISSING} not installed")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", SPLITS)
def test_builder(name):
    import unittest

    case = make_case(name)
    suite = unittest.defaultTestLoader.loadTestsFromTestCase(case)
    assert suite.countTestCases() >= 5
    result = unittest.TestResult()
    suite.run(result)
    problems = [text for _, text in result.errors + result.failures]
    assert not problems, problems[0]
