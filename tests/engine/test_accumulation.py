"""train.accumulate: losses and gradients of the whole batch, activations of a part."""

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from ml_collections import ConfigDict

from configs import cargait as cargait_config
from gaitjax import losses, state, train
from gaitjax.data import pipeline
from gaitjax.engine import optim, sharding
from gaitjax.parts.output import GaitOutput
from gaitjax.rerank import train as train_reranker

ROOT = Path(__file__).resolve().parents[2]
IDS, SEQS, FRAMES, CLASSES = 8, 2, 3, 10
LOSSES = {
    "triplet": {"weight": 1.0, "margin": 0.2, "seqs_per_id": SEQS},
    "cross_entropy": {"weight": 1.0, "scale": 16.0, "smoothing": 0.1},
    "supcon": {"weight": 0.1, "temperature": 0.1},
    "silhouette": {"weight": 1.0},
    "smoothness": {"weight": 0.1, "reduce": "channel"},
    "diversity": {"weight": 0.1},
}
NEGATED = optax.scale(-1.0)  # parameters change by minus their gradient


class Small(nn.Module):
    """Everything that losses read, from frames [B T h w] by few weights."""

    width: int = 4
    dropout: float = 0.0
    still: bool = True  # batch norm in evaluation mode

    @nn.compact
    def __call__(self, batch, *, train):
        valid = batch["valid"]  # [B T]
        x = nn.Conv(self.width, (3, 3))(batch["frames"][..., None])  # [B T h w C]
        x = nn.BatchNorm(use_running_average=self.still or not train)(x)
        x = jnp.square(nn.Conv(4, (3, 3), name="maps")(nn.gelu(x)))
        x = nn.Dropout(self.dropout)(x, deterministic=not train)
        pooled = jnp.where(valid[..., None], jnp.mean(x, (2, 3)), 0).sum(1)  # [B C]
        embeddings = nn.Dense(6)(pooled).reshape(-1, 2, 3)
        logits = nn.Dense(CLASSES)(embeddings)
        tokens = jnp.broadcast_to(valid[..., None, None], x.shape[:-1])
        aux = {
            "denoised": x,
            "foreground_probability": jax.nn.sigmoid(x[..., 0]),
            "silhouette_target": (batch["frames"] > 0).astype(jnp.float32),
            "token_valid": tokens,
            "logged": {"mean": jnp.mean(x)},
        }
        return GaitOutput(embeddings, logits, aux)


def small_batch(frames=FRAMES, size=6):
    """Walks of unequal length, which the parts share unequally."""
    rng = np.random.default_rng(0)
    count = IDS * SEQS
    valid = np.arange(frames) < rng.integers(1, frames + 1, (count, 1))
    valid[:SEQS] = False  # nobody
    ids = rng.choice(CLASSES, IDS, replace=False)
    return {
        "frames": rng.normal(size=(count, frames, size, size)).astype(np.float32),
        "valid": valid,
        "labels": np.repeat(ids, SEQS).astype(np.int32),
    }


def small_state(model, batch, tx=NEGATED):
    return state.init_state(
        jax.random.key(1), batch, model=model, tx=tx, frozen_patterns=()
    )


def step_of(model, parts, devices=1):
    rows = IDS * SEQS
    order = np.argsort(pipeline.part_order(rows, parts, devices))
    terms = LOSSES | {"triplet": LOSSES["triplet"] | {"order": order}}
    return jax.jit(
        functools.partial(
            train.train_step, model=model, tx=NEGATED, losses=terms, parts=parts,
            devices=devices,
        )
    )  # fmt: skip


def assert_close(got, expected, tolerance=1e-5):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance),
        got,
        expected,
    )


@pytest.mark.parametrize("parts", [2, 4, 8])
def test_losses_and_gradients_are_those_of_the_whole_batch(parts):
    model, batch = Small(), small_batch()
    start = small_state(model, batch)
    whole, terms = step_of(model, 1)(start, batch, jax.random.key(0))
    assert float(terms["triplet"]) > 0.05
    new, got = step_of(model, parts)(start, batch, jax.random.key(0))
    assert got.keys() == terms.keys()
    assert_close(got, terms)
    assert_close(new.params, whole.params)


def test_both_passes_draw_the_same_and_statistics_move_once_a_part():
    model, batch, parts = Small(dropout=0.5, still=False), small_batch(), 4
    start, rng = small_state(model, batch), jax.random.key(3)
    step_key = jax.random.fold_in(rng, 0)

    def by_hand(params):
        outputs, statistics = [], start.batch_stats
        for number in range(parts):
            rows = slice(number * 4, number * 4 + 4)
            key = jax.random.split(jax.random.fold_in(step_key, number))[0]
            output, changed = model.apply(
                {"params": params, "batch_stats": statistics},
                jax.tree.map(lambda x, rows=rows: x[rows], batch),
                train=True, mutable=["batch_stats"], rngs={"dropout": key},
            )  # fmt: skip
            outputs.append(output._replace(aux=dict(output.aux, logged={})))
            statistics = changed["batch_stats"]
        whole = jax.tree.map(lambda *x: jnp.concatenate(x), *outputs)
        total, terms = losses.total_loss(whole, batch, LOSSES)
        return total, (terms, statistics)

    gradients, (terms, statistics) = jax.grad(by_hand, has_aux=True)(start.params)
    new, got = step_of(model, parts)(start, batch, rng)
    moved = jax.tree.map(lambda old, new: old - new, start.params, new.params)
    assert_close(moved, gradients)
    assert_close({name: got[name] for name in terms}, terms)
    assert_close(new.batch_stats, statistics, 1e-6)


def test_activations_are_those_of_one_part():
    """And of what no loss reads, or reads without a gradient, no gradient is kept."""
    model, batch = Small(width=64), small_batch(frames=4, size=16)
    start, rng = small_state(model, batch), jax.random.key(0)
    sizes = {}
    for parts in (1, 2, 4, 8):
        compiled = step_of(model, parts).lower(start, batch, rng).compile()
        sizes[parts] = compiled.memory_analysis().temp_size_in_bytes
    assert sizes[2] < 0.7 * sizes[1]
    assert sizes[4] < 0.4 * sizes[1]
    assert sizes[8] < 0.3 * sizes[1]


def test_parts_and_their_joining_are_inverse():
    for devices, parts in ((1, 4), (2, 3), (4, 1)):
        rows = np.arange(48.0).reshape(24, 2)
        cut = optim.split_parts({"x": jnp.asarray(rows)}, parts, devices)
        np.testing.assert_array_equal(optim.join_parts(cut, devices)["x"], rows)
    empty = jnp.zeros((4, 0, 0))  # embeddings of a warm-up
    assert optim.join_parts(optim.split_parts(empty, 2)).shape == (4, 0, 0)
    assert float(optim.join_parts(jnp.arange(3.0))) == 1  # a scalar of each part


def cargait_setup(parts: int, devices: int = 1):
    config = cargait_config.get_config()
    config.model.update(num_heads=2, hidden_size=8, classifier_size=8)
    config.optimizer.update(name="sgd", learning_rate=1.0, momentum=0.0)
    config.optimizer.update(weight_decay=0.0, schedule="constant")
    config.train.update(anchors=16, accumulate=parts)
    config.mesh.data = devices
    return train_reranker.build(config, 3, 4, CLASSES, "euclidean")


def cargait_batch():
    rng = np.random.default_rng(0)
    return {
        "probe": rng.normal(size=(16, 3, 4)).astype(np.float32),
        "candidates": rng.normal(size=(16, 2, 3, 4)).astype(np.float32),
        "probe_label": rng.integers(0, CLASSES, 16).astype(np.int32),
        "candidate_labels": rng.integers(0, CLASSES, (16, 2)).astype(np.int32),
    }


def cargait_step(parts, devices=1):
    setup, rng = cargait_setup(parts, devices), jax.random.key(0)
    batch = pipeline.to_global(cargait_batch(), setup.mesh, 16)
    state, first = setup.step(setup.new_state(), batch, rng)
    state, second = setup.step(state, batch, rng)  # the first update is from zero
    return jax.device_get((state.params, first, second))


def test_cargait_accumulates():
    whole = cargait_step(1)
    assert float(whole[1]["gradient_norm"]) > 0.01
    for parts in (2, 4):
        assert_close(cargait_step(parts), whole)


def test_cargait_parts_that_do_not_divide_are_refused():
    config = cargait_config.get_config()
    config.train.update(anchors=6, accumulate=4)
    with pytest.raises(ValueError, match=r"6 rows .*anchors.* in 4 parts"):
        train_reranker.check_batch(config, sharding.make_mesh(config.mesh))


def test_eight_devices_agree_with_one():
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "8"}
    command = [sys.executable, "-m", "tests.engine.test_accumulation"]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["devices"] == 8 and found["triplet"] > 0.05
    assert max(found["difference"].values()) < 1e-5, found


def on_eight_devices():
    """Without parts, on one device (CarGait: on eight), and parts on eight: prints how
    much they differ."""
    difference = {}

    def compare(name, got, expected):
        pairs = zip(*map(jax.tree.leaves, jax.device_get((got, expected))))
        difference[name] = max(float(np.max(np.abs(a - b))) for a, b in pairs)

    model, batch, rng = Small(), small_batch(), jax.random.key(0)
    start = small_state(model, batch)
    whole, terms = step_of(model, 1)(start, batch, rng)
    mesh = sharding.make_mesh(ConfigDict(dict(data=8, model=1)))
    for parts in (1, 2):
        order = pipeline.part_order(IDS * SEQS, parts, 8)
        rows = {name: x[order] for name, x in batch.items()}
        rows = pipeline.to_global(rows, mesh, IDS * SEQS)
        new, got = step_of(model, parts, 8)(start, rows, rng)
        compare(f"terms, {parts} parts", got, terms)
        compare(f"gradients, {parts} parts", new.params, whole.params)
    compare("cargait", cargait_step(2, 8), cargait_step(1, 8))
    found = {"devices": jax.device_count(), "triplet": float(terms["triplet"])}
    print(json.dumps(found | {"difference": difference}))


if __name__ == "__main__":
    on_eight_devices()
