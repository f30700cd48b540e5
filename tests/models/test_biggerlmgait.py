"""LMGait's text mask and MTCM on BiggerGait's heads: every switch, one real step."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from configs import biggergait as plain_config
from configs import biggerlmgait
from gaitjax import models, settings, state, train
from gaitjax.models.biggergait import BiggerGait
from gaitjax.parts.dinov2 import DINOV2_SIZES
from gaitjax.parts.language import Text
from gaitjax.parts.mtcm import Motion
from tests.models.test_lmgait import QUICK, make_batch, random_leaf

TINY = BiggerGait(
    num_classes=5, image_size=(32, 16), map_size=(16, 8), hidden_size=8, num_layers=2,
    num_heads=2, patch_size=4, table_size=4, num_recognisers=2, map_channels=4,
    channels=(4,), layers=(1,), strides=(1,), num_strips=4, embedding_size=6,
    text=Text(
        token_ids=((1, 4, 2, 9), (1, 3, 9, 0)), width=8, num_layers=1, num_heads=2,
        vocabulary_size=10, context_length=4, adapter_size=3,
    ),
    mtcm=Motion(),
)  # fmt: skip
PLAIN = TINY.clone(text=Text(enabled=False), mtcm=Motion(enabled=False))


def with_text(**changes):
    return TINY.clone(text=TINY.text._replace(**changes))


@functools.cache
def shapes(model):
    batch = make_batch(2, 2)
    keys = {"params": jax.random.key(0)}
    return jax.eval_shape(functools.partial(model.init, train=True), keys, batch)


def parts(model):
    return set(shapes(model)["params"])


@functools.cache
def variables_of(model):
    rng = np.random.default_rng(0)

    def fill(path, leaf):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        return jnp.asarray(random_leaf(name, leaf.shape, rng), jnp.float32)

    return jax.tree_util.tree_map_with_path(fill, shapes(model))


@functools.partial(jax.jit, static_argnames="model", compiler_options=QUICK)
def apply(model, variables, batch, text=None):
    return model.apply(variables, batch, train=False, text=text)


@functools.cache
def live():
    return apply(TINY, variables_of(TINY), make_batch(2, 2))


def test_shapes_and_parts():
    output = live()
    assert output.embeddings.shape == (2, 2 * 4, 6)  # [B S D], as CarGait reads
    assert output.logits.shape == (2, 8, 5)
    assert output.aux["text_mask"].shape == (2, 2, 8, 4)
    assert output.aux["motion"].shape == (2, 2, 16, 8)
    text = {"text_encoder", "text_adapter_0", "text_projection_last"}
    assert parts(TINY) - parts(PLAIN) == text | {"mtcm_0", "mtcm_1"}
    assert parts(TINY.clone(mtcm=Motion(enabled=False))) == parts(PLAIN) | text
    lost = parts(TINY) - parts(with_text(enabled=False))
    assert lost == text
    assert parts(with_text(adapter="none")) == parts(TINY) - {"text_adapter_0"}


def test_without_text_and_motion_it_is_biggergait():
    """Published weights and earlier checkpoints have this tree."""
    config = plain_config.get_config("ccpg")
    assert "text" not in config.model and "mtcm" not in config.model
    assert not models.make(config).uses_text
    assert parts(PLAIN) == {
        *("visual_encoder", "decoder", "layer0", "layer1", "gait0", "gait1")
    }


def test_cached_text_equals_the_live_branch():
    variables = variables_of(TINY)
    vectors = TINY.apply(variables, method="text_vectors")
    assert set(vectors) == {"last"}
    bare = {k: v for k, v in variables["params"].items() if k[:5] != "text_"}
    cached = apply(TINY, variables | {"params": bare}, make_batch(2, 2), vectors)
    np.testing.assert_allclose(cached.embeddings, live().embeddings, atol=1e-6)


@pytest.mark.parametrize(
    "model",
    [
        with_text(place="after_norm"),
        with_text(place="before_mtcm"),
        with_text(fusion="gate"),
        TINY.clone(mtcm=Motion(difference=False)),
    ],
)
def test_switches_without_parameters_change_the_embedding(model):
    changed = apply(model, variables_of(TINY), make_batch(2, 2))
    assert float(jnp.abs(changed.embeddings - live().embeddings).max()) > 1e-4


def test_wrong_options_are_named():
    config = biggerlmgait.get_config()
    settings.check(config)
    config.model.text.num_heads = 5
    with pytest.raises(ValueError, match="text.width 96 is not a multiple of 5 heads"):
        settings.check(config)


def test_the_encoder_may_be_vit_g():
    config = plain_config.get_config("ccpg_g")
    settings.check(config)
    sizes = {name: config.model[name] for name in DINOV2_SIZES["g"]}
    assert sizes == DINOV2_SIZES["g"]
    gated = shapes(PLAIN.clone(swiglu=True))["params"]["visual_encoder"]
    assert set(gated["encoder"]["layer"]["0"]["mlp"]) == {"weights_in", "weights_out"}


def test_the_published_sizes():
    config = biggerlmgait.get_config("ccpg_l")
    settings.check(config)
    assert config.data.ordered and config.data.train_dataset == "ccpg"
    assert config.model.text.num_layers == 12 and config.model.num_layers == 24


def test_one_training_step_moves_text_motion_and_heads():
    config = biggerlmgait.get_config()
    config.data.update(ids_per_batch=2, seqs_per_id=2, num_frames=2, num_classes=3)
    config.data.image_size = (32, 16)
    config.pretrained = {part: "" for part in config.pretrained}
    config.model.update(
        image_size=(32, 16), map_size=(8, 4), hidden_size=8, num_layers=1, num_heads=1,
        table_size=4, patch_size=4, num_recognisers=1, map_channels=4, channels=(4,),
        layers=(1,), strides=(1,), num_strips=2, embedding_size=4,
    )  # fmt: skip
    config.model.text.update(width=8, num_layers=1, num_heads=1, adapter_size=2)
    settings.check(config)
    setup = state.build(config, state.example_batch(config), jax.devices()[:1])
    start = setup.new_state()
    assert set(start.frozen) == {"visual_encoder", "text_encoder"}
    shape = {name: x.shape for name, x in state.example_batch(config).items()}
    rng = np.random.default_rng(0)
    batch = {
        "frames": rng.integers(0, 255, shape["frames"], np.uint8),
        "masks": rng.integers(0, 2, shape["masks"], np.uint8),
        "ratios": np.full(shape["ratios"], 0.4, np.float32),
        "valid": np.ones(shape["valid"], bool),
        "labels": np.array([0, 0, 2, 2], np.int32),
    }
    old = jax.device_get(start.params)
    phase = train.loop_phases(config, setup)[-1]
    assert phase.name == "training"
    new, logged = phase.step(start, jax.tree.map(jnp.asarray, batch), jax.random.key(0))
    assert np.isfinite(logged["total"]) and "text_mask/foreground" in logged
    old, new = flatten_dict(old), flatten_dict(jax.device_get(new.params))
    moved = {path[0] for path in old if np.any(old[path] != new[path])}
    assert moved == {
        *("text_adapter_0", "text_projection_last", "mtcm_0", "layer0", "gait0"),
        "decoder",
    }
