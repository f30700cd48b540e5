"""Every config builds, and its parameters are counted without computing anything."""

import importlib
import json
from pathlib import Path

import jax
import pytest
from ml_collections import ConfigDict

from gaitjax import losses, models, settings, state
from gaitjax.engine import optim
from gaitjax.retrieval.definitions import PROTOCOLS

NO_MODELS = ("__init__", "common", "prompts", "sharding_rules", "words", "cargait")
CONFIGS = sorted(
    path.stem
    for path in (Path(__file__).parents[1] / "configs").glob("*.py")
    if path.stem not in NO_MODELS
)

# (config, variant) -> (trainable, frozen) parameters; "" is the embedded default.
PARAMETERS = {
    ("gei", ""): (0, 0),
    ("gei", "ccpg"): (0, 0),
    ("gaitbase", ""): (188_528, 0),
    ("gaitbase", "casia_b"): (7_305_408, 0),
    ("gaitbase", "ccpg"): (7_411_904, 0),
    ("biggait", ""): (327_170, 852_224),
    ("biggait", "ccpg"): (8_724_290, 22_056_576),
    ("biggergait", ""): (211_562, 0),
    ("biggergait", "ccpg"): (120_149_952, 22_058_498),
    ("biggergait", "ccpg_b"): (122_843_328, 86_584_322),
    ("biggergait", "ccpg_g"): (146_671_520, 1_136_488_450),
    ("biggerlmgait", ""): (364_547, 5_938_496),
    ("biggerlmgait", "ccpg"): (121_232_257, 85_224_450),
    ("biggerlmgait", "ccpg_l"): (133_323_393, 367_539_714),
    # one variant each at full size
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
    ("gpgait", ""): (103_660, 0),
    ("gpgait", "casia_b"): (3_654_810, 0),
    ("gpgaitpp", ""): (128_031, 0),
    ("gpgaitpp", "casia_b"): (5_227_539, 0),
    ("multigaitpp", ""): (142_812, 0),
    ("multigaitpp", "ccpg"): (11_510_272, 0),  # ours reads 1 + 2 channels
    ("skeletongait", ""): (158_144, 0),
    ("skeletongait", "ccpg"): (8_446_464, 0),
    ("skeletongaitpp", ""): (157_116, 0),
    ("skeletongaitpp", "ccpg"): (8_522_336, 0),
    ("swingait", ""): (138_356, 0),
    ("swingait", "ccpg"): (11_039_520, 0),
    ("pocket_recogniser", ""): (919_112, 0),
    ("pocket_encoders", ""): (1_290_485, 0),
    ("lmgait", ""): (439_108, 5_938_496),
    ("lmgait", "cmu_walk"): (439_108, 5_938_496),
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
    with pytest.raises(ValueError, match="Unknown variant 'moon'.*choose from"):
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
        models.check(config)
        # an import refuses weights whose options the config does not state
        assert set(models.MODELS[config.model.name].unseen) <= set(config.model)
        optim.make_optimizer(optimizer, optim.make_schedule(optimizer, steps or 1))
        assert set(config.loss) <= set(losses.LOSSES)
        assert set(config.evaluation.protocols) <= set(PROTOCOLS)
        if name.startswith("pocket"):
            continue  # of the package's own data
        assert config.name == (name if variant == "synthetic" else f"{name}_{variant}")
        if variant not in ("synthetic", "cmu_walk", "kth_walking"):
            # the published evaluations: 720 frames, of CCPG 250 with BigGait's code,
            # all with FastPoseGait's
            short = variant == "ccpg" and name in ("biggait", "lmgait")
            most = 0 if name in ("gpgait", "gpgaitpp") else 720
            assert config.evaluation.max_frames == (250 if short else most)
        if config.model.name == "gei":
            continue  # nothing is trained
        assert data.ids_per_batch <= data.num_classes and steps > 0
        if optimizer.schedule == "milestones":
            assert list(optimizer.milestones) == sorted(optimizer.milestones)
            assert optimizer.milestones[-1] < steps
        assert optimizer.decay_steps <= steps and optimizer.rise_steps < steps


@pytest.mark.parametrize("name", CONFIGS)
def test_a_model_is_made_of_its_config_alone(name):
    """As it is written, and as a run's config.json has it (tuples become lists)."""
    config = load(name)
    model = models.MODELS[config.model.name](7, **config.model)
    stored = ConfigDict(json.loads(config.to_json_best_effort()))
    models.check(stored)
    again = models.MODELS[stored.model.name](7, **stored.model)
    assert model == again and hash(model) == hash(again)


WRONG = [
    ("gaitset", "model.name", "moon", "Unknown config.model.name 'moon'; choose from"),
    ("gaitset", "model.bins", (), "config.model.bins must be a tuple"),
    ("gaitset", "model.bins", (3,), "bins=3 does not divide the 16 rows"),
    ("gaitset", "model.channels", (4, 4), "config.model.channels must be a tuple of 3"),
    (
        "gaitset",
        "model.dtype",
        "int8",
        "config.model.dtype 'int8'; choose from float32",
    ),
    ("gaitset", "data.modalities", ("frames",), "gaitset reads 'silhouettes': add it"),
    ("gaittr", "data.modalities", ("frames",), "gaittr reads 'keypoints': add it"),
    ("gaittr", "model.heads", 3, "channels must be multiples of .* 12; got"),
    ("gaittr", "model.dropout", 1.5, "config.model.dropout must be .* from 0 to 1"),
    ("gaitbase", "model.embedding_size", 0, "embedding_size must be an integer, 1 or"),
    ("gaitbase", "model.num_strips", 3, "num_strips=3 does not divide the 8 rows"),
    ("gaitbase", "model.layers", (1, 1), r"layers must have one entry per stage, 4"),
    ("gaitbase", "data.modalities", ("keypoints",), "gaitbase reads 1 of silhouettes"),
    (
        *("gaitbase", "data.modalities", ("frames", "silhouettes")),
        "config.data.modalities, which has frames, silhouettes",
    ),
    (
        "gaitpart",
        "model.halvings",
        (0, 2, 5),
        r"halvings\[2\]: 2\*\*5=32 does not divide",
    ),
    ("gaitgl", "model.halvings", 6, "2\\*\\*6=64 does not divide the 32 rows"),
    ("gaitgl", "model.channels", (4, 4), "channels must have 3 or 4 entries"),
    ("gaitgl", "model.head", "none", "config.model.head 'none'; choose from original"),
    (
        "deepgaitv2",
        "model.kind",
        "4d",
        "config.model.kind '4d'; choose from 2d, p3d, 3d",
    ),
    (
        "gaitedge",
        "evaluation.modalities",
        (),
        "gaitedge reads 'masks': add it to .*eval",
    ),
    ("gaitedge", "data.image_size", (126, 64), "image_size must be multiples of 8"),
    ("gaitedge", "model.freeze_encoder", False, "learns, but .*Add --config.train.tra"),
    ("gaitgraph2", "model.reduction", 100, "reduction=100 leaves nothing of a block"),
    ("multigaitpp", "data.modalities", ("heatmaps",), "multigaitpp reads 2 of silh"),
    ("multigaitpp", "model.squeeze", 16, "squeeze=16 leaves nothing of the 4 channels"),
    ("swingait", "model.heads", (3, 4), r"widths must be multiples of .*\(3, 4\)"),
    ("biggergait", "model.layers_per_group", 2, "layers_per_group must divide"),
    ("biggergait", "model.num_heads", 3, "hidden_size 32 is not a multiple of"),
    ("biggergait", "model.patch_size", 5, "image_size .* is not a multiple"),
    ("biggergait", "data.modalities", ("frames",), "warm-up reads 'masks'; add them"),
]


@pytest.mark.parametrize("name, field, value, message", WRONG)
def test_a_wrong_model_is_named_before_data_is_opened(name, field, value, message):
    config = load(name)
    with config.ignore_type():
        config.update_from_flattened_dict({field: value})
    with pytest.raises(ValueError, match=message):
        settings.check(config)


def test_the_default_number_of_reading_threads_follows_the_size():
    assert load("gaitbase").data.workers == 2
    assert load("gaitbase", "ccpg").data.workers == 0  # as many as cores
