"""The contract of every second stage: the first K are permuted, the tail is not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gaitjax.rerank import compare, methods
from gaitjax.rerank.methods import RERANKERS, rerank
from gaitjax.retrieval.distance import nearest, pairwise_distance
from gaitjax.retrieval.metrics import rank_metrics
from gaitjax.retrieval.protocols import Index, evaluate

QUERIES, GALLERY = 11, 25


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(6, 3, 4))
    ids = rng.integers(0, 6, QUERIES + GALLERY)
    x = centres[ids] + 0.8 * rng.normal(size=(len(ids), 3, 4))
    x = x.astype(np.float32)
    probe, gallery = x[:QUERIES], x[QUERIES:]
    distance = pairwise_distance(probe, gallery, metric="euclidean")
    return distance, probe, gallery, ids[:QUERIES], ids[QUERIES:]


def ranking(distance):
    return np.argsort(distance, axis=1, kind="stable")


@jax.jit
def reversed_score(probe, candidates):
    """The farther, the better."""
    gap = probe[:, None] - candidates  # [B K S D]
    return -jnp.mean(jnp.sqrt(jnp.sum(gap**2, axis=-1)), axis=-1)


@jax.jit
def base_score(probe, candidates):
    return -reversed_score(probe, candidates)


@pytest.mark.parametrize("k", [1, 10, GALLERY, 500])
def test_the_first_k_are_permuted_and_the_tail_is_untouched(data, k):
    distance, probe, gallery, *_ = data
    ours = rerank(distance, probe, gallery, reversed_score, shortlist=k, chunk=4)
    before, after, k = ranking(distance), ranking(ours), min(k, GALLERY)
    np.testing.assert_array_equal(after[:, k:], before[:, k:])
    np.testing.assert_array_equal(after[:, :k], before[:, :k][:, ::-1])
    tail = before[:, k:]
    np.testing.assert_array_equal(
        np.take_along_axis(ours, tail, 1), np.take_along_axis(distance, tail, 1)
    )
    # the same values, dealt out anew
    np.testing.assert_array_equal(np.sort(ours, axis=1), np.sort(distance, axis=1))


@pytest.mark.parametrize("k", [1, 10, 500])
def test_a_scorer_without_opinion_leaves_every_ranking(data, k):
    distance, probe, gallery, *_ = data
    for score_fn in (base_score, lambda p, c: np.zeros(c.shape[:2])):
        ours = rerank(distance, probe, gallery, score_fn, shortlist=k)
        np.testing.assert_array_equal(ranking(ours), ranking(distance))


@pytest.mark.parametrize("k", [3, 10])
def test_a_perfect_scorer_lifts_rank_1_to_rank_k(data, k):
    distance, probe, gallery, probe_ids, gallery_ids = data
    # identities ride along as an extra strip
    ids = [np.broadcast_to(i[:, None, None], (len(i), 1, 4)) for i in data[3:]]
    probe, gallery = (
        np.concatenate([x, i], axis=1) for x, i in zip((probe, gallery), ids)
    )

    def oracle(probe, candidates):
        return (probe[:, None, -1, 0] != candidates[:, :, -1, 0]).astype(float)

    ours = rerank(distance, probe, gallery, oracle, shortlist=k)
    base = rank_metrics(distance, probe_ids, gallery_ids, ranks=(1, k))
    lifted = rank_metrics(ours, probe_ids, gallery_ids, ranks=(1, k))
    assert base["rank1"] < base[f"rank{k}"] == lifted["rank1"] == lifted[f"rank{k}"]


def test_ties_at_zero_are_told_apart_by_devices_too():
    """Numbers below the smallest normal one are zeros to XLA."""
    distance = np.zeros((1, 6), np.float32)
    rows, scores = np.arange(6)[None], -np.arange(6.0)[None]
    ours = methods.permute(distance, rows, scores)
    np.testing.assert_array_equal(methods.first(ours, 6), [[5, 4, 3, 2, 1, 0]])


def test_ties_in_the_base_do_not_undo_the_new_order():
    """All distances equal: gallery order would win if values were only dealt out."""
    distance = np.full((2, 6), 0.5, np.float32)
    scores = np.array([[3.0, 2.0, 1.0], [1.0, 1.0, 0.0]])
    rows = methods.first(distance, 3)
    assert rows.tolist() == [[0, 1, 2]] * 2
    ours = methods.permute(distance, rows, scores)
    assert ranking(ours).tolist() == [[2, 1, 0, 3, 4, 5], [2, 0, 1, 3, 4, 5]]
    assert (ours[:, 3:] == 0.5).all()
    np.testing.assert_allclose(ours, distance, rtol=1e-6)


def test_pairs_that_do_not_count_never_move_forward():
    distance = np.array([[0.1, np.inf, 0.3, np.inf]], np.float32)
    rows = methods.first(distance, 3)
    ours = methods.permute(distance, rows, np.array([[2.0, 1.0, -5.0]]))
    assert ranking(ours).tolist() == [[2, 0, 1, 3]]
    assert np.isinf(ours[0, [1, 3]]).all()


def test_shortlists_from_the_tiled_search_are_those_of_the_matrix(data):
    distance, probe, gallery, *_ = data
    rows = methods.first(distance, 7)
    np.testing.assert_array_equal(rows, ranking(distance)[:, :7])
    _, found = nearest(probe, gallery, k=7, metric="euclidean", tile=8)
    np.testing.assert_array_equal(rows, found)
    scores = methods.score(rows, probe, jnp.asarray(gallery), base_score, chunk=3)
    np.testing.assert_allclose(
        scores, np.take_along_axis(distance, rows, axis=1), atol=1e-5
    )


@pytest.mark.parametrize("name", RERANKERS)
@pytest.mark.parametrize("k", [1, 6, 500])
def test_every_reranker_keeps_the_contract(data, name, k):
    distance, probe, gallery, *_ = data
    ours = RERANKERS[name](distance, probe, gallery, shortlist=k)
    before, after, k = ranking(distance), ranking(ours), min(k, GALLERY)
    np.testing.assert_array_equal(after[:, k:], before[:, k:])
    np.testing.assert_array_equal(np.sort(after[:, :k]), np.sort(before[:, :k]))
    tail = before[:, k:]
    np.testing.assert_array_equal(
        np.take_along_axis(ours, tail, 1), np.take_along_axis(distance, tail, 1)
    )


@pytest.mark.parametrize("name", [name for name in RERANKERS if name != "lbr"])
def test_without_a_shortlist_all_is_scored_anew(data, name):
    distance, probe, gallery, *_ = data
    free = RERANKERS[name](distance, probe, gallery)
    held = RERANKERS[name](distance, probe, gallery, shortlist=GALLERY)
    np.testing.assert_array_equal(ranking(free), ranking(held))
    assert not np.array_equal(ranking(free), ranking(distance))


def test_rerankers_plug_into_protocols(data, monkeypatch):
    _, probe, gallery, *ids = data
    subject = np.concatenate(ids).astype(str)
    camera = np.random.default_rng(1).choice(["01", "02"], len(subject))
    condition = np.array(["U0_D0"] * QUERIES + ["U1_D1"] * GALLERY)
    index = Index(subject, condition, camera, subject)
    x = np.concatenate([probe, gallery])
    base = {p: evaluate(p, x, index) for p in ("ccpg_reid", "ccpg_gait")}
    seen, gcr = [], RERANKERS["gcr"]

    def watched(distance, probe, gallery, *, views=None):
        seen.append(views)
        return gcr(distance, probe, gallery, views=views) if views else distance

    for protocol, name in (("ccpg_reid", "kr"), ("ccpg_gait", "lbr")):
        flat = evaluate(protocol, x, index, rerank=RERANKERS[name])
        assert flat.keys() == base[protocol].keys()
        assert np.isfinite(list(flat.values())).all()
    monkeypatch.setitem(RERANKERS, "gcr", watched)
    for name in ("gcr", "gcr_views"):
        method = compare.training_free_method(name, "euclidean")
        evaluate("ccpg_reid", x, index, rerank=method)
    nothing, views = seen
    assert nothing is None
    np.testing.assert_array_equal(views[0], camera[:QUERIES])
    np.testing.assert_array_equal(views[1], camera[QUERIES:])


def test_a_broken_scorer_is_refused(data):
    distance, probe, gallery, *_ = data
    with pytest.raises(ValueError, match="score_fn returned NaN"):
        bad = lambda p, c: np.full(c.shape[:2], np.nan)  # noqa: E731
        rerank(distance, probe, gallery, bad, shortlist=2)
