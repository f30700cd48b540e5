"""MAM's rivals: what each computes, starts as, trains and costs."""

import functools
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from configs import lmgait
from gaitjax import models, run_folder, state, text_vectors, train
from gaitjax.parts import adapters
from gaitjax.parts.dinov2 import DINOv2
from tests.models.test_lmgait import (
    TINY,
    apply,
    config_of,
    make_batch,
    variables_of,
)
from tests.tiny_lmgait import tiny_batch, tiny_config

NAMES = ("mam", "lora", "adalora", "prompt")
SMALL = dict(rank=2, initial_rank=3, prompt_length=2, context_length=6)
DOCUMENT = Path(__file__).parents[2] / "docs" / "lmgait.md"


def with_adapter(name, model=TINY, **changes):
    return model.clone(text=model.text._replace(adapter=name, **SMALL, **changes))


@functools.cache
def tower_of(model):
    """Initial parameters of the language branch."""
    keys = {"params": jax.random.key(0)}
    return jax.jit(functools.partial(model.init, method="text_vectors"))(keys)["params"]


def vectors(model, params):
    return model.apply({"params": params}, method="text_vectors")


def trained(params, seed=0):
    """The parameters with adapters that have moved away from their start."""
    rng = np.random.default_rng(seed)
    flat = {
        path: leaf
        + (path[0].startswith(adapters.SCOPE)) * 0.3 * rng.normal(size=leaf.shape)
        for path, leaf in flatten_dict(params).items()
    }
    return unflatten_dict(jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), flat))


def plain_tower(params, change):
    """The vectors of the plain tower whose flat parameters `change` has changed."""
    flat = flatten_dict(params, sep="/")
    flat = {k: v for k, v in flat.items() if not k.startswith(adapters.SCOPE)}
    change(flat)
    return vectors(with_adapter("none"), unflatten_dict(flat, sep="/"))


def assert_near(found, expected, atol=1e-5):
    for name, rows in expected.items():
        np.testing.assert_allclose(found[name], rows, atol=atol, err_msg=name)


# --- what they compute --------------------------------------------------------------


@pytest.mark.parametrize("name", ["mam", "lora", "adalora"])
def test_step_zero_is_the_plain_tower(name):
    model = with_adapter(name)
    params = tower_of(model)
    found, moved = vectors(model, params), vectors(model, trained(params))
    assert_near(found, plain_tower(params, lambda flat: None), atol=0)
    assert float(jnp.abs(moved["last"] - found["last"]).max()) > 1e-2


def test_lora_by_hand():
    model = with_adapter("lora", alpha=5.0)
    params = trained(tower_of(model))
    own = params["text_adapter_0"]
    assert set(own) == {"q_proj", "v_proj"} and own["q_proj"]["a"].shape == (8, 2)

    def change(flat):
        for name, update in own.items():
            kernel = f"text_encoder/text_model/encoder/layers/0/self_attn/{name}/kernel"
            delta = np.asarray(update["a"]) @ np.asarray(update["b"])
            flat[kernel] = flat[kernel] + 5.0 / 2 * delta

    assert_near(vectors(model, params), plain_tower(params, change))


def test_adalora_by_hand():
    model = with_adapter("adalora")
    params = trained(tower_of(model))
    own = params["text_adapter_0"]
    assert own["fc1"]["q"].shape == (3, 32) and len(own) == 6

    def change(flat):
        for name, update in own.items():
            part = "mlp" if name.startswith("fc") else "self_attn"
            kernel = f"text_encoder/text_model/encoder/layers/0/{part}/{name}/kernel"
            p, values, q = (np.asarray(update[x]) for x in ("p", "lambda", "q"))
            flat[kernel] = flat[kernel] + p @ np.diag(values) @ q

    assert_near(vectors(model, params), plain_tower(params, change))


@pytest.mark.parametrize("pooling", ["eot", "mean"])
def test_learned_vectors_are_words_after_the_start_token(pooling):
    """The plain tower with two more words, whose embeddings are the vectors."""
    model = with_adapter("prompt", pooling=pooling)
    params = tower_of(model)
    learned = params["text_adapter_0"]["vectors"]
    assert learned.shape == (2, 8)
    flat = flatten_dict(params, sep="/")
    table = "text_encoder/text_model/embeddings/token_embedding/embedding"
    # before the end token, which has the largest id
    flat[table] = jnp.insert(flat[table], 9, learned, axis=0)
    del flat["text_adapter_0/vectors"]
    ids = tuple((r[0], 9, 10, *(11 if i == 9 else i for i in r[1:]))
                for r in TINY.text.token_ids)  # fmt: skip
    words = with_adapter("none", pooling=pooling, vocabulary_size=12)
    words = words.clone(text=words.text._replace(token_ids=ids))
    expected = vectors(words, unflatten_dict(flat, sep="/"))
    assert_near(vectors(model, params), expected)


@pytest.mark.parametrize("name", NAMES)
def test_cached_text_equals_the_live_branch(name):
    """z_text is a constant of the trained model with each adapter."""
    model = with_adapter(name)
    batch, visual = make_batch(), variables_of(with_adapter("none"))
    language = trained(tower_of(model))
    live, _ = apply(model, visual | {"params": visual["params"] | language}, batch)
    bare = {k: v for k, v in visual["params"].items() if k not in language}
    cached, _ = apply(
        model, visual | {"params": bare}, batch, text=vectors(model, language)
    )
    np.testing.assert_allclose(cached.embeddings, live.embeddings, atol=1e-6)
    start, _ = apply(
        model, visual | {"params": bare}, batch, text=vectors(model, tower_of(model))
    )
    assert float(jnp.abs(start.embeddings - live.embeddings).max()) > 1e-5


# --- what they train ----------------------------------------------------------------


@pytest.mark.parametrize(
    "name, first",
    [("mam", "up"), ("lora", "b"), ("adalora", "lambda"), ("prompt", "vectors")],
)
def test_gradients_reach_the_adapter_and_not_the_tower(name, first):
    model = with_adapter(name)
    trainable, frozen = state.split_frozen(tower_of(model), ("^text_encoder/",))
    projections = {"text_projection_last", "text_projection_mid"}
    assert set(trainable) == {"text_adapter_0"} | projections

    def loss(params):
        found = vectors(model, params | frozen)
        weights = jnp.arange(found["mid"].size).reshape(found["mid"].shape)
        return jnp.sum(found["mid"] * weights)

    gradients = flatten_dict(jax.grad(loss)(trainable), sep="/")
    moved = {k for k, v in gradients.items() if np.any(v) and "adapter" in k}
    # what the zero factor is multiplied by gets a gradient as soon as it is not 0
    assert moved and moved == {name for name in gradients if f"/{first}" in name}


def test_weight_decay_spares_all_adapters():
    model = with_adapter("lora").clone(visual_prompts=2)
    for path in ("text_adapter_0/q_proj/a", "visual_prompts/vectors"):
        assert any(re.search(pattern, path) for pattern in model.no_decay)


def test_a_step_trains_adalora_and_visual_prompts_through_frozen_encoders():
    config = tiny_config()
    config.frozen = ("^text_encoder/", "^visual_encoder/")
    config.train.trainable = ""
    config.model.visual_prompts = 2
    config.model.text.update(adapter="adalora", rank=1, initial_rank=2)
    config.optimizer.rates = ()
    config.model.visual_encoder.frames_per_chunk = 5
    setup = state.build(config, state.example_batch(config), jax.devices()[:1])
    start = setup.new_state()
    assert set(start.frozen) == {"text_encoder", "visual_encoder"}
    assert start.params["visual_prompts"]["vectors"].shape == (2, 8)
    phase = train.loop_phases(config, setup)[-1]
    old = jax.device_get(start.params)
    new, logged = phase.step(start, tiny_batch(config), jax.random.key(0))
    for scope in ("visual_prompts", "text_adapter_0"):
        pairs = zip(jax.tree.leaves(old[scope]), jax.tree.leaves(new.params[scope]))
        assert any(np.any(a != b) for a, b in pairs), scope
    assert logged["adapter/rank"] == 0  # before the step every lambda is 0
    assert np.isfinite(logged["total"]) and logged["adapter/not_orthogonal"] > 0
    ranks = [np.sum(m["lambda"] != 0) for m in new.params["text_adapter_0"].values()]
    assert 0 < sum(ranks) <= 12


@pytest.mark.parametrize("chunk", [0, 2])
def test_visual_prompts_are_tokens_beside_the_class_token(chunk):
    model = DINOv2(8, 2, 2, patch_size=4, table_size=4, frames_per_chunk=chunk)
    images = jax.random.normal(jax.random.key(1), (3, 8, 8, 3))
    prompts = jax.random.normal(jax.random.key(2), (2, 8))
    variables = model.init(jax.random.key(0), images)
    plain, (kept,) = model.apply(variables, images, (1,))
    found, (block,) = model.apply(variables, images, (1,), prompts)
    assert found.shape == (3, 1 + 2 + 4, 8) and block.shape == found.shape
    assert kept.shape == (3, 5, 8)
    assert float(jnp.abs(found[:, 3:] - plain[:, 1:]).max()) > 1e-3
    # their order does not matter: they have no positions
    swapped, _ = model.apply(variables, images, (1,), prompts[::-1])
    np.testing.assert_allclose(swapped[:, 3:], found[:, 3:], atol=1e-5)
    gradient = jax.grad(
        lambda x: model.apply(variables, images, (), x)[0][:, 3, 0].sum()
    )
    assert float(jnp.abs(gradient(prompts)).max()) > 1e-4


# --- AdaLoRA's optimizer ------------------------------------------------------------


def triplets(seed, matrices=2, rank=3):
    rng = np.random.default_rng(seed)
    shapes = {"p": (4, rank), "lambda": (rank,), "q": (rank, 5)}
    own = {
        f"text_adapter_{i}": {"fc1": {k: rng.normal(size=s) for k, s in shapes.items()}}
        for i in range(matrices)
    }
    return own | {"gait": {"kernel": rng.normal(size=(3, 3))}}


def test_shrinking_by_hand():
    steps, weight, rate = 10, 0.5, 0.01
    tx = adapters.shrinking(
        optax.sgd(rate), steps=steps, ranks=(3, 1), hold=(0.2, 0.3),
        orthogonality=weight,
    )  # fmt: skip
    params = jax.tree.map(jnp.float32, triplets(0))
    opt_state, update = tx.init(params), jax.jit(tx.update)
    mine = jax.tree.map(np.float64, triplets(0))
    average = {k: [0.0, 0.0] for k in flatten_dict(mine)}
    kept_numbers = []
    for step in range(steps):
        gradients = triplets(step + 1)
        updates, opt_state = update(
            jax.tree.map(jnp.float32, gradients), opt_state, params
        )
        params = optax.apply_updates(params, updates)

        flat, importance = flatten_dict(mine), {}
        for path, gradient in flatten_dict(gradients).items():
            x = flat[path]
            if path[-1] == "p":
                gradient = gradient + weight * 4 * x @ (x.T @ x - np.eye(3))
            elif path[-1] == "q":
                gradient = gradient + weight * 4 * (x @ x.T - np.eye(3)) @ x
            if path[0] != "gait":
                found = np.abs(x * gradient)
                average[path][0] = 0.85 * average[path][0] + 0.15 * found
                apart = np.abs(found - average[path][0])
                average[path][1] = 0.85 * average[path][1] + 0.15 * apart
                importance[path] = average[path][0] * average[path][1]
            flat[path] = x - rate * gradient
        left = np.clip(1 - (step - 2) / (10 - 2 - 3), 0, 1)
        budget = round(2 * (1 + 2 * left**3))
        scores = {}
        for i in range(2):
            path = (f"text_adapter_{i}", "fc1")
            for k in range(3):
                scores[i, k] = (
                    importance[*path, "lambda"][k]
                    + importance[*path, "p"][:, k].mean()
                    + importance[*path, "q"][k].mean()
                )
        kept = sorted(scores, key=scores.get, reverse=True)[:budget]
        kept_numbers.append(budget)
        for i, k in scores.keys() - set(kept):
            flat[f"text_adapter_{i}", "fc1", "lambda"][k] = 0
        mine = unflatten_dict(flat)
        for path, leaf in flatten_dict(params).items():
            expected = flatten_dict(mine)[path]
            np.testing.assert_allclose(leaf, expected, rtol=2e-4, atol=1e-5)
    assert kept_numbers[:3] == [6, 6, 6] and kept_numbers[-4:] == [2] * 4
    assert len(set(kept_numbers)) > 2
    ranks = adapters.logged(params)["adapter/rank"]
    assert float(ranks) == 1  # of two matrices, two entries are left


def test_frozen_adapters_leave_the_optimizer_as_it_is():
    params = {"gait": {"kernel": jnp.ones(3)}}
    tx = adapters.shrinking(
        optax.sgd(0.1), steps=2, ranks=(3, 1), hold=(0, 0), orthogonality=1.0
    )
    updates, _ = tx.update(params, tx.init(params), params)
    np.testing.assert_allclose(updates["gait"]["kernel"], -0.1 * np.ones(3))


# --- configs, old and new -----------------------------------------------------------


def former(mam):
    """A config as runs wrote it before the field `text.adapter`."""
    tree = run_folder.plain(lmgait.get_config())
    new = ("adapter", "rank", "alpha", "initial_rank", "budget", "orthogonality")
    for name in (*new, "prompt_length"):
        del tree["model"]["text"][name]
    tree["model"]["text"]["mam"] = mam
    del tree["model"]["visual_prompts"]
    return tree


@pytest.mark.parametrize("mam, adapter", [(True, "mam"), (False, "none")])
def test_a_run_with_the_former_switch_goes_on(mam, adapter, tmp_path):
    run_folder.write_json(tmp_path / "config.json", former(mam))
    config = run_folder.read_config(tmp_path)
    assert config.model.text.adapter == adapter and "mam" not in config.model.text
    models.check(config)
    today = lmgait.get_config()
    assert models.make(config) == models.make(today) or not mam
    today.model.text.adapter = adapter
    stored = {"config": former(mam), "data": "x"}
    current = run_folder.describe(today, "x")
    assert run_folder.differences(stored, current) == []
    stored[text_vectors.TEXT_VECTORS] = {"last": [[0.5]]}
    assert text_vectors.from_description(today, stored) == {"last": np.float32([[0.5]])}
    today.model.text.adapter = "lora"
    changed = run_folder.differences(stored, run_folder.describe(today, "x"))
    assert changed == [f"config.model.text.adapter: {adapter} -> lora"]
    assert text_vectors.from_description(today, stored) is None


@pytest.mark.parametrize(
    "model, message",
    [
        (with_adapter("bitfit"), "text.adapter 'bitfit'; choose from mam, lora"),
        (with_adapter("prompt", TINY.clone()).clone(
            text=TINY.text._replace(adapter="prompt", prompt_length=2)),
         r"4 tokens and 2 learned vectors .*context_length is 4"),
        (TINY.clone(text=TINY.text._replace(adapter="adalora", rank=13)),
         "initial_rank must be text.rank or more.*got 12, 13"),
        (TINY.clone(text=TINY.text._replace(adapter="adalora", budget=(0.5, 0.5))),
         "must sum to less than 1"),
    ],
)  # fmt: skip
def test_wrong_options_of_adapters_are_named(model, message):
    with pytest.raises(ValueError, match=message):
        models.check(config_of(model))


def test_visual_prompts_need_a_frozen_encoder():
    config = config_of(TINY)
    with config.unlocked():
        config.model.visual_prompts = 2
    config.frozen = ("^text_encoder/",)
    config.train.trainable = "^(?!visual_encoder/)"
    with pytest.raises(ValueError, match="visual_prompts are learned instead"):
        models.check(config)


def test_the_table_of_parameters_in_the_docs():
    """Counts at the paper's size."""
    row = r"^\| `text.adapter=\"(\w+)\"` .* ([\d,]+) \|$"
    rows = re.findall(row, DOCUMENT.read_text(), re.M)
    assert [name for name, _ in rows] == [*NAMES, "none"]
    for name, written in rows:
        config = lmgait.get_config("ccpg")
        config.model.text.adapter = name
        model = models.make(config)
        init = functools.partial(model.init, method="text_vectors")
        params = jax.eval_shape(init, {"params": jax.random.key(0)})["params"]
        own = [v for k, v in params.items() if k.startswith(adapters.SCOPE)]
        size = sum(x.size for x in jax.tree.leaves(own))
        assert f"{size:,}" == written
