"""Every config builds, and its parameters are counted without computing anything."""

import importlib
from pathlib import Path

import jax
import pytest

from gaitjax import losses, models, state
from gaitjax.engine import optim
from gaitjax.retrieval.protocols import PROTOCOLS

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
    ("biggait", ""): (258_210, 0),
    ("biggait", "ccpg"): (8_724_290, 22_056_576),
    ("biggergait", ""): (211_562, 0),
    ("biggergait", "ccpg"): (120_149_952, 22_058_498),
    # one variant each at full size: `ZOO` B has the same counts
    ("deepgaitv2", ""): (158_072, 0),
    ("deepgaitv2", "gait3d"): (25_492_160, 0),
    ("gaitedge", ""): (141_774, 0),
    ("gaitedge", "casia_b_star"): (3_634_098, 0),
    ("gaitgl", ""): (107_641, 0),
    ("gaitgl", "oumvlp"): (95_620_449, 0),
    ("gaitgraph2", ""): (42_022, 0),
    ("gaitgraph2", "oumvlp"): (350_822, 0),
    ("gaitpart", ""): (54_920, 0),
    ("gaitpart", "casia_b"): (1_204_000, 0),
    ("gaitset", ""): (88_584, 0),
    ("gaitset", "casia_b"): (2_594_592, 0),
    ("gaittr", ""): (38_746, 0),
    ("gaittr", "grew"): (544_906, 0),
    ("multigaitpp", ""): (142_812, 0),
    ("multigaitpp", "ccpg"): (11_510_272, 0),  # ours reads 1 + 2 channels
    ("skeletongait", ""): (158_144, 0),
    ("skeletongait", "ccpg"): (8_446_464, 0),
    ("skeletongaitpp", ""): (157_116, 0),
    ("skeletongaitpp", "ccpg"): (8_522_336, 0),
    ("swingait", ""): (138_356, 0),
    ("swingait", "ccpg"): (11_039_520, 0),
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


def variants(name):
    """What the error for an unknown variant lists."""
    with pytest.raises(ValueError) as error:
        load(name, "moon")
    listed = str(error.value).partition("choose from ")[2].partition(" (")[0]
    return listed.split(", ")


@pytest.mark.parametrize("name", CONFIGS)
def test_every_variant_is_complete_and_consistent(name):
    for variant in variants(name):
        config = load(name, variant)
        steps, optimizer, data = config.train.steps, config.optimizer, config.data
        models.create_model(config)
        optim.make_optimizer(optimizer, optim.make_schedule(optimizer, steps or 1))
        assert set(config.loss) <= set(losses.LOSSES)
        assert set(config.evaluation.protocols) <= set(PROTOCOLS)
        assert config.name == (name if variant == "synthetic" else f"{name}_{variant}")
        if variant not in ("synthetic", "cmu_walk"):  # `ZOO` A.8, B.4
            short = variant == "ccpg" and name in ("biggait", "lmgait")
            assert config.evaluation.max_frames == (250 if short else 720)
        if config.model.name == "gei":
            continue  # nothing is trained
        assert data.ids_per_batch <= data.num_classes and steps > 0
        if optimizer.schedule == "milestones":
            assert list(optimizer.milestones) == sorted(optimizer.milestones)
            assert optimizer.milestones[-1] < steps
        assert optimizer.decay_steps <= steps and optimizer.rise_steps < steps
