"""Every single-stage model: shapes, padding, gradients, types, parameter counts."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from benchmarks.retrieve import after_neck
from configs import gaitedge
from gaitjax import losses, models
from gaitjax.models.biggergait import BiggerGait
from gaitjax.models.deepgaitv2 import DeepGaitV2
from gaitjax.models.gaitbase import GaitBase
from gaitjax.models.gaitedge import GaitEdge, align
from gaitjax.models.gaitgl import GaitGL, GeM, repeat_short
from gaitjax.models.gaitgraph2 import GaitGraph2
from gaitjax.models.gaitpart import GaitPart
from gaitjax.models.gaitset import GaitSet
from gaitjax.models.gaittr import GaitTR
from gaitjax.models.gpgait import GPGait, GPGaitPlusPlus
from gaitjax.models.multigaitpp import MultiGaitPP
from gaitjax.models.pocketgait import PocketGait
from gaitjax.models.skeletongaitpp import SkeletonGaitPP
from gaitjax.models.swingait import SwinGait
from gaitjax.parts import convolution, skeleton
from gaitjax.parts.model import IMAGES
from gaitjax.weights import zoo_names as torch_names

IDS = 5
small = dict(channels=(4, 4, 6, 8), num_strips=4, embedding_size=6)
# name -> (model, strips, embedding size, has logits); images are 16 x 12
MODELS = {
    "gaitbase": (GaitBase(IDS, **small), 4, 6, True),
    "gaitset": (GaitSet(IDS, (4, 6, 8), (4, 2, 1), 6), 14, 6, False),
    "gaitpart": (GaitPart(IDS, (4, 8, 8), (0, 1, 2), 4, 6), 4, 6, False),
    "gaitgl": (GaitGL(IDS, (3, 4, 5), 1), 16, 5, True),
    "gaitgl_large": (GaitGL(IDS, (3, 4, 5, 6), 1, "bnneck"), 16, 6, True),
    "deepgaitv2_2d": (DeepGaitV2(IDS, "2d", **small), 4, 6, True),
    "deepgaitv2_p3d": (DeepGaitV2(IDS, "p3d", **small), 4, 6, True),
    "deepgaitv2_3d": (DeepGaitV2(IDS, "3d", **small), 4, 6, True),
    "skeletongaitpp": (SkeletonGaitPP(IDS, squeeze=2, **small), 4, 6, True),
    "biggergait": (
        BiggerGait(
            *(IDS, (32, 16), (16, 8), 12, 2, 2, 4, 5, 1, 1, 3),
            **(small | dict(num_strips=8)),
        ),
        *(16, 6, True),
    ),
    "gaitedge": (
        GaitEdge(IDS, (3, 4, 5), 1, (4, 6), 3, (16, 12), freeze_encoder=False),
        16,
        5,
        True,
    ),
    "multigaitpp": (MultiGaitPP(IDS, squeeze=2, **small), 4, 6, True),
    "swingait": (
        SwinGait(IDS, (4, 4), (1, 1, 2, 2), (8, 12), (2, 2), (2, 2, 2), (4, 3), 0.0, 6),
        *(4, 6, True),
    ),
    "gaitgraph2": (GaitGraph2(IDS, (8, 4), (8, 12), 2, 6), 1, 18, False),
    "gaittr": (GaitTR(IDS, (8, 8, 16), 2, 0.0, 6), 1, 6, False),
    "pocketgait": (PocketGait(IDS, 6, 8, 2, 3, 8), 9, 6, True),
    "gpgait": (GPGait(IDS, (8, 8), 1, embedding_size=6), 19, 6, True),
    "gpgaitpp": (
        GPGaitPlusPlus(IDS, (8, 8), 1, dropout=0.0, embedding_size=6),
        *(19, 6, True),
    ),
}
each_model = pytest.mark.parametrize("name", MODELS)


def make_batch(model, rows=3, frames=5, size=(16, 12)):
    """What the model reads, of random numbers; it may be given by its name."""
    model = MODELS[model][0] if isinstance(model, str) else model
    random = np.random.default_rng(0)
    silhouettes = random.integers(0, 256, (rows, frames, *size), np.uint8)
    heatmaps = random.integers(0, 256, (rows, frames, *size, 2), np.uint8)
    keypoints = random.uniform(0, 64, (rows, frames, 17, 3))
    rgb = random.integers(0, 256, (rows, frames, *size, 3), np.uint8)
    masks = np.zeros((rows, frames, *size), np.uint8)
    masks[:, :, 2:-1, 3:-4] = random.integers(0, 4, masks[:, :, 2:-1, 3:-4].shape) > 0
    batch = {
        "silhouettes": jnp.asarray(silhouettes),
        "heatmaps": jnp.asarray(heatmaps),
        "keypoints": jnp.asarray(keypoints, jnp.float32),
        "frames": jnp.asarray(rgb),
        "masks": jnp.asarray(masks),
        "ratios": jnp.asarray(random.uniform(0.4, 0.6, (rows, frames)), jnp.float32),
        "valid": jnp.ones((rows, frames), bool),
    }
    others = IMAGES[model.images :] if model.images else ()
    return {name: value for name, value in batch.items() if name not in others}


@functools.cache
def variables_of(name):
    model = MODELS[name][0]
    abstract = jax.eval_shape(
        lambda: model.init(jax.random.key(0), make_batch(model), train=False)
    )
    random = np.random.default_rng(0)

    def fill(path, leaf):  # init compiles for seconds, numbers do not
        name = path[-1].key
        if name in ("scale", "var"):
            return jnp.ones(leaf.shape)
        if name == "p":
            return jnp.full(leaf.shape, 6.5)
        fan = np.prod(leaf.shape[:-1]) if leaf.ndim > 1 else 1
        values = random.standard_normal(leaf.shape) * (leaf.ndim > 1) / fan**0.5
        return jnp.asarray(values, jnp.float32)

    return {"batch_stats": {}, **jax.tree_util.tree_map_with_path(fill, abstract)}


# these programs compile for seconds and run for milliseconds
QUICK = {"xla_backend_optimization_level": "0"}


@functools.cache
def compiled(name, train, dtype="float32"):
    model = MODELS[name][0].clone(dtype=dtype)

    def loss(params, batch_stats, batch):
        # half as long to compile; the goldens and test_layers test the other one
        with convolution.use_formulation("stock"):
            output, updated = model.apply(
                {"params": params, "batch_stats": batch_stats},
                batch,
                train=train,
                mutable=["batch_stats"],
            )
        rows = jnp.any(batch["valid"], axis=1)[:, None, None]
        value = jnp.sum(jnp.where(rows, jnp.sin(output.embeddings), 0))
        if output.logits is not None:
            value += jnp.sum(jnp.where(rows, jnp.sin(output.logits), 0))
        return value, (output, updated.get("batch_stats", {}))

    function = jax.grad(loss, has_aux=True) if train else lambda *a: loss(*a)[1]
    return jax.jit(function, compiler_options=QUICK)


def evaluate(name, batch, dtype="float32"):
    variables = variables_of(name)
    return compiled(name, False, dtype)(
        variables["params"], variables["batch_stats"], batch
    )[0]


def train(name, batch):
    """(gradients, output, batch statistics)."""
    variables = variables_of(name)
    gradients, (output, stats) = compiled(name, True)(
        variables["params"], variables["batch_stats"], batch
    )
    return gradients, output, stats


def pad(batch, fill, frames=3, rows=1):
    """Frames and rows filled with `fill`, marked invalid: [4 8 ...]."""

    def longer(x):
        margins = ((0, rows), (0, frames)) + ((0, 0),) * (x.ndim - 2)
        return jnp.pad(x, margins, constant_values=False if x.dtype == bool else fill)

    return {key: longer(value) for key, value in batch.items()}


close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)


@each_model
def test_shapes_types_and_padding_in_evaluation(name):
    _, strips, size, has_logits = MODELS[name]
    batch = make_batch(name)
    plain, padded = evaluate(name, batch), evaluate(name, pad(batch, 199))
    assert plain.embeddings.shape == (3, strips, size)
    assert plain.embeddings.dtype == jnp.float32
    assert np.isfinite(padded.embeddings).all()
    close(padded.embeddings[:3], plain.embeddings)
    assert (plain.logits is not None) == has_logits
    if has_logits:
        assert plain.logits.shape == (3, strips, IDS)
        assert plain.logits.dtype == jnp.float32
        close(padded.logits[:3], plain.logits)


def without_frozen(gradients):
    """Without BiggerGait's frozen parts, whose gradient is zero."""
    frozen = ("visual_encoder", "decoder")
    return {name: tree for name, tree in gradients.items() if name not in frozen}


@each_model
def test_garbage_in_training_changes_no_output_statistic_or_gradient(name):
    batch = make_batch(name)
    black, garbage = train(name, pad(batch, 0)), train(name, pad(batch, 199))
    close(black[1].embeddings[:3], garbage[1].embeddings[:3])
    if black[1].logits is not None:
        close(black[1].logits[:3], garbage[1].logits[:3])
    jax.tree.map(close, black[2], garbage[2])
    both = [jax.tree.leaves(without_frozen(x[0])) for x in (black, garbage)]
    leaves = list(zip(*both))
    for ours, theirs in leaves:
        assert np.isfinite(theirs).all()
        close(ours, theirs, atol=1e-5 * (1 + np.abs(theirs).max()))
    assert np.mean([np.abs(ours).max() > 0 for ours, _ in leaves]) > 0.9
    if black[2]:  # models without batch norm are the same in both modes
        evaluated, trained = evaluate(name, pad(batch, 0)), black[1]
        size = trained.embeddings.shape[-1]  # test-time augmentation adds further ones
        assert not np.allclose(
            evaluated.embeddings[:3, :, :size], trained.embeddings[:3], atol=1e-4
        ) or not np.allclose(evaluated.logits[:3], trained.logits[:3], atol=1e-4)


@pytest.mark.parametrize("name", ["gaitgl", "skeletongaitpp"])
def test_padding_in_training_is_like_no_padding(name):
    plain, padded = (
        train(name, make_batch(name)),
        train(name, pad(make_batch(name), 199)),
    )
    close(padded[1].embeddings[:3], plain[1].embeddings)
    close(padded[1].logits[:3], plain[1].logits, atol=1e-4)
    jax.tree.map(close, plain[2], padded[2])


@each_model
def test_one_frame_gives_the_same_alone_and_in_a_long_batch(name):
    batch = pad(make_batch(name), 199)
    batch["valid"] = batch["valid"].at[1, 1:].set(False)
    output = evaluate(name, batch)
    assert np.isfinite(output.embeddings).all()
    alone = evaluate(name, {key: value[1:2, :1] for key, value in batch.items()})
    close(output.embeddings[1:2], alone.embeddings)


@each_model
def test_bfloat16_is_close_to_float32(name):
    batch = pad(make_batch(name), 199)
    exact = np.asarray(evaluate(name, batch).embeddings)[:3]
    rough = evaluate(name, batch, "bfloat16").embeddings
    assert rough.dtype == jnp.float32
    error = np.abs(rough[:3] - exact).max() / np.abs(exact).max()
    assert 0 < error < 0.05


@pytest.mark.parametrize(
    "name", ["gaitbase", "gaitgl_large", "multigaitpp", "biggergait"]
)
def test_retrieval_after_the_neck_changes_evaluation_alone(name):
    """In training losses see the embedding before the neck, whatever `retrieve` is."""
    model, batch, variables = MODELS[name][0], make_batch(name), variables_of(name)
    after = model.clone(retrieve="after_neck")

    def run(model, train):
        return jax.jit(
            lambda v: model.apply(v, batch, train=train, mutable=["batch_stats"])[0],
            compiler_options=QUICK,
        )(variables)

    close(run(after, True).embeddings, run(model, True).embeddings)
    plain, normed = run(model, False), run(after, False)
    close(plain.logits, normed.logits)
    close(np.linalg.norm(normed.embeddings, axis=-1), 1.0)
    assert not np.allclose(plain.embeddings, normed.embeddings, atol=0.01)
    if name == "gaitbase":  # the quickest: what docs/models.md is measured with
        close(after_neck(variables, plain.embeddings), normed.embeddings)


# ---------------------------------------------------------------- GaitGL's details


@pytest.mark.parametrize("frames, repeated", [(1, [0, 0, 0]), (2, [0, 1, 0, 1])])
def test_short_sequences_are_repeated(frames, repeated):
    x = jnp.arange(5.0).reshape(1, 5)
    longer, valid = repeat_short(x, jnp.arange(5)[None] < frames)
    np.testing.assert_array_equal(longer[valid], repeated)
    x, valid = repeat_short(x[:, :frames], jnp.ones((1, frames), bool))
    np.testing.assert_array_equal(x[valid], repeated)
    full, valid = repeat_short(jnp.arange(5.0).reshape(1, 5), jnp.ones((1, 5), bool))
    np.testing.assert_array_equal(full[valid], np.arange(5))


def test_gem_is_finite_below_float32_and_right_above():
    gem = GeM()
    variables = gem.init(jax.random.key(0), jnp.ones((1, 1, 3, 1)))
    x = jnp.array([0.5, 1.0, 2.0]).reshape(1, 1, 3, 1)
    expected = np.mean(np.array([0.5, 1.0, 2.0]) ** 6.5) ** (1 / 6.5)
    np.testing.assert_allclose(gem.apply(variables, x)[0, 0, 0], expected, rtol=1e-5)
    dark = -jnp.ones((1, 1, 3, 1))
    value, gradient = jax.value_and_grad(lambda v: gem.apply(v, dark).sum())(variables)
    np.testing.assert_allclose(value, 1e-6, rtol=1e-4)
    assert np.isfinite(gradient["params"]["p"]).all()


# ---------------------------------------------------------------- BiggerGait's details


def test_the_warm_up_of_biggergait_learns_from_silhouettes():
    model = MODELS["biggergait"][0]
    batch = pad(make_batch(model), 199, frames=1, rows=0)
    batch["masks"] = jnp.zeros_like(batch["masks"]).at[:, :, 4:8].set(1)
    variables = variables_of("biggergait")

    def loss(params):
        output, _ = model.apply(
            {"params": params, "batch_stats": variables["batch_stats"]},
            batch,
            train=True,
            method="warm_up",
            mutable=["batch_stats"],
        )
        return losses.total_loss(output, batch, {"silhouette": {"weight": 1.0}})[0], (
            output.aux
        )

    gradients, aux = jax.jit(jax.grad(loss, has_aux=True), compiler_options=QUICK)(
        variables["params"]
    )
    assert aux["foreground_probability"].shape == (3, 6, 8, 4)  # tokens of 4 pixels
    np.testing.assert_array_equal(aux["token_valid"][:, 5], False)
    assert aux["token_valid"][:, :5].all()
    target = np.asarray(aux["silhouette_target"])  # rows 4 to 7 of 16 pixel rows
    close(target, np.broadcast_to(target[0, 0, :, :1], target.shape))
    assert (target[0, 0, 2:4] > 0.7).all() and (target[0, 0, 5:] == 0).all()
    moved = {
        name: max(np.abs(leaf).max() for leaf in jax.tree.leaves(tree)) > 0
        for name, tree in gradients.items()
    }
    learning = {name for name, some in moved.items() if some}
    assert learning == {"visual_encoder", "decoder"}


# ---------------------------------------------------------------- GaitEdge's details


def test_weight_decay_leaves_gaitedges_frozen_encoder_alone():
    """What `freeze_encoder` gives no gradient is what the main phase holds still."""
    config = gaitedge.get_config("casia_b_star")
    assert config.model.freeze_encoder and config.optimizer.weight_decay > 0
    flat = traverse_util.flatten_dict(variables_of("gaitedge")["params"], sep="/")
    held = {name for name in flat if not re.search(config.train.trainable, name)}
    levels = {"/".join(name.split("/")[:2]) for name in held}
    assert levels == {f"unet/down{level}" for level in (1, 2)}
    model = MODELS["gaitedge"][0].clone(freeze_encoder=True)
    batch = make_batch(model)

    def loss(params):
        variables = variables_of("gaitedge") | {"params": params}
        output, _ = model.apply(variables, batch, train=True, mutable=["batch_stats"])
        return output.aux["mask_probability"].sum()

    gradients = jax.jit(jax.grad(loss), compiler_options=QUICK)(
        variables_of("gaitedge")["params"]
    )
    gradients = traverse_util.flatten_dict(gradients, sep="/")
    assert not any(np.any(gradients[name]) for name in held)
    assert any(np.any(gradients[name]) for name in flat if name.startswith("unet/up"))


def test_without_edges_gaitedge_reads_its_own_silhouette_and_no_mask():
    batch, variables = make_batch("gaitedge"), variables_of("gaitedge")
    swapped = batch | {"masks": batch["masks"][:, ::-1]}

    def silhouettes(model, batch):
        output = jax.jit(functools.partial(model.apply, train=False))(variables, batch)
        return output.aux["silhouettes"], output.aux["mask_probability"]

    edges = MODELS["gaitedge"][0]
    assert np.any(silhouettes(edges, batch)[0] != silhouettes(edges, swapped)[0])
    plain = edges.clone(edge=False)
    found, probability = silhouettes(plain, batch)
    np.testing.assert_array_equal(found, silhouettes(plain, swapped)[0])
    flat = probability.reshape(-1, *probability.shape[2:])
    ratios = batch["ratios"].reshape(-1)
    expected = align(flat, flat > 0.5, ratios, plain.silhouette_size)
    np.testing.assert_allclose(found.reshape(expected.shape), expected, atol=1e-6)


# ---------------------------------------------------------------- published sizes

DEEP = (1, 4, 4, 1)
PARAMETERS = {  # sizes that test_configs does not count already
    "gaitset oumvlp": (GaitSet(0, (64, 128, 256)), 6_314_000),
    "gaitpart oumvlp": (
        GaitPart(0, (32, 64, 128, 256), (0, 0, 3, 3), embedding_size=256),
        4_841_000,
    ),
    "gaitgl casia_b": (GaitGL(74), 3_096_673),
    "deepgaitv2 p3d": (DeepGaitV2(74), 8_339_000),
    "deepgaitv2 2d": (DeepGaitV2(74, "2d"), 7_305_000),
    "deepgaitv2 3d": (DeepGaitV2(74, "3d"), 16_595_000),
    "deepgaitv2 2d deep": (DeepGaitV2(3000, "2d", layers=DEEP), 23_720_000),
    "deepgaitv2 3d deep": (DeepGaitV2(3000, "3d", layers=DEEP), 41_860_000),
    "biggergait grouped": (
        BiggerGait(100, layers_per_group=2, num_recognisers=2),
        42_830_000,
    ),
    "multigaitpp deep": (MultiGaitPP(3000, layers=(1, 2, 2, 1)), 28_560_000),
    "swingait deep": (SwinGait(3000), 25_539_136),
    "gaitgraph2 large": (
        GaitGraph2(0, (64, 64, 32), (128,) * 3 + (256,) * 3, 4),
        760_000,
    ),
    "gpgait oumvlp": (
        GPGait(5153, (64, 128, 128, 128, 128, 256, 256), 4),
        32_479_008,
    ),
    "gpgait grew": (
        GPGait(20000, (64, 128, 128, 128, 128, 256, 256)),
        105_222_370,
    ),
    "gpgaitpp gait3d": (GPGaitPlusPlus(3000, (64, 64, 128, 128, 256)), 20_532_043),
    "skeletongaitpp deep": (SkeletonGaitPP(3000, layers=DEEP), 25_568_608),
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameter_counts_are_the_published_ones(name):
    model, published = PARAMETERS[name]
    batch = make_batch(model, rows=1, frames=3, size=(64, 48))
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), batch, train=False))
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]))
    digits = len(str(published)) - len(str(published).rstrip("0"))
    assert round(count, -min(digits, 4)) == published, count


@pytest.mark.parametrize("first, channels", [("heatmaps", 2), ("silhouettes", 1)])
def test_multigaitpp_has_the_published_numbers_of_channels(first, channels):
    """CCPG and SUSTech1K: 2 + 3; GREW: 1 + 3."""
    batch = make_batch(MultiGaitPP(IDS), rows=1, size=(64, 48))
    batch = {"valid": batch["valid"], first: batch[first]}
    batch["frames"] = make_batch("biggergait", rows=1, size=(64, 48))["frames"]
    shapes = jax.eval_shape(
        lambda: MultiGaitPP(100).init(jax.random.key(0), batch, train=False)
    )["params"]
    assert shapes["part1_stem"]["conv"]["kernel"].shape == (3, 3, channels, 64)
    assert shapes["part2_stem"]["conv"]["kernel"].shape == (3, 3, 3, 64)
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    assert round(count, -4) == 11_510_000


@pytest.mark.parametrize("model", [GaitGraph2, GaitTR])
def test_skeleton_models_read_the_18_joints_of_alphapose(model):
    model = model(IDS, joint_format="alphapose")
    batch = {"keypoints": jnp.ones((2, 4, 18, 3)), "valid": jnp.ones((2, 4), bool)}
    shapes = jax.eval_shape(
        lambda: model.init_with_output(jax.random.key(0), batch, train=False)
    )
    assert shapes[0].embeddings.shape[:2] == (2, 1)
    joints = {18 * 10, 4 * 18 * 18}  # GaitTR's input norm, GaitGraph2's edges
    assert joints & {leaf.size for leaf in jax.tree.leaves(shapes[1]["params"])}
    body = skeleton.SKELETONS["alphapose"]
    for links in body.links:  # the mirrored graph is the graph
        mirrored = tuple(sorted(body.mirror[joint] for joint in links))
        assert mirrored in [tuple(sorted(link)) for link in body.links]


# ---------------------------------------------------------------- torch names


@pytest.mark.parametrize(
    "name",
    [name for name in MODELS if "_" not in name and name != "pocketgait"],
)
def test_every_variable_has_a_torch_name_of_its_own(name):
    names = []
    for key_path, leaf in jax.tree_util.tree_flatten_with_path(variables_of(name))[0]:
        path = torch_names.leaf_path(key_path)
        names += torch_names.torch_names_of(name, path, leaf)
    assert len(names) == len(set(names))


def test_every_model_that_is_trained_has_torch_names():
    assert models.MODELS.keys() - torch_names.RULES.keys() == {
        "gei",
        "pocket_encoders",  # our own, as the next
        "pocketgait",
    }


def test_a_checkpoint_that_does_not_fit_lists_what_is_wrong():
    variables = variables_of("gaitset")
    state = {"module.Head.fc_bin": np.zeros((1, 2, 3)), "other.weight": np.zeros(2)}
    state["x.num_batches_tracked"] = np.zeros(())
    message = torch_names.fit("gaitset", state, variables)[1].faults()
    assert "missing: gl_block2.0.conv.weight" in message
    assert "extra: other.weight" in message
    assert "wrong shape: Head.fc_bin (1, 2, 3) for dense/kernel (14, 8, 6)" in message
    with pytest.raises(
        ValueError, match="published weights: 'gait'; choose from gaitb"
    ):
        torch_names.fit("gait", state, variables)


def test_the_neck_goes_from_channel_major_to_strip_major():
    strips, size = 3, 2
    shapes = {
        "params": {
            "head": {
                "neck": {
                    "kernel": jnp.zeros((strips, size, 4)),
                    "norm": {"scale": jnp.zeros(strips * size)},
                }
            }
        }
    }
    kernel = np.arange(24.0).reshape(strips, size, 4)
    scale = np.arange(size)[:, None] * 10 + np.arange(strips)[None]  # [D S]
    state = {"BNNecks.fc_bin": kernel, "BNNecks.bn1d.weight": scale.reshape(-1)}
    values, _ = torch_names.fit("gaitbase", state, shapes)
    ours = {name.removeprefix("params/head/neck/"): x for name, x in values.items()}
    np.testing.assert_array_equal(ours["kernel"], kernel)
    np.testing.assert_array_equal(ours["norm/scale"].reshape(strips, size), scale.T)
