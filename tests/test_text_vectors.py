"""A trained LMGait runs without its text tower and without the tower's file."""

import json

import jax
import numpy as np
import pytest

from configs import cargait
from gaitjax import evaluate, plan, restore, run_folder, state, text_vectors, train
from gaitjax.rerank import base_run
from gaitjax.weights import encoders
from tests.fake_datasets import tiny_synthetic
from tests.tiny_lmgait import tiny_config


def config_of(data_dir, tower):
    config = tiny_config()
    name = tiny_synthetic(data_dir) and "synthetic_gait/tiny"
    config.data.update(data_dir=str(data_dir), train_dataset=name, test_dataset=name)
    config.data.update(image_size=(128, 64), num_classes=4)
    config.model.image_size, config.model.feature_grid = (64, 32), (16, 8)
    config.evaluation.update(frame_multiple=8, batch_size=28, every_steps=0)
    config.optimizer.schedule, config.warmup.steps = "constant", 0
    config.train.update(steps=2, log_every=1, checkpoint_every=1)
    config.pretrained.text_encoder = str(tower)
    return config


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(config of a trained run, its folder, results, the text tower's file)."""
    folder = tmp_path_factory.mktemp("run")
    tower, workdir = folder / "tower.safetensors", folder / "run"
    config = config_of(folder / "data", tower)
    setup = state.build(config, state.example_batch(config))
    rng = np.random.default_rng(0)
    weights = jax.tree.map(
        lambda x: rng.normal(size=x.shape).astype(np.float32) / 3,
        setup.abstract_state.frozen["text_encoder"],
    )
    encoders.save(tower, weights)
    results = train.run(config, str(workdir))
    return config, workdir, results, tower


def embed(config, workdir):
    setup = state.build(config, state.example_batch(config))
    loaded = restore.load_run(setup, config, str(workdir))
    return loaded, evaluate.evaluate_state(config, setup, loaded)


def elsewhere(config):
    """The config on a machine that has no text tower."""
    config = config.copy_and_resolve_references()
    config.pretrained.text_encoder = "no/such/file.safetensors"
    return config


def test_stored_vectors_give_the_embeddings_of_the_tower(trained, monkeypatch):
    config, workdir, results, _ = trained
    assert results["text"] == "computed"
    found, stored = embed(elsewhere(config), workdir)
    assert set(found.frozen) == {"text_vectors"}
    monkeypatch.setattr(text_vectors, "from_description", lambda *_: None)
    whole, computed = embed(config, workdir)
    assert set(whole.frozen) == {"text_encoder"}
    np.testing.assert_allclose(
        stored.embeddings, computed.embeddings, rtol=1e-6, atol=1e-6
    )
    vectors = text_vectors.to_description(
        state.build(config, state.example_batch(config)).model, whole
    )["text_vectors"]
    for name, rows in found.frozen["text_vectors"].items():
        np.testing.assert_allclose(rows, vectors[name], rtol=1e-6, atol=1e-6)
    with pytest.raises(FileNotFoundError, match="No weights at no/such/file"):
        embed(elsewhere(config), workdir)


def test_evaluation_and_pictures_need_no_tower(trained, tmp_path):
    config, workdir, results, _ = trained
    config = elsewhere(config)
    config.mode, config.base_run = "evaluate", str(workdir)
    again = evaluate.run(config, str(tmp_path))
    assert again["text"] == "stored"
    assert again["results"] == pytest.approx(results["results"])
    assert json.loads((tmp_path / "results.json").read_text()) == again
    assert (tmp_path / "pictures" / "maps.png").exists()
    plan._planned(config)


def test_every_checkpoint_has_its_own_vectors(trained):
    config, workdir, _, _ = trained
    files = (workdir / "checkpoints").glob("*/description/metadata")
    found = {json.loads(file.read_text())["step"]: file for file in files}
    first, second = (
        json.loads(found[step].read_text())["text_vectors"] for step in (1, 2)
    )
    assert first.keys() == second.keys() == {"last", "mid"}
    assert first != second


def test_other_texts_are_computed(trained):
    config, workdir, _, tower = trained
    config = elsewhere(config)
    config.model.text.prompts = config.model.text.prompts[:1] * 2
    with pytest.raises(FileNotFoundError, match="No weights at no/such/file"):
        embed(config, workdir)


def test_a_base_run_needs_no_tower(trained, tmp_path):
    config, workdir, _, tower = trained
    moved = tower.rename(tower.with_name("moved"))
    try:
        reranking = cargait.get_config()
        reranking.base_run = str(workdir)
        base = base_run.load_base(reranking)
        data = base_run.open_base_split(base, "test")
        table = base_run.stored_embeddings(base, data, str(tmp_path))
    finally:
        moved.rename(tower)
    _, evaluation = embed(elsewhere(config), workdir)
    np.testing.assert_allclose(table.embeddings, evaluation.embeddings, rtol=1e-6)
    assert base_run.load_base(reranking).fingerprint == base.fingerprint


def test_a_run_without_stored_vectors_computes_them(trained, tmp_path, monkeypatch):
    """As runs of earlier versions do."""
    config, workdir, _, _ = trained
    description = run_folder.describe(config, "data")
    assert text_vectors.from_description(config, description) is None
    description["text_vectors"] = {"last": [[0.1]], "mid": [[1 / 3]]}
    vectors = text_vectors.from_description(config, description)
    assert vectors["mid"].dtype == np.float32 and vectors["mid"] == np.float32(1 / 3)
