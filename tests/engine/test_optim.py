"""Optimizers against the published update rules, by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

from configs import common
from gaitjax.engine import optim


def config(**fields):
    settings = common.base("test", "synthetic").optimizer
    settings.update(fields)
    return settings


def test_milestones():
    settings = config(learning_rate=0.1, milestones=(2, 4), gamma=0.1)
    schedule = optim.make_schedule(settings, total_steps=6)
    rates = [float(schedule(step)) for step in range(6)]
    expected = [0.1, 0.1, 0.01, 0.01, 0.001, 0.001]
    np.testing.assert_allclose(rates, expected, rtol=1e-6)


def test_cosine_and_onecycle_end_at_the_final_rate():
    for name in ("cosine", "onecycle"):
        settings = config(
            schedule=name, learning_rate=0.3, final_learning_rate=0.01, rise_steps=5
        )
        schedule = optim.make_schedule(settings, total_steps=20)
        rates = [float(schedule(step)) for step in range(30)]
        assert max(rates) == pytest.approx(0.3)
        assert rates[20] == rates[29] == pytest.approx(0.01)


def test_sgd_is_pytorchs_momentum_with_l2():
    settings = config(learning_rate=0.5, momentum=0.9, weight_decay=0.1, milestones=())
    tx = optim.make_optimizer(settings, optim.make_schedule(settings, 10))
    params = {"w": jnp.array(2.0)}
    state, weight, momentum = tx.init(params), 2.0, 0.0
    for gradient in (1.0, -0.5, 0.25):
        updates, state = tx.update({"w": jnp.array(gradient)}, state, params)
        params = {"w": params["w"] + updates["w"]}
        momentum = 0.9 * momentum + gradient + 0.1 * weight
        weight -= 0.5 * momentum
        assert float(params["w"]) == pytest.approx(weight, rel=1e-6)


def test_no_decay_and_decoupled_decay():
    settings = config(name="adamw", learning_rate=0.1, weight_decay=0.5,
                      schedule="constant", no_decay=("/bias$",))  # fmt: skip
    tx = optim.make_optimizer(settings, optim.make_schedule(settings, 10))
    params = {"a": {"kernel": jnp.array(1.0), "bias": jnp.array(1.0)}}
    zero = {"a": {"kernel": jnp.array(0.0), "bias": jnp.array(0.0)}}
    updates, _ = tx.update(zero, tx.init(params), params)
    assert float(updates["a"]["kernel"]) == pytest.approx(-0.05)
    assert float(updates["a"]["bias"]) == 0.0


def test_cosine_ends_at_decay_steps():
    settings = config(
        schedule="cosine", learning_rate=0.2, final_learning_rate=0.02, decay_steps=4
    )
    schedule = optim.make_schedule(settings, total_steps=8)
    rates = [float(schedule(step)) for step in (0, 2, 4, 8)]
    np.testing.assert_allclose(rates, [0.2, 0.11, 0.02, 0.02], rtol=1e-6)


def test_rates_scale_the_learning_rate_of_the_first_match():
    settings = config(
        name="sgd", learning_rate=1.0, momentum=0.0, weight_decay=0.0,
        schedule="constant", rates=(("^a/", 0.1), ("kernel$", 0.5)),
    )  # fmt: skip
    tx = optim.make_optimizer(settings, optim.make_schedule(settings, 1))
    params = {"a": {"kernel": jnp.ones(2)}, "b": {"kernel": jnp.ones(2)}, "c": 1.0}
    updates, _ = tx.update(params, tx.init(params), params)
    np.testing.assert_allclose(updates["a"]["kernel"], -0.1)
    np.testing.assert_allclose(updates["b"]["kernel"], -0.5)
    np.testing.assert_allclose(updates["c"], -1.0)


def test_muon_levels_a_matrix_and_leaves_the_rest_to_adam():
    """The first step: all singular values become about 1, times 0.2 sqrt(6)."""
    settings = config(
        name="muon", learning_rate=0.1, weight_decay=0.5, schedule="constant",
        no_decay=("bias",), clip_norm=0.0,
    )  # fmt: skip
    tx = optim.make_optimizer(settings, optim.make_schedule(settings, 10))
    rng = np.random.default_rng(0)
    left = np.linalg.qr(rng.normal(size=(4, 4)))[0]
    right = np.linalg.qr(rng.normal(size=(6, 6)))[0][:, :4]
    gradient = left @ np.diag([8.0, 2.0, 1.0, 0.5]) @ right.T
    params = {"kernel": jnp.ones((4, 6)), "bias": jnp.ones(3)}
    gradients = {"kernel": jnp.asarray(gradient), "bias": jnp.array([3.0, -0.1, 0.0])}
    updates, state = tx.update(gradients, tx.init(params), params)
    step = np.asarray(updates["kernel"]) + 0.1 * 0.5  # without the decay
    values = left.T @ step @ right / (-0.1 * 0.2 * 6**0.5)
    np.testing.assert_allclose(values, np.diag(np.diag(values)), atol=1e-4)
    assert np.diag(values).min() > 0.6 and np.diag(values).max() < 1.3
    np.testing.assert_allclose(updates["bias"], [-0.1, 0.1, 0.0], atol=1e-4)


def test_muon_reads_convolutions_as_matrices_and_stacks_as_stacks():
    settings = config(
        name="muon", learning_rate=1.0, weight_decay=0.0, schedule="constant",
        clip_norm=0.0, adam_for=("table",),
    )  # fmt: skip
    tx = optim.make_optimizer(settings, optim.make_schedule(settings, 10))
    rng = np.random.default_rng(1)
    matrix = rng.normal(size=(18, 5)).astype(np.float32)
    params = {
        "matrix": jnp.zeros((18, 5)),
        "convolution": jnp.zeros((3, 3, 2, 5)),
        "stack": jnp.zeros((2, 18, 5)),
        "table": jnp.zeros((18, 5)),
    }
    gradients = {
        "matrix": matrix,
        "convolution": matrix.reshape(3, 3, 2, 5),
        "stack": np.stack([matrix, -matrix]),
        "table": matrix,
    }
    updates, _ = tx.update(gradients, tx.init(params), params)
    step = np.asarray(updates["matrix"])
    flat = np.asarray(updates["convolution"]).reshape(18, 5)
    np.testing.assert_allclose(flat, step, atol=1e-5)
    np.testing.assert_allclose(updates["stack"], [step, -step], atol=1e-5)
    np.testing.assert_allclose(updates["table"], -np.sign(matrix), atol=1e-3)
