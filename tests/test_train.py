"""The training step: what moves, what is frozen, what stops it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import traverse_util

from configs import biggergait, gaitbase, skeletongait, swingait
from gaitjax import command_line, restore, run_folder, train
from gaitjax import state as states
from gaitjax.data.source import Index, Source
from gaitjax.engine import loop
from gaitjax.parts.output import GaitOutput
from gaitjax.phases import phases_of
from tests.tiny_lmgait import tiny_batch, tiny_config


@pytest.fixture(scope="module")
def config():
    return tiny_config()


@pytest.fixture(scope="module")
def setup(config):
    return states.build(config, states.example_batch(config))


@pytest.fixture(scope="module")
def batch(config):
    return tiny_batch(config)


def moved(before, after):
    """Top-level names of the parameters that changed."""
    old = traverse_util.flatten_dict(before, sep="/")
    new = traverse_util.flatten_dict(after, sep="/")
    assert old.keys() == new.keys()
    changed = {name for name in old if not np.array_equal(old[name], new[name])}
    return {name.split("/")[0] for name in changed}


def one_step(setup, state, batch, config, **options):
    step = functools.partial(
        train.train_step, model=setup.model, tx=setup.tx, **options
    )
    return jax.jit(step)(state, batch, jax.random.key(0))


def test_warm_up_moves_the_decoder_alone_and_its_optimizer_state(setup, batch, config):
    state = setup.new_state()
    new, metrics = one_step(
        setup, state, batch, config, method="warm_up", trainable="^decoder/",
        losses={"silhouette": {"weight": 1.0}},
    )  # fmt: skip
    assert moved(state.params, new.params) == {"decoder"}
    assert set(metrics) == {"silhouette", "total", "gradient_norm"}
    assert moved(state.batch_stats, new.batch_stats) == {"decoder"}
    leaves = jax.tree_util.tree_leaves_with_path(new.opt_state)
    momenta = [
        jax.tree_util.keystr(path, simple=True, separator="/")
        for (path, leaf), old in zip(leaves, jax.tree.leaves(state.opt_state))
        if np.ndim(leaf) and not np.array_equal(leaf, old)
    ]
    assert momenta and all("/decoder/" in name for name in momenta)


def test_a_step_moves_everything_but_what_is_frozen(setup, batch, config):
    state = setup.new_state()
    assert set(state.frozen) == {"text_encoder"}
    assert "text_encoder" not in state.params
    assert "text_encoder" not in states.stored_part(state)
    new, metrics = one_step(
        setup, state, batch, config, losses=config.loss.to_dict(),
        trainable=config.train.trainable,
    )  # fmt: skip
    held = {"visual_encoder"} if config.train.trainable else set()
    expected = {name for name in state.params} - held
    # MAM starts at W_u = 0: its first gradient reaches only W_u, which still moves
    assert moved(state.params, new.params) == expected
    assert int(new.step) == 1
    assert all(np.isfinite(value) for value in metrics.values())
    np.testing.assert_array_equal(
        jax.tree.leaves(state.frozen)[0], jax.tree.leaves(new.frozen)[0]
    )


class Logging(nn.Module):
    """Embeds by one weight and gives a scalar to be logged."""

    @nn.compact
    def __call__(self, batch, *, train):
        weight = self.param("weight", nn.initializers.ones, ())
        brightness = batch["brightness"] * weight  # [B]
        embeddings = brightness[:, None, None] * jnp.ones((1, 2, 3))
        logged = {"brightness/mean": jnp.mean(brightness)}
        return GaitOutput(embeddings, embeddings, {"logged": logged})


@pytest.mark.parametrize("parts", [1, 2])
def test_what_a_model_logs_is_logged_and_no_loss(parts):
    batch = {
        "brightness": jnp.arange(4.0),
        "labels": jnp.array([0, 0, 1, 1]),
        "valid": jnp.ones((4, 2), bool),
    }
    tx, model = optax.sgd(0.1), Logging()
    losses = {"cross_entropy": {"weight": 1.0, "scale": 1.0, "smoothing": 0.0}}
    state = states.init_state(
        jax.random.key(0), batch, model=model, tx=tx, frozen_patterns=()
    )
    _, metrics = train.train_step(
        state, batch, jax.random.key(0), model=model, tx=tx, losses=losses, parts=parts
    )
    assert set(metrics) == {
        "cross_entropy", "total", "brightness/mean", "gradient_norm",
    }  # fmt: skip
    assert float(metrics["brightness/mean"]) == 1.5  # the mean over the parts
    assert float(metrics["total"]) == float(metrics["cross_entropy"])


def test_a_run_made_otherwise_is_named_and_another_seed_refused(config, tmp_path):
    frozen, folder = {"text_encoder": {}}, str(tmp_path)
    assert restore.made_otherwise(config, frozen, folder) == ""  # nothing tells
    run_folder.write_config(config, folder)
    assert restore.made_otherwise(config, frozen, folder) == ""
    other = config.copy_and_resolve_references()
    other.model.gait.embedding_size, other.seed = 5, 3
    made = restore.made_otherwise(other, {}, folder)  # no frozen weights: any seed
    assert "config.model.gait.embedding_size=4 (here 5)." in made and "seed" not in made
    with pytest.raises(ValueError, match="text_encoder.* of its seed 0, .* says 3"):
        restore.made_otherwise(other, frozen, folder)
    gaitbase = config.copy_and_resolve_references()
    gaitbase.model.name = "gaitbase"
    with pytest.raises(ValueError, match="is of the model lmgait, .* of gaitbase"):
        restore.made_otherwise(gaitbase, frozen, folder)
    other.pretrained.text_encoder = "a/file"
    assert "text_encoder= (here a/file)" in restore.made_otherwise(
        other, frozen, folder
    )


def test_a_run_is_not_evaluated_by_another_embedding(tmp_path):
    config = skeletongait.get_config("ccpg")
    assert config.model.retrieve == "after_neck"
    run_folder.write_config(config, tmp_path)
    assert restore.made_otherwise(config, {}, str(tmp_path)) == ""
    config.model.retrieve = "before_neck"
    refused = "retrieve=after_neck, this config before_neck.*Add --config.model.retr"
    with pytest.raises(ValueError, match=refused):
        restore.made_otherwise(config, {}, str(tmp_path))
    del config.model["retrieve"]  # a config of before the field
    with pytest.raises(ValueError, match=refused):
        restore.made_otherwise(config, {}, str(tmp_path))
    run_folder.write_config(config, tmp_path)  # a run of before the field
    before = run_folder.describe(config, "data")
    config.model.retrieve = "before_neck"
    assert restore.made_otherwise(config, {}, str(tmp_path)) == ""
    assert not run_folder.differences(before, run_folder.describe(config, "data"))
    config.model.retrieve = "after_neck"
    with pytest.raises(ValueError, match="retrieve=before_neck, this config after_nec"):
        restore.made_otherwise(config, {}, str(tmp_path))
    changed = run_folder.differences(before, run_folder.describe(config, "data"))
    assert changed == ["config.model.retrieve: before_neck -> after_neck"]


def test_a_run_is_not_evaluated_with_an_option_that_its_weights_do_not_show(tmp_path):
    for make, field, value in (
        (gaitbase, "max_pool", True),
        (biggergait, "cut_to_patches", True),
        (swingait, "retrieve", "after_neck"),
    ):
        config = make.get_config()
        run_folder.write_config(config, tmp_path)
        config.model[field] = value
        with pytest.raises(ValueError, match=f"Add --config.model.{field}="):
            restore.made_otherwise(config, {}, str(tmp_path))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"warmup.losses": ("shape",)}, "names 'shape', config.loss has cross_entropy"),
        ({"warmup.trainable": ")"}, "config.warmup.trainable: '\\)' is no regular"),
    ],
)
def test_phases_that_cannot_run_are_refused(config, setup, change, message):
    changed = config.copy_and_resolve_references()
    changed.warmup.ids_per_batch = 0
    changed.update_from_flattened_dict(change)
    with pytest.raises(ValueError, match=message):
        train.loop_phases(changed, setup)


def test_the_warm_up_is_a_phase_with_sizes_and_rates_of_its_own(config, setup):
    changed = config.copy_and_resolve_references()
    changed.warmup.update(steps=40, ids_per_batch=1, num_frames=2, learning_rate=0.5)
    changed.train.steps = 60
    warm, main = train.loop_phases(changed, setup)
    assert (warm.name, warm.last, main.name, main.last) == (
        "warm-up", 40, "training", 100
    )  # fmt: skip
    own = phases_of(changed)[0].config
    assert set(own.loss) == {"silhouette"}
    assert (own.data.ids_per_batch, own.data.num_frames) == (1, 2)
    # a cycle of its own: rises from 1/25 over a twentieth, falls to 0
    rates = [float(warm.rate(step)) for step in range(41)]
    assert rates[0] == pytest.approx(0.02) and rates[2] == pytest.approx(0.5)
    assert max(rates) == rates[2] and rates[40] == pytest.approx(0.0, abs=1e-6)
    assert rates[21] == pytest.approx(0.25)  # half of the cosine
    assert float(main.rate(40)) == pytest.approx(config.optimizer.learning_rate / 25)
    changed.optimizer.schedule, changed.warmup.learning_rate = "milestones", 0.0
    (warm, _), rate = train.loop_phases(changed, setup), config.optimizer.learning_rate
    assert all(float(warm.rate(step)) == pytest.approx(rate) for step in range(40))
    changed.warmup.steps = 0
    assert [phase.name for phase in train.loop_phases(changed, setup)] == ["training"]


def test_split_and_merge_are_inverse():
    params = {"a": {"x": 1, "y": 2}, "b": {"x": 3}}
    kept, frozen = states.split_frozen(params, (r"^a/y", r"^b/"))
    assert kept == {"a": {"x": 1}} and frozen == {"a": {"y": 2}, "b": {"x": 3}}
    assert states.merge_frozen(kept, frozen) == params


def test_nan_names_the_step_the_term_and_the_sequences(config, setup):
    keys = np.array(["a/0", "a/1", "b/0", "b/1"])
    blank = np.array([""] * 4)
    index = Index(np.array(list("aabb")), blank, blank, keys, np.ones(4, int))
    data = Source("fake", [], index, "")
    metrics = {"total": np.nan, "triplet": np.nan, "cross_entropy": 1.0}
    config.data.update(ids_per_batch=2, seqs_per_id=2)
    config.warmup.ids_per_batch = 0
    phase = train.loop_phases(config, setup, data)[-1]
    with pytest.raises(FloatingPointError) as caught:
        loop.check_finite(7, metrics, phase.name_rows)
    message = str(caught.value)
    assert "Step 7: total, triplet not finite" in message
    assert all(key in message for key in keys)
    loop.check_finite(7, {"total": 1.0}, phase.name_rows)


def test_a_training_of_full_size_needs_an_accelerator_or_consent(tmp_path):
    config = gaitbase.get_config("ccpg")
    config.data.data_dir = str(tmp_path)
    message = "full size .*bfloat16.*run.sh setup cuda or tpu.*--config.allow_cpu=True"
    with pytest.raises(ValueError, match=message):
        train.run(config, str(tmp_path / "run"))
    config.allow_cpu = True
    with pytest.raises((ValueError, FileNotFoundError), match="ccpg") as refused:
        train.run(config, str(tmp_path / "run"))  # goes on to the data
    assert "allow_cpu" not in str(refused.value)
    states.check_backend(gaitbase.get_config())  # a small one runs anywhere


def test_compiled_programs_are_kept_in_a_folder_of_the_user(tmp_path, monkeypatch):
    before = jax.config.jax_compilation_cache_dir
    command_line.keep_compiled()
    assert jax.config.jax_compilation_cache_dir == before  # the environment names it
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    try:
        command_line.keep_compiled()
        assert jax.config.jax_compilation_cache_dir == str(tmp_path / "gaitjax")
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
