"""Layers against naive numpy, PyTorch's conventions by hand, and each other."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.test_util import check_grads

from gaitjax.parts import backend, convolution, heads, layers
from gaitjax.parts.resnet import BasicBlock, BasicBlock3D, BasicBlockP3D, Stage


def normal(*shape, seed=0):
    values = np.random.default_rng(seed).standard_normal(shape)
    return jnp.asarray(values, jnp.float32)


def run(module, *arguments, seed=0, **keywords):
    """(output, variables) of a freshly initialised module."""
    variables = module.init(jax.random.key(seed), *arguments, **keywords)
    return module.apply(variables, *arguments, **keywords), variables


# ---------------------------------------------------------------- convolutions

CONVOLUTIONS = {  # shape, kernel, strides, padding
    "3x3": ((2, 6, 5, 8), (3, 3, 8, 4), (1, 1), ((1, 1), (1, 1))),
    "3x3 stride 2": ((2, 7, 6, 8), (3, 3, 8, 4), (2, 2), ((1, 1), (1, 1))),
    "5x5 thin": ((2, 6, 5, 1), (5, 5, 1, 4), (1, 1), ((2, 2), (2, 2))),
    "1x1": ((2, 4, 5, 8), (1, 1, 8, 3), (1, 1), ((0, 0), (0, 0))),
    "1x1 stride 2": ((2, 5, 4, 8), (1, 1, 8, 3), (2, 2), ((0, 0), (0, 0))),
    "time": ((2, 7, 6, 5), (3, 1, 5, 4), (1, 1), ((1, 1), (0, 0))),
    "time stride 3": ((2, 8, 6, 5), (3, 1, 5, 4), (3, 1), ((0, 0), (0, 0))),
    "3x3x3": (
        (2, 4, 5, 6, 3), (3, 3, 3, 3, 2), (1, 1, 1), ((1, 1), (1, 1), (1, 1)),
    ),
    "3x3x3 strides": (
        (1, 7, 5, 6, 3), (3, 3, 3, 3, 2), (3, 2, 2), ((1, 1), (1, 1), (1, 1)),
    ),
    "1x1x1 stride": (
        (1, 4, 5, 6, 3), (1, 1, 1, 3, 2), (1, 2, 2), ((0, 0), (0, 0), (0, 0)),
    ),
}  # fmt: skip


def naive_convolution(x, kernel, strides, padding):
    x, kernel = np.asarray(x, np.float64), np.asarray(kernel, np.float64)
    x = np.pad(x, ((0, 0), *padding, (0, 0)))
    window = kernel.shape[:-2]
    sizes = [(size - k) // s + 1 for size, k, s in zip(x.shape[1:-1], window, strides)]
    out = np.zeros((x.shape[0], *sizes, kernel.shape[-1]))
    for place in np.ndindex(*sizes):
        start = [p * s for p, s in zip(place, strides)]
        cut = tuple(slice(a, a + k) for a, k in zip(start, window))
        patch = x[(slice(None), *cut)].reshape(x.shape[0], -1)
        out[(slice(None), *place)] = patch @ kernel.reshape(-1, kernel.shape[-1])
    return out


@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_formulations_agree_in_value_and_gradient(case):
    shape, kernel_shape, strides, padding = CONVOLUTIONS[case]
    x, kernel = normal(*shape), normal(*kernel_shape, seed=1)
    results = {}
    for name in ("stock", "matmul"):

        def loss(x, kernel):
            y = convolution.convolve(x, kernel, strides, padding)
            return jnp.sum(y * jnp.cos(jnp.arange(y.size).reshape(y.shape))), y

        with convolution.use_formulation(name):
            gradients, y = jax.jit(jax.grad(loss, (0, 1), has_aux=True))(x, kernel)
        expected = naive_convolution(x, kernel, strides, padding)
        np.testing.assert_allclose(y, expected, atol=1e-4)
        results[name] = gradients
    for ours, stock in zip(results["matmul"], results["stock"]):
        np.testing.assert_allclose(ours, stock, atol=1e-4)


def test_the_backend_chooses_the_formulation():
    expected = "matmul" if jax.default_backend() == "cpu" else "stock"
    assert convolution.formulation() == expected
    with convolution.use_formulation("stock"):
        assert convolution.formulation() == "stock"
    assert convolution.formulation() == expected


def test_the_matmul_gradient_by_finite_differences():
    convolve = functools.partial(
        convolution._with_matmul_gradient, strides=(2, 2), padding=((1, 1), (1, 1))
    )
    arguments = (normal(1, 4, 4, 5), normal(3, 3, 5, 2, seed=1))
    check_grads(convolve, arguments, order=1, modes=["rev"], atol=1e-2, rtol=1e-2)


def test_convolutions_start_at_the_xavier_bound():
    _, variables = run(convolution.Conv(32), jnp.zeros((1, 4, 4, 16)))
    kernel = variables["params"]["kernel"]
    bound = (6 / (9 * 16 + 9 * 32)) ** 0.5
    assert 0.98 * bound < jnp.max(jnp.abs(kernel)) <= bound
    assert kernel.shape == (3, 3, 16, 32)


def test_temporal_convolution_works_at_every_position_alone():
    x = normal(2, 6, 3, 2, 4)  # [B T H W C]
    y, variables = run(convolution.TemporalConv(5), x)
    kernel = variables["params"]["kernel"]  # [3 1 C D]
    padded = np.pad(x, ((0, 0), (1, 1), (0, 0), (0, 0), (0, 0)))
    expected = sum(padded[:, i : i + 6] @ kernel[i, 0] for i in range(3))
    np.testing.assert_allclose(y, expected, atol=1e-5)


@pytest.mark.parametrize("devices", [1, 2, 8])
@pytest.mark.parametrize(
    "shape, window, strides, padding",
    [
        ((6, 9, 7, 3), (3, 3), (1, 1), ((1, 1), (1, 1))),
        ((6, 9, 8, 1), (5, 5), (2, 1), ((2, 2), (2, 2))),
        ((4, 8, 5, 2), (3, 1), (1, 2), ((0, 1), (0, 0))),
        ((2, 4, 5, 6, 2), (3, 3, 3), (1, 2, 1), ((1, 1),) * 3),
    ],
)
def test_matmul_gradients_are_those_of_a_convolution(
    shape, window, strides, padding, devices
):
    """Of the kernel and of the input, however many devices share the images."""
    x, kernel = normal(*shape), normal(*window, shape[-1], 4)

    def gradients(formulation):
        def loss(x, kernel):
            y = convolution.convolve(x, kernel, strides, padding)
            return jnp.sum(jnp.sin(y))

        with convolution.use_formulation(formulation):
            return jax.grad(loss, argnums=(0, 1))(x, kernel)

    with backend.tracing_for(backend.Backend("cpu", devices=devices)):
        found = gradients("matmul")
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)
    jax.tree.map(close, found, gradients("stock"))


def test_bfloat16_convolution_keeps_float32_parameters():
    y, variables = run(convolution.Conv(4, dtype=jnp.bfloat16), normal(1, 4, 4, 3))
    assert y.dtype == jnp.bfloat16
    assert variables["params"]["kernel"].dtype == jnp.float32


# ---------------------------------------------------------------- batch norm


def test_batch_norm_follows_torch_on_the_valid_entries():
    x, valid = normal(4, 3, 2, 5), np.array([1, 0, 1, 1], bool)
    module = layers.BatchNorm()
    variables = module.init(jax.random.key(0), x, train=True)
    y, updated = module.apply(
        variables, x, train=True, valid=jnp.asarray(valid), mutable=["batch_stats"]
    )
    entries = np.asarray(x, np.float64)[valid].reshape(-1, 5)
    mean, var = entries.mean(0), entries.var(0)
    scale, x = np.asarray(variables["params"]["scale"]), np.asarray(x)
    expected = (x - mean) / np.sqrt(var + 1e-5) * scale
    np.testing.assert_allclose(y[valid], expected[valid], atol=1e-5)
    stats = jax.tree.map(np.asarray, updated["batch_stats"])
    np.testing.assert_allclose(stats["mean"], 0.1 * mean, atol=1e-6)
    np.testing.assert_allclose(stats["var"], 0.9 + 0.1 * entries.var(0, ddof=1), 1e-5)
    running = module.apply({**variables, **updated}, x, train=False)
    expected = (x - stats["mean"]) / np.sqrt(stats["var"] + 1e-5) * scale
    np.testing.assert_allclose(running, expected, atol=1e-5)


@pytest.mark.parametrize("shape", [(4,), (4, 3), (4, 3, 2)])
def test_garbage_outside_valid_changes_no_statistic_and_no_gradient(shape):
    valid = np.random.default_rng(0).random(shape) < 0.6
    mask = valid.reshape(shape + (1,) * (4 - len(shape)))
    x = normal(4, 3, 2, 5)
    module = layers.BatchNorm()
    variables = module.init(jax.random.key(0), x, train=True)

    def loss(x, garbage):
        y, updated = module.apply(
            variables,
            jnp.where(mask, x, garbage),
            train=True,
            valid=jnp.asarray(valid),
            mutable=["batch_stats"],
        )
        return jnp.sum(jnp.where(mask, jnp.sin(y), 0)), (y, updated)

    for garbage in (1e6, jnp.nan):
        clean, (y, stats) = jax.grad(loss, has_aux=True)(x, 0.0)
        dirty, (other, dirty_stats) = jax.grad(loss, has_aux=True)(x, garbage)
        np.testing.assert_array_equal(clean, dirty)
        np.testing.assert_array_equal(jnp.where(mask, y - other, 0), 0)
        jax.tree.map(np.testing.assert_array_equal, stats, dirty_stats)


def test_batch_norm_of_nothing_keeps_the_running_statistics():
    x = normal(3, 4)
    module = layers.BatchNorm(affine=False)
    variables = module.init(jax.random.key(0), x, train=True)

    def loss(x):
        y, updated = module.apply(
            variables,
            x,
            train=True,
            valid=jnp.zeros(3, bool),
            mutable=["batch_stats"],
        )
        return jnp.sum(jnp.square(y)), updated

    gradient, updated = jax.grad(loss, has_aux=True)(x)
    assert np.isfinite(gradient).all()
    jax.tree.map(
        np.testing.assert_array_equal, updated["batch_stats"], variables["batch_stats"]
    )


def test_batch_norm_variance_survives_a_large_mean():
    x = 1000 + normal(512, 2)
    module = layers.BatchNorm(affine=False)
    variables = module.init(jax.random.key(0), x, train=True)
    y, _ = module.apply(variables, x, train=True, mutable=["batch_stats"])
    np.testing.assert_allclose(y.var(0), 1, atol=1e-3)


def plain_batch_norm(x, valid, scale, bias):
    """Batch norm in training, differentiated by JAX through mean and variance."""
    mask = jnp.ones(x.shape[:-1], bool) if valid is None else valid
    mask = mask.reshape(mask.shape + (1,) * (x.ndim - mask.ndim))
    x = jnp.where(mask, x, 0)
    axes, mask = tuple(range(x.ndim - 1)), jnp.broadcast_to(mask, x.shape)
    mean = jnp.mean(x, axes, keepdims=True, where=mask)
    var = jnp.mean(jnp.square(x - mean), axes, keepdims=True, where=mask)
    scale, bias = (v.reshape(mean.shape) for v in (scale, bias))
    return (x - mean) / jnp.sqrt(var + 1e-5) * scale + bias


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("shape", [None, (4,), (4, 3)])
def test_batch_norm_has_the_value_and_gradient_of_the_plain_formulation(shape, affine):
    x, weights = 3 + 2 * normal(4, 3, 5), normal(4, 3, 5, seed=1)
    valid = shape and jnp.arange(np.prod(shape)).reshape(shape) % 4 != 1
    x = x.reshape(-1, 5) if shape is None else x
    weights = weights.reshape(x.shape)  # of all results, as if any could be read
    module = layers.BatchNorm(affine)
    given = {"scale": jnp.ones(5), "bias": jnp.zeros(5)}
    if affine:
        given = {"scale": 1 + normal(5, seed=2), "bias": normal(5, seed=3)}
    statistics = module.init(jax.random.key(0), x, train=True)["batch_stats"]

    def ours(x, parameters):
        variables = {"params": parameters, "batch_stats": statistics}
        variables = variables if affine else {"batch_stats": statistics}
        y, _ = module.apply(
            variables, x, train=True, valid=valid, mutable=["batch_stats"]
        )
        return jnp.sum(y * weights), y

    def plain(x, parameters):
        y = plain_batch_norm(x, valid, **parameters)
        return jnp.sum(y * weights), y

    places = (0, 1) if affine else 0
    found, wanted = (jax.grad(f, places, has_aux=True)(x, given) for f in (ours, plain))
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)
    jax.tree.map(close, found, wanted)


def test_a_lean_network_keeps_the_results_of_its_convolutions_alone():
    """Of whole maps; its gradient is that of the same network with everything kept."""
    x, valid = normal(2, 3, 8, 6, 4), jnp.array([[True] * 3, [True, True, False]])

    class Network(nn.Module):
        lean: bool

        @nn.compact
        def __call__(self, x):
            def call(module, x, valid):
                x = Stage("p3d", 4, 2, name="stage")(x, train=True, valid=valid)
                return nn.gelu(x)

            return layers.lean(call, self.lean)(self, x, valid)

    variables = Network(True).init(jax.random.key(0), x)

    def loss(parameters, lean):
        y, changed = Network(lean).apply(
            variables | {"params": parameters}, x, mutable=["batch_stats"]
        )
        return jnp.sum(jnp.square(y)), changed

    def kept(lean):
        """How many whole maps the backward pass reads."""
        call = functools.partial(loss, lean=lean)
        backward = jax.eval_shape(
            lambda p: jax.vjp(call, p, has_aux=True)[1], variables["params"]
        )
        return sum(leaf.size == x.size for leaf in jax.tree.leaves(backward))

    found, wanted = (
        jax.jit(jax.grad(functools.partial(loss, lean=lean), has_aux=True))(
            variables["params"]
        )
        for lean in (True, False)
    )
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
    jax.tree.map(close, found, wanted)
    assert kept(True) == 2 * 3 + 2 < kept(False) / 2  # and x, as it came and folded


# ---------------------------------------------------------------- pooling


def test_the_gradient_of_a_maximum_goes_to_one_of_equals():
    x = jnp.array([[1.0, 2.0], [3.0, 2.0], [3.0, 0.0]])
    gradient = jax.grad(lambda x: layers.max_over(x, 0).sum())(x)
    np.testing.assert_array_equal(gradient, [[0, 1], [1, 0], [0, 0]])


def test_set_pool_sees_valid_frames_only():
    x, valid = normal(3, 4, 2, 2), np.array([[1, 1, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0]])
    pooled = layers.set_pool(x, jnp.asarray(valid, bool))
    np.testing.assert_array_equal(pooled[0], x[0, :2].max(0))
    np.testing.assert_array_equal(pooled[1], x[1].max(0))
    np.testing.assert_array_equal(pooled[2], 0)
    gradient = jax.grad(lambda x: layers.set_pool(x, jnp.asarray(valid, bool)).sum())(x)
    np.testing.assert_array_equal(gradient[0, 2:], 0)
    np.testing.assert_array_equal(gradient.sum((1, 2, 3)), [4, 4, 0])


def test_horizontal_pooling_by_hand():
    x = jnp.arange(8.0).reshape(1, 4, 2, 1)
    pooled = heads.horizontal_pool(x, 2)
    np.testing.assert_array_equal(pooled[0, :, 0], [1.5 + 3, 5.5 + 7])
    pyramid = heads.horizontal_pyramid(x, (2, 1))
    np.testing.assert_array_equal(pyramid[0, :, 0], [4.5, 12.5, 3.5 + 7])


def test_max_pool_drops_odd_ends():
    x = normal(2, 5, 4, 3)
    expected = np.asarray(x)[:, :4].reshape(2, 2, 2, 2, 2, 3).max((2, 4))
    np.testing.assert_array_equal(layers.max_pool(x), expected)


# ---------------------------------------------------------------- resizing


@pytest.mark.parametrize("size", [(8, 6), (8, 5), (4, 3), (3, 9), (4, 6)])
def test_bilinear_resize_by_its_definition(size):
    x = np.asarray(normal(2, 4, 3, 2), np.float64)
    expected = x
    for axis, new in zip((1, 2), size):
        old = x.shape[axis]
        source = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
        low = np.floor(source).astype(int)
        high = np.minimum(low + 1, old - 1)
        weight = (source - low).reshape([-1 if a == axis else 1 for a in range(4)])
        expected = (1 - weight) * expected.take(low, axis) + weight * expected.take(
            high, axis
        )
    resized = layers.resize_bilinear(jnp.asarray(x, jnp.float32), size)
    np.testing.assert_allclose(resized, expected, atol=1e-6)


# ---------------------------------------------------------------- heads


def test_separate_dense_is_a_matrix_per_strip_with_the_small_bound():
    x = normal(2, 16, 32)
    y, variables = run(heads.SeparateDense(24), x)
    kernel = variables["params"]["kernel"]
    expected = np.stack([x[:, s] @ kernel[s] for s in range(16)], axis=1)
    np.testing.assert_allclose(y, expected, atol=1e-6)
    bound = (6 / (32 * 24 + 16 * 24)) ** 0.5
    assert 0.98 * bound < jnp.max(jnp.abs(kernel)) <= bound


def test_bn_neck_gives_cosines_of_the_normalised_features():
    x = normal(6, 3, 4)
    neck = heads.SeparateBNNeck(5)
    variables = neck.init(jax.random.key(0), x, train=True)
    (features, logits), _ = neck.apply(
        variables, x, train=True, mutable=["batch_stats"]
    )
    kernel = np.asarray(variables["params"]["kernel"])
    scale = np.asarray(variables["params"]["norm"]["scale"]).reshape(3, 4)
    z = np.asarray(x, np.float64)
    z = (z - z.mean(0)) / np.sqrt(z.var(0) + 1e-5) * scale
    z /= np.linalg.norm(z, axis=-1, keepdims=True)
    np.testing.assert_allclose(features, z, atol=1e-5)
    for strip in range(3):
        columns = kernel[strip] / np.linalg.norm(kernel[strip], axis=0)
        np.testing.assert_allclose(logits[:, strip], z[:, strip] @ columns, atol=1e-5)


def test_normalise_has_a_finite_gradient_at_zero():
    gradient = jax.grad(lambda x: heads.normalise(x).sum())(jnp.zeros((2, 3)))
    assert np.isfinite(gradient).all()


def test_images_are_scaled_by_their_type():
    frames = np.full((1, 2, 4, 3), 255, np.uint8)
    ours = layers.image_sequence({"silhouettes": jnp.asarray(frames)}, "silhouettes")
    assert ours.shape == (1, 2, 4, 3, 1)
    np.testing.assert_array_equal(ours, 1)


# ---------------------------------------------------------------- residual blocks


@pytest.mark.parametrize("stride, features", [(1, 4), (2, 4), (1, 6)])
def test_basic_block_by_its_definition(stride, features):
    x = normal(3, 6, 4, 4)
    block = BasicBlock(features, stride=stride)
    y, variables = run(block, x, train=False)
    parameters = variables["params"]

    def conv(x, name, stride=1, pad=1):
        kernel = np.asarray(parameters[name]["kernel"])
        return naive_convolution(x, kernel, (stride,) * 2, ((pad, pad),) * 2)

    def norm(x, name):
        return x / np.sqrt(1 + 1e-5) * np.asarray(parameters[name]["scale"])

    expected = np.maximum(norm(conv(x, "conv1", stride), "norm1"), 0)
    expected = norm(conv(expected, "conv2"), "norm2")
    if stride == 1 and features == 4:
        assert "shortcut" not in parameters
        shortcut = np.asarray(x)
    else:
        parameters = {**parameters, **parameters["shortcut"]}
        shortcut = norm(conv(x, "conv", stride, 0), "norm")
    np.testing.assert_allclose(y, np.maximum(expected + shortcut, 0), atol=1e-4)


@pytest.mark.parametrize("block", [BasicBlockP3D, BasicBlock3D])
def test_blocks_over_time_end_where_the_sequence_ends(block):
    x = normal(2, 5, 4, 4, 3)
    module = block(4, stride=2)
    valid = jnp.arange(7)[None] < jnp.array([[5], [5]])
    longer = jnp.concatenate([x, 100 * normal(2, 2, 4, 4, 3, seed=1)], axis=1)
    variables = module.init(jax.random.key(0), x, train=True, valid=valid[:, :5])
    apply = jax.jit(
        lambda x, valid: module.apply(
            variables, x, train=True, valid=valid, mutable=["batch_stats"]
        )
    )
    plain, stats = apply(x, valid[:, :5])
    padded, padded_stats = apply(longer, valid)
    np.testing.assert_allclose(padded[:, :5], plain, atol=1e-5)
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, atol=1e-5), stats, padded_stats
    )
