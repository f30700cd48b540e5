"""Where a run's weights come from: the seed, files, checkpoints."""

import functools
import logging

import jax
import numpy as np
import pytest
from flax import traverse_util

from configs import gaitbase
from gaitjax import models, state, train
from gaitjax.weights import encoders
from tests.tiny_lmgait import tiny_batch, tiny_config


def assert_equal(got, expected):
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, got, expected)


@pytest.fixture
def fine_tuned(tmp_path):
    """(config of a run that trains its encoder, the encoder's weights in its file)."""
    config = tiny_config()
    config.model.visual_encoder.frozen = False
    config.train.trainable, config.optimizer.schedule = "", "constant"
    setup = state.build(config, state.example_batch(config))
    shapes = setup.abstract_state.params["visual_encoder"]
    rng = np.random.default_rng(0)
    weights = jax.tree.map(
        lambda x: rng.normal(size=x.shape).astype(np.float32) / 9, shapes
    )
    encoders.save(tmp_path / "encoder.safetensors", weights)
    config.pretrained.visual_encoder = str(tmp_path / "encoder.safetensors")
    return config, weights


def test_a_trained_encoder_starts_at_its_file_and_goes_on_from_checkpoints(
    fine_tuned, tmp_path
):
    config, weights = fine_tuned
    models.check(config)
    setup = state.build(config, state.example_batch(config))
    start = setup.new_state()
    assert set(start.frozen) == {"text_encoder"}
    assert_equal(jax.device_get(start.params["visual_encoder"]), weights)
    step = functools.partial(
        train.train_step, model=setup.model, tx=setup.tx, losses=config.loss.to_dict()
    )
    new, _ = jax.jit(step)(start, tiny_batch(config), jax.random.key(0))
    kernel = ("encoder", "layer", "0", "attention", "attention", "value", "kernel")
    flat = traverse_util.flatten_dict(new.params["visual_encoder"])
    moved = traverse_util.flatten_dict(weights)
    assert not np.array_equal(flat[kernel], moved[kernel])

    (tmp_path / "encoder.safetensors").unlink()
    stored = jax.tree.map(np.asarray, state.stored_part(new))
    restored = setup.new_state(stored)
    assert_equal(restored.params, stored["params"])
    assert_equal(restored.frozen, start.frozen)


def test_of_a_part_that_is_frozen_in_part_both_halves_are_read(fine_tuned):
    config, weights = fine_tuned
    config.frozen = (*config.frozen, "^visual_encoder/embeddings/")
    setup = state.build(config, state.example_batch(config))
    start = setup.new_state()
    halves = start.params["visual_encoder"], start.frozen["visual_encoder"]
    assert set(halves[1]) == {"embeddings"} and "embeddings" not in halves[0]
    assert_equal(jax.device_get(halves[0] | halves[1]), weights)


def test_frozen_parts_without_a_source_are_named(caplog):
    config = tiny_config()
    with caplog.at_level(logging.WARNING):
        state.build(config, state.example_batch(config)).new_state()
    assert "Frozen text_encoder keeps its random initial values" in caplog.text
    assert "visual_encoder" not in caplog.text


def test_a_source_that_nothing_reads_is_named():
    config = gaitbase.get_config()
    config.data.update(ids_per_batch=2, seqs_per_id=2, num_frames=3)
    with config.unlocked():
        config.pretrained = dict(visual_encoder="a/file")
    message = (
        r"config\.pretrained\.visual_encoder='a/file' would not be read: the "
        r"model's parts are .*stem"
    )
    with pytest.raises(ValueError, match=message):
        state.build(config, state.example_batch(config))
    config.pretrained.visual_encoder = ""
    state.build(config, state.example_batch(config))


def test_the_source_of_a_part_that_is_switched_off_may_stay():
    config = tiny_config()
    config.pretrained.text_encoder = "a/file"
    config.model.text.enabled = False
    setup = state.build(config, state.example_batch(config))
    assert "text_encoder" not in setup.new_state().frozen


def test_an_encoder_that_only_weight_decay_would_move_is_refused():
    config = tiny_config()
    models.check(config)  # held after the warm-up by config.train.trainable
    config.train.trainable = ""
    with pytest.raises(ValueError, match="visual_encoder.frozen=True .*weight decay"):
        models.check(config)
    config.mode = "evaluate"
    models.check(config)
    config.mode, config.frozen = "train", (*config.frozen, "^visual_encoder/")
    models.check(config)
