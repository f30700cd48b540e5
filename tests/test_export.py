"""Exports: the function of every model, used where there is no gaitjax."""

import functools
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

import gaitjax
from configs import cargait as cargait_config
from gaitjax import export, exported, models, restore, run_folder, text_vectors
from gaitjax.engine.checkpoints import Checkpoints
from gaitjax.models.gei import GEI
from gaitjax.rerank import train as rerank_train
from gaitjax.state import example_batch, model_variables
from tests.models.test_zoo import IDS, MODELS, make_batch, variables_of
from tests.rerank.test_cargait import STRIPS, WIDTH, draw, make, trained

EARLIER_RUNS = Path(__file__).parent / "engine" / "earlier_runs.tar.gz"
SHAPES = ((1, 4), (2, 5), (3, 11))  # sequences, frames
# These compile for seconds per shape, so that one shape stands for three unless
# GAITJAX_EXPORT_SHAPES=all
LONG = ("biggergait", "gaitedge", "gaitgraph2", "gpgait", "gpgaitpp", "lmgait")
LONG += ("multigaitpp", "skeletongaitpp", "swingait")
SAME = ("deepgaitv2_2d", "deepgaitv2_3d", "gaitgl_large")  # as others of the same class
ZOO = {name: model for name, (model, *_) in MODELS.items() if name not in SAME}
ZOO["gei"] = GEI(IDS)

# Runs in a process of its own: argv is the folders of exports, each with inputs*.npz
USER = """
import importlib.util, pathlib, sys
import numpy as np

for folder in map(pathlib.Path, sys.argv[1:]):
    spec = importlib.util.spec_from_file_location("load", folder / "load.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    function = module.load(folder)
    for file in sorted(folder.glob("inputs*.npz")):
        output = function(**np.load(file))
        name = file.stem.replace("inputs", "outputs")
        np.save(folder / f"{name}.npy", np.asarray(output))
needed = {name.split(".")[0] for name in sys.modules}
assert not needed & {"gaitjax", "flax", "orbax", "ml_collections", "optax"}, needed
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    with tarfile.open(EARLIER_RUNS) as archive:
        archive.extractall(folder, filter="data")
    return folder


@pytest.fixture(scope="module")
def lmgait(runs):
    """(config, model, state) of the run of LMGait; opening it compiles."""
    config = restore.read_config(runs / "lmgait")
    setup, state = restore.open_run(config, runs / "lmgait")
    return config, setup.model, state


def shapes_of(name):
    few = name in LONG and os.environ.get("GAITJAX_EXPORT_SHAPES") != "all"
    return SHAPES[1:2] if few else SHAPES


def of_zoo(name):
    """(what is exported, model.apply, batches) of a model of the zoo."""
    model = ZOO[name]
    variables = {"params": {}, "batch_stats": {}}
    if name in MODELS:
        variables = variables_of(name)
    function = export.embedding(model, variables, make_batch(model))
    batches = [make_batch(model, *shape) for shape in shapes_of(name)]
    reference = jax.jit(lambda x: model.apply(variables, x, train=False).embeddings)
    return function, reference, batches


def of_lmgait(config, model, state):
    """The same of the LMGait run; the text tower is in the reference alone."""
    function = export.of_state(config, model, state)
    variables = model_variables(state)
    text = text_vectors.compute(model, variables)
    call = functools.partial(model.apply, variables, train=False, text=text)
    size = example_batch(config)["frames"].shape[2:4]
    batches = [make_batch(model, *shape, size=size) for shape in shapes_of("lmgait")]
    return function, jax.jit(lambda x: call(x).embeddings), batches


def of_cargait():
    """The same of CarGait: distances to a shortlist."""
    model = make()
    params = trained(model)["params"]
    function = export.reranking(model, params, (STRIPS, WIDTH))
    batches = [
        {"probe": draw(1, b, STRIPS, WIDTH), "candidates": draw(2, b, k, STRIPS, WIDTH)}
        for b, k in SHAPES
    ]
    call = functools.partial(model.apply, {"params": params}, method="distance")
    return function, jax.jit(lambda x: call(x["probe"], x["candidates"])), batches


def test_exported_functions_equal_the_models_and_need_only_jax(lmgait, tmp_path):
    expected = {}
    makers = {"lmgait": lambda: of_lmgait(*lmgait), "cargait": of_cargait}
    makers |= {name: functools.partial(of_zoo, name) for name in ZOO}
    for name, maker in makers.items():
        function, reference, batches = maker()
        folder = tmp_path / name
        folder.mkdir()
        export.write(function, {}, folder, ["cpu"])
        for i, batch in enumerate(batches):
            given = {k: np.asarray(v) for k, v in batch.items() if k in function.inputs}
            np.savez(folder / f"inputs{i}.npz", **given)
            expected[folder / f"outputs{i}.npy"] = np.asarray(reference(batch))
    folders = [str(tmp_path / name) for name in makers]
    command = [sys.executable, "-I", "-c", USER, *folders]
    subprocess.run(command, check=True, cwd=tmp_path)
    for file, values in expected.items():
        np.testing.assert_allclose(
            np.load(file), values, rtol=1e-5, atol=1e-5, err_msg=str(file)
        )


def test_every_model_of_the_table_is_exported():
    """All but the encoders, which LMGait holds."""
    classes = {type(model) for model in ZOO.values()} | {models.MODELS["lmgait"]}
    assert set(models.MODELS.values()) - classes == {models.MODELS["pocket_encoders"]}


def test_weights_and_inputs_that_do_not_matter_are_left_out(lmgait):
    function = export.of_state(*lmgait)
    assert set(function.inputs) == {"frames", "ratios", "valid"}
    assert "params/text_vectors/last" in function.weights
    unread = ("text_encoder", "text_projection", "logits", "classifier")
    assert not [name for name in function.weights if any(x in name for x in unread)]


def test_a_run_is_exported_for_every_platform(runs, capsys):
    assert export.main([str(runs / "gaitbase")]) == 0
    folder = runs / "gaitbase" / "export"
    assert {path.name for path in folder.iterdir()} == {
        "card.json", "load.py", "weights.safetensors", "function_cpu.bin",
        "function_cuda.bin", "function_tpu.bin",
    }  # fmt: skip
    card = json.loads((folder / "card.json").read_text())
    shape = card["inputs"]["silhouettes"]["shape"]
    assert shape[:2] == ["b", "t"] and all(isinstance(x, int) for x in shape[2:])
    assert card["output"]["shape"][0] == "b" and card["step"] == 4
    assert card["training_data"]["identities"] and card["licences"]["code"]
    assert "for cpu, cuda, tpu" in capsys.readouterr().out


def test_a_trained_reranker_gives_its_best_parameters(tmp_path, capsys):
    config = cargait_config.get_config()
    config.model.update(num_heads=2, hidden_size=8, classifier_size=5)
    run_folder.write_config(config, tmp_path)
    assert export.main([str(tmp_path)]) == 2
    assert "that re-ranker is not trained" in capsys.readouterr().err
    shape = STRIPS, WIDTH, 5, "euclidean"
    state = rerank_train.build(config, *shape, jax.devices()[:1]).new_state()
    params = jax.tree.map(lambda x: x + 0.5, state.params)  # others than the newest
    best = state.best._replace(params=params, step=jnp.int32(7))
    checkpoints = Checkpoints(str(tmp_path), None)
    stored = rerank_train._stored(state._replace(best=best))
    checkpoints.save(9, stored, {"config": {}, "data": ""})
    checkpoints.close()
    report = {"metric": "euclidean", "embedding": [STRIPS, WIDTH], "shortlist": 10}
    run_folder.write_json(tmp_path / "rerank.json", report)
    function, card = export.of_run(tmp_path)
    assert card["step"] == 7 and list(function.inputs) == ["probe", "candidates"]
    flat = flatten_dict({"params": params}, sep="/")
    assert function.weights and not any("logits" in name for name in function.weights)
    for name, values in function.weights.items():
        np.testing.assert_array_equal(values, flat[name])


def test_shipped_weights_are_exported_by_their_name(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert export.main(["recogniser", "--platforms=cpu"]) == 0
    assert "pocket_recogniser, " in capsys.readouterr().out
    folder = tmp_path / "recogniser_export"
    card = json.loads((folder / "card.json").read_text())
    assert card["results"] and card["licences"] and card["training_data"]["about"]
    rng = np.random.default_rng(0)
    record = {
        "silhouettes": rng.integers(0, 256, (24, 64, 64), np.uint8),
        "keypoints": rng.uniform(0, 60, (24, 17, 3)).astype(np.float32),
        "ratios": np.full(24, 0.4, np.float32),
    }
    inputs = {
        "silhouettes": record["silhouettes"][None, :, :, 10:54],
        "keypoints": record["keypoints"][None],
        "ratios": record["ratios"][None],
        "valid": np.ones((1, 24), bool),
    }
    assert set(card["inputs"]) <= set(inputs)
    found = exported.load(folder)(**{name: inputs[name] for name in card["inputs"]})
    expected = gaitjax.load("recogniser").embed(record)
    np.testing.assert_allclose(np.asarray(found), expected, atol=1e-5)


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["{}/nothing"], "is no trained run: it has no config.json"),
        (["{}/nothing.json"], "There is no file"),
        (["{}/gaitbase", "--platforms=cpu,rocm"], "Unknown --platforms 'rocm'"),
    ],
)
def test_mistakes(runs, capsys, arguments, sentence):
    assert export.main([x.format(runs) for x in arguments]) == 2
    assert sentence in capsys.readouterr().err
