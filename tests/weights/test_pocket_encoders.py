"""The pocket encoders: their files, their card, their losses, their identities."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import lmgait, pocket_encoders, prompts
from gaitjax import losses, models, settings, state
from gaitjax.losses import words as word_losses
from gaitjax.models import pocket_encoders as pocket
from gaitjax.parts.output import GaitOutput
from gaitjax.weights import encoders
from tfds_builders.synthetic_gait import gait, sequences
from tfds_builders.synthetic_gait.synthetic_gait_dataset_builder import (
    POCKET_SEED,
    Builder,
)

CARD = encoders.POCKET / "encoders.json"


def test_files_are_small_and_the_card_says_what_they_are():
    card = json.loads(CARD.read_text())
    files = [encoders.POCKET / f"{part}.safetensors" for part in card["parameters"]]
    assert sum(file.stat().st_size for file in files) < 6e6
    assert "no DINOv2 and no CLIP" in card["not"]
    assert card["data"]["renderer_seed"] == POCKET_SEED
    assert {"seed", "steps", "hours", "curves"} <= card.keys()
    for layer in ("last", "mid"):
        found = card["words_on_held_out_people"][layer]
        assert found["mean_rank1"] > 5 * card["words_on_held_out_people"]["chance"]


def test_who_made_the_weights_is_not_evaluated():
    """Persons are drawn from (seed, number), so other seeds are other persons."""
    plans = {config.name: config.plan for config in Builder.BUILDER_CONFIGS}
    used = json.loads(CARD.read_text())["data"]
    makers, evaluated = set(), set()
    for plan in plans.values():
        people = {
            tuple(gait.draw_person(sequences._rng(task, 0, task.subject)).values())
            for split in ("train", "test")
            for task in sequences.tasks(plan, split)[:: 7 * plan.num_cameras]
        }
        (makers if plan.seed == used["renderer_seed"] else evaluated).update(people)
        assert len(people) == plan.train_subjects + plan.test_subjects
    assert makers and evaluated and not makers & evaluated


def test_a_table_of_some_words_becomes_the_whole_table():
    source = "pocket/text_encoder"
    config = lmgait.get_config()
    built = state.build(config, state.example_batch(config))
    loaded = encoders.load(source, built.abstract_state.frozen["text_encoder"])
    table = loaded["text_model"]["embeddings"]["token_embedding"]["embedding"]
    assert table.shape == (49_408, 96)
    known = {*pocket_encoders.get_config().model.words}
    np.testing.assert_array_equal(np.flatnonzero(table.any(1)), sorted(known))
    for ids in prompts.TOKEN_IDS.values():
        assert known.issuperset(ids)  # so every shipped prompt is read whole


@pytest.mark.parametrize("damage", ["missing", "truncated"])
def test_a_missing_or_damaged_file_is_one_sentence(tmp_path, monkeypatch, damage):
    shutil.copytree(encoders.POCKET, tmp_path / "pocket")
    file = tmp_path / "pocket" / "visual_encoder.safetensors"
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:-100])
    monkeypatch.setattr(encoders, "POCKET", tmp_path / "pocket")
    expected = {"layernorm": {"scale": np.zeros(96)}}
    with pytest.raises((FileNotFoundError, ValueError), match="visual_encoder"):
        encoders.load("pocket/visual_encoder", expected)
    with pytest.raises(FileNotFoundError, match="No pocket weights 'moon'.*text_enc"):
        encoders.locate("pocket/moon")


def test_the_real_encoders_may_take_their_place():
    config = lmgait.get_config("ccpg")
    assert config.pretrained.visual_encoder == "facebook/dinov2-small"
    config = lmgait.get_config()
    config.pretrained.visual_encoder = "facebook/dinov2-small"
    settings.check(config)


def test_one_step_of_the_training_learns():
    config = pocket_encoders.get_config("pocket_tiny")
    config.data.update(ids_per_batch=2, seqs_per_id=1, num_frames=2)
    config.model.visual_encoder.update(hidden_size=12, num_layers=2, blocks=(0, 1))
    config.model.text.update(width=12, num_layers=1)
    config.model.image_size = config.data.image_size = (32, 16)
    config.model.phrases_per_step = 8
    settings.check(config)
    shapes, rng = state.example_batch(config), np.random.default_rng(0)
    batch = {name: np.zeros(x.shape, x.dtype) for name, x in shapes.items()}
    batch["frames"] = rng.integers(0, 255, batch["frames"].shape).astype(np.uint8)
    batch["regions"] = rng.choice([0, 2, 26, 51], batch["regions"].shape).astype("u1")
    batch["captions"][:, :, :3] = 49406, 320, 49407
    batch["captions"][1, :, 1] = 518
    batch["keypoints"] = rng.uniform(0, 16, batch["keypoints"].shape).astype("f4")
    batch["valid"][:] = True
    model = models.make(config)
    keys = {"params": jax.random.key(0), "augment": jax.random.key(1)}
    variables = model.init(keys, batch, train=True)

    @jax.jit
    def loss(params):
        output = model.apply(
            {"params": params}, batch, train=True, rngs={"augment": jax.random.key(1)}
        )
        return losses.total_loss(output, batch, config.loss.to_dict())

    (before, terms), slope = jax.value_and_grad(loss, has_aux=True)(variables["params"])
    assert set(terms) == {"words", "parts", "joints", "captions", "total"}
    after, _ = loss(jax.tree.map(lambda p, g: p - 1e-3 * g, variables["params"], slope))
    assert float(after) < float(before)
    moved = jax.tree.map(lambda g: bool(jnp.any(g != 0)), slope)
    assert moved["text_projection_mid"]["log_tau"]
    assert moved["visual_encoder"]["layernorm"]["scale"]
    bare = {name: batch[name] for name in ("frames", "valid")}
    output = model.apply(variables, bare, train=False)
    assert isinstance(output, GaitOutput) and output.embeddings.shape == (2, 1, 64)


def test_shares_of_patches_and_cells_by_hand():
    regions = np.full((1, 1, 8, 16), 2, np.uint8)
    regions[..., :4, :8] = 8 * 3 + 2  # the upper half of the left patch: an upper arm
    shares = pocket.region_shares(jnp.asarray(regions), 8)
    assert shares.shape == (1, 2, pocket.NUM_REGIONS)
    assert float(shares[0, 0, 26]) == float(shares[0, 0, 2]) == 0.5
    assert float(shares[0, 1, 2]) == 1
    parts = pocket.part_shares(jnp.asarray(regions), 8, 2)  # [1 2 4 10]
    np.testing.assert_allclose(parts[0, 0, :, 3], [1, 1, 0, 0])
    np.testing.assert_allclose(parts[0, 0, :, 0], [0, 0, 1, 1])


def test_word_losses_by_hand():
    scores = jnp.asarray([[0.0, 5.0], [0.0, -5.0], [0.0, -5.0]])
    share = jnp.asarray([[1.0, 0.0], [0.0, 0.0], [0.5, 0.0]])
    loss = word_losses.balanced_cross_entropy(scores, share, jnp.ones(3, bool))
    rest = (np.log1p(np.exp(5.0)) + 2 * np.log1p(np.exp(-5.0))) / 3
    np.testing.assert_allclose(loss, [2 * np.log(2), rest], rtol=1e-5)
    places = jnp.asarray([[[0.5, 0.5], [0.0, 0.0]]])
    targets = jnp.asarray([[[0.6, 0.3], [9.0, 9.0]]])
    seen = jnp.asarray([[True, False]])
    logits, patches = jnp.zeros((1, 4, 2)), jnp.asarray([[3, 0]])
    loss = word_losses.joint_loss(places, targets, logits, patches, seen)
    np.testing.assert_allclose(loss, 0.3 + 0.05 * np.log(4), 1e-5)
    vectors, same, rows = jnp.eye(2), jnp.eye(2, dtype=bool), jnp.ones(2, bool)
    right = np.log1p(np.exp(-10.0))
    np.testing.assert_allclose(
        word_losses.caption_loss(vectors, vectors, same, 0.1, rows), right, rtol=1e-3
    )
    both = word_losses.caption_loss(vectors, vectors, jnp.ones((2, 2), bool), 0.1, rows)
    np.testing.assert_allclose(both, 5 + right, rtol=1e-5)  # two right ones share it
