"""Weights in every published form -> our trees; damaged and wrong files."""

import json
import re
import sys

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import serialization, traverse_util
from ml_collections import ConfigDict
from safetensors.numpy import save_file

from gaitjax.parts.clip_image import CLIPImage
from gaitjax.parts.clip_text import CLIPText
from gaitjax.parts.dinov2 import DINOv2
from gaitjax.weights import encoders

SIZE = dict(hidden_size=8, num_layers=2, num_heads=2, patch_size=2, table_size=3)
DINO = DINOv2(**SIZE)
MODELS = {
    "dinov2": DINO,
    "dinov2_giant": DINO.clone(swiglu=True, num_registers=2),
    "clip_text": CLIPText(8, 2, 2, vocabulary_size=11, context_length=5),
    "clip_text_projection": CLIPText(8, 2, 2, 11, 5, projection_size=6),
    "clip_image": CLIPImage(**SIZE),
}
LOAD = {
    DINOv2: encoders.load_dinov2,
    CLIPText: encoders.load_clip_text,
    CLIPImage: encoders.load_clip_image,
}


def load(source, model):
    return LOAD[type(model)](source, model)


def parameters_of(model, seed=0):
    if isinstance(model, CLIPText):
        inputs = jnp.zeros((1, 1), jnp.int32)
    else:
        inputs = jnp.zeros((1, model.patch_size, model.patch_size, 3))
    shapes = encoders.abstract_parameters(model, inputs)
    generator = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: generator.normal(size=leaf.shape).astype(np.float32), shapes
    )


def flat(tree):
    return traverse_util.flatten_dict(tree, sep="/")


def assert_equal(ours, theirs):
    ours, theirs = flat(ours), flat(theirs)
    assert set(ours) == set(theirs)
    for name in ours:
        assert ours[name].dtype == np.float32
        np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)


# Every form


@pytest.mark.parametrize("name", MODELS)
def test_our_safetensors_are_bit_equal(name, tmp_path):
    parameters = parameters_of(MODELS[name])
    file = tmp_path / "encoder.safetensors"
    encoders.save(file, parameters)
    assert [path.name for path in tmp_path.iterdir()] == [file.name]
    for source in (file, str(tmp_path)):
        assert_equal(load(source, MODELS[name]), parameters)


@pytest.mark.parametrize("name", MODELS)
def test_hugging_face_names_round_trip_bit_equal(name, tmp_path):
    parameters = parameters_of(MODELS[name])
    theirs = encoders.to_huggingface(parameters)
    assert not any("/" in key for key in theirs)
    save_file(theirs, tmp_path / "model.safetensors", metadata={"format": "pt"})
    loaded = load(tmp_path, MODELS[name])
    assert_equal(loaded, parameters)
    again = encoders.to_huggingface(loaded)
    assert set(again) == set(theirs)
    for key in theirs:
        np.testing.assert_array_equal(again[key], theirs[key])


def test_hugging_face_layouts():
    theirs = encoders.to_huggingface(parameters_of(MODELS["dinov2_giant"]))
    assert theirs["embeddings.patch_embeddings.projection.weight"].shape == (8, 3, 2, 2)
    assert theirs["encoder.layer.1.mlp.weights_in.weight"].shape == (48, 8)
    assert theirs["encoder.layer.0.norm1.weight"].shape == (8,)
    theirs = encoders.to_huggingface(parameters_of(MODELS["clip_text"]))
    assert theirs["text_model.embeddings.token_embedding.weight"].shape == (11, 8)


@pytest.mark.parametrize("name", MODELS)
def test_flax_msgpack_loads_without_renaming(name, tmp_path):
    parameters = parameters_of(MODELS[name])
    file = tmp_path / "flax_model.msgpack"
    file.write_bytes(serialization.msgpack_serialize(parameters))
    assert_equal(load(tmp_path, MODELS[name]), parameters)


def test_shards(tmp_path):
    parameters = parameters_of(DINO)
    theirs = encoders.to_huggingface(parameters)
    shards = {"a.safetensors": {}, "b.safetensors": {}}
    index = {}
    for position, (key, value) in enumerate(theirs.items()):
        shard = list(shards)[position % 2]
        shards[shard][key] = value
        index[key] = shard
    for shard, tensors in shards.items():
        save_file(tensors, tmp_path / shard)
    file = tmp_path / "model.safetensors.index.json"
    file.write_text(json.dumps({"metadata": {}, "weight_map": index}))
    assert_equal(load(tmp_path, DINO), parameters)
    (tmp_path / "b.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"b\.safetensors"):
        load(tmp_path, DINO)
    key = "layernorm.weight"
    shards[index[key]].pop(key)
    for shard, tensors in shards.items():
        save_file(tensors, tmp_path / shard)
    with pytest.raises(ValueError, match="layernorm.weight is only in the index"):
        load(tmp_path, DINO)
    for content, message in (
        ([1], "must hold a weight_map"),
        ({"weight_map": {}}, "must hold a weight_map"),
        ({"weight_map": {key: "."}}, "beside it for layernorm.weight, got '.'"),
        ({"weight_map": {key: "../a.safetensors"}}, "got '../a.safetensors'"),
        ({"weight_map": {key: 3}}, "got 3"),
    ):
        file.write_text(json.dumps(content))
        with pytest.raises(ValueError, match=message):
            load(tmp_path, DINO)


def original_dinov2(parameters, registers):
    """The names of the original repository, written out by hand."""
    p, out = flat(parameters), {}
    out["cls_token"] = p["embeddings/cls_token"]
    out["mask_token"] = p["embeddings/mask_token"]
    out["pos_embed"] = p["embeddings/position_embeddings"]
    if registers:
        out["register_tokens"] = p["embeddings/register_tokens"]
    patch = "embeddings/patch_embeddings/projection/"
    out["patch_embed.proj.weight"] = p[patch + "kernel"].transpose(3, 2, 0, 1)
    out["patch_embed.proj.bias"] = p[patch + "bias"]
    for i in range(2):
        ours, theirs = f"encoder/layer/{i}/", f"blocks.{i}."
        kernels = [
            p[f"{ours}attention/attention/{part}/kernel"].T
            for part in ("query", "key", "value")
        ]
        out[theirs + "attn.qkv.weight"] = np.concatenate(kernels)
        out[theirs + "attn.qkv.bias"] = np.concatenate(
            [
                p[f"{ours}attention/attention/{part}/bias"]
                for part in ("query", "key", "value")
            ]
        )
        dense = {"attn.proj": "attention/output/dense"}
        if ours + "mlp/weights_in/kernel" in p:
            dense |= {"mlp.w12": "mlp/weights_in", "mlp.w3": "mlp/weights_out"}
        else:
            dense |= {"mlp.fc1": "mlp/fc1", "mlp.fc2": "mlp/fc2"}
        for name, path in dense.items():
            out[f"{theirs}{name}.weight"] = p[f"{ours}{path}/kernel"].T
            out[f"{theirs}{name}.bias"] = p[f"{ours}{path}/bias"]
        for k in (1, 2):
            out[f"{theirs}norm{k}.weight"] = p[f"{ours}norm{k}/scale"]
            out[f"{theirs}norm{k}.bias"] = p[f"{ours}norm{k}/bias"]
            out[f"{theirs}ls{k}.gamma"] = p[f"{ours}layer_scale{k}/lambda1"]
    out["norm.weight"] = p["layernorm/scale"]
    out["norm.bias"] = p["layernorm/bias"]
    return out


@pytest.mark.parametrize("name", ["dinov2", "dinov2_giant"])
def test_original_dinov2_names(name):
    parameters = parameters_of(MODELS[name])
    tensors = original_dinov2(parameters, name == "dinov2_giant")
    assert_equal(encoders.to_parameters(tensors, parameters), parameters)


def original_clip(text, image):
    """OpenAI's names of a whole CLIP model, written out by hand."""
    out = {
        "logit_scale": np.float32(4.6), "input_resolution": np.int64(6),
        "context_length": np.int64(5), "vocab_size": np.int64(11),
    }  # fmt: skip
    t, v = flat(text), flat(image)
    out["text_projection"] = t["text_projection/kernel"]
    out["token_embedding.weight"] = t["text_model/embeddings/token_embedding/embedding"]
    out["positional_embedding"] = t[
        "text_model/embeddings/position_embedding/embedding"
    ]
    out["visual.proj"] = np.zeros((8, 6), np.float32)
    own = "vision_model/embeddings/"
    out["visual.class_embedding"] = v[own + "class_embedding"]
    out["visual.positional_embedding"] = v[own + "position_embedding/embedding"]
    kernel = v[own + "patch_embedding/kernel"]
    out["visual.conv1.weight"] = kernel.transpose(3, 2, 0, 1)
    norms = {
        "ln_final": (t, "text_model/final_layer_norm"),
        "visual.ln_pre": (v, "vision_model/pre_layrnorm"),
        "visual.ln_post": (v, "vision_model/post_layernorm"),
    }
    for i in range(2):
        for tower, scope, prefix in (
            (t, "text_model", ""),
            (v, "vision_model", "visual."),
        ):
            ours = f"{scope}/encoder/layers/{i}/"
            theirs = f"{prefix}transformer.resblocks.{i}."
            for leaf, name in (("kernel", "weight"), ("bias", "bias")):
                out[f"{theirs}attn.in_proj_{name}"] = np.concatenate(
                    [tower[f"{ours}self_attn/{k}_proj/{leaf}"].T for k in "qkv"]
                )
                for path, target in (
                    ("self_attn/out_proj", "attn.out_proj"),
                    ("mlp/fc1", "mlp.c_fc"), ("mlp/fc2", "mlp.c_proj"),
                ):  # fmt: skip
                    out[f"{theirs}{target}.{name}"] = tower[f"{ours}{path}/{leaf}"].T
            norms |= {
                f"{theirs}ln_{k}": (tower, f"{ours}layer_norm{k}") for k in (1, 2)
            }
    for name, (tower, path) in norms.items():
        out[name + ".weight"], out[name + ".bias"] = (
            tower[path + "/scale"], tower[path + "/bias"],
        )  # fmt: skip
    return out


def test_original_clip_names_hold_both_towers():
    text = parameters_of(MODELS["clip_text_projection"])
    image = parameters_of(MODELS["clip_image"], seed=1)
    tensors = original_clip(text, image)
    assert_equal(encoders.to_parameters(tensors, text), text)
    assert_equal(encoders.to_parameters(tensors, image), image)
    bare = parameters_of(MODELS["clip_text"])
    loaded = encoders.to_parameters(tensors, bare)
    assert "text_projection" not in loaded
    assert_equal(loaded, {"text_model": text["text_model"]})


def test_towers_of_a_whole_hugging_face_model(tmp_path):
    text = parameters_of(MODELS["clip_text_projection"])
    image = parameters_of(MODELS["clip_image"], seed=1)
    theirs = encoders.to_huggingface(text) | encoders.to_huggingface(image)
    theirs["logit_scale"] = np.float32([4.6])
    theirs["visual_projection.weight"] = np.zeros((6, 8), np.float32)
    theirs["text_model.embeddings.position_ids"] = np.arange(5)[None]
    theirs["vision_model.embeddings.position_ids"] = np.arange(10)[None]
    save_file(theirs, tmp_path / "model.safetensors")
    assert_equal(load(tmp_path, MODELS["clip_text_projection"]), text)
    assert_equal(load(tmp_path, MODELS["clip_image"]), image)


@pytest.mark.parametrize("name", ["clip_text", "clip_text_projection", "clip_image"])
def test_towers_saved_without_their_prefix(name, tmp_path):
    """As transformers 5 saves CLIPTextModel."""
    parameters = parameters_of(MODELS[name])
    theirs = {
        key.removeprefix("text_model.").removeprefix("vision_model."): value
        for key, value in encoders.to_huggingface(parameters).items()
    }
    save_file(theirs, tmp_path / "model.safetensors")
    assert_equal(load(tmp_path, MODELS[name]), parameters)


def test_a_model_with_sinusoidal_positions_leaves_the_table_aside(tmp_path):
    parameters = parameters_of(MODELS["clip_text"])
    encoders.save(tmp_path / "text.safetensors", parameters)
    loaded = load(tmp_path, MODELS["clip_text"].clone(positions="sinusoidal"))
    del parameters["text_model"]["embeddings"]["position_embedding"]
    assert_equal(loaded, parameters)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_files_become_float32(dtype, tmp_path):
    half = jax.tree.map(lambda leaf: leaf.astype(dtype), parameters_of(DINO))
    encoders.save(tmp_path / "half.safetensors", half)
    expected = jax.tree.map(lambda leaf: leaf.astype(np.float32), half)
    assert_equal(load(tmp_path, DINO), expected)


# Wrong files


def write(tmp_path, change):
    tree = flat(parameters_of(DINO))
    change(tree)
    encoders.save(tmp_path / "x.safetensors", tree)
    return tmp_path / "x.safetensors"


BIAS = "encoder/layer/1/mlp/fc2/bias"


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda t: t.pop(BIAS), rf"1 missing: {BIAS} \(8,\)"),
        (lambda t: t.update({"head/bias": t[BIAS]}), r"1 extra: head/bias \(8,\)"),
        (
            lambda t: t.update({BIAS: np.zeros(7, np.float32)}),
            rf"1 mis-shaped: {BIAS}: expected \(8,\), found \(7,\)",
        ),
        (lambda t: t[BIAS].__setitem__(3, np.nan), rf"1 not finite: {BIAS}"),
    ],
    ids=["missing", "extra", "mis-shaped", "not finite"],
)
def test_faults_are_listed_by_name(change, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        load(write(tmp_path, change), DINO)


def test_wrong_size_and_wrong_model(tmp_path):
    file = write(tmp_path, lambda tree: None)
    with pytest.raises(
        ValueError,
        match=r"embeddings/cls_token: expected \(1, 1, 16\), found \(1, 1, 8\)",
    ):
        load(file, DINO.clone(hidden_size=16))
    with pytest.raises(
        ValueError,
        match=r"position_embeddings: expected \(1, 17, 8\), found \(1, 10, 8\)",
    ):
        load(file, DINO.clone(table_size=4))
    with pytest.raises(ValueError, match=r"missing: encoder/layer/2/"):
        load(file, DINO.clone(num_layers=3))
    with pytest.raises(ValueError, match=r"extra: encoder/layer/1/"):
        load(file, DINO.clone(num_layers=1))
    with pytest.raises(ValueError, match=r"missing: text_model/.*extra: embeddings/"):
        load(file, MODELS["clip_text"])


@pytest.mark.parametrize("keep", [0.5, 0.99, 1])
def test_truncated_safetensors_name_the_tensor(keep, tmp_path):
    file = write(tmp_path, lambda tree: None)
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * keep) - (keep == 1)])
    with pytest.raises(ValueError, match=r"truncated at [\w/]+: expected shape \("):
        load(file, DINO)


def test_damaged_files(tmp_path):
    file = write(tmp_path, lambda tree: None)
    content = file.read_bytes()
    file.write_bytes(content[:8] + b"\xff" * (len(content) - 8))
    with pytest.raises(ValueError, match="its header is no JSON"):
        load(file, DINO)
    for short in (b"", b"\x01", b"\xff" * 20):
        file.write_bytes(short)
        with pytest.raises(ValueError, match=f"damaged: {len(short)} bytes"):
            load(file, DINO)
    file.write_bytes(content.replace(b'"F32"', b'"Q32"', 1))
    with pytest.raises(ValueError, match=r"holds [\w/]+ \(.*\) as 'Q32', expected"):
        load(file, DINO)
    file.write_bytes(content.replace(b'"data_offsets"', b'"data_0ffsets"', 1))
    with pytest.raises(ValueError, match=r"header has no .*\(KeyError: 'data_offsets'"):
        load(file, DINO)
    file.write_bytes(content + b"x")
    with pytest.raises(ValueError, match=r"is damaged.* found: a file of \d+ bytes"):
        load(file, DINO)
    (tmp_path / "weights.zip").write_bytes(b"")
    with pytest.raises(ValueError, match=r"must end in one of \.safetensors"):
        load(tmp_path / "weights.zip", DINO)


def test_truncated_msgpack_names_the_array(tmp_path):
    packed = serialization.msgpack_serialize(parameters_of(DINO))
    file = tmp_path / "flax_model.msgpack"
    file.write_bytes(packed[:-1])
    last = list(flat(serialization.msgpack_restore(packed)))[-1]
    shape = re.escape(str(flat(parameters_of(DINO))[last].shape))
    with pytest.raises(
        ValueError, match=f"truncated at {last}: expected shape {shape}"
    ):
        load(file, DINO)
    file.write_bytes(packed[: len(packed) // 2])
    with pytest.raises(ValueError, match=r"truncated at encoder/layer/\d/.*shape \("):
        load(file, DINO)
    file.write_bytes(packed[:20])  # within the first names
    with pytest.raises(ValueError, match=r"43 weights of this model, \d+ bytes"):
        load(file, DINO)
    for tree, message in (
        ({"layernorm": {"scale": "x"}}, "these are no tensors: layernorm/scale"),
        ({}, "is empty"),
        ([1.0], "no whole Flax msgpack"),
    ):
        file.write_bytes(serialization.msgpack_serialize(tree))
        with pytest.raises(ValueError, match=message):
            load(file, DINO)


def test_torch_files_need_torch(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    (tmp_path / "dinov2_vits14_pretrain.pth").write_bytes(b"x")
    with pytest.raises(ValueError, match="pip install torch"):
        load(tmp_path, DINO)


# Where files are found


def test_places_without_weights(tmp_path):
    with pytest.raises(FileNotFoundError, match="not a file, a folder or a hub id"):
        load(tmp_path / "absent" / "weights", DINO)
    with pytest.raises(FileNotFoundError, match="it holds none of them"):
        load(tmp_path, DINO)
    for name in ("a.safetensors", "b.safetensors"):
        encoders.save(tmp_path / name, {"x": np.zeros(1, np.float32)})
    with pytest.raises(FileNotFoundError, match=r"a\.safetensors, b\.safetensors"):
        load(tmp_path, DINO)


@pytest.fixture
def offline_hub(tmp_path, monkeypatch):
    """An empty hub cache and no network."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path


def cached(hub, files):
    """What the hub's client leaves in its cache for nobody/dinov2-tiny."""
    root = hub / "models--nobody--dinov2-tiny"
    snapshot = root / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text("0" * 40)
    for name, content in files.items():
        (snapshot / name).write_bytes(content)


@pytest.mark.parametrize(
    "repository, size",
    [("nobody/dinov2-tiny", "0.00797 MB"), ("facebook/dinov2-small", "88 MB")],
)
def test_hub_id_offline_says_what_to_fetch(repository, size, offline_hub):
    with pytest.raises(FileNotFoundError) as error:
        load(repository, DINO)
    for part in ("model.safetensors of", size, f"hf download {repository} --include"):
        assert part in str(error.value)


def test_hub_id_from_the_cache(offline_hub):
    parameters = parameters_of(DINO)
    packed = serialization.msgpack_serialize(parameters)
    cached(offline_hub, {"flax_model.msgpack": packed})
    assert_equal(load("nobody/dinov2-tiny", DINO), parameters)


def test_hub_id_with_shards_missing_from_the_cache(offline_hub):
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors"}}
    content = {"model.safetensors.index.json": json.dumps(index).encode()}
    cached(offline_hub, content)
    with pytest.raises(FileNotFoundError, match="model-00001-of-00002.safetensors"):
        load("nobody/dinov2-tiny", DINO)


# Parameters of a run


def test_parts_get_their_sources(tmp_path, caplog):
    parameters = {
        "visual_encoder": parameters_of(DINO),
        "text_encoder": parameters_of(MODELS["clip_text"]),
    }
    trained = parameters_of(DINO, seed=5)
    encoders.save(tmp_path / "dino.safetensors", trained)
    sources = {"visual_encoder": str(tmp_path / "dino.safetensors"), "text_encoder": ""}
    sources["other"] = "a file that is not asked for"
    config = ConfigDict({"pretrained": sources})
    loaded = encoders.load_pretrained(config, parameters, frozen=["text_encoder"])
    assert "Frozen text_encoder keeps its random initial values" in caplog.text
    caplog.clear()
    assert_equal(loaded["visual_encoder"], trained)
    assert_equal(loaded["text_encoder"], parameters["text_encoder"])
    assert set(loaded) == set(parameters)
    loaded = encoders.load_pretrained(ConfigDict(), parameters, frozen=())
    assert_equal(loaded, parameters)
    assert not caplog.text
