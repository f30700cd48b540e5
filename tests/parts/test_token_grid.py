"""The extractor on the tokens' own grid equals the plain way, value and gradient."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gaitjax.parts import representation, token_grid
from gaitjax.parts.token_grid import Features

# token grid -> the maps' grid: twice as fine, as fine, neither, one axis only
SIZES = [((4, 3), (8, 6)), ((4, 3), (4, 3)), ((4, 3), (7, 5)), ((3, 4), (3, 8))]
each_size = pytest.mark.parametrize("grid, size", SIZES)
CHANNELS = 10


def close(got, wanted, tolerance=1e-5):
    """Equal to `tolerance` of the largest entry of the whole tree."""
    scale = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(wanted))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * scale),
        got, wanted,
    )  # fmt: skip


QUICK = {"xla_backend_optimization_level": 0}  # compiles twice as fast


def example(grid, size, frames=3):
    """Tokens off zero, a gain between 1 and 2, a support with an empty frame."""
    rng = np.random.default_rng(0)
    tokens = rng.normal(rng.normal(0, 3, CHANNELS), 1, (frames, *grid, CHANNELS))
    gain = 1 + rng.random((frames, *size))
    where = rng.random((frames, *size)) < 0.5
    where[1] = False
    return jnp.asarray(tokens, jnp.float32), jnp.asarray(gain, jnp.float32), where


def check_both_ways(function, tokens, size, *arguments):
    """Checks value and gradients of function(features, *arguments)."""

    def loss(tokens, *arguments, direct):
        out, aux = function(Features(tokens, size=size, direct=direct), *arguments)
        weights = np.random.default_rng(1).normal(size=out.shape)
        return jnp.sum(out * weights), (out, aux)

    places = tuple(range(1 + len(arguments)))
    ways = [
        jax.jit(
            jax.value_and_grad(functools.partial(loss, direct=direct), places, True),
            compiler_options=QUICK,
        )(tokens, *arguments)
        for direct in (False, True)
    ]
    ((_, values), gradients), ((_, direct_values), direct_gradients) = ways
    close(values, direct_values)
    close(gradients, direct_gradients)


@each_size
def test_length_and_products(grid, size):
    tokens, _, _ = example(grid, size)
    vectors = jnp.asarray(np.random.default_rng(2).normal(size=(2, CHANNELS)))

    def cosine(features, vectors):
        length = token_grid.length(features)[..., None]
        return token_grid.dot(features, vectors) / length, length

    check_both_ways(cosine, tokens, size, vectors.astype(jnp.float32))


@each_size
def test_moments(grid, size):
    tokens, gain, where = example(grid, size)

    def found(features, gain):
        if not features.direct:
            mean, variance, count = token_grid.moments(
                features.tokens, gain, where, size
            )
        else:
            x = token_grid.weigh(features.interpolated(), gain)
            count = jnp.float32(where.sum())
            mean = jnp.sum(x, (0, 1, 2), where=where[..., None]) / count
            variance = jnp.square(x - mean[None, None, None])
            variance = jnp.sum(variance, (0, 1, 2), where=where[..., None]) / count
        return jnp.stack([mean, variance]), count

    check_both_ways(found, tokens, size, gain)


def test_moments_keep_their_digits_far_from_zero():
    tokens, gain, where = example((4, 3), (8, 6))
    got = token_grid.moments(tokens + 1000, gain * 0 + 1, where, (8, 6))
    near = token_grid.moments(tokens, None, where, (8, 6))
    np.testing.assert_allclose(got.variance, near.variance, rtol=2e-4)


MODULES = {
    "denoising": representation.Denoising(channels=4, hidden=12),
    "appearance": representation.Appearance(channels=4),
    "decoder": representation.Decoder("reconstruction", dropout=0.0),
}


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize(
    "place, train", [("before", True), ("after", True), ("nowhere", False)]
)
def test_branches(name, place, train):
    size, module = (8, 6), MODULES[name]
    tokens, gain, where = example((4, 3), size)
    features = Features(tokens, size=size)
    init = jax.jit(functools.partial(module.init, train=True), compiler_options=QUICK)
    variables = init(jax.random.key(0), features, where)
    direct = init(jax.random.key(0), features.replace(direct=True), where)
    close(variables["params"], direct["params"], 0)  # checkpoints fit both ways
    rng = np.random.default_rng(3)
    statistics = jax.tree.map(
        lambda x: jnp.asarray(rng.uniform(0.5, 1.5, x.shape), jnp.float32),
        variables["batch_stats"],
    )

    def call(features, gain, params):
        if place != "nowhere":
            features = features.replace(**{place: gain})
        out, changed = module.apply(
            {"params": params, "batch_stats": statistics}, features, where,
            train=train, mutable=["batch_stats"],
        )  # fmt: skip
        if name == "decoder":
            out = [out[0], jnp.where(where[..., None], out[1], 0)]  # arbitrary outside
            out = jnp.concatenate(out, axis=-1)
        return out, changed

    check_both_ways(call, tokens, size, gain, variables["params"])


def test_chunks_change_nothing():
    tokens, gain, where = example((4, 3), (8, 6), frames=5)
    module = MODULES["denoising"]
    features = Features(tokens, before=gain, size=(8, 6))
    variables = module.init(jax.random.key(0), features, where, train=True)

    def gradient(chunk):
        def loss(params):
            out, _ = module.apply(
                variables | {"params": params}, features.replace(chunk=chunk), where,
                train=True, mutable=["batch_stats"],
            )  # fmt: skip
            return jnp.sum(jnp.square(out[..., 0])), out

        return jax.jit(jax.grad(loss, has_aux=True))(variables["params"])

    close(gradient(2), gradient(0))


def test_dropout_takes_the_direct_way():
    tokens, _, where = example((4, 3), (8, 6))
    features, rngs = Features(tokens, size=(8, 6)), {"dropout": jax.random.key(1)}
    module = representation.Decoder(dropout=0.5)
    variables = module.init(jax.random.key(0), features, where, train=False)

    def call(features):
        out, _ = module.apply(
            variables, features, where, train=True, rngs=rngs, mutable=["batch_stats"]
        )
        return out[0]

    np.testing.assert_array_equal(call(features), call(features.replace(direct=True)))


def test_the_backward_pass_keeps_no_array_of_the_finer_grid():
    """Nothing of size [N h w d] is among the residuals, and none of it is computed."""
    tokens, gain, where = example((4, 3), (8, 6))
    module = MODULES["denoising"]
    features = Features(tokens, before=gain, size=(8, 6))
    variables = module.init(jax.random.key(0), features, where, train=True)

    def loss(params, gain, direct):
        out, _ = module.apply(
            variables | {"params": params},
            features.replace(before=gain, direct=direct), where,
            train=True, mutable=["batch_stats"],
        )  # fmt: skip
        return jnp.sum(jnp.square(out[..., 0]))

    shape = f"[3,8,6,{CHANNELS}]"
    for direct in (False, True):
        gradient = jax.grad(functools.partial(loss, direct=direct), (0, 1))
        jaxpr = jax.make_jaxpr(gradient)(variables["params"], gain)
        assert (shape in str(jaxpr)) == direct


def test_a_decoder_with_dropout_keeps_no_array_of_the_finer_grid():
    tokens, gain, where = example((4, 3), (8, 6))
    features = Features(tokens, before=gain, size=(8, 6))
    module, rngs = representation.Decoder(), {"dropout": jax.random.key(1)}
    variables = module.init(jax.random.key(0), features, where, train=False)

    def loss(params):
        (out, _), changed = module.apply(
            variables | {"params": params}, features, where,
            train=True, rngs=rngs, mutable=["batch_stats"],
        )  # fmt: skip
        return jnp.sum(jnp.square(out[..., 0])), changed

    kept = jax.eval_shape(
        lambda params: jax.vjp(loss, params, has_aux=True)[1], variables["params"]
    )
    assert (3, 8, 6, 2) in [leaf.shape for leaf in jax.tree.leaves(kept)]
    assert (3, 8, 6, CHANNELS) not in [leaf.shape for leaf in jax.tree.leaves(kept)]
