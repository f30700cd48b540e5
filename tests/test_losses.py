"""Each loss by hand, by a naive loop, and by finite differences."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from configs import lmgait
from gaitjax import losses, settings
from gaitjax.parts.output import GaitOutput


def normal(*shape, seed=0):
    values = np.random.default_rng(seed).standard_normal(shape)
    return jnp.asarray(values, jnp.float32)


def check_gradient(function, *arguments):
    check_grads(
        jax.jit(function),
        arguments,
        order=1,
        modes=["rev"],
        atol=2e-2,
        rtol=2e-2,
        eps=1e-2,
    )


def output(embeddings=None, logits=None, **aux):
    return GaitOutput(embeddings, logits, aux)


# ---------------------------------------------------------------- triplet


def naive_triplet(embeddings, labels, margin):
    """Per strip: mean non-zero hinge and their number, the anchor its own positive."""
    x = np.asarray(embeddings, np.float64)
    result = []
    for strip in range(x.shape[1]):
        terms = []
        for a in range(len(x)):
            for p in range(len(x)):
                for n in range(len(x)):
                    if labels[a] == labels[p] and labels[a] != labels[n]:
                        near = np.linalg.norm(x[a, strip] - x[p, strip])
                        far = np.linalg.norm(x[a, strip] - x[n, strip])
                        terms.append(max(near - far + margin, 0.0))
        positive = [term for term in terms if term > 0]
        result.append((np.mean(positive) if positive else 0.0, len(positive)))
    return np.array(result).T


def test_triplet_by_hand():
    # identities at 0, 1 and 1.05, 3: distances on a line
    x = jnp.array([0.0, 1.0, 1.05, 3.0]).reshape(4, 1, 1)
    # anchor 0: (self, 1) x (1.05, 3); anchor 1: (self, 0) x (0.05, 2); ...
    terms = [1 - 1.05 + 0.2, 0.2 - 0.05, 1 + 0.2 - 0.05]  # anchors 0 and 1
    terms += [0.2 - 0.05, 1.95 + 0.2 - 1.05, 1.95 + 0.2 - 0.05]  # anchor 1.05
    terms += [1.95 + 0.2 - 2.0]  # anchor 3
    loss, count = losses.batch_all_triplet_by_label(
        x, jnp.array([0, 0, 1, 1]), margin=0.2
    )
    np.testing.assert_allclose(loss, [np.mean(terms)], rtol=1e-5)
    assert count == len(terms)
    grouped = losses.batch_all_triplet(x, seqs_per_id=2, margin=0.2)
    np.testing.assert_allclose(grouped, loss, rtol=1e-6)


def test_triplet_by_a_naive_loop_with_uneven_identities():
    x, labels = normal(7, 3, 4), np.array([2, 0, 2, 1, 0, 2, 1])
    expected, number = naive_triplet(x, labels, 0.3)
    loss, count = losses.batch_all_triplet_by_label(x, jnp.asarray(labels), margin=0.3)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    np.testing.assert_array_equal(count, number)


def test_chunks_of_anchors_change_nothing(monkeypatch):
    x, labels = normal(8, 3, 4), jnp.arange(8) // 2

    def value():
        def loss(x):
            by_label, _ = losses.batch_all_triplet_by_label(x, labels, margin=0.3)
            grouped = losses.batch_all_triplet(x, seqs_per_id=2, margin=0.3)
            return jnp.sum(by_label) + 2 * jnp.sum(grouped)

        return jax.jit(jax.value_and_grad(loss))(x)

    whole = value()
    monkeypatch.setattr(losses.metric, "TRIPLET_CHUNK", 3 * 8 * 8 * 3)
    chunked = value()
    np.testing.assert_allclose(whole[0], chunked[0], rtol=1e-6)
    np.testing.assert_allclose(whole[1], chunked[1], atol=1e-6)


def test_triplet_gradient():
    x, labels = normal(6, 2, 3), jnp.array([0, 0, 1, 1, 2, 2])
    check_gradient(
        lambda x: losses.batch_all_triplet_by_label(x, labels, margin=5.0)[0], x
    )


def test_triplet_gradient_is_finite_when_all_embeddings_are_equal():
    x = jnp.ones((4, 2, 3))
    gradient = jax.grad(
        lambda x: losses.batch_all_triplet(x, seqs_per_id=2, margin=0.2).sum()
    )(x)
    np.testing.assert_array_equal(gradient, 0)


def test_a_grouped_batch_with_padded_rows_equals_the_loss_by_label():
    x, labels = normal(8, 3, 4), jnp.arange(8) // 2
    valid = jnp.array([1, 1, 1, 0, 0, 0, 1, 1], bool)
    output = GaitOutput(x, None, {})
    batch = {"valid": valid[:, None], "labels": labels}
    fields = {"weight": 1.0, "margin": 5.0}

    def value(x, **more):
        losses_of = {"triplet": fields | more}
        return losses.total_loss(output._replace(embeddings=x), batch, losses_of)[0]

    found = jax.value_and_grad(value)(x)
    grouped = jax.value_and_grad(lambda x: value(x, seqs_per_id=2))(x)
    np.testing.assert_allclose(grouped[0], found[0], rtol=1e-6)
    np.testing.assert_allclose(grouped[1], found[1], atol=1e-6)
    # 8 x 2 x 8 terms per strip, not 8 x 8 x 8
    shapes = str(jax.make_jaxpr(lambda x: value(x, seqs_per_id=2))(x))
    assert "[8,3,2,8]" in shapes and "[8,3,8,8]" not in shapes


# ---------------------------------------------------------------- classification


def test_cross_entropy_by_hand_and_by_loop():
    logits, labels = normal(3, 2, 5), np.array([4, 0, 2])
    loss = losses.strip_cross_entropy(
        logits, jnp.asarray(labels), scale=2.0, smoothing=0.1
    )
    z = 2 * np.asarray(logits, np.float64)
    for row in range(3):
        for strip in range(2):
            log_share = z[row, strip] - np.log(np.exp(z[row, strip]).sum())
            target = np.full(5, 0.1 / 5)
            target[labels[row]] += 0.9
            np.testing.assert_allclose(
                loss[row, strip], -(target * log_share).sum(), rtol=1e-5
            )
    uniform = losses.strip_cross_entropy(
        jnp.zeros((1, 1, 8)), jnp.array([3]), scale=16.0, smoothing=0.1
    )
    np.testing.assert_allclose(uniform, [[np.log(8)]], rtol=1e-6)
    check_gradient(
        lambda x: losses.strip_cross_entropy(
            x, jnp.asarray(labels), scale=2.0, smoothing=0.1
        ),
        logits,
    )


def test_supcon_by_a_naive_loop():
    x, labels = normal(6, 4), np.array([0, 1, 0, 1, 2, 0])
    z = np.asarray(x, np.float64)
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    score = -np.linalg.norm(z[:, None] - z[None], axis=-1) / 0.5
    terms = []
    for i in range(6):
        others = [j for j in range(6) if j != i]
        partition = np.log(np.exp(score[i, others]).sum())
        positives = [j for j in others if labels[j] == labels[i]]
        if positives:
            terms.append(-np.mean(score[i, positives] - partition))
    function = functools.partial(
        losses.supcon_loss, labels=jnp.asarray(labels), temperature=0.5
    )
    np.testing.assert_allclose(function(x), np.mean(terms), rtol=1e-5)
    check_gradient(function, x)


def test_ranking_loss_by_hand():
    positive, negative = jnp.array([1.0, 3.0]), jnp.array([2.0, 1.0])
    loss = losses.ranking_loss(positive, negative, easy_weight=0.1)
    expected = [0.1 * np.log1p(np.exp(-1.0)), np.log1p(np.exp(2.0))]
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    check_gradient(
        functools.partial(losses.ranking_loss, easy_weight=0.1), positive, negative
    )


# ---------------------------------------------------------------- maps


def test_binary_cross_entropy_by_hand_and_finite_at_the_ends():
    loss = losses.binary_cross_entropy(jnp.array([0.25, 0.25]), jnp.array([1.0, 0.0]))
    np.testing.assert_allclose(loss, [np.log(4), np.log(4 / 3)], rtol=1e-5)
    ends, target = jnp.array([0.0, 1.0, 0.0, 1.0]), jnp.array([1.0, 0.0, 0.0, 1.0])
    value, gradient = jax.value_and_grad(
        lambda p: losses.binary_cross_entropy(p, target).sum()
    )(ends)
    assert np.isfinite(value) and np.isfinite(gradient).all()
    check_gradient(
        lambda p: losses.binary_cross_entropy(p, target),
        jnp.array([0.2, 0.5, 0.7, 0.6]),
    )


def naive_smoothness(maps, reduce):
    maps = np.asarray(maps, np.float64)
    kernel = np.array([[1, 0, -1], [2, 0, -2], [1, 0, -1]])
    channels = maps.shape[-1]
    if reduce == "sum":
        maps = maps.sum(-1, keepdims=True)
    padded = np.pad(maps, ((0, 0), (1, 1), (1, 1), (0, 0)))
    total = 0.0
    for n, i, j, c in np.ndindex(maps.shape):
        patch = padded[n, i : i + 3, j : j + 3, c]
        total += abs((patch * kernel).sum()) + abs((patch * kernel.T).sum())
    return total / (maps.shape[0] * maps.shape[1] * maps.shape[2] * channels)


@pytest.mark.parametrize("reduce", ["channel", "sum"])
def test_smoothness_by_a_naive_loop(reduce):
    maps = normal(2, 5, 4, 3)
    function = functools.partial(losses.smoothness_loss, reduce=reduce)
    np.testing.assert_allclose(
        function(maps), naive_smoothness(maps, reduce), rtol=1e-5
    )
    check_grads(function, (maps,), order=1, modes=["rev"], atol=1e-2, rtol=1e-2)


def test_smoothness_by_hand():
    # one lit pixel: |Sobel x| and |Sobel y| are 1+2+1+1+2+1 = 8 each
    maps = jnp.zeros((1, 5, 5, 2)).at[0, 2, 2, 0].set(1.0)
    np.testing.assert_allclose(losses.smoothness_loss(maps), 16 / 50)
    gradient = jax.grad(losses.smoothness_loss)(jnp.zeros((1, 3, 3, 1)))
    np.testing.assert_array_equal(gradient, 0)


def test_diversity_by_hand_and_by_loop():
    equal = jnp.ones((1, 2, 2, 16))
    np.testing.assert_allclose(losses.diversity_loss(equal), 0, atol=1e-4)
    single = jnp.zeros((1, 2, 2, 16)).at[..., 3].set(0.5)
    np.testing.assert_allclose(losses.diversity_loss(single), 4, rtol=1e-4)
    empty = jnp.zeros((1, 2, 2, 16))
    np.testing.assert_allclose(losses.diversity_loss(empty), 4)
    assert np.isfinite(jax.grad(losses.diversity_loss)(empty)).all()
    maps = jnp.abs(normal(3, 4, 2, 8))
    share = np.asarray(maps, np.float64).sum((1, 2))
    share /= share.sum(1, keepdims=True)
    expected = np.mean(3 + (share * np.log2(share)).sum(1))
    np.testing.assert_allclose(losses.diversity_loss(maps), expected, atol=2e-5)
    check_grads(
        losses.diversity_loss, (maps,), order=1, modes=["rev"], atol=1e-2, rtol=1e-2
    )


# ---------------------------------------------------------------- adapters

CONFIG = {
    "triplet": {"weight": 1.0, "margin": 0.3},
    "triplet_hard": {"weight": 1.0, "margin": 0.3},
    "cross_entropy": {"weight": 1.0, "scale": 4.0, "smoothing": 0.1},
    "supcon": {"weight": 0.5, "temperature": 0.5},
    "silhouette": {"weight": 1.0},
    "reconstruction": {"weight": 1.0},
    "smoothness": {"weight": 0.01, "reduce": "channel"},
    "diversity": {"weight": 5.0},
    "binary_cross_entropy": {"weight": 10.0},
    "words": {"weight": 1.0},
    "parts": {"weight": 1.0},
    "joints": {"weight": 1.0},
    "captions": {"weight": 0.1, "temperature": 0.1},
}
OF_SEQUENCES = ("image_vectors", "caption_vectors", "caption_ids")  # [B ...] of aux


def everything(frames=3, rows=4):
    """An output and batch that every loss accepts, all frames valid."""
    shape = (rows, frames, 4, 3)
    result = output(
        normal(rows, 2, 5),
        normal(rows, 2, 6, seed=1),
        foreground_probability=jax.nn.sigmoid(normal(*shape, seed=2)),
        silhouette_target=(normal(*shape, seed=3) > 0).astype(jnp.float32),
        token_valid=normal(*shape, seed=4) > -1,
        reconstruction=normal(*shape, 5, seed=5),
        reconstruction_target=normal(*shape, 5, seed=6),
        denoised=jax.nn.softmax(normal(*shape, 5, seed=7)),
        mask_probability=jax.nn.sigmoid(normal(*shape, seed=8)),
        mask_target=(normal(*shape, seed=9) > 0).astype(jnp.float32),
        word_scores_last=normal(*shape, seed=10),
        word_scores_mid=normal(*shape, seed=11),
        word_share=jax.nn.sigmoid(normal(*shape, seed=12)),
        part_logits=normal(*shape, 5, seed=13),
        part_share=jax.nn.softmax(normal(*shape, 5, seed=14)),
        joint_places=normal(*shape[:3], 2, seed=15),
        joint_targets=normal(*shape[:3], 2, seed=16),
        joint_logits=normal(*shape[:2], 6, 4, seed=17),
        joint_patches=jnp.arange(rows * frames * 4).reshape(shape[:3]) % 6,
        joint_seen=normal(*shape[:3], seed=18) > -1,
        image_vectors=normal(rows, 5, seed=19),
        caption_vectors=normal(rows, 5, seed=20),
        caption_ids=jnp.array([[1, 2], [1, 2], [1, 3], [4, 5], [6, 7]])[:rows],
    )
    labels = jnp.arange(rows) // 2
    return result, {"valid": jnp.ones((rows, frames), bool), "labels": labels}


def pad(result, batch):
    """Two garbage frames in every sequence and one sequence of garbage."""

    def longer(x, fill):
        x = jnp.pad(
            x, ((0, 0), (0, 2)) + ((0, 0),) * (x.ndim - 2), constant_values=fill
        )
        return row(x, fill)

    def row(x, fill):
        return jnp.pad(x, ((0, 1),) + ((0, 0),) * (x.ndim - 1), constant_values=fill)

    fills = {"b": False, "i": 0, "f": 0.9}
    aux = {
        name: (row if name in OF_SEQUENCES else longer)(value, fills[value.dtype.kind])
        for name, value in result.aux.items()
    }
    padded = GaitOutput(row(result.embeddings, 7.0), row(result.logits, 7.0), aux)
    return padded, {
        "valid": longer(batch["valid"], False),
        "labels": row(batch["labels"], -1),
    }


def test_the_config_above_covers_every_loss():
    assert set(CONFIG) == set(losses.LOSSES)


@pytest.mark.parametrize("name", losses.LOSSES)
def test_padding_changes_no_loss_and_gets_no_gradient(name):
    result, batch = everything()
    padded, padded_batch = pad(result, batch)
    loss = losses.LOSSES[name]
    plain = jax.jit(lambda: loss(result, batch, CONFIG[name]))()

    def of_padded(embeddings, logits, aux):
        return loss(GaitOutput(embeddings, logits, aux), padded_batch, CONFIG[name])

    floats = {k: v for k, v in padded.aux.items() if v.dtype.kind == "f"}
    bools = {k: v for k, v in padded.aux.items() if v.dtype.kind != "f"}
    value, gradients = jax.jit(
        jax.value_and_grad(
            lambda e, x, aux: of_padded(e, x, {**aux, **bools}), (0, 1, 2)
        )
    )(padded.embeddings, padded.logits, floats)
    assert plain > 0
    np.testing.assert_allclose(value, plain, rtol=1e-6)
    for gradient in jax.tree.leaves(gradients):
        np.testing.assert_array_equal(gradient[-1], 0)
        assert np.isfinite(gradient).all()
    for name, gradient in gradients[2].items():
        if name not in OF_SEQUENCES:
            np.testing.assert_array_equal(gradient[:, 3:], 0)


def test_total_is_the_weighted_sum():
    result, batch = everything()
    total, terms = losses.total_loss(result, batch, CONFIG)
    assert set(terms) == set(CONFIG) | {"total"}
    expected = sum(CONFIG[name]["weight"] * terms[name] for name in CONFIG)
    np.testing.assert_allclose(total, expected, rtol=1e-6)
    np.testing.assert_array_equal(terms["total"], total)
    assert losses.total_loss(result, batch, {})[0] == 0


def test_losses_that_the_model_cannot_feed_are_named():
    result, batch = everything()
    bare = GaitOutput(result.embeddings, None, {})
    with pytest.raises(ValueError, match="needs logits"):
        losses.LOSSES["cross_entropy"](bare, batch, CONFIG["cross_entropy"])
    with pytest.raises(ValueError, match=r"config\.loss\.diversity"):
        losses.LOSSES["diversity"](bare, batch, CONFIG["diversity"])


def test_mistakes_in_the_config_are_named_before_training():
    config = lmgait.get_config()
    settings.check(config)
    with config.unlocked():
        config.loss.triplets = {"weight": 1.0}
    with pytest.raises(ValueError, match=r"config\.loss 'triplets'.*cross_entropy"):
        settings.check(config)
    del config.loss["triplets"]
    config.loss.smoothness.reduce = "mean"
    with pytest.raises(ValueError, match=r"smoothness\.reduce.*mean.*channel"):
        settings.check(config)
