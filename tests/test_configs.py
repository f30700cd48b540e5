"""Every config builds, and its parameters are counted without computing anything."""

import importlib
from pathlib import Path

import jax
import pytest

from gaitjax import state

CONFIGS = sorted(
    path.stem
    for path in (Path(__file__).parents[1] / "configs").glob("*.py")
    if path.stem not in ("__init__", "common", "prompts", "cargait")  # no gait model
)

# (config, variant) -> (trainable, frozen) parameters; "" is the embedded default.
PARAMETERS = {
    ("gei", ""): (0, 0),
    ("gei", "ccpg"): (0, 0),
    ("gaitbase", ""): (188_528, 0),
    ("gaitbase", "casia_b"): (7_305_408, 0),
    ("gaitbase", "ccpg"): (7_411_904, 0),
    ("gaitbase", "gait3d"): (19_290_304, 0),
    ("lmgait", ""): (284_996, 3_267_136),
    ("lmgait", "cmu_walk"): (284_996, 3_267_136),
    ("lmgait", "ccpg"): (10_509_156, 85_222_528),
    ("lmgait", "sustech1k"): (11_123_556, 85_222_528),
    ("lmgait", "casia_b_star"): (10_402_660, 85_222_528),
}


def load(name, variant=""):
    module = importlib.import_module(f"configs.{name}")
    return module.get_config(variant) if variant else module.get_config()


def count(config):
    setup = state.build(config, state.example_batch(config))
    trees = setup.abstract_state.params, setup.abstract_state.frozen
    return tuple(sum(x.size for x in jax.tree.leaves(tree)) for tree in trees)


@pytest.mark.parametrize("name", CONFIGS)
def test_every_config_is_in_the_table(name):
    assert any(row[0] == name for row in PARAMETERS), f"add {name} to PARAMETERS"


@pytest.mark.parametrize("name,variant", sorted(PARAMETERS))
def test_parameter_count(name, variant):
    assert count(load(name, variant)) == PARAMETERS[name, variant]


@pytest.mark.parametrize("name", CONFIGS)
def test_unknown_variant_lists_the_choices(name):
    with pytest.raises(ValueError, match="Unknown variant 'moon'.*choose from.*ccpg"):
        load(name, "moon")
