"""CarGait: the module, its training lists and triplets, its training, its rankings."""

import functools
import itertools
import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import cargait as cargait_config
from configs import gaitbase as gaitbase_config
from gaitjax import run_folder, settings
from gaitjax.data.source import Index, Source
from gaitjax.engine import loop
from gaitjax.engine.guards import Damaged
from gaitjax.engine.log import read_metrics
from gaitjax.pictures import clips, reranking
from gaitjax.rerank import base_run, cargait, compare, methods, run, train
from gaitjax.rerank.lists import (
    build_lists,
    draw_triplets,
    held_out_identities,
    leave_out,
    warn_of_full_lists,
)
from gaitjax.retrieval.distance import pairwise_distance
from gaitjax.retrieval.metrics import rank_metrics
from gaitjax.state import Setup, TrainState

STRIPS, WIDTH = 3, 8
OPTIONS = {
    "paper": {},
    "unshared": {"shared": False},
    "deep": {"num_blocks": 2, "feedforward_size": 12},
    "unshared, deep": {"shared": False, "num_blocks": 2},
    "no attention": {"cross_attention": False},
}


def make(**changes):
    fields = {
        "num_heads": 2,
        "hidden_size": 8,
        "num_blocks": 1,
        "shared": True,
        "cross_attention": True,
        "feedforward_size": 0,
        "dropout": 0.0,
        "classifier_size": 5,
        "num_classes": 4,
        "dtype": "float32",
    }
    return cargait.CarGait(**(fields | changes))


def draw(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def initial(model, compute=jax.jit):
    probe = jnp.zeros((1, STRIPS, WIDTH))
    init = functools.partial(model.init, train=False, method="pairs_and_logits")
    return compute(init)(jax.random.key(0), probe, probe[:, None])


def apply(model, variables, *inputs, **options):
    """model.apply, compiled whole: a small graph compiles faster than its parts."""
    function = functools.partial(model.apply, **options)
    return jax.tree.map(np.asarray, jax.jit(function)(variables, *inputs))


def trained(model, seed=0):
    """Parameters that are anything but their initialisation."""
    rng = np.random.default_rng(seed)
    shapes = initial(model, lambda init: functools.partial(jax.eval_shape, init))
    noise = lambda x: 0.5 * rng.normal(size=x.shape).astype(np.float32)  # noqa: E731
    return jax.tree.map(noise, shapes)


# ---------------------------------------------------------------- module


@pytest.mark.parametrize("options", OPTIONS)
def test_an_untrained_reranker_gives_the_inputs_and_their_order_back(options):
    model = make(**OPTIONS[options])
    probe, gallery = draw(0, 6, STRIPS, WIDTH), draw(1, 20, STRIPS, WIDTH)
    candidates = np.broadcast_to(gallery, (6, 20, STRIPS, WIDTH))
    variables = initial(model)
    pair = apply(model, variables, probe, candidates, train=False)
    np.testing.assert_array_equal(
        pair[0], np.broadcast_to(probe[:, None], candidates.shape)
    )
    np.testing.assert_array_equal(pair[1], candidates)
    new = apply(model, variables, probe, candidates, method="distance")
    base = pairwise_distance(probe, gallery, metric="euclidean")
    np.testing.assert_allclose(new, base, rtol=1e-5)
    np.testing.assert_array_equal(np.argsort(new, axis=1), np.argsort(base, axis=1))


def test_the_equations_by_a_naive_loop():
    """E_p = F_p + Attn(Q=F_p, KV=F_c) and the mirrored one, head by head, in numpy."""
    model = make()
    variables = trained(model)
    probe, candidates = draw(0, 2, STRIPS, WIDTH), draw(1, 2, 3, STRIPS, WIDTH)
    got = apply(model, variables, probe, candidates, train=False)
    weights = apply(model, variables, probe, candidates, method="attention")
    p = jax.tree.map(np.asarray, variables["params"]["directions_0_both"])

    def norm(x):
        scale, bias = p["project"]["norm"]["scale"], p["project"]["norm"]["bias"]
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
        return x * scale + bias

    def project(x, name):
        return norm(x) @ p["project"][name]["kernel"] + p["project"][name]["bias"]

    def attend(own, other):
        q, k, v = project(own, "query"), project(other, "key"), project(other, "value")
        heads, maps = [], []
        for head in range(2):
            part = slice(4 * head, 4 * head + 4)
            scores = q[:, part] @ k[:, part].T / 2.0  # sqrt of the head's size 4
            share = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
            heads.append(share @ v[:, part])
            maps.append(share)
        output = p["update"]["output"]
        update = np.concatenate(heads, 1) @ output["kernel"] + output["bias"]
        return own + update, np.stack(maps)

    for b, k in itertools.product(range(2), range(3)):
        expected_p, map_p = attend(probe[b], candidates[b, k])
        expected_c, map_c = attend(candidates[b, k], probe[b])
        np.testing.assert_allclose(got[0][b, k], expected_p, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(got[1][b, k], expected_c, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(weights[0][b, k], map_p, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(weights[1][b, k], map_c, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("options", OPTIONS)
def test_distance_is_symmetric_exactly_where_the_module_is_shared(options):
    model = make(**OPTIONS[options])
    variables = trained(model)
    one, two = draw(0, 4, STRIPS, WIDTH), draw(1, 4, STRIPS, WIDTH)
    forth = apply(model, variables, one, two[:, None], method="distance")
    back = apply(model, variables, two, one[:, None], method="distance")
    if model.shared:
        np.testing.assert_allclose(forth, back, rtol=1e-5)
    else:
        assert np.abs(forth - back).max() > 1e-2


@pytest.mark.parametrize("options", OPTIONS)
def test_prepared_sequences_score_as_the_embeddings_do(options):
    model = make(**OPTIONS[options])
    variables = trained(model)
    probe, gallery = draw(0, 2, STRIPS, WIDTH), draw(1, 5, STRIPS, WIDTH)
    shortlist = np.array([[0, 4, 2], [3, 3, 1]])
    prepare = lambda x: apply(model, variables, x, method="prepare")  # noqa: E731
    listed = jax.tree.map(lambda x: x[shortlist], prepare(gallery))
    got = apply(model, variables, prepare(probe), listed, method="prepared_distance")
    pair = apply(model, variables, probe, gallery[shortlist], train=False)
    expected = np.linalg.norm(np.asarray(pair[0] - pair[1]), axis=-1).mean(-1)
    np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_gradients_are_finite_where_two_sequences_are_identical():
    model = make()
    same = draw(0, 2, STRIPS, WIDTH)
    for variables in (initial(model), trained(model)):

        def total(params, same, variables=variables):
            new = model.apply(
                {"params": params}, same, same[:, None], method="distance"
            )
            return new.sum()

        function = jax.jit(jax.value_and_grad(total, argnums=(0, 1)))
        value, gradients = function(variables["params"], same)
        assert 0 <= value < 1e-3
        for leaf in jax.tree.leaves(gradients):
            assert np.isfinite(leaf).all() and np.abs(leaf).max() < 1e-3


def test_dropout_acts_in_training_only():
    model = make(dropout=0.5)
    variables = trained(model)
    inputs = draw(0, 2, STRIPS, WIDTH), draw(1, 2, 2, STRIPS, WIDTH)

    def outputs(train, key):
        rngs = {"dropout": jax.random.key(key)}
        return apply(model, variables, *inputs, train=train, rngs=rngs)[0]

    np.testing.assert_array_equal(outputs(False, 0), outputs(False, 1))
    assert np.abs(outputs(True, 0) - outputs(True, 1)).max() > 0.1


def test_nan_names_the_step_the_term_and_the_triplets():
    table, config = toy(4, seed=0), toy_config()
    config.train.anchors = 2
    lists = lists_of(table, size=5)
    drawn = draw_triplets(lists, count=2, seed=config.seed, step=2)
    terms = {"total": np.nan, "ranking": 1.0}
    name_rows = functools.partial(train._name_triplets, config, table, lists)
    with pytest.raises(FloatingPointError, match="Step 3: total not finite") as caught:
        loop.check_finite(3, terms, name_rows)
    triplets = [", ".join(table.key[[*rows]]) for rows in zip(*drawn)]
    assert all(triplet in str(caught.value) for triplet in triplets)
    loop.check_finite(3, {"total": 1.0}, name_rows)


def test_a_wrong_head_count_is_explained():
    config = toy_config()
    config.model.update(hidden_size=8, num_heads=3)
    with pytest.raises(ValueError, match="hidden_size=8 is no multiple.*num_heads=3"):
        settings.check(config)


# ---------------------------------------------------------------- lists and triplets


def table_of(values, subject, view=None):
    """One strip, one number per sequence."""
    embeddings = np.asarray(values, np.float32)[:, None, None]
    subject = np.array(subject)
    view = np.array(view or subject)
    return base_run.Table(embeddings, subject, view, subject, "euclidean", "made up")


def lists_of(table, size, without_negative="skip", same_view=True):
    config = cargait_config.get_config().lists
    config.size, config.without_negative = size, without_negative
    config.same_view = same_view
    rows = np.arange(len(table.subject))
    return build_lists(table, rows, config, mesh=None)


def test_top_lists_by_hand():
    #        row: 0    1    2    3     4     5
    table = table_of([0.0, 1.0, 1.5, 10.0, 11.0, 13.0], list("aabbcc"))
    lists = lists_of(table, 2)
    near = [[1, 2], [2, 0], [1, 0], [4, 5], [3, 5], [4, 3]]
    np.testing.assert_array_equal(lists.neighbours, near)
    np.testing.assert_array_equal(
        lists.positive, [[1, 0], [0, 1], [0, 0], [0, 0], [0, 1], [1, 0]]
    )
    # 2 and 3 have no positive in their lists: the nearest positive of all
    np.testing.assert_array_equal(lists.other_positive, [-1, -1, 3, 2, -1, -1])
    assert lists.usable.all()


def test_lists_without_a_negative_are_skipped_or_filled(caplog):
    table = table_of([0.0, 1.0, 2.0, 10.0, 11.0], list("aaabb"))
    skipped = lists_of(table, 2)
    np.testing.assert_array_equal(skipped.usable, [0, 0, 0, 1, 1])
    drawn = draw_triplets(skipped, count=20, seed=0, step=0)
    assert set(drawn.anchor) == {3, 4}
    filled = lists_of(table, 2, "nearest")
    np.testing.assert_array_equal(filled.other_negative, [3, 3, 3, -1, -1])
    assert filled.usable.all()
    with caplog.at_level("WARNING"):
        warn_of_full_lists(skipped, toy_config().lists)
    assert "60 % of the lists of the 2 nearest" in caplog.text
    assert "only negative" in caplog.text  # the embedded config fills them
    with pytest.raises(ValueError, match="without_negative=nearest"):
        lists_of(table_of([0.0, 1.0, 10.0, 11.0], list("aabb")), 1)
    config = toy_config()
    config.lists.without_negative = "drop"
    with pytest.raises(ValueError, match="'drop'; choose from skip, nearest"):
        settings.check(config)


def test_an_identity_with_one_sequence_is_never_an_anchor():
    lists = lists_of(table_of([0.0, 1.0, 2.0, 3.0], list("aabc")), 2)
    np.testing.assert_array_equal(lists.usable, [1, 1, 0, 0])


def test_self_is_removed_also_among_duplicates():
    near = np.array([[0, 1, 2], [0, 1, 2], [0, 1, 3], [3, 0, 1]])
    expected = [[1, 2], [0, 2], [0, 1], [0, 1]]  # row 2 is not in its own list
    out = near == np.arange(4)[:, None]
    np.testing.assert_array_equal(leave_out(near, out, 2), expected)


def test_the_own_view_can_be_left_out():
    values, view = [0.0, 1.0, 2.0, 3.0, 10.0, 11.0], list("xxyxxx")
    table = table_of(values, list("aaabbb"), view)
    lists = lists_of(table, 2, same_view=False)
    # 0 and 1 are one person in one view, no pair; 3, 4 and 5 are never a pair
    near = [[2, 3], [2, 3], [1, 3], [2, 1], [2, 1], [2, 1]]
    np.testing.assert_array_equal(lists.neighbours, near)
    np.testing.assert_array_equal(lists.positive[:3], [[1, 0], [1, 0], [1, 0]])
    np.testing.assert_array_equal(lists.usable, [1, 1, 1, 0, 0, 0])
    with pytest.raises(ValueError, match="from another view to learn from.*same_view"):
        lists_of(table_of(values, list("aaabbb"), ["x"] * 6), 2, same_view=False)


def test_triplets_are_a_function_of_seed_and_step_and_are_triplets():
    rng = np.random.default_rng(0)
    subject = np.repeat(list("abcdef"), 5)
    table = table_of(rng.normal(size=30), subject)
    lists = lists_of(table, 8, "nearest")
    first = draw_triplets(lists, count=16, seed=3, step=7)
    again = draw_triplets(lists, count=16, seed=3, step=7)
    np.testing.assert_array_equal(first, again)
    for seed, step in ((3, 8), (4, 7)):
        other = draw_triplets(lists, count=16, seed=seed, step=step)
        assert not np.array_equal(first, other)
    assert len(set(first.anchor)) == 16  # without replacement
    drawn = [draw_triplets(lists, count=16, seed=0, step=step) for step in range(200)]
    anchor, positive, negative = np.concatenate(drawn, axis=1)
    assert (subject[positive] == subject[anchor]).all() and (positive != anchor).all()
    assert (subject[negative] != subject[anchor]).all()
    assert set(anchor) == set(range(30))
    for row in (0, 13):  # every member of the list comes, and about equally often
        listed = lists.neighbours[row][~lists.positive[row]]
        seen, counts = np.unique(negative[anchor == row], return_counts=True)
        np.testing.assert_array_equal(seen, np.sort(listed))
        assert counts.min() > counts.mean() / 2


def test_held_out_identities():
    subject = np.repeat(np.arange(20), 3)
    held = held_out_identities(subject, share=0.25, seed=0)
    assert len(set(subject[held])) == 5 and not set(subject[held]) & set(subject[~held])
    again = held_out_identities(subject, share=0.25, seed=0)
    np.testing.assert_array_equal(held, again)
    other = held_out_identities(subject, share=0.25, seed=1)
    assert not np.array_equal(held, other)
    with pytest.raises(ValueError, match="sets 2 of 3 training identities apart"):
        held_out_identities(np.arange(3), share=0.1, seed=0)


# ---------------------------------------------------------------- training


def toy(identities, seed, sequences=6, fingerprint="toy"):
    """Identities are told apart by a small code that differs between strips, hidden
    under a large disturbance that all strips of a sequence share, in half of the width:
    a strip alone cannot tell, the other strips of the pair can."""
    rng = np.random.default_rng(seed)
    code = rng.normal(size=(identities, 1, STRIPS, WIDTH))
    code -= code.mean(axis=2, keepdims=True)
    shape = (identities, sequences, 1, WIDTH)
    disturbance = 2.0 * rng.normal(size=shape) * (np.arange(WIDTH) < WIDTH // 2)
    noise = 0.25 * rng.normal(size=(identities, sequences, STRIPS, WIDTH))
    embeddings = (code + disturbance + noise).reshape(-1, STRIPS, WIDTH)
    subject = np.repeat(np.arange(identities), sequences).astype(str)
    key = np.array([f"{name}/{row}" for row, name in enumerate(subject)])
    return base_run.Table(
        embeddings.astype(np.float32), subject, key, key, "euclidean", fingerprint
    )


def toy_config(steps=300):
    config = cargait_config.get_config()
    config.model.update(num_heads=2, hidden_size=16, classifier_size=8)
    config.lists.size = 12
    config.optimizer.update(learning_rate=1e-2, schedule="constant")
    config.train.update(steps=steps, anchors=32, log_every=10, checkpoint_every=steps)
    config.validation.update(share=0.2, batches=4, every_steps=50)
    return config


def rank1(table, score):
    """Percent of sequences whose nearest other one is of their identity."""
    np.fill_diagonal(score, np.inf)
    return 100 * (table.subject[score.argmin(1)] == table.subject).mean()


def test_training_lowers_the_loss_and_helps_on_new_identities(tmp_path):
    reranker = train.fit(toy_config(), tmp_path, toy(30, seed=0))
    rows = read_metrics(tmp_path / "metrics.jsonl")
    losses = [row["total"] for row in rows if row["kind"] == "train"]
    assert np.mean(losses[-5:]) < 0.6 * np.mean(losses[:5])
    validation = {
        row["step"]: row["validation/held_out/ranking"]
        for row in rows
        if row["kind"] == "eval"
    }
    assert list(validation) == [0, 50, 100, 150, 200, 250, 300]
    assert reranker.step == min(validation, key=validation.get) > 0
    assert reranker.loss == pytest.approx(min(validation.values()), rel=1e-4)

    new = toy(20, seed=1)
    base = pairwise_distance(new.embeddings, new.embeddings, metric="euclidean")
    everyone = np.broadcast_to(
        new.embeddings, (len(new.subject), *new.embeddings.shape)
    )
    score = apply(
        reranker.model,
        {"params": reranker.params},
        new.embeddings,
        everyone,
        method="distance",
    )
    before, after = rank1(new, base), rank1(new, np.array(score))
    assert after > before + 10, (before, after)


def test_a_resumed_run_is_bit_equal(tmp_path):
    config, table = toy_config(steps=8), toy(10, seed=0)
    config.model.dropout = 0.1
    config.train.update(log_every=1, checkpoint_every=3)
    config.validation.every_steps = 2
    whole = train.fit(config, tmp_path / "whole", table)

    class Killed(Exception):
        pass

    with pytest.MonkeyPatch.context() as patch:
        dying = range(5)
        steps = train.triplet_batches

        def batches(*arguments):
            for step, batch in zip(arguments[-1], steps(*arguments)):
                if arguments[-1].stop == 8 and step not in dying:
                    raise Killed
                yield batch

        patch.setattr(train, "triplet_batches", batches)
        with pytest.raises(Killed):
            train.fit(config, tmp_path / "killed", table)
    resumed = train.fit(config, tmp_path / "killed", table)
    assert resumed.step == whole.step and resumed.loss == whole.loss
    jax.tree.map(np.testing.assert_array_equal, resumed.params, whole.params)
    histories = [
        read_metrics(tmp_path / name / "metrics.jsonl") for name in ("whole", "killed")
    ]
    for row in itertools.chain(*histories):
        row.pop("wait_share", None)  # seconds of this machine
    assert histories[0] == histories[1]

    # Finished: nothing is trained, the same parameters come back.
    again = train.fit(config, tmp_path / "whole", table)
    jax.tree.map(np.testing.assert_array_equal, again.params, whole.params)

    # Another base model in the same folder is refused.
    with pytest.raises(ValueError, match="data fingerprint: toy -> other"):
        train.fit(config, tmp_path / "whole", toy(10, 0, fingerprint="other"))


def test_a_reranker_that_never_gets_better_is_the_base_model(tmp_path):
    config = toy_config(steps=2)
    config.optimizer.learning_rate = 30.0
    config.validation.every_steps = 1
    reranker = train.fit(config, tmp_path, toy(10, seed=0))
    assert reranker.step == 0
    probe, candidates = draw(0, 2, STRIPS, WIDTH), draw(1, 2, 2, STRIPS, WIDTH)
    pair = apply(
        reranker.model, {"params": reranker.params}, probe, candidates, train=False
    )
    np.testing.assert_array_equal(pair[1], candidates)


# ---------------------------------------------------------------- re-ranking


def scored(shortlist, score_fn, seed=0):
    """(base distances, re-ranked, probe ids, gallery ids) of 12 probes x 30."""
    probe, gallery = draw(seed, 12, STRIPS, WIDTH), draw(seed + 1, 30, STRIPS, WIDTH)
    distance = pairwise_distance(probe, gallery, metric="euclidean")
    after = methods.rerank(
        distance, probe, gallery, score_fn, shortlist=shortlist, chunk=5
    )
    return distance, after, np.arange(12) % 6, np.arange(30) % 6


@pytest.mark.parametrize("shortlist", [1, 10, 99])
def test_an_untrained_cargait_changes_no_ranking(shortlist):
    model = make()
    score_fn = compare.pair_score(model, initial(model)["params"])
    before, after, _, _ = scored(shortlist, score_fn)
    np.testing.assert_array_equal(
        np.argsort(before, axis=1, kind="stable"),
        np.argsort(after, axis=1, kind="stable"),
    )


def test_an_untrained_cargait_over_a_cosine_base_changes_no_ranking():
    model = make(metric="cosine")
    score_fn = compare.pair_score(model, initial(model)["params"])
    probe, gallery = draw(0, 12, STRIPS, WIDTH), draw(1, 30, STRIPS, WIDTH)
    base = pairwise_distance(probe, gallery, metric="cosine")
    rows = np.broadcast_to(np.arange(30), (12, 30))
    scores = methods.score(rows, probe, gallery, score_fn, chunk=5)
    np.testing.assert_allclose(scores, base, atol=1e-6)
    same = jax.grad(lambda x: model.pair_distance(x, x).sum())(jnp.ones((2, 3, 4)))
    np.testing.assert_allclose(same, 0, atol=1e-7)


@pytest.mark.parametrize("shortlist", [1, 10, 99])
def test_a_perfect_scorer_lifts_rank1_to_rank_k(shortlist):
    gallery = draw(1, 30, STRIPS, WIDTH)

    def perfect(probe, candidates):
        def identity(x, rows):
            gap = np.abs(x[..., None, :, :] - rows).sum((-1, -2))
            return gap.argmin(-1) % 6

        own = identity(np.asarray(probe), draw(0, 12, STRIPS, WIDTH))
        return (identity(np.asarray(candidates), gallery) != own[:, None]).astype(float)

    before, after, probe_ids, gallery_ids = scored(shortlist, perfect)
    ranks = (1, shortlist)
    old = rank_metrics(before, probe_ids, gallery_ids, ranks=ranks)
    new = rank_metrics(after, probe_ids, gallery_ids, ranks=ranks)
    assert new["rank1"] == old[f"rank{shortlist}"] == new[f"rank{shortlist}"]
    assert shortlist == 1 or new["rank1"] > old["rank1"]


def test_prepared_batched_and_single_probes_give_one_ranking(monkeypatch):
    model = make(num_blocks=2)
    params = trained(model)["params"]
    probe, gallery = draw(0, 7, STRIPS, WIDTH), draw(1, 20, STRIPS, WIDTH)
    distance = pairwise_distance(probe, gallery, metric="euclidean")
    config = cargait_config.get_config().evaluation
    config.update(shortlist=6, chunk=3)
    method = compare.trained_method(model, params, config)
    together = method(distance, probe, gallery)
    assert not np.array_equal(together.argsort(1), distance.argsort(1))
    alone = [method(distance[[i]], probe[[i]], gallery)[0] for i in range(7)]
    np.testing.assert_array_equal(together, alone)
    monkeypatch.setattr(compare, "PREPARED_LIMIT", 0)
    assert method.prepare(gallery) is None
    np.testing.assert_array_equal(together, method(distance, probe, gallery))


def test_cascade_is_lbr_and_then_cargait():
    model = make()
    params = trained(model)["params"]
    probe, gallery = draw(0, 7, STRIPS, WIDTH), draw(1, 20, STRIPS, WIDTH)
    distance = pairwise_distance(probe, gallery, metric="euclidean")
    config = cargait_config.get_config().evaluation
    config.update(shortlist=5, wide_shortlist=12, chunk=3)
    ours = compare.cascade_method(model, params, config)(distance, probe, gallery)
    wide = methods.lbr(distance, probe, gallery, shortlist=12)
    narrow = compare.trained_method(model, params, config)(wide, probe, gallery)
    np.testing.assert_array_equal(ours, narrow)
    before, middle, after = (x.argsort(1) for x in (distance, wide, ours))
    np.testing.assert_array_equal(after[:, 12:], before[:, 12:])
    np.testing.assert_array_equal(after[:, 5:], middle[:, 5:])
    assert not np.array_equal(after[:, :5], middle[:, :5])
    assert not np.array_equal(middle, before)


def toy_base(monkeypatch):
    """A base run whose model gives the toy's embeddings; returns what it embedded."""
    config = gaitbase_config.get_config()
    config.evaluation.protocols = ("casia_b",)
    state = TrainState(np.int32(5), {}, {}, {}, {})
    base = base_run.Base(config, Setup(*[None] * 6), state, "base")
    embedded = []

    def split(base, name, dataset=""):
        table = toy(30 if name == "train" else 20, seed=len(name))
        count = len(table.subject)
        index = Index(
            table.subject,
            np.array([f"nm-0{1 + i % 6}" for i in range(count)]),
            np.array([f"{18 * (i // 3 % 2):03d}" for i in range(count)]),
            np.array([f"{name}/{i}" for i in range(count)]),
            np.full(count, 4),
        )
        return Source(dataset or name, table.embeddings, index, name)

    def embed_split(model, variables, data, config, mesh):
        embedded.append(data.name)
        return data.records

    monkeypatch.setattr(base_run, "load_base", lambda config: base)
    monkeypatch.setattr(base_run, "open_base_split", split)
    monkeypatch.setattr(base_run.evaluate, "embed_split", embed_split)
    monkeypatch.setattr(clips, "rgb_frames", lambda *_: np.zeros((3, 8, 6, 3)))
    return embedded


def test_the_comparison_of_rerankers(tmp_path, monkeypatch, capsys):
    embedded = toy_base(monkeypatch)
    config = toy_config(steps=200)
    config.evaluation.rerankers = ("kr", "cargait", "cascade")  # all: test_methods.py
    report = run.rerank(config, tmp_path)
    assert report == json.loads((tmp_path / "rerank.json").read_text())
    assert list(report["rerankers"]) == ["base", "kr", "cargait", "cascade"]
    rank1 = {
        name: row["results"]["casia_b/NM/rank1"]
        for name, row in report["rerankers"].items()
    }
    assert rank1["cargait"] > rank1["base"] + 5
    for row in report["rerankers"].values():
        assert all(np.isfinite(value) and value >= 0 for value in row["costs"].values())
    table = capsys.readouterr().out
    assert f"{rank1['cargait']:.2f}" in table and "ms/probe batched" in table
    names = {path.name for path in (tmp_path / "pictures").iterdir()}
    assert names == {"reranked_NM.png", "attention.png"}

    lists = np.load(tmp_path / "rankings.npz")
    before, after = lists["casia_b/NM/base"], lists["casia_b/NM/cargait"]
    assert before.shape == after.shape == (len(lists["casia_b/NM/probe"]), 10)
    np.testing.assert_array_equal(np.sort(before, axis=1), np.sort(after, axis=1))
    order = np.argsort(lists["casia_b/NM/cargait_score"], axis=1, kind="stable")
    np.testing.assert_array_equal(np.take_along_axis(before, order, axis=1), after)
    for name in ("base", "kr", "cargait", "cascade"):
        assert lists[f"casia_b/NM/{name}"].shape == before.shape
        assert (np.diff(lists[f"casia_b/NM/{name}_distance"], axis=1) >= 0).all()
    assert not np.array_equal(lists["casia_b/NM/kr"], before)

    # Again: nothing is embedded or trained; on other data: beside the first results.
    assert embedded == ["train", "test"]
    config.data.test_dataset = "other"
    config.evaluation.rerankers = ("cargait",)
    other = run.rerank(config, tmp_path)
    assert embedded == ["train", "test"] and other["dataset"] == "other"
    results = [row["rerankers"]["cargait"]["results"] for row in (report, other)]
    assert results[0] == results[1]
    assert (tmp_path / "rerank_other.json").exists()

    # in another folder, over what may be another base run: nothing is trained
    config.reranker, config.data.test_dataset = str(tmp_path), ""
    config.evaluation.rerankers = ("lbr", "cargait")
    config.evaluation.lbr_neighbours = 0
    moved = run.rerank(config, tmp_path / "moved")
    assert moved["step"] == report["step"] and moved["reranker"] == str(tmp_path)
    assert moved["rerankers"]["cargait"]["results"] == results[0]
    assert not (tmp_path / "moved/checkpoints").exists()
    assert moved["lbr_neighbours"] in methods.NEIGHBOURS
    assert f"LBR mixes the {moved['lbr_neighbours']} nearest" in capsys.readouterr().out
    with pytest.raises(ValueError, match="'runs/x' is no folder of a re-ranker"):
        run._moved("runs/x", None)
    wide = SimpleNamespace(embeddings=np.zeros((1, 3, 99)), metric="euclidean")
    with pytest.raises(ValueError, match="embeddings of .* numbers, .*are 3 x 99"):
        run._moved(str(tmp_path), wide)


@pytest.mark.parametrize(
    "field, value, message",
    [
        ("rerankers", ("kr", "magic"), r"\[1\] 'magic'; choose from kr,.*cargait"),
        ("shortlist", 0, " must be .*1 or more; got 0"),
        ("protocols", ("ccpg",), ".* one of ccpg_gait.*; got 'ccpg'"),
    ],
)
def test_wrong_options_are_named_before_anything_is_trained(field, value, message):
    config = toy_config()
    config.evaluation[field] = value
    with pytest.raises(ValueError, match=rf"config\.evaluation\.{field}{message}"):
        settings.check(config)


def test_shown_probes_alternate_between_gains_and_losses():
    subject = np.array(list("aabbb"))
    rows = {"probe": [0] * 4, "base": [[2, 1], [1, 2], [2, 3], [1, 2]]}
    rows["cargait"] = [[1, 2], [2, 1], [2, 3], [2, 1]]
    ranking = {name: np.array(value) for name, value in rows.items()}
    assert reranking.changed_probes(ranking, subject, 4) == [0, 1, 3, 2]


def test_a_missing_base_run_is_explained(tmp_path):
    config = toy_config()
    config.base_run = str(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="is no trained run.*run.sh train"):
        run.run(config, tmp_path)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"data": 3}, "config.data must be a group"),
        (
            {"model": {"name": "gaitbase", "channels": "x"}},
            "config.model.channels must",
        ),
        ({"model": {"name": "cargait"}}, "Unknown field of config"),
        ({"seed": None}, "config.seed must be an integer"),
        ({"mode": 3}, None),  # not read
    ],
)
def test_a_damaged_config_of_the_base_run_is_named(tmp_path, changes, message):
    config = toy_config()
    config.base_run = str(tmp_path)
    content = run_folder.plain(gaitbase_config.get_config()) | changes
    (tmp_path / "config.json").write_text(json.dumps(content))
    if message is None:
        assert base_run.read_config(config).name == "gaitbase"
        return
    with pytest.raises(Damaged, match=f"config.json is damaged: {message}"):
        base_run.read_config(config)
