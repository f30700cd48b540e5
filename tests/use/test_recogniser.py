"""Runs and weights as functions: what they read, what they give, what they refuse."""

import dataclasses
import functools
import json
import tarfile
import threading
from pathlib import Path

import cv2
import jax
import numpy as np
import pytest
import walkers_on_video as drawn

import gaitjax
from configs import gaitset, gei
from gaitjax import models, run_folder
from gaitjax.engine.guards import Damaged
from gaitjax.state import example_batch
from gaitjax.use import person, recogniser, tracks
from gaitjax.use.recogniser import Recogniser, load
from gaitjax.use.video import Images
from gaitjax.weights import pocket_files

FACTS = {"data": "", "results": {}, "licences": ""}


@pytest.fixture(autouse=True)
def eyes(monkeypatch):
    monkeypatch.setattr(person, "load", lambda file: drawn.see)


@pytest.fixture(scope="module")
def images():
    return np.stack(drawn.walk({"x": -40, "speed": 5}))


@pytest.fixture(scope="module")
def walk(images):
    (walk,) = tracks.walks(Images(images), drawn.see)
    return walk


def run_of(config, folder):
    folder.mkdir()
    run_folder.write_config(config, folder)
    return folder


@pytest.fixture(scope="module")
def averages(tmp_path_factory):
    """GEI: a model without parameters, so that its config is a finished run."""
    return run_of(gei.get_config(), tmp_path_factory.mktemp("runs") / "gei")


def pocket(config, folder, name="tiny"):
    """Weights that nobody trained: (model, variables)."""
    model, rng = models.make(config), np.random.default_rng(0)
    keys = {"params": jax.random.key(0), "dropout": jax.random.key(0)}
    init = functools.partial(model.init, train=True)
    shapes = jax.eval_shape(init, keys, example_batch(config))
    variables = jax.tree.map(
        lambda x: np.abs(rng.normal(0, 0.3, x.shape)).astype(np.float32), shapes
    )
    plain = run_folder.plain(config)
    pocket_files.save_pocket(folder, name, variables, plain, **FACTS)
    return model, variables


@pytest.fixture(scope="module")
def silhouette_model(tmp_path_factory):
    config = gaitset.get_config()
    config.model.update(channels=(2, 4, 8), bins=(2, 1), embedding_size=8)
    folder = tmp_path_factory.mktemp("weights")
    return folder, *pocket(config, folder)


def test_a_walk_is_embedded_as_the_model_does(silhouette_model, walk):
    folder, model, variables = silhouette_model
    tiny = load(folder)
    assert (tiny.name, tiny.metric, tiny.shape) == ("tiny", "euclidean", (6, 8))
    assert tiny.modalities == ("silhouettes",)
    record = walk.record("anna", "a", "b")
    record = {k: v[:29] for k, v in record.items() if k in ("silhouettes", "ratios")}
    batch = {  # 29 frames, which are padded to 48
        "silhouettes": record["silhouettes"][None, :, :, 10:54],
        "ratios": record["ratios"][None],
        "valid": np.ones((1, 29), bool),
    }
    expected = model.apply(variables, batch, train=False).embeddings
    found = tiny.embed([record, record])
    assert found.shape == (2, 6, 8) and found.dtype == np.float32
    np.testing.assert_allclose(found[0], expected[0], atol=1e-5)
    np.testing.assert_array_equal(tiny.embed(record), found[:1])
    assert tiny.distance(found, found).max() < 1e-2 * np.abs(found).max()
    assert tiny.rerank("unchanged", found, found) == "unchanged"


def test_every_kind_of_input_gives_the_same_walk(averages, images, walk, tmp_path):
    model = load(averages)
    expected = model.embed(walk.record("", "", ""))
    np.testing.assert_array_equal(model.embed(images), expected)
    silhouettes = np.stack([x.silhouette for x in walk.moments])
    for kind in (silhouettes, silhouettes > 127):
        found = model.embed(kind)
        assert found.shape == expected.shape
        assert np.abs(found - expected).mean() < 0.05
    for name, pictures in {"frames": images[..., ::-1], "shapes": silhouettes}.items():
        (tmp_path / name).mkdir()
        for number, image in enumerate(pictures):
            cv2.imwrite(str(tmp_path / name / f"{number}.png"), image)
    np.testing.assert_array_equal(model.embed(tmp_path / "frames"), expected)
    assert model.embed(str(tmp_path / "shapes")).shape == expected.shape
    file = drawn.save(tmp_path / "street.avi", list(images))
    (sample,) = model.samples(file)
    assert sample.source == str(file) and sample.heading == "right"
    assert np.abs(sample.embedding - expected[0]).mean() < 0.05
    thumbnail = cv2.imdecode(np.frombuffer(sample.thumbnail, np.uint8), 1)
    assert thumbnail.shape == (128, 64, 3)


def test_refused_walks_have_a_reason_and_no_embedding(averages, images):
    model = load(averages)
    (sample,) = model.samples(images[20:30])
    assert sample.embedding is None and "usable frames" in sample.refused
    assert sample.thumbnail == b""
    empty = np.stack([drawn.scene()] * 20)
    for nobody in (images[20:30], images[20:21], empty):
        assert model.embed(nobody).shape == (0, *model.shape)


@pytest.mark.parametrize("modality", ["keypoints", "heatmaps", "frames"])
def test_what_the_model_reads_and_the_input_lacks_is_told(averages, walk, modality):
    other = dataclasses.replace(load(averages), modalities=(modality,))
    silhouettes = np.stack([x.silhouette for x in walk.moments])
    with pytest.raises(ValueError, match=f"gei reads {modality}, and silhouettes has"):
        other.embed(silhouettes)


def test_images_and_key_points_are_scaled_to_the_model_s_size(walk):
    config = gaitset.get_config()
    config.data.image_size, config.data.silhouette_size = (256, 128), (128, 88)
    names = ("frames", "masks", "silhouettes", "keypoints")
    record = walk.record("", "", "")
    made = recogniser._scaled(record, config.data, names)
    assert made["silhouettes"].shape[1:] == (128, 128)
    assert made["masks"].shape[1:] == (256, 128)
    assert cv2.imdecode(np.frombuffer(made["frames"][0], np.uint8), 1).shape[0] == 256
    points, before = made["keypoints"][..., :2], record["keypoints"][..., :2]
    np.testing.assert_allclose(points, 2 * before + 0.5, atol=1e-4)
    config.data.image_size, config.data.silhouette_size = (128, 64), (64, 44)
    same = recogniser._scaled(record, config.data, names)
    assert all(same[name] is record[name] for name in names)


def test_one_model_has_one_fingerprint(averages):
    run = load(averages)
    config = run_folder.read_config(averages)
    made = recogniser._recogniser("x", config, models.make(config), {})
    assert made.fingerprint == run.fingerprint
    config.evaluation.metric = "cosine"
    other = recogniser._recogniser("x", config, models.make(config), {})
    assert other.fingerprint != run.fingerprint


@pytest.fixture(scope="module")
def trained_runs(tmp_path_factory):
    """A base run and its re-ranker, of version 0.1, with the config of today."""
    folder = tmp_path_factory.mktemp("trained")
    archive = Path(__file__).parents[1] / "engine" / "earlier_runs.tar.gz"
    with tarfile.open(archive) as runs:
        runs.extractall(folder, filter="data")
    file = next(folder.glob("cargait/checkpoints/*/description/metadata"))
    config = json.loads(file.read_text())["config"]
    config |= {"base_run": str(folder / "gaitbase")}
    config["train"]["accumulate"], config["data"]["test_dataset"] = 1, ""
    (folder / "cargait/config.json").write_text(json.dumps(config))
    return folder


def test_a_trained_run_is_loaded_with_its_re_ranker(trained_runs, walk):
    base, both = load(trained_runs / "gaitbase"), load(trained_runs / "cargait")
    assert base.fingerprint == both.fingerprint and base.reranker is None
    record = walk.record("", "", "")
    np.testing.assert_array_equal(base.embed(record), both.embed(record))
    strips = np.random.default_rng(0).normal(size=(12, *base.shape))
    strips = strips.astype(np.float32)
    plain = both.distance(strips[:3], strips)
    ranked = both.rerank(plain, strips[:3], strips)
    assert base.rerank(plain, strips[:3], strips) is plain
    # another order of the same distances
    np.testing.assert_allclose(np.sort(ranked), np.sort(plain), rtol=1e-5)
    assert both.reranker is not None and ranked is not plain


def test_what_is_no_model_is_one_sentence(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="neither a trained run"):
        load(tmp_path)
    monkeypatch.setattr(pocket_files, "SHIPPED", tmp_path)
    with pytest.raises(FileNotFoundError, match="No weights come with this gaitjax"):
        load()
    with pytest.raises(FileNotFoundError, match="neither a trained run"):
        load("none")
    config = gaitset.get_config()
    untrained = run_of(config, tmp_path / "untrained")
    with pytest.raises(ValueError, match="There is no trained run in"):
        load(untrained)
    config.model.name = "unheard_of"
    with pytest.raises(Damaged, match="its config is not understood: Unknown"):
        load(run_of(config, tmp_path / "newer"))


def test_shipped_weights_are_found_by_name(silhouette_model, monkeypatch):
    monkeypatch.setattr(pocket_files, "SHIPPED", silhouette_model[0])
    assert load().fingerprint == load("tiny").fingerprint


def test_threads_share_a_recogniser(averages, walk):
    model, found = load(averages), [None] * 4
    record = walk.record("", "", "")

    def embed(place):
        found[place] = model.embed([record] * 3)

    threads = [threading.Thread(target=embed, args=[i]) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for other in found[1:]:
        np.testing.assert_array_equal(other, found[0])


def test_the_package_loads_it_too(averages):
    assert gaitjax.load(str(averages)).fingerprint == load(averages).fingerprint


def test_a_recogniser_is_printed_in_a_line(averages):
    assert len(repr(load(averages))) < 300 and isinstance(load(averages), Recogniser)


def test_few_lengths_are_compiled():
    lengths = {recogniser._length(frames, 24) for frames in range(15, 721)}
    assert len(lengths) <= 10
    assert all(recogniser._length(n, 24) >= n for n in (1, 24, 25, 2000, 5000))
