"""Published checkpoints become runs that evaluate, and say what does not fit."""

import importlib
import json
import pickle
import subprocess
import sys
import zipfile
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from golden_models import to_torch
from ml_collections import ConfigDict

from gaitjax import evaluate, import_checkpoint, restore, run_folder, state
from gaitjax.engine.checkpoints import Checkpoints, DifferentRun, abstract
from gaitjax.weights import encoders, files, zoo_names


def config_of(name, checkpoint=""):
    config = importlib.import_module(f"configs.{name}").get_config()
    config.data.ids_per_batch, config.data.seqs_per_id = 2, 2
    config.data.num_frames = 3
    config.checkpoint = str(checkpoint)
    return config


def published(config, seed=0):
    """(setup, our variables, the same under the published names)."""
    setup = state.build(config, state.example_batch(config))
    shapes = state.model_variables(setup.abstract_state)
    rng = np.random.default_rng(seed)
    variables = jax.tree.map(
        lambda x: rng.uniform(0.5, 1, x.shape).astype(np.float32) / 8, shapes
    )
    names = {}
    for collection, tree in variables.items():
        ours = to_torch(config.model.name, {collection: tree}, variables["params"])
        names |= {name: np.float32(value) for name, value in ours.items()}
    return setup, variables, names


def save(path, tensors):
    if path.suffix == ".npz":
        np.savez(path, **tensors)
    elif path.suffix == ".safetensors":
        from safetensors.numpy import save_file

        save_file({k: np.ascontiguousarray(v) for k, v in tensors.items()}, path)
    else:
        torch = pytest.importorskip("torch")
        tensors = {k: torch.from_numpy(np.array(v)) for k, v in tensors.items()}
        torch.save({"model": tensors, "optimizer": {}, "iteration": 40_000}, path)


def load(setup, workdir):
    restored = restore.load_run(setup, ConfigDict({"train": {}}), str(workdir))
    return restored.params, restored.batch_stats


@pytest.mark.parametrize(
    "name,suffix",
    [("gaitset", ".npz"), ("gaitbase", ".safetensors"), ("gaitbase", ".pt")],
)
def test_an_imported_run_is_the_published_network(name, suffix, tmp_path):
    config = config_of(name, tmp_path / f"weights{suffix}")
    setup, variables, tensors = published(config)
    tensors["layer.num_batches_tracked"] = np.zeros((), np.int64)
    save(tmp_path / f"weights{suffix}", {f"module.{k}": v for k, v in tensors.items()})
    report = import_checkpoint.run(config, str(tmp_path / "run"))
    assert len(report["matched"]) == len(tensors) - 1
    assert not report["missing"] + report["extra"] + report["wrong_shape"]
    count = sum(x.size for x in jax.tree.leaves(variables["params"]))
    assert report["parameters"] == report["imported_parameters"] == count
    assert json.loads((tmp_path / "run" / "import.json").read_text()) == report

    params, statistics = load(setup, tmp_path / "run")
    rng = np.random.default_rng(1)
    batch = {
        "silhouettes": rng.integers(0, 256, (2, 3, 64, 44)).astype(np.uint8),
        "valid": np.ones((2, 3), bool),
    }
    forward = jax.jit(
        lambda variables: setup.model.apply(variables, batch, train=False)
    )
    ours = forward({"params": params, "batch_stats": statistics}).embeddings
    expected = forward({"batch_stats": {}} | variables).embeddings
    np.testing.assert_array_equal(ours, expected)
    assert np.ptp(expected) > 0


def test_what_does_not_fit_is_listed_and_nothing_is_written(tmp_path, capsys):
    config = config_of("gaitset", tmp_path / "weights.npz")
    _, _, tensors = published(config)
    tensors["stranger.weight"] = tensors.pop("set_block1.forward_block.0.conv.weight")
    tensors["Head.fc_bin"] = tensors["Head.fc_bin"][:3]
    save(tmp_path / "weights.npz", tensors)
    with pytest.raises(ValueError, match="does not fit gaitset; see .*import.json"):
        import_checkpoint.run(config, str(tmp_path / "run"))
    assert not (tmp_path / "run" / "checkpoints").exists()
    report = json.loads((tmp_path / "run" / "import.json").read_text())
    assert report["missing"] == ["set_block1.forward_block.0.conv.weight"]
    assert report["extra"] == ["stranger.weight"]
    assert "Head.fc_bin (3, 32, 64) for dense/kernel" in report["wrong_shape"][0]
    assert (
        "missing: 1 (set_block1.forward_block.0.conv.weight)" in capsys.readouterr()[0]
    )


def test_a_partial_import_keeps_the_seeds_values_for_the_rest(tmp_path):
    config = config_of("gaitset", tmp_path / "weights.npz")
    setup, variables, tensors = published(config)
    tensors["Head.fc_bin"] = tensors["Head.fc_bin"][:3]
    save(tmp_path / "weights.npz", tensors)
    config.partial = True
    import_checkpoint.run(config, str(tmp_path / "run"))
    params, _ = load(setup, tmp_path / "run")
    expected = variables["params"]["frame1"]["conv1"]["kernel"]
    np.testing.assert_array_equal(params["frame1"]["conv1"]["kernel"], expected)
    seed = setup.new_state().params["dense"]["kernel"]
    np.testing.assert_array_equal(params["dense"]["kernel"], seed)

    # training goes on from it, on any data; another model is another run
    checkpoints = Checkpoints(str(tmp_path / "run"), 1)
    config.partial, config.checkpoint = False, ""
    target = state.stored_part(abstract(setup.abstract_state, setup.shardings))

    def restored(config):
        description = run_folder.describe(config, "abc")
        return checkpoints.restore(target, description, run_folder.differences)

    continued, step = restored(config)
    np.testing.assert_array_equal(
        continued["params"]["frame1"]["conv1"]["kernel"], expected
    )
    assert step == 0
    config.model.embedding_size = 65
    with pytest.raises(DifferentRun, match="embedding_size"):
        restored(config)
    checkpoints.close()
    with pytest.raises(ValueError, match="There is a run in .*name another --workdir"):
        import_checkpoint.run(config, str(tmp_path / "run"))


def test_an_option_that_the_file_does_not_show_must_be_stated(tmp_path):
    config = config_of("skeletongait", tmp_path / "weights.npz")
    _, _, tensors = published(config)
    save(tmp_path / "weights.npz", tensors)
    stated = config.model.retrieve
    del config.model["retrieve"]
    with pytest.raises(ValueError, match="must state config.model.retrieve: .*weights"):
        import_checkpoint.run(config, str(tmp_path / "run"))
    assert not (tmp_path / "run" / "checkpoints").exists()
    config.model.retrieve = stated
    import_checkpoint.run(config, str(tmp_path / "run"))
    assert run_folder.read_config(tmp_path / "run").model.retrieve == stated
    config.model.retrieve = "after_neck"
    with pytest.raises(ValueError, match=f"has config.model.retrieve={stated}, this"):
        evaluate.run(config, str(tmp_path / "run"))


def test_frozen_parts_become_files_for_config_pretrained(tmp_path, capsys):
    config = config_of("biggergait", tmp_path / "weights.npz")
    config.frozen = ("^visual_encoder/", "^decoder/")  # as in the paper's variants
    setup, variables, tensors = published(config)
    save(tmp_path / "weights.npz", tensors)
    import_checkpoint.run(config, str(tmp_path / "run"))
    printed = capsys.readouterr()[0]
    assert set(setup.abstract_state.frozen) == {"visual_encoder", "decoder"}
    for scope, shapes in setup.abstract_state.frozen.items():
        file = tmp_path / "run" / f"{scope}.safetensors"
        assert f"--config.pretrained.{scope}={file}" in printed
        loaded = encoders.load(file, shapes)
        jax.tree.map(np.testing.assert_array_equal, loaded, variables["params"][scope])


def test_biggaits_encoder_comes_under_either_name():
    fused = {
        "backbone.blocks.0.attn.qkv.weight": np.arange(12.0).reshape(6, 2),
        "backbone.norm.bias": np.ones(2),
        "gait_net.FCs.fc_bin": np.zeros((1, 2, 3)),
    }
    plain = import_checkpoint.plain_names(fused)
    key = plain["backbone.encoder.layer.0.attention.attention.key.weight"]
    np.testing.assert_array_equal(key, [[4, 5], [6, 7]])
    assert "backbone.layernorm.bias" in plain and "gait_net.FCs.fc_bin" in plain
    assert set(import_checkpoint.plain_names(plain)) == set(plain)
    path = "visual_encoder/encoder/layer/0/attention/attention/key/kernel"
    name = zoo_names.torch_name("lmgait", path)
    assert name == "backbone.encoder.layer.0.attention.attention.key.weight"


class Malicious:
    """Unpickling it would write a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("suffix", [".npz", ".pt", ".pth"])
def test_a_pickle_that_would_run_code_is_refused(suffix, tmp_path):
    trap, file = tmp_path / "trap", tmp_path / f"weights{suffix}"
    if suffix == ".npz":
        np.savez(file, a=np.array([Malicious(trap)], dtype=object))
    elif suffix == ".pt":  # as torch.save lays it out
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("archive/data.pkl", pickle.dumps(Malicious(trap), 2))
            archive.writestr("archive/version", "3")
    else:  # as old torch did
        file.write_bytes(pickle.dumps(Malicious(trap), 2))
    message = "no whole" if suffix == ".npz" else r"holds io\.open besides|needs torch"
    with pytest.raises(ValueError, match=message):
        files.read_published(file)
    assert not trap.exists()


TORCH_2_13 = """Weights only load failed. This file can still be loaded, to do so you \
have two options, do those steps only if you trust the source of the checkpoint.
\t(1) Re-running `torch.load` with `weights_only` set to `False` will likely succeed.
\tWeightsUnpickler error: """


@pytest.mark.parametrize("torch_says, message", [
    ("\n\nUnsupported operand 60", r"no whole PyTorch file.*Unsupported operand 60\)"),
    ("Use `torch.serialization.add_safe_globals([x])`.", r"no whole PyTorch.*or\)"),
])  # fmt: skip
@pytest.mark.parametrize("error", [pickle.UnpicklingError, RuntimeError])
def test_torchs_advice_is_not_repeated(
    torch_says, message, error, tmp_path, monkeypatch
):
    def load(file, map_location, weights_only):
        raise error(TORCH_2_13 + torch_says)

    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(load=load))
    file = tmp_path / "weights.pth"
    file.write_bytes(pickle.dumps({"step": 3}, 2))
    with pytest.raises(ValueError, match=message) as caught:
        files.read_published(file)
    assert caught.value.__suppress_context__ and "weights_only" not in str(caught.value)
    file.write_bytes(pickle.dumps({"step": np.float64(3)}, 2))  # torch never sees it
    with pytest.raises(
        ValueError, match=r"holds numpy\S+scalar besides .* refused.*sa"
    ):
        files.read_published(file)


@pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning")
@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_whole_torch_files_with_more_than_weights(tmp_path):
    torch = pytest.importorskip("torch")
    file, model = tmp_path / "weights.pt", torch.nn.Linear(2, 2)
    script = torch.jit.trace(model, torch.ones(1, 2))
    for save, content, message in (
        (torch.save, {"w": torch.ones(2), "step": np.float64(3)}, r"numpy.*\.scalar"),
        (torch.save, model, r"torch\.nn\.modules\.linear\.Linear"),
        (torch.jit.save, script, "a TorchScript program"),
    ):
        save(content, file)
        with pytest.raises(ValueError, match=f"holds {message} besides tensors"):
            files.read_published(file)
    torch.save(model.state_dict(), file)  # what the message advises
    assert set(files.read_published(file)) == {"weight", "bias"}


def test_mistakes_are_one_sentence(tmp_path):
    command = [sys.executable, "-m", "gaitjax.main", "--config=configs/gaitset.py"]
    command += ["--config.mode=import", f"--workdir={tmp_path}/run"]
    for more, message in (
        ([], "No file to import: set --config.checkpoint=FILE.pt."),
        (["--config.checkpoint=moon.pt"], "There is no file moon.pt"),
    ):
        done = subprocess.run(command + more, capture_output=True, text=True)
        assert done.returncode == 2 and message in done.stderr
        assert "Traceback" not in done.stderr
