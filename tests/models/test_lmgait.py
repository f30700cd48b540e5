"""LMGait: counts and shapes at full size, masks, motion, text, ablations."""

import functools

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.lmgait import get_config as load
from gaitjax import losses, models
from gaitjax.engine import optim
from gaitjax.models import lmgait
from gaitjax.models.lmgait import LMGait
from gaitjax.parts import language, mtcm, representation
from gaitjax.parts.clip_image import CLIP_IMAGE_SIZES, CLIPImage
from gaitjax.parts.token_grid import Features

TINY = LMGait(
    num_classes=5,
    image_size=(32, 16),
    feature_grid=(16, 8),
    visual_encoder=lmgait.VisualEncoder(
        hidden_size=8, num_layers=2, num_heads=2, patch_size=4, table_size=4,
        blocks=(0, 1),
    ),
    text=lmgait.Text(
        token_ids=((1, 4, 2, 9), (1, 3, 9, 0)), width=8, num_layers=1, num_heads=2,
        vocabulary_size=10, context_length=4, adapter_size=3,
    ),
    decoder=lmgait.DecoderOptions(dropout=0.0),
    representation=lmgait.Representation(channels=4, hidden=12),
    gait=lmgait.Gait(
        stem=8, squeeze=4, channels=(12,), strides=(2,), num_strips=4,
        embedding_size=6,
    ),
    black_augmentation=0.0,
)  # fmt: skip


def make_batch(sequences=4, frames=3, size=(32, 16), seed=0):
    rng = np.random.default_rng(seed)
    lead = (sequences, frames)
    masks = np.zeros((*lead, *size), np.uint8)
    masks[:, :, 4:-4, 4:-4] = 1
    return {
        "frames": jnp.asarray(rng.integers(0, 256, (*lead, *size, 3), np.uint8)),
        "masks": jnp.asarray(masks),
        "ratios": jnp.asarray(rng.uniform(0.3, 0.45, lead), jnp.float32),
        "valid": jnp.ones(lead, bool),
        "labels": jnp.arange(sequences) // 2,
    }


def random_leaf(path, shape, rng):
    """A plausible trained value for the leaf at "a/b/c"."""
    name = path.split("/")[-1]
    if name in ("scale", "var", "lambda1"):
        return rng.uniform(0.8, 1.2, shape)
    if name in ("tau", "log_tau"):
        return np.asarray(10.0 if name == "tau" else np.log(10.0))
    if name in ("bias", "mean"):
        return rng.normal(0, 0.1, shape)
    fan_in = max(np.prod(shape[:-1]), 1)
    return rng.normal(0, fan_in**-0.5 if name == "kernel" else 0.5, shape)


@functools.cache
def variables_of(model):
    """Variables with random parameters, but MAM as it starts (init would compile)."""
    rng = np.random.default_rng(0)

    def fill(tree):
        flat = flax.traverse_util.flatten_dict(tree, sep="/")
        flat = {
            k: jnp.zeros(v.shape)
            if k.startswith("text_adapter") and "/up/" in k
            else jnp.asarray(random_leaf(k, v.shape, rng), jnp.float32)
            for k, v in flat.items()
        }
        return flax.traverse_util.unflatten_dict(flat, sep="/")

    return {name: fill(tree) for name, tree in abstract(model).items()}


LOSSES = {
    "triplet": {"weight": 1.0, "margin": 0.2},
    "cross_entropy": {"weight": 1.0, "scale": 16.0, "smoothing": 0.1},
    "silhouette": {"weight": 1.0},
    "smoothness": {"weight": 0.01, "reduce": "channel"},
    "diversity": {"weight": 5.0},
}
QUICK = {"xla_backend_optimization_level": 0}  # compiles twice as fast


@functools.cache
def compiled(model, train, method):
    """model.apply as a jitted function of (variables, batch, text), built once."""

    def call(variables, batch, text):
        rngs = {"dropout": jax.random.key(1), "augment": jax.random.key(2)}
        kwargs = {} if method == "warm_up" else {"text": text}
        out, state = model.apply(
            variables, batch, train=train, rngs=rngs, mutable=["batch_stats"],
            method=method, **kwargs,
        )  # fmt: skip
        if train and method is None:
            _, terms = losses.total_loss(out, batch, LOSSES)
            state = {**state, "losses": terms}
        return out, state

    return jax.jit(call, compiler_options=QUICK)


def apply(model, variables, batch, train=False, method=None, text=None):
    """(output, {"batch_stats"; in training "losses"}) of one jitted call."""
    return compiled(model, train, method)(variables, batch, text)


def abstract(model, batch=None):
    """Shapes of the variables, without computing them."""
    batch = make_batch() if batch is None else batch
    keys = dict(
        zip(("params", "dropout", "augment"), jax.random.split(jax.random.key(0), 3))
    )
    return jax.eval_shape(functools.partial(model.init, train=True), keys, batch)


def paths(model):
    flat = flax.traverse_util.flatten_dict(abstract(model)["params"], sep="/")
    return {name: leaf.shape for name, leaf in flat.items()}


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


# --- full size, shapes only ---------------------------------------------------------

FULL_TEXT = lmgait.Text(token_ids=((49406, 320, 49407) + (0,) * 74,))


@functools.cache
def full_size_shapes():
    """(params, intermediates, output) of the paper's LMGait on 2 x 3 frames."""
    model = LMGait(num_classes=100, text=FULL_TEXT)
    batch = jax.eval_shape(functools.partial(make_batch, 2, 3, (256, 128)))
    variables = abstract(model, batch)
    output, state = jax.eval_shape(
        lambda v, b: model.apply(
            v, b, train=False, mutable=["intermediates"],
            capture_intermediates=lambda _, method: True,
        ),
        variables, batch,
    )  # fmt: skip
    return variables["params"], state["intermediates"], output


def test_biggait_parameter_counts_at_full_size():
    model = LMGait(
        num_classes=100,
        text=lmgait.Text(enabled=False),
        mtcm=lmgait.Motion(enabled=False),
        decoder=lmgait.DecoderOptions(supervision="reconstruction"),
    )
    batch = jax.eval_shape(functools.partial(make_batch, 1, 2, (256, 128)))
    params = abstract(model, batch)["params"]
    counts = {name: count(tree) for name, tree in params.items()}
    assert counts == {
        "visual_encoder": 22_056_576,
        "decoder": 1_922,
        "denoising": 1_192_720,
        "appearance": 24_592,
        "gait": 7_505_056,
    }
    assert sum(counts.values()) - counts["visual_encoder"] == 8_724_290


def test_every_tensor_of_the_data_flow_at_full_size():
    params, inner, output = full_size_shapes()
    shape = lambda name: inner[name]["__call__"][0].shape  # noqa: E731
    assert inner["_prepare"][0].shape == (6, 448, 224, 3)
    final, middle = inner["visual_encoder"]["__call__"][0]
    assert final.shape == (6, 1 + 512, 384)
    assert [x.shape for x in middle] == [(6, 513, 384)] * 4
    last, mid = inner["_encode"][0]
    assert last.tokens.shape == (6, 32, 16, 384) and last.size == (64, 32)
    assert mid.tokens.shape == (6, 32, 16, 1536)
    assert output.aux["text_mask"].shape == (2, 3, 64, 32)
    assert inner["decoder"]["__call__"][0][0].shape == (6, 64, 32, 2)
    assert shape("denoising") == shape("appearance") == (6, 64, 32, 16)
    assert shape("mtcm_denoised") == shape("mtcm_appearance") == (2, 3, 64, 32, 16)
    assert inner["gait"]["block3"]["__call__"][0].shape == (6, 16, 8, 512)
    assert output.embeddings.shape == (2, 16, 256)
    assert output.logits.shape == (2, 16, 100)
    vectors = inner["text_vectors"][0]
    assert {k: v.shape for k, v in vectors.items()} == {
        "last": (1, 384),
        "mid": (1, 1536),
    }
    for leaf in jax.tree.leaves(output):
        assert leaf.dtype in (jnp.float32, jnp.bool_)
    # MAM: two matrices per layer; W_proj 512 -> 384 and 512 -> 1536
    assert params["text_adapter_11"]["down"]["kernel"].shape == (512, 64)
    assert count(params["text_adapter_0"]) == 2 * 512 * 64
    assert params["text_projection_mid"]["dense"]["kernel"].shape == (512, 1536)


# --- padding and validity -----------------------------------------------------------


def padded(batch, extra=7, seed=9):
    """The batch with `extra` garbage frames at the end, marked invalid."""
    rng = np.random.default_rng(seed)

    def grow(name, x):
        if name == "labels":
            return x
        shape = (x.shape[0], extra, *x.shape[2:])
        if name == "valid":
            garbage = np.zeros(shape, bool)
        elif name == "ratios":
            garbage = rng.uniform(0.1, 2.0, shape).astype(np.float32)
        else:
            garbage = rng.integers(0, 2 if name == "masks" else 256, shape, np.uint8)
        return jnp.concatenate([x, jnp.asarray(garbage)], axis=1)

    return {name: grow(name, x) for name, x in batch.items()}


@pytest.mark.parametrize("train", [False, True])
def test_padding_frames_change_nothing(train):
    batch, variables = make_batch(), variables_of(TINY)
    plain, plain_state = apply(TINY, variables, batch, train)
    longer, longer_state = apply(TINY, variables, padded(batch), train)
    np.testing.assert_allclose(longer.embeddings, plain.embeddings, atol=1e-5)
    np.testing.assert_allclose(longer.logits, plain.logits, atol=1e-4)
    for a, b in zip(jax.tree.leaves(longer_state), jax.tree.leaves(plain_state)):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    frames = batch["valid"].shape[1]
    assert not longer.aux["token_valid"][:, frames:].any()
    assert not longer.aux["denoised"][:, frames:].any()
    for name, value in plain.aux.items():
        if name == "logged":
            continue
        np.testing.assert_allclose(
            longer.aux[name][:, :frames], value, atol=1e-5, err_msg=name
        )


def test_masked_batch_norm_equals_numpy_on_the_ragged_token_list():
    rng = np.random.default_rng(0)
    tokens = rng.normal(2.0, 3.0, (3, 4, 5, 6)).astype(np.float32)
    support = rng.random((3, 4, 5)) < 0.4
    module = representation.Appearance(channels=4)
    features = Features(jnp.asarray(tokens), size=(4, 5))
    variables = module.init(jax.random.key(0), features, support, train=True)
    out, state = module.apply(
        variables, features, support, train=True, mutable=["batch_stats"]
    )
    ragged = tokens[support].astype(np.float64)  # [M 6]
    dense = variables["params"]["project"]

    def norm(x):
        return (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5)

    hidden = norm(ragged) @ np.asarray(dense["kernel"]) + np.asarray(dense["bias"])
    expected = 1 / (1 + np.exp(-norm(hidden)))
    np.testing.assert_allclose(np.asarray(out)[support], expected, atol=1e-5)
    assert not np.asarray(out)[~support].any()
    stats = state["batch_stats"]["norm"]
    mean, var = 0.1 * ragged.mean(0), 0.9 + 0.1 * ragged.var(0, ddof=1)
    got = sorted(jax.tree.leaves(stats), key=lambda x: float(x.mean()))
    want = sorted([mean, var], key=lambda x: float(x.mean()))
    for a, b in zip(got, want):
        np.testing.assert_allclose(a, b, rtol=1e-5)


# --- text ---------------------------------------------------------------------------


def test_cached_text_equals_the_live_branch_and_needs_no_text_parameter():
    batch, variables = make_batch(), variables_of(TINY)
    vectors = TINY.apply(variables, method="text_vectors")
    assert vectors["last"].shape == (2, 8) and vectors["mid"].shape == (2, 16)
    live, _ = apply(TINY, variables, batch)
    language = [name for name in variables["params"] if name.startswith("text_")]
    assert len(language) == 1 + 1 + 2
    visual = {k: v for k, v in variables["params"].items() if k not in language}
    cached, _ = apply(TINY, variables | {"params": visual}, batch, text=vectors)
    np.testing.assert_allclose(cached.embeddings, live.embeddings, atol=1e-6)


def test_step_zero_is_the_plain_text_encoder():
    variables = variables_of(TINY)
    plain = TINY.clone(text=TINY.text._replace(adapter="none"))
    for a, b in zip(
        jax.tree.leaves(TINY.apply(variables, method="text_vectors")),
        jax.tree.leaves(plain.apply(variables, method="text_vectors")),
    ):
        np.testing.assert_array_equal(a, b)
    # and with a trained adapter it is not
    params = flax.traverse_util.flatten_dict(variables["params"])
    params = {k: v + v.size**-1.0 * jnp.arange(v.size).reshape(v.shape)
              if k[-2] == "up" else v for k, v in params.items()}  # fmt: skip
    changed = {"params": flax.traverse_util.unflatten_dict(params)}
    moved = TINY.apply(changed, method="text_vectors")["last"]
    still = TINY.apply(variables, method="text_vectors")["last"]
    assert float(jnp.abs(moved - still).max()) > 1e-3


def test_text_vectors_have_length_tau():
    vectors = TINY.apply(variables_of(TINY), method="text_vectors")
    for value in vectors.values():
        np.testing.assert_allclose(jnp.linalg.norm(value, axis=-1), 10.0, rtol=1e-5)


def test_text_pooling_mean_covers_the_prompt_and_not_its_padding():
    model = TINY.clone(text=TINY.text._replace(pooling="mean"))
    ids = ((1, 4, 9, 0), (1, 4, 9, 5))  # what follows the end token (9) is ignored
    model = model.clone(text=model.text._replace(token_ids=ids))
    vectors = model.apply(variables_of(TINY), method="text_vectors")["mid"]
    np.testing.assert_allclose(vectors[0], vectors[1], atol=1e-5)


def test_text_attention_by_hand():
    features = jnp.asarray([[[[3.0, 4.0], [0.0, 2.0]]]])  # [1 1 2 2]
    vectors = jnp.asarray([[5.0, 0.0], [0.0, 5.0]])  # tau 5, two prompts
    scores = 5 * np.array([[0.6, 0.8], [0.0, 1.0]])  # [position prompt]
    expected = (1 / (1 + np.exp(-scores))).mean(1)
    everywhere, tokens = jnp.ones((1, 1, 2), bool), Features(features, size=(1, 2))
    mask = representation.text_attention(tokens, vectors, everywhere, "mask")
    np.testing.assert_allclose(mask[0, 0], expected, rtol=1e-5)
    gate = representation.text_attention(tokens, vectors, everywhere, "gate")
    np.testing.assert_array_equal(gate, mask)
    fused = representation.weigh(features, representation.text_gain(mask, "mask"))
    np.testing.assert_allclose(
        fused[0, 0], np.array([[3, 4], [0, 2]]) * (1 + expected[:, None]), rtol=1e-5
    )
    fused = representation.weigh(features, representation.text_gain(gate, "gate"))
    np.testing.assert_allclose(
        fused[0, 0], np.array([[3, 4], [0, 2]]) * expected[:, None], rtol=1e-5
    )
    soft = representation.text_attention(tokens, vectors, everywhere, "softmax")
    share = np.exp(scores) / np.exp(scores).sum(0)
    np.testing.assert_allclose(soft[0, 0], (2 * share).mean(1), rtol=1e-5)
    np.testing.assert_allclose(jnp.mean(soft), 1.0, rtol=1e-6)


def test_softmax_fusion_is_normalised_over_the_valid_columns():
    rng = np.random.default_rng(0)
    features = jnp.asarray(rng.normal(size=(2, 3, 6, 4)), jnp.float32)
    vectors = jnp.asarray(rng.normal(size=(2, 4)), jnp.float32)
    inside = jnp.zeros((2, 3, 6), bool).at[0, :, 1:4].set(True)  # frame 1 is padding
    whole = Features(features, size=(3, 6))
    cut = Features(features[:1, :, 1:4], size=(3, 3))
    soft = representation.text_attention(whole, vectors, inside, "softmax")
    crop = representation.text_attention(cut, vectors, inside[:1, :, 1:4], "softmax")
    np.testing.assert_allclose(soft[:1, :, 1:4], crop, rtol=1e-5)
    np.testing.assert_allclose(jnp.mean(crop), 1.0, rtol=1e-5)
    assert not soft[1].any() and not soft[0, :, 4:].any()


def test_the_gain_is_multiplied_in_float32():
    x = jnp.full((1, 1, 1, 1), 128.0, jnp.bfloat16)
    gain = jnp.full((1, 1, 1), 1 + 0.6 / 128, jnp.float32)  # bfloat16 knows 1 + 1/128
    assert float(representation.weigh(x, gain)[0, 0, 0, 0]) == 129.0
    gain = jnp.full((1, 1, 1), 1 + 0.4 / 128, jnp.float32)
    assert float(representation.weigh(x, gain)[0, 0, 0, 0]) == 128.0
    x = jnp.full((1, 1, 1, 1), 255.0, jnp.bfloat16)
    gain = jnp.full((1, 1, 1), 1 + 0.4 / 128, jnp.float32)  # 255.8
    assert float(representation.weigh(x, gain)[0, 0, 0, 0]) == 256.0


def test_log_tau_is_limited_but_not_held_at_the_limit():
    module = language.TextProjection(3, 10.0, "log")
    pooled = jnp.ones((1, 2))
    params = module.init(jax.random.key(0), pooled)["params"]
    assert float(params["log_tau"]) == pytest.approx(np.log(10.0))

    def tau(log_tau):
        vectors = module.apply({"params": params | {"log_tau": log_tau}}, pooled)
        return jnp.linalg.norm(vectors)

    for value, expected in ((np.log(10.0), 10.0), (0.0, 1.0), (9.0, 100.0)):
        got, slope = jax.value_and_grad(tau)(jnp.float32(value))
        assert float(got) == pytest.approx(expected, rel=1e-5)
        assert float(slope) == pytest.approx(expected, rel=1e-5)  # d exp(x) = exp(x)


@pytest.mark.parametrize("place", ["before_extractor", "after_norm", "before_mtcm"])
def test_the_place_of_the_text_mask(place):
    """A weak mask changes what its place says, and nothing else."""
    batch, variables = make_batch(), variables_of(TINY)
    silent = TINY.clone(text=TINY.text._replace(enabled=False))
    without, _ = apply(silent, variables, batch)
    out, _ = apply(text_row(place=place), variables, batch)
    differs = lambda x, y: float(jnp.abs(x - y).max()) > 1e-4  # noqa: E731
    maps = [differs(out.aux[n], without.aux[n]) for n in ("denoised", "appearance")]
    name = "foreground_probability"
    decoder = differs(out.aux[name], without.aux[name])
    assert [*maps, decoder] == [place != "before_mtcm"] * 3
    assert differs(out.embeddings, without.embeddings)
    gradients = jax.jit(
        functools.partial(gradients_of, text_row(place=place)), compiler_options=QUICK
    )(variables, batch)
    assert float(jnp.abs(gradients["text_projection_mid"]["log_tau"])) > 0
    last = float(jnp.abs(gradients["text_projection_last"]["log_tau"]))
    assert (last > 0) == (place != "before_mtcm")


def test_what_the_text_branch_logs():
    attention = jnp.asarray([[[0.9, 0.7, 0.2, 0.1, 0.5]]])  # [1 1 5]
    person = jnp.asarray([[[True, True, False, False, False]]])
    inside = jnp.asarray([[[True, True, True, True, False]]])
    got = representation.mask_statistics(attention, person, inside)
    assert float(got["text_mask/foreground"]) == pytest.approx(0.8)
    assert float(got["text_mask/background"]) == pytest.approx(0.15)
    deviation = np.std([0.9, 0.7, 0.2, 0.1])
    assert float(got["text_mask/deviation"]) == pytest.approx(deviation, rel=1e-5)
    out, _ = apply(TINY, variables_of(TINY), make_batch())
    assert out.aux["logged"].keys() == {*got, "tau/last", "tau/mid"}
    assert float(out.aux["logged"]["tau/mid"]) == pytest.approx(10.0, rel=1e-5)


def test_temperature_and_adapters_are_not_decayed():
    """A step without any gradient leaves them; a run of version 0.1 decays them."""
    settings = load().optimizer
    settings.update(name="sgd", learning_rate=0.5, weight_decay=0.1)
    for temperature, decayed in (("log", False), ("plain", True)):
        model = text_row(temperature=temperature)
        params = jax.tree.map(jnp.ones_like, variables_of(model)["params"])
        tx = optim.make_optimizer(settings, lambda step: 0.5, model.no_decay)
        zeros = jax.tree.map(jnp.zeros_like, params)
        updates, _ = tx.update(zeros, tx.init(params), params)
        moved = {
            name: bool(np.any(leaf))
            for name, leaf in flax.traverse_util.flatten_dict(updates, sep="/").items()
        }
        names = [n for n in moved if "tau" in n or n.startswith("text_adapter_")]
        assert len(names) == 4
        assert {moved.pop(name) for name in names} == {decayed}
        assert all(moved.values())


# --- where the person is ------------------------------------------------------------


def test_valid_columns():
    # 0.4 of 64 rows is 25 columns of 32, centred: 3 spare on the left, 4 on the right
    inside = representation.inside_columns(jnp.asarray([0.4, 0.5, 0.9]), 64, 32)
    assert inside.sum(1).tolist() == [25, 32, 32]
    assert np.flatnonzero(inside[0])[[0, -1]].tolist() == [3, 27]


def test_unsquash_equals_naive_bilinear():
    rng = np.random.default_rng(0)
    images = rng.normal(size=(2, 5, 7, 3)).astype(np.float32)
    ratios = np.array([0.3, 0.8], np.float32)
    out = representation.unsquash(jnp.asarray(images), jnp.asarray(ratios), 10, 5)

    def sample(image, y, x):
        y, x = np.clip(y, 0, 4), np.clip(x, 0, 6)
        top, left = int(y), int(x)
        down, right = min(top + 1, 4), min(left + 1, 6)
        upper = image[top, left] * (1 - x + left) + image[top, right] * (x - left)
        lower = image[down, left] * (1 - x + left) + image[down, right] * (x - left)
        return upper * (1 - y + top) + lower * (y - top)

    for n, columns, first in ((0, 3, 1), (1, 8, -2)):
        expected = np.zeros((10, 5, 3))
        for y in range(10):
            for x in range(5):
                if 0 <= x - first < columns:
                    expected[y, x] = sample(
                        images[n],
                        (y + 0.5) * 5 / 10 - 0.5,
                        (x - first + 0.5) * 7 / columns - 0.5,
                    )
        np.testing.assert_allclose(out[n], expected, atol=1e-5)


def test_foreground_support_equals_naive_loops():
    rng = np.random.default_rng(0)
    first = (rng.random((3, 14, 9)) < 0.2) * 0.8 + 0.1
    first[1, 3:9, 1:7] = 0.9  # a blob that reaches the edge of the valid columns
    inside = np.ones_like(first)
    inside[:, :, 0] = 0
    chosen = first * inside

    def naive(soft):
        frames, height, width = soft.shape
        dilated = np.zeros(soft.shape, bool)
        for n, y, x in np.argwhere(soft > 0.5):
            dilated[n, max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2] = True
        out = np.zeros(soft.shape, bool)
        for n, y, x in np.argwhere(dilated):
            window = dilated[n, max(y - 2, 0) : y + 3, max(x - 2, 0) : x + 3]
            out[n, y, x] = soft[n, y, x] > 0 or window.all()
        return out

    got = representation.foreground_support(jnp.asarray(chosen))
    np.testing.assert_array_equal(got, naive(chosen))
    assert got[1, :, 0].any()  # by the erosion's rule only


def walker(ratio, height=64, width=32):
    """bool [h w] twice: a walker who fills the height of a centred crop, and the
    crop's columns."""
    inside = np.asarray(
        representation.inside_columns(jnp.asarray([ratio]), height, width)
    )[0]
    columns = inside.sum()
    x = (np.arange(width) - width / 2 + 0.5) / (columns / 2)  # -1 to 1 in the crop
    y = (np.arange(height)[:, None] + 0.5) / height
    head = (x / 0.4) ** 2 + ((y - 0.07) / 0.08) ** 2 < 1
    body = (np.abs(x) < 0.8 - 0.3 * y) & (y > 0.14) & (y < 0.55)
    stride = 0.55 * (y - 0.5) / 0.5  # legs apart
    legs = (np.abs(np.abs(x) - stride) < 0.28) & (y >= 0.55)
    return (head | body | legs) & inside, np.broadcast_to(inside, (height, width))


def overlap(support, person):
    return (support & person).sum() / (support | person).sum()


@pytest.mark.parametrize("ratio", [0.2, 0.25, 0.3, 0.4, 0.5])
def test_the_edge_rule_finds_a_person_in_the_second_channel(ratio):
    person, inside = walker(ratio)
    sure = np.where(person, 0.9, 0.1)
    in_order = np.stack([sure, 1 - sure], -1) * inside[..., None]  # [h w 2]
    both = jnp.asarray(np.stack([in_order, in_order[..., ::-1]]))  # [2 h w 2]
    chosen = {}
    for rule in ("valid", "published"):
        model = LMGait(
            5, decoder=lmgait.DecoderOptions("reconstruction", edge_rule=rule)
        )
        chosen[rule], logged = model._person(both, jnp.ones((1, 2), bool))
        if rule == "valid":
            assert float(logged["flipped_frames"]) == 0.5
    found = representation.foreground_support(chosen["valid"])
    assert overlap(np.asarray(found[0]), person) > 0.7
    assert overlap(np.asarray(found[1]), person) > 0.7
    if not inside.all():  # inside out
        found = representation.foreground_support(chosen["published"])
        assert overlap(np.asarray(found[1]), person) < 0.3
    if inside.all():
        np.testing.assert_array_equal(chosen["valid"], chosen["published"])


def test_both_edge_rules_agree_where_every_column_is_valid():
    rng = np.random.default_rng(0)
    first = rng.random((400, 64, 32)) ** rng.uniform(0.2, 3, (400, 1, 1))
    both = jnp.asarray(np.stack([first, 1 - first], -1))
    valid = representation.background_first(both, "valid")
    assert 0.2 < float(valid.mean()) < 0.8
    np.testing.assert_array_equal(
        valid, representation.background_first(both, "published")
    )


def test_padding_frames_are_no_flipped_frames():
    model = LMGait(5, decoder=lmgait.DecoderOptions("reconstruction"))
    both = jnp.asarray(np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]))
    both = jnp.broadcast_to(both[:, None, None], (3, 16, 8, 2))
    for valid, share in (([1, 1, 0], 0.5), ([0, 0, 0], 0.0)):
        _, logged = model._person(both, jnp.asarray([valid], bool))
        assert float(logged["flipped_frames"]) == share


def test_silhouette_target_is_the_resized_mask():
    batch = make_batch()
    out, _ = apply(TINY, variables_of(TINY), batch)
    target = np.zeros((16, 8))
    target[2:-2, 2:-2] = 1
    np.testing.assert_array_equal(
        out.aux["silhouette_target"], np.broadcast_to(target, (4, 3, 16, 8))
    )
    del batch["masks"]
    out = jax.eval_shape(
        functools.partial(TINY.apply, train=False), abstract(TINY), batch
    )
    assert "silhouette_target" not in out.aux


def test_coverage_target_keeps_what_the_binary_one_rounds():
    batch = make_batch()
    batch["masks"] = batch["masks"].at[:, :, :5].set(0)  # the edge cuts a grid pixel
    targets = {}
    for target in ("binary", "coverage"):
        model = TINY.clone(decoder=lmgait.DecoderOptions(target=target))
        out, _ = apply(model, variables_of(model), batch)
        targets[target] = np.asarray(out.aux["silhouette_target"])
    assert set(np.unique(targets["binary"])) == {0.0, 1.0}
    np.testing.assert_array_equal(targets["binary"], targets["coverage"] > 0.5)
    edge = targets["coverage"][0, 0, :, 4]  # one column, half a pixel of its row 2
    assert 0 < edge[2] < 1 and edge[5] == 1 and edge[0] == 0


# --- motion -------------------------------------------------------------------------


def test_frame_differences_by_hand():
    features = jnp.asarray([[1.0, 3.0, 10.0, 4.0]]).reshape(1, 4, 1, 1, 1)
    every = jnp.ones((1, 4), bool)
    got = mtcm.frame_differences(features, every)
    assert got.reshape(-1).tolist() == [2.0, 7.0, -6.0, 0.0]
    got = mtcm.frame_differences(features, every.at[0, 2].set(False))
    assert got.reshape(-1).tolist() == [2.0, 0.0, 0.0, 0.0]


def test_mtcm_by_hand():
    """With centre-tap kernels, unit norms and a fusion that adds its inputs."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(2, 4, 3, 3, 2)).astype(np.float32)
    valid = jnp.asarray([[1, 1, 1, 0], [1, 1, 1, 1]], bool)
    module = mtcm.MTCM()
    variables = module.init(jax.random.key(0), features, valid, train=False)
    params = jax.tree.map(np.zeros_like, jax.device_get(variables["params"]))
    params["pte"]["kernel"][0] = np.eye(2)  # the frame before
    params["rte"]["kernel"][1, 1, 1] = np.eye(2)
    params["fuse"]["kernel"][:2] = params["fuse"]["kernel"][2:] = np.eye(2)
    for name in ("pte_norm", "rte_norm"):
        params[name]["scale"][:] = np.sqrt(1 + 1e-5)
    out = module.apply(variables | {"params": params}, features, valid, train=False)
    features = np.where(np.asarray(valid)[:, :, None, None, None], features, 0)
    before = np.concatenate([np.zeros_like(features[:, :1]), features[:, :-1]], 1)
    change = np.zeros_like(features)
    change[:, :-1] = features[:, 1:] - features[:, :-1]
    change[0, 2] = 0  # its next frame is not valid
    expected = np.maximum(before, 0) + np.maximum(change, 0)
    np.testing.assert_allclose(out, expected, atol=1e-5)


def test_mtcm_sees_the_order_of_frames():
    features = jnp.ones((1, 3, 2, 2, 2)) * jnp.arange(3.0).reshape(1, 3, 1, 1, 1)
    valid = jnp.ones((1, 3), bool)
    module = mtcm.MTCM()
    variables = module.init(jax.random.key(0), features, valid, train=False)
    forward = module.apply(variables, features, valid, train=False)
    backward = module.apply(variables, features[:, ::-1], valid, train=False)
    assert float(jnp.abs(forward - backward[:, ::-1]).max()) > 1e-3


# --- ablations ----------------------------------------------------------------------


def text_row(**changes):
    return TINY.clone(text=TINY.text._replace(**changes))


def motion_row(**changes):
    return TINY.clone(mtcm=TINY.mtcm._replace(**changes))


def test_every_ablation_changes_the_parameters_as_intended():
    whole = paths(TINY)

    def gone(model):
        return {name.split("/")[0] for name in whole.keys() - paths(model).keys()}

    def gone_inside(model):
        names = whole.keys() - paths(model).keys()
        return {name.split("/")[1] for name in names if name.startswith("mtcm_d")}

    text = {"text_encoder", "text_adapter_0"}
    projections = {"text_projection_last", "text_projection_mid"}
    assert gone(text_row(enabled=False)) == text | projections
    assert gone(text_row(adapter="none")) == {"text_adapter_0"}
    assert gone(motion_row(enabled=False)) == {"mtcm_denoised", "mtcm_appearance"}
    assert gone_inside(motion_row(pte=False)) == {"pte", "pte_norm"}
    assert gone_inside(motion_row(conv3d=False)) == {"rte", "rte_norm"}
    assert gone_inside(motion_row(difference=False)) == set()
    three = paths(motion_row(kind="cnn3d"))
    inside = {n.split("/")[1] for n in three if n.startswith("mtcm_appearance")}
    assert inside == {"conv3d", "conv3d_norm"}
    assert paths(motion_row(pte=False))["mtcm_denoised/fuse/kernel"] == (4, 4)
    rebuilt = TINY.clone(decoder=lmgait.DecoderOptions(supervision="reconstruction"))
    assert paths(rebuilt).keys() - whole.keys() == {
        "decoder/reconstruct/kernel",
        "decoder/reconstruct/bias",
    }
    words = text_row(positions="sinusoidal")
    lost = whole.keys() - paths(words).keys()
    assert len(lost) == 1 and "position" in next(iter(lost))


@pytest.mark.parametrize("change", [{"difference": False}, {"residual": True}])
def test_motion_switches_without_parameters_change_the_output(change):
    rng = np.random.default_rng(0)
    features = jnp.asarray(rng.normal(size=(2, 3, 4, 4, 2)), jnp.float32)
    valid = jnp.ones((2, 3), bool)
    variables = mtcm.MTCM().init(jax.random.key(0), features, valid, train=False)
    whole = mtcm.MTCM().apply(variables, features, valid, train=False)
    changed = mtcm.MTCM(**change).apply(variables, features, valid, train=False)
    assert float(jnp.abs(whole - changed).max()) > 0.1
    if "residual" in change:
        np.testing.assert_allclose(changed, whole + features, atol=1e-6)


@pytest.mark.parametrize(
    "change", [{"pooling": "mean"}, {"token_ids": ((1, 5, 6, 9),)}]
)
def test_text_switches_without_parameters_change_the_vectors(change):
    variables = variables_of(TINY)
    whole = TINY.apply(variables, method="text_vectors")
    changed = text_row(**change).apply(variables, method="text_vectors")
    for name in whole:
        assert float(jnp.abs(whole[name][:1] - changed[name][:1]).max()) > 0.1


def test_text_fusion_changes_what_the_decoder_sees():
    batch, variables = make_batch(), variables_of(TINY)
    whole, _ = apply(TINY, variables, batch, method="warm_up")
    changed, _ = apply(text_row(fusion="gate"), variables, batch, method="warm_up")
    name = "foreground_probability"
    assert float(jnp.abs(whole.aux[name] - changed.aux[name]).max()) > 1e-3


def test_reconstruction_mode_supplies_the_loss_inputs():
    model = TINY.clone(
        decoder=lmgait.DecoderOptions("reconstruction", 0.0, frozen=True),
        text=lmgait.Text(enabled=False),
        mtcm=lmgait.Motion(enabled=False),
    )
    variables = variables_of(model)
    out, state = apply(model, variables, make_batch(), train=True)
    assert out.aux["reconstruction"].shape == (4, 3, 16, 8, 8)
    assert out.aux["reconstruction_target"].shape == (4, 3, 16, 8, 8)
    # frozen after its warm-up: its statistics stay, those of the others move
    for name, moves in (("decoder", False), ("denoising", True)):
        before = jax.tree.leaves(variables["batch_stats"][name])
        after = jax.tree.leaves(state["batch_stats"][name])
        same = all(np.array_equal(a, b) for a, b in zip(before, after))
        assert same != moves, name


# --- training -----------------------------------------------------------------------


def gradients_of(model, variables, batch):
    """d total loss / d params, in training."""

    def loss(params):
        rngs = {"dropout": jax.random.key(1), "augment": jax.random.key(2)}
        out, _ = model.apply(
            variables | {"params": params}, batch, train=True, rngs=rngs,
            mutable=["batch_stats"],
        )  # fmt: skip
        return losses.total_loss(out, batch, LOSSES)[0]

    return jax.grad(loss)(variables["params"])


def test_gradients_are_finite_and_stop_at_what_is_frozen():
    """The same gradients where the extractor is computed again in the backward pass."""
    model = TINY.clone(decoder=lmgait.DecoderOptions(), black_augmentation=0.25)
    again = model.clone(representation=model.representation._replace(remat=True))

    def both(variables, batch):
        return [gradients_of(each, variables, batch) for each in (model, again)]

    gradients, recomputed = jax.jit(both, compiler_options=QUICK)(
        variables_of(TINY), make_batch()
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        gradients, recomputed,
    )  # fmt: skip
    for path, leaf in flax.traverse_util.flatten_dict(gradients, sep="/").items():
        assert np.isfinite(leaf).all(), path
    size = {
        name: max(float(jnp.abs(x).max()) for x in jax.tree.leaves(tree))
        for name, tree in gradients.items()
    }
    assert size.pop("visual_encoder") == 0.0
    assert all(value > 0 for value in size.values()), size


def test_the_extractor_on_the_tokens_grid_equals_the_direct_way():
    """In training, values and gradients, with chunks of frames."""
    visual = TINY.visual_encoder._replace(frames_per_chunk=5)
    model = TINY.clone(visual_encoder=visual)
    direct = model.clone(representation=model.representation._replace(direct=True))
    variables, batch = variables_of(TINY), make_batch()

    def both(variables, batch):
        return [gradients_of(each, variables, batch) for each in (model, direct)]

    found, wanted = jax.jit(both, compiler_options=QUICK)(variables, batch)
    scale = max(float(jnp.abs(x).max()) for x in jax.tree.leaves(wanted))
    for name in wanted:
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * scale),
            found[name], wanted[name],
        )  # fmt: skip


SOFT = TINY.clone(decoder=TINY.decoder._replace(support="soft"))


def test_recognition_does_not_move_the_decoder():
    variables, batch = variables_of(TINY), make_batch()

    @jax.jit
    def gradients(params):
        def recognition(params):
            out = SOFT.apply(variables | {"params": params}, batch, train=False)
            return jnp.sum(out.embeddings**2) + jnp.sum(out.logits**2)

        return jax.grad(recognition)(params)

    found = gradients(variables["params"])
    assert not any(leaf.any() for leaf in jax.tree.leaves(found["decoder"]))
    assert all(leaf.any() for leaf in jax.tree.leaves(found["gait"]["head"]))


def test_soft_support_weighs_the_maps_by_the_probability():
    """A decoder sure of every token: soft and binary support are the same."""
    variables, batch = variables_of(TINY), make_batch()
    batch["ratios"] = jnp.full_like(batch["ratios"], 0.5)  # every column is a person's
    plain, weighed = (apply(m, variables, batch)[0].embeddings for m in (TINY, SOFT))
    assert float(jnp.abs(plain - weighed).max()) > 1e-3
    flat = flax.traverse_util.flatten_dict(variables["params"]["decoder"], sep="/")
    last = [name for name in flat if name.endswith("bias") and flat[name].shape == (2,)]
    assert len(last) == 1
    flat[last[0]] = jnp.array([60.0, -60.0])
    sure = flax.traverse_util.unflatten_dict(flat, sep="/")
    variables = variables | {"params": variables["params"] | {"decoder": sure}}
    plain, weighed = (apply(m, variables, batch)[0].embeddings for m in (TINY, SOFT))
    np.testing.assert_allclose(plain, weighed, atol=1e-5)


def test_warm_up_computes_the_decoder_only():
    batch, variables = make_batch(), variables_of(TINY)
    out, state = apply(TINY, variables, batch, train=True)
    warm, warm_state = apply(TINY, variables, batch, train=True, method="warm_up")
    assert warm.embeddings.shape == (4, 0, 0) and warm.logits is None
    assert warm.aux.keys() == {
        "foreground_probability",
        "token_valid",
        "silhouette_target",
    }
    for name, value in warm.aux.items():
        np.testing.assert_allclose(value, out.aux[name], atol=1e-5, err_msg=name)
    for name, stats in warm_state["batch_stats"].items():
        source = state if name == "decoder" else variables
        for a, b in zip(
            jax.tree.leaves(stats), jax.tree.leaves(source["batch_stats"][name])
        ):
            np.testing.assert_allclose(a, b, atol=1e-6, err_msg=name)


def test_black_augmentation_zeroes_one_map_of_a_fifth():
    maps = jnp.ones((10, 2, 3, 3, 4))
    seen = set()
    for seed in range(6):
        first, second = representation.blacken(maps, maps, 0.2, jax.random.key(seed))
        lost_first = ~first.any(axis=(1, 2, 3, 4))
        lost_second = ~second.any(axis=(1, 2, 3, 4))
        assert int(lost_first.sum() + lost_second.sum()) == 2
        assert not (lost_first & lost_second).any()
        seen |= set(np.flatnonzero(lost_first)) | set(np.flatnonzero(lost_second))
    assert len(seen) > 2


def test_bfloat16_computes_and_float32_comes_out():
    model = TINY.clone(dtype=jnp.bfloat16)
    variables, batch = variables_of(TINY), make_batch()
    out, _ = apply(model, variables, batch)
    full, _ = apply(TINY, variables, batch)
    for leaf in jax.tree.leaves(out):
        assert leaf.dtype in (jnp.float32, jnp.bool_)
        assert np.isfinite(leaf).all()
    assert jnp.corrcoef(out.embeddings.ravel(), full.embeddings.ravel())[0, 1] > 0.95
    trained = jax.eval_shape(functools.partial(gradients_of, model), variables, batch)
    for leaf in jax.tree.leaves((abstract(model), trained)):
        assert leaf.dtype == jnp.float32


def test_one_sequence_of_one_frame_runs():
    out, _ = apply(TINY, variables_of(TINY), make_batch(1, 1))
    assert out.embeddings.shape == (1, 4, 6)
    assert np.isfinite(out.embeddings).all()


def test_chunked_encoding_changes_nothing():
    model = TINY.clone(visual_encoder=TINY.visual_encoder._replace(frames_per_chunk=5))
    batch, variables = make_batch(), variables_of(TINY)
    whole, _ = apply(TINY, variables, batch, method="warm_up")
    chunked, _ = apply(model, variables, batch, method="warm_up")
    for name, value in whole.aux.items():
        np.testing.assert_allclose(chunked.aux[name], value, atol=1e-5)
    assert jax.tree.structure(abstract(model)) == jax.tree.structure(abstract(TINY))


def test_clip_image_encoder():
    visual = TINY.visual_encoder._replace(kind="clip_image", table_size=2)
    model = TINY.clone(visual_encoder=visual)
    names = {name for name in paths(model) if name.startswith("visual_encoder/")}
    vision = "visual_encoder/vision_model/"
    assert vision + "embeddings/class_embedding" in names
    assert vision + "encoder/layers/1/self_attn/q_proj/kernel" in names
    assert paths(model)[vision + "embeddings/position_embedding/embedding"] == (5, 8)


def test_clip_image_b16_has_the_published_size():
    model = CLIPImage(**CLIP_IMAGE_SIZES["b16"])
    images = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    params = jax.eval_shape(model.init, jax.random.key(0), images)
    assert count(params) == 85_799_424  # without the projection


# --- errors and configs -------------------------------------------------------------


def config_of(model):
    """A config whose config.model describes the model."""
    config = load()
    config.data.num_classes = model.num_classes
    groups = {
        name: dict(getattr(model, name)._asdict())
        for name in ("visual_encoder", "text", "decoder", "representation", "mtcm")
        + ("gait",)
    }
    ids = groups["text"].pop("token_ids")
    shipped = tuple((f"prompt {row}", row) for row in ids)
    prompts = tuple(prompt for prompt, _ in shipped)
    groups["text"] |= {"prompts": prompts, "shipped": shipped, "vocabulary": ""}
    config.model = {
        "name": "lmgait",
        "image_size": list(model.image_size),
        "feature_grid": model.feature_grid,
        "black_augmentation": model.black_augmentation,
        "dtype": "float32",
        **groups,
    }
    return config


@pytest.mark.parametrize(
    "model, message",
    [
        (TINY.clone(image_size=(30, 16)), "patch_size 4. .*visual_encoder.cut_to_patc"),
        (
            TINY.clone(visual_encoder=TINY.visual_encoder._replace(kind="vit")),
            "config.model.visual_encoder.kind 'vit'; choose from dinov2, ",
        ),
        (text_row(token_ids=()), "config.model.text.prompts must hold at least one"),
        (text_row(num_heads=3), "text.width 8 is not a multiple of 3 heads"),
        (text_row(fusion="add"), "config.model.text.fusion 'add'; choose from mask"),
        (text_row(pooling="max"), "config.model.text.pooling 'max'; choose from eot"),
        (text_row(positions="rotary"), "config.model.text.positions 'rotary'"),
        (text_row(context_length=3), "4 tokens, config.model.text.context_length is 3"),
        (text_row(vocabulary_size=9), "token 9, .*text.vocabulary_size is 9"),
        (motion_row(kind="lstm"), "config.model.mtcm.kind 'lstm'"),
        (
            TINY.clone(decoder=lmgait.DecoderOptions("none")),
            "config.model.decoder.supervision 'none'",
        ),
        (
            TINY.clone(decoder=lmgait.DecoderOptions(dilation=2)),
            "config.model.decoder.dilation must be .*odd.*; got 2",
        ),
        (
            TINY.clone(visual_encoder=TINY.visual_encoder._replace(blocks=(0, 2))),
            "blocks",
        ),
        (
            TINY.clone(gait=TINY.gait._replace(strides=(2, 2))),
            r"config.model.gait.strides must have one entry per stage, 1; got \(2, 2\)",
        ),
        (
            TINY.clone(gait=TINY.gait._replace(num_strips=3)),
            "config.model.gait.num_strips=3 does not divide the 8 rows",
        ),
    ],
)
def test_wrong_options_are_named(model, message):
    with pytest.raises(ValueError, match=message):
        models.check(config_of(model))


def test_branches_may_differ_in_width_and_retrieval_in_the_embedding():
    maps = TINY.representation._replace(appearance_channels=6)
    model, batch = TINY.clone(representation=maps), make_batch()
    variables = jax.jit(functools.partial(model.init, train=False))(
        jax.random.key(0), batch
    )
    after = model.clone(retrieve="after_neck")

    @jax.jit
    def evaluate(variables, batch):
        return [m.apply(variables, batch, train=False) for m in (model, after)]

    plain, normed = evaluate(variables, batch)
    assert plain.aux["denoised"].shape[-1] == 4
    assert plain.aux["appearance"].shape[-1] == 6
    assert plain.aux["motion"].shape == plain.aux["text_mask"].shape
    np.testing.assert_allclose(jnp.linalg.norm(normed.embeddings, axis=-1), 1, 1e-5)
    assert not np.allclose(plain.embeddings, normed.embeddings, atol=0.01)
    np.testing.assert_array_equal(plain.logits, normed.logits)


def test_a_model_is_made_of_its_config():
    config = config_of(TINY)
    models.check(config)
    model = lmgait.LMGait(5, **config.model)
    assert model == TINY.clone(name="lmgait") and hash(model) == hash(
        models.make(config)
    )
    groups = config.model.to_dict()
    assert lmgait.LMGait(5, **groups) == model  # plain dictionaries, as of a JSON file
    del config.model.representation["remat"]  # as in runs made before the field
    assert models.make(config) == model


def test_a_field_that_does_not_exist_is_named():
    for group, field in (("mtcm", "ptr"), ("text", "prompt")):
        config = config_of(TINY)
        with config.unlocked():
            config.model[group][field] = True
        with pytest.raises(
            ValueError, match=f"field of config.model.{group}: '{field}'"
        ):
            models.check(config)
