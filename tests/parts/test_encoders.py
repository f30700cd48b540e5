"""DINOv2 and CLIP towers: naive references, interpolation, chunks, remat, bf16."""

import math
import subprocess
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT
from flax import linen as nn
from flax import traverse_util

from gaitjax.parts import backend, transformer
from gaitjax.parts.clip_image import CLIP_IMAGE_SIZES, CLIPImage
from gaitjax.parts.clip_text import (
    CLIP_TEXT_SIZES,
    CLIPText,
    end_position,
    sinusoidal_positions,
)
from gaitjax.parts.dinov2 import (
    DINOV2_SIZES,
    INTERPOLATIONS,
    DINOv2,
    interpolate_positions,
    interpolation_weights,
)
from gaitjax.parts.visual_encoder import VISUAL_ENCODERS

TINY = dict(hidden_size=16, num_layers=2, num_heads=2, patch_size=4, table_size=3)
TINY_TEXT = dict(width=16, num_layers=2, num_heads=2, vocabulary_size=20)


def random_parameters(model, *inputs, seed=0):
    """Every leaf N(0, 0.3^2), so that no bias, scale or token is trivially 0 or 1."""
    shapes = jax.eval_shape(model.init, jax.random.key(0), *inputs)["params"]
    generator = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: generator.normal(0, 0.3, leaf.shape).astype(np.float32), shapes
    )


def images_of(frames=2, height=16, width=8, seed=1):
    shape = (frames, height, width, 3)
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def apply(model, parameters, *inputs, **named):
    return jax.jit(lambda p: model.apply({"params": p}, *inputs, **named))(parameters)


# A second, slow implementation: float64, one image, one head, one token at a time.


def naive_norm(x, p, epsilon):
    centred = x - x.mean(-1, keepdims=True)
    spread = np.sqrt((centred**2).mean(-1, keepdims=True) + epsilon)
    return centred / spread * p["scale"] + p["bias"]


def naive_dense(x, p):
    return x @ np.asarray(p["kernel"], np.float64) + p["bias"]


def naive_attention(x, query, key, value, num_heads, causal):
    q, k, v = (naive_dense(x, p) for p in (query, key, value))
    size = x.shape[-1] // num_heads
    out = np.zeros_like(x)
    for head in range(num_heads):
        columns = slice(head * size, (head + 1) * size)
        for i in range(len(x)):
            seen = i + 1 if causal else len(x)
            scores = k[:seen, columns] @ q[i, columns] / np.sqrt(size)
            weights = np.exp(scores - scores.max())
            out[i, columns] = weights @ v[:seen, columns] / weights.sum()
    return out


def naive_gelu(x):
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / np.sqrt(2)))


def naive_patches(image, kernel, size):
    rows, columns = image.shape[0] // size, image.shape[1] // size
    out = np.zeros((rows * columns, kernel.shape[-1]))
    for row in range(rows):
        for column in range(columns):
            patch = image[
                row * size : (row + 1) * size, column * size : (column + 1) * size
            ]
            out[row * columns + column] = np.einsum("hwc,hwcd->d", patch, kernel)
    return out


def naive_dinov2(model, parameters, image):
    embeddings = parameters["embeddings"]
    projection = embeddings["patch_embeddings"]["projection"]
    size, side = model.patch_size, model.table_size
    rows, columns = image.shape[0] // size, image.shape[1] // size
    table = embeddings["position_embeddings"][0].astype(np.float64)
    rule = model.position_interpolation
    positions = np.einsum(
        "rt,cs,tsd->rcd",
        interpolation_weights(side, rows, rule),
        interpolation_weights(side, columns, rule),
        table[1:].reshape(side, side, -1),
    ).reshape(rows * columns, -1)
    tokens = naive_patches(image, projection["kernel"], size) + projection["bias"]
    parts = [embeddings["cls_token"][0] + table[:1]]
    if model.num_registers:
        parts.append(embeddings["register_tokens"][0])
    x = np.concatenate([*parts, tokens + positions])
    outputs = []
    for index in range(model.num_layers):
        p = parameters["encoder"]["layer"][str(index)]
        qkv = p["attention"]["attention"]
        out = naive_attention(
            naive_norm(x, p["norm1"], 1e-6),
            qkv["query"], qkv["key"], qkv["value"], model.num_heads, False,
        )  # fmt: skip
        out = naive_dense(out, p["attention"]["output"]["dense"])
        x = x + out * p["layer_scale1"]["lambda1"]
        out = naive_norm(x, p["norm2"], 1e-6)
        if model.swiglu:
            gate, up = np.split(naive_dense(out, p["mlp"]["weights_in"]), 2, axis=-1)
            out = naive_dense(gate / (1 + np.exp(-gate)) * up, p["mlp"]["weights_out"])
        else:
            out = naive_gelu(naive_dense(out, p["mlp"]["fc1"]))
            out = naive_dense(out, p["mlp"]["fc2"])
        x = x + out * p["layer_scale2"]["lambda1"]
        outputs.append(x)
    return naive_norm(x, parameters["layernorm"], 1e-6), outputs


def naive_clip_blocks(x, parameters, num_heads, causal):
    for index in range(len(parameters)):
        p = parameters[str(index)]
        attention = p["self_attn"]
        out = naive_attention(
            naive_norm(x, p["layer_norm1"], 1e-5),
            attention["q_proj"], attention["k_proj"], attention["v_proj"],
            num_heads, causal,
        )  # fmt: skip
        x = x + naive_dense(out, attention["out_proj"])
        out = naive_dense(naive_norm(x, p["layer_norm2"], 1e-5), p["mlp"]["fc1"])
        x = x + naive_dense(out / (1 + np.exp(-1.702 * out)), p["mlp"]["fc2"])
    return x


@pytest.mark.parametrize(
    "options",
    [
        dict(),
        dict(swiglu=True),
        dict(num_registers=2, position_interpolation="registers"),
        dict(swiglu=True, rest=3),
    ],
    ids=["plain", "swiglu", "registers", "no multiple of the patch"],
)
def test_dinov2_equals_a_naive_implementation(options):
    options = dict(options)
    rest = options.pop("rest", 0)  # rows and columns beyond the last whole patch
    model = DINOv2(**TINY, **options)
    images = np.pad(images_of(), ((0, 0), (0, rest), (0, rest), (0, 0)), mode="edge")
    parameters = random_parameters(model, images)
    tokens, blocks = apply(model, parameters, images, blocks=(1, 0))
    prefix = 1 + model.num_registers
    assert tokens.shape == (2, prefix + 4 * 2, 16)
    for frame, image in enumerate(images):
        expected, outputs = naive_dinov2(model, parameters, image)
        np.testing.assert_allclose(tokens[frame], expected, atol=2e-5)
        np.testing.assert_allclose(blocks[0][frame], outputs[1], atol=2e-5)
        np.testing.assert_allclose(blocks[1][frame], outputs[0], atol=2e-5)


def test_clip_text_equals_a_naive_implementation():
    model = CLIPText(**TINY_TEXT, context_length=9, projection_size=5)
    ids = np.array([[18, 3, 4, 19, 0, 0], [18, 3, 7, 8, 2, 19]])
    parameters = random_parameters(model, ids)
    tokens, pooled = apply(model, parameters, ids)
    text = parameters["text_model"]
    for row, end in ((0, 3), (1, 5)):
        x = text["embeddings"]["token_embedding"]["embedding"][ids[row]]
        x = x + text["embeddings"]["position_embedding"]["embedding"][:6]
        x = naive_clip_blocks(x.astype(np.float64), text["encoder"]["layers"], 2, True)
        expected = naive_norm(x, text["final_layer_norm"], 1e-5)
        np.testing.assert_allclose(tokens[row], expected, atol=2e-5)
        projected = expected[end] @ parameters["text_projection"]["kernel"]
        np.testing.assert_allclose(pooled[row], projected, atol=2e-5)


def test_clip_image_equals_a_naive_implementation():
    model = CLIPImage(**TINY)
    images = images_of(height=12, width=12)
    parameters = random_parameters(model, images)
    tokens, (block,) = apply(model, parameters, images, blocks=(1,))
    vision = parameters["vision_model"]
    embeddings = vision["embeddings"]
    table = embeddings["position_embedding"]["embedding"]
    patches = naive_patches(images[1], embeddings["patch_embedding"]["kernel"], 4)
    x = np.concatenate([embeddings["class_embedding"][None], patches]) + table
    x = naive_norm(x, vision["pre_layrnorm"], 1e-5)
    x = naive_clip_blocks(x, vision["encoder"]["layers"], 2, False)
    np.testing.assert_allclose(block[1], x, atol=2e-5)
    expected = naive_norm(x, vision["post_layernorm"], 1e-5)
    np.testing.assert_allclose(tokens[1], expected, atol=2e-5)


@pytest.mark.parametrize(
    "model, count",
    [
        (DINOv2(**DINOV2_SIZES["s"]), 22_056_576),
        (DINOv2(**DINOV2_SIZES["b"]), 86_580_480),
        (DINOv2(**DINOV2_SIZES["l"]), 304_368_640),
        (DINOv2(**DINOV2_SIZES["g"]), 1_136_480_768),
        (DINOv2(**DINOV2_SIZES["s"], num_registers=4), 22_058_112),
        (CLIPText(**CLIP_TEXT_SIZES["b32"]), 63_165_952),
        (CLIPText(**CLIP_TEXT_SIZES["b16"], projection_size=512), 63_428_096),
        (CLIPText(**CLIP_TEXT_SIZES["l14"]), 123_060_480),
        (CLIPImage(**CLIP_IMAGE_SIZES["b32"]), 87_456_000),
        (CLIPImage(**CLIP_IMAGE_SIZES["b16"]), 85_799_424),
        (CLIPImage(**CLIP_IMAGE_SIZES["l14"]), 303_179_776),
    ],
)
def test_published_parameter_counts(model, count):
    if isinstance(model, CLIPText):
        inputs = jnp.zeros((1, 3), jnp.int32)
    else:
        inputs = jnp.zeros((1, model.patch_size, model.patch_size, 3))
    shapes = jax.eval_shape(model.init, jax.random.key(0), inputs)
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == count


def test_parameter_names_are_those_of_transformers():
    model = DINOv2(**{**TINY, "num_layers": 1})
    flat = traverse_util.flatten_dict(random_parameters(model, images_of()), sep="/")
    dense = {"kernel", "bias"}
    layer = {
        "norm1": {"scale", "bias"}, "norm2": {"scale", "bias"},
        "attention/attention/query": dense, "attention/attention/key": dense,
        "attention/attention/value": dense, "attention/output/dense": dense,
        "layer_scale1": {"lambda1"}, "layer_scale2": {"lambda1"},
        "mlp/fc1": dense, "mlp/fc2": dense,
    }  # fmt: skip
    expected = {
        f"encoder/layer/0/{scope}/{leaf}" for scope in layer for leaf in layer[scope]
    }
    expected |= {"layernorm/scale", "layernorm/bias"}
    expected |= {
        f"embeddings/{name}"
        for name in (
            "cls_token", "mask_token", "position_embeddings",
            "patch_embeddings/projection/kernel", "patch_embeddings/projection/bias",
        )
    }  # fmt: skip
    assert set(flat) == expected
    assert flat["embeddings/position_embeddings"].shape == (1, 10, 16)
    assert flat["embeddings/patch_embeddings/projection/kernel"].shape == (4, 4, 3, 16)


# Positional interpolation


def cubic(t, a):
    t = abs(t)
    if t <= 1:
        return (a + 2) * t**3 - (a + 3) * t**2 + 1
    return a * t**3 - 5 * a * t**2 + 8 * a * t - 4 * a if t < 2 else 0.0


@pytest.mark.parametrize("rule, offset", [("original", 0.1), ("huggingface_torch", 0)])
@pytest.mark.parametrize("size, target", [(37, 32), (37, 16), (8, 16), (5, 2)])
def test_border_clamped_rules_equal_a_loop(rule, offset, size, target):
    expected = np.zeros((target, size))
    for i in range(target):
        source = (i + 0.5) * size / (target + offset) - 0.5
        first = int(np.floor(source)) - 1
        for tap in range(first, first + 4):
            column = min(max(tap, 0), size - 1)
            expected[i, column] += cubic(source - tap, -0.75)
    ours = interpolation_weights(size, target, rule)
    np.testing.assert_allclose(ours, expected, atol=1e-6)


def test_other_rules_equal_jax_image():
    table = np.random.default_rng(0).normal(0, 0.44, (37, 37, 4)).astype(np.float32)
    ours = interpolate_positions(table, 32, 16, "registers")
    theirs = jax.image.resize(table, (32, 16, 4), "bicubic", antialias=True)
    np.testing.assert_allclose(ours, theirs, atol=2e-6)
    ours = interpolate_positions(table, 32, 16, "huggingface_flax")
    with jax.enable_x64(True):  # in float32 it rounds the source coordinates
        theirs = jax.image.scale_and_translate(
            jnp.asarray(table, jnp.float64), (32, 16, 4), (0, 1),
            jnp.array([32.1, 16.1]) / 37, jnp.zeros(2), "bicubic", antialias=False,
        )  # fmt: skip
    np.testing.assert_allclose(ours, theirs, atol=2e-6)


@pytest.mark.parametrize(
    "rule, expected",
    [
        ("original", [0.139334237, 3.553577423, 13.190597622]),  # scale_factor=3.1/5
        ("huggingface_torch", [0.148148148, 4.0, 14.074074074]),  # size=3
        ("registers", [0.169230769, 4.195348837, 13.338461538]),  # size=3, antialias
    ],
)
def test_interpolation_equals_torch(rule, expected):
    """torch 2.13 interpolate(mode="bicubic") of the column [0, 1, 4, 9, 16]."""
    values = np.array([0.0, 1, 4, 9, 16])
    ours = interpolation_weights(5, 3, rule) @ values
    np.testing.assert_allclose(ours, expected, rtol=1e-6)


@pytest.mark.parametrize("rule", INTERPOLATIONS)
def test_every_rule_keeps_constants_and_its_own_grid(rule):
    for target in (2, 16, 32, 37, 50):
        weights = interpolation_weights(37, target, rule)
        np.testing.assert_allclose(weights.sum(1), 1, atol=1e-6)
    table = jnp.arange(3 * 3 * 2.0).reshape(3, 3, 2)
    assert (interpolate_positions(table, 3, 3, rule) == table).all()


def test_the_config_chooses_the_rule():
    kinds = {
        kind: make(**TINY)
        for kind, (make, _, _) in VISUAL_ENCODERS.items()
        if kind.startswith("dinov2")
    }
    assert {
        kind: (model.position_interpolation, model.num_registers, model.swiglu)
        for kind, model in kinds.items()
    } == {
        "dinov2": ("original", 0, False),
        "dinov2_huggingface": ("huggingface_torch", 0, False),
        "dinov2_registers": ("registers", 4, False),
        "dinov2_giant": ("original", 0, True),
    }


def test_rules_differ_by_what_is_documented():
    table = np.random.default_rng(0).normal(0, 0.44, (37, 37, 64)).astype(np.float32)
    grids = {r: interpolate_positions(table, 32, 16, r) for r in INTERPOLATIONS}
    names = list(grids)
    for first in names:
        for second in names[names.index(first) + 1 :]:
            rms = np.sqrt(np.mean((grids[first] - grids[second]) ** 2))
            assert rms > 0.005, (first, second)


# Attention


@pytest.mark.parametrize("causal", [False, True])
def test_attention_formulations_agree_in_value_and_gradient(causal, monkeypatch):
    generator = np.random.default_rng(0)
    qkv = [generator.normal(size=(2, 7, 2, 8)).astype(np.float32) for _ in range(3)]
    valid = np.arange(7)[None, :] < np.array([7, 4])[:, None]

    @partial(jax.grad, argnums=(3, 4, 5), has_aux=True)
    def loss(formulation, cache, valid, *qkv):
        monkeypatch.setattr(transformer, "CACHE", cache)  # 0: a head at a time
        out = transformer.attend(
            *qkv, causal=causal, valid=valid, formulation=formulation
        )
        return jnp.sum(jnp.sin(out)), out

    for seen in (valid, None):
        expected, *others = (
            jax.tree.leaves(jax.jit(loss, static_argnums=(0, 1))(*how, seen, *qkv))
            for how in (("xla", 0), ("explicit", 2**20), ("explicit", 0))
        )
        for result in others:
            for ours, theirs in zip(result, expected, strict=True):
                np.testing.assert_allclose(ours, theirs, atol=2e-6)


def test_half_precision_products_are_rounded_once():
    generator = np.random.default_rng(0)
    x = jnp.asarray(generator.normal(size=(8, 32)), jnp.bfloat16)
    kernel = jnp.asarray(generator.normal(size=(32, 16)), jnp.bfloat16)
    bias = generator.normal(size=16).astype(np.float32)
    exact = np.float64(x) @ np.float64(kernel) + bias
    ours = transformer.dense(x, kernel.astype(jnp.float32), bias)
    assert ours.dtype == jnp.bfloat16
    assert (ours == exact.astype(jnp.bfloat16)).mean() > 0.99
    gelu = np.float64(transformer.gelu(ours))
    np.testing.assert_allclose(
        gelu, naive_gelu(np.float64(ours)), rtol=2**-8, atol=2e-6
    )
    assert transformer.result_type(jnp.float32) is None
    with backend.tracing_for(backend.Backend("gpu")):
        assert transformer.result_type(jnp.bfloat16) is None


def test_attention_formulation_by_backend(monkeypatch):
    choose = transformer.attention_formulation
    assert backend.compute_capability() == 0  # of a CPU
    assert choose(jnp.float32, 64, False) == "explicit"
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(backend, "compute_capability", lambda: 9.0)
    assert choose(jnp.bfloat16, 64, False) == "cudnn"
    assert choose(jnp.float32, 64, False) == "xla"
    assert choose(jnp.bfloat16, 20, False) == "xla"
    assert choose(jnp.bfloat16, 64, True) == "xla"
    monkeypatch.setattr(backend, "compute_capability", lambda: 7.5)
    assert choose(jnp.bfloat16, 64, False) == "xla"
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    assert choose(jnp.bfloat16, 64, False) == "xla"


# DINOv2 behaviour


@pytest.mark.parametrize("frames_per_chunk", [2, 3])
def test_chunks_change_nothing(frames_per_chunk):
    model = DINOv2(**TINY)
    images = images_of(frames=5)
    parameters = random_parameters(model, images)
    whole = apply(model, parameters, images, blocks=(0, 1))
    chunked = model.clone(frames_per_chunk=frames_per_chunk)
    for ours, theirs in zip(
        jax.tree.leaves(apply(chunked, parameters, images, blocks=(0, 1))),
        jax.tree.leaves(whole),
        strict=True,
    ):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_chunks_bound_the_memory():
    images = jax.ShapeDtypeStruct((64, 32, 32, 3), jnp.float32)
    options = {**TINY, "num_layers": 1, "mlp_ratio": 64, "swiglu": True}
    peaks = {}
    for frames_per_chunk in (0, 4):
        model = DINOv2(**options, frames_per_chunk=frames_per_chunk)
        parameters = jax.eval_shape(model.init, jax.random.key(0), images)
        compiled = jax.jit(model.apply).lower(parameters, images).compile()
        peaks[frames_per_chunk] = compiled.memory_analysis().temp_size_in_bytes
    assert peaks[4] < peaks[0] / 8, peaks  # the MLP of all frames: 23 MB


SHARDED = """
import jax, re
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 4)
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from gaitjax.parts.dinov2 import DINOv2
mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
model = DINOv2(16, 1, 2, patch_size=4, table_size=3, frames_per_chunk=4)
def on(spec):
    sharding = NamedSharding(mesh, PartitionSpec(*spec))
    return lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
images = on(["data"])(jax.ShapeDtypeStruct((16, 16, 8, 3), "float32"))
variables = jax.tree.map(on([]), jax.eval_shape(model.init, jax.random.key(0), images))
compiled = jax.jit(model.apply).lower(variables, images).compile()
assert "while" in compiled.as_text()
assert not re.search("all-gather|all-reduce|all-to-all|permute", compiled.as_text())
assert compiled.output_shardings[0].spec == PartitionSpec("data")
"""


def test_chunks_keep_frames_sharded_without_communication():
    done = subprocess.run(
        [sys.executable, "-c", SHARDED], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_chunks_and_remat_give_the_same_gradients_inside_another_module():
    class Parent(nn.Module):
        options: tuple = ()

        @nn.compact
        def __call__(self, images):
            encoder = DINOv2(**TINY, **dict(self.options), name="encoder")
            return jnp.sin(encoder(images)[0]).sum()

    images = images_of(frames=4)
    parameters = random_parameters(Parent(), images)
    gradients = [
        jax.jit(jax.grad(lambda p, m=model: m.apply({"params": p}, images)))(parameters)
        for model in (Parent(), Parent((("frames_per_chunk", 2), ("remat", True))))
    ]
    for ours, theirs in zip(*map(jax.tree.leaves, gradients), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-4, rtol=1e-4)


def test_chunked_initialisation_has_the_same_parameters():
    model = DINOv2(**TINY, frames_per_chunk=2)
    images = images_of(frames=4)
    chunked = jax.eval_shape(model.init, jax.random.key(0), images)
    whole = jax.eval_shape(DINOv2(**TINY).init, jax.random.key(0), images)
    assert jax.tree.structure(chunked) == jax.tree.structure(whole)


@pytest.mark.parametrize("tower", [DINOv2, CLIPImage])
def test_bfloat16_keeps_float32_parameters_and_drifts_little(tower):
    model = tower(**TINY)
    images = images_of()
    parameters = random_parameters(model, images)
    tokens = apply(model, parameters, images)[0]
    half = apply(model.clone(dtype=jnp.bfloat16), parameters, images)[0]
    assert half.dtype == jnp.bfloat16
    error = np.asarray(half, np.float32) - tokens
    assert np.sqrt(np.mean(error**2) / np.mean(tokens**2)) < 0.03
    init = model.clone(dtype=jnp.bfloat16).init
    fresh = jax.eval_shape(init, jax.random.key(0), images)
    assert {leaf.dtype for leaf in jax.tree.leaves(fresh)} == {jnp.dtype("float32")}


def test_clip_image_accepts_other_grids():
    model = CLIPImage(**TINY)
    images = images_of(height=16, width=8)
    parameters = random_parameters(model, images)
    assert apply(model, parameters, images)[0].shape == (2, 1 + 4 * 2, 16)


@pytest.mark.parametrize(
    "model",
    [DINOv2(**TINY), CLIPImage(**TINY, remat=True, frames_per_chunk=1)],
    ids=["dinov2", "clip in chunks"],
)
def test_a_tpu_gets_a_loop_over_equal_blocks(model):
    """With the same parameters, values and gradients as blocks one by one."""
    images = images_of()
    parameters = random_parameters(model, images)

    def loss(parameters):
        tokens, (first, last) = model.apply({"params": parameters}, images, (0, 1))
        return jnp.sin(tokens).sum() + (first * last).sum(), (tokens, first, last)

    found = {}
    for platform in ("gpu", "tpu"):
        with backend.tracing_for(backend.Backend(platform)):
            gradient = jax.jit(jax.grad(lambda p: loss(p), has_aux=True))
            traced = gradient.trace(parameters)
        compiled = traced.lower().compile({"xla_backend_optimization_level": 0})
        found[platform] = compiled(parameters)
        kernel = "16,64]"  # of an MLP, [2 16 64] if stacked
        assert (f"[2,{kernel}" in str(traced.jaxpr)) == (platform == "tpu")
    close = partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4)
    jax.tree.map(close, found["tpu"], found["gpu"])


# CLIP text behaviour


def test_hook_after_each_block():
    model = CLIPText(**TINY_TEXT)
    ids = np.array([[18, 3, 4, 19]])
    parameters = random_parameters(model, ids)
    plain = apply(model, parameters, ids)[0]
    seen = []

    def add(index, x):
        seen.append(index)
        return x + index

    hooked = apply(model, parameters, ids, after_block=add)[0]
    assert seen == [0, 1]
    same = apply(model, parameters, ids, after_block=lambda index, x: x)[0]
    assert (same == plain).all() and not (hooked == plain).all()


def test_causal_and_padding():
    model = CLIPText(**TINY_TEXT, context_length=8)
    ids = np.array([[18, 3, 4, 19, 0, 0, 0, 0]])
    parameters = random_parameters(model, ids)
    tokens, pooled = apply(model, parameters, ids)
    np.testing.assert_allclose(pooled, tokens[:, 3], atol=0)
    for other in (ids[:, :4], np.where(ids == 0, 19, ids)):  # unpadded, HF padding
        np.testing.assert_allclose(
            apply(model, parameters, other)[1], pooled, atol=1e-6
        )
    valid = np.arange(8)[None, :] < 4
    np.testing.assert_allclose(
        apply(model, parameters, ids, valid=valid)[1], pooled, atol=1e-6
    )


def test_end_position_rules():
    ids = jnp.array([[18, 3, 19, 0], [18, 19, 19, 19]])
    assert end_position(ids, None).tolist() == [2, 1]
    assert end_position(ids, 3).tolist() == [1, 0]


def test_sinusoidal_positions():
    table = sinusoidal_positions(3, 4)
    expected = [
        [0, 1, 0, 1],
        [np.sin(1), np.cos(1), np.sin(0.01), np.cos(0.01)],
        [np.sin(2), np.cos(2), np.sin(0.02), np.cos(0.02)],
    ]
    np.testing.assert_allclose(table, expected, atol=1e-7)
    model = CLIPText(**TINY_TEXT, positions="sinusoidal")
    ids = np.array([[18, 3, 19]])
    parameters = random_parameters(model, ids)
    assert "position_embedding" not in parameters["text_model"]["embeddings"]
    learned = model.clone(positions="learned")
    table = {"embedding": sinusoidal_positions(77, 16)}
    parameters["text_model"]["embeddings"]["position_embedding"] = table
    np.testing.assert_allclose(
        apply(model, parameters, ids)[0], apply(learned, parameters, ids)[0], atol=1e-6
    )
