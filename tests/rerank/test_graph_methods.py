"""Training-free re-rankers against slow literal NumPy in float64, three seeds."""

import jax.numpy as jnp
import numpy as np
import pytest

from gaitjax.rerank import graph_methods, k_reciprocal
from gaitjax.retrieval.distance import pairwise_distance

QUERIES, GALLERY, STRIPS, SIZE = 12, 40, 3, 5
SEEDS = [0, 1, 2]


def embeddings(seed):
    """Clustered, so that neighbourhoods mean something: probe, gallery."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(9, STRIPS, SIZE))
    number = rng.integers(0, 9, QUERIES + GALLERY)
    x = centres[number] + 0.6 * rng.normal(size=(QUERIES + GALLERY, STRIPS, SIZE))
    x = x.astype(np.float32)
    return x[:QUERIES], x[QUERIES:]


def unit(x):
    norm = np.sqrt((x * x).sum(-1, keepdims=True))
    return x / np.where(norm == 0, 1, norm)


def features(x):
    """Unit strips side by side over sqrt(S), float64."""
    return unit(x.astype(float)).reshape(len(x), -1) / np.sqrt(x.shape[1])


def nearest(values):
    """Indices of ascending values."""
    return np.argsort(values, kind="stable")


def literal_k_reciprocal(distance, num_probes, k1, k2, weight, squared):
    """Zhong et al. 2017, sample by sample with sets."""
    n = len(distance)
    d = distance.astype(float) ** (2 if squared else 1)
    d = (d / d.max(axis=0)).T
    order = np.argsort(d, axis=1, kind="stable")

    def reciprocal(i, k):
        return {j for j in order[i, : k + 1] if i in order[j, : k + 1]}

    encoding = np.zeros((n, n))
    for i in range(n):
        mine = reciprocal(i, k1)
        expanded = set(mine)
        for j in mine:
            theirs = reciprocal(j, round(k1 / 2))
            if len(theirs & mine) > 2 / 3 * len(theirs):
                expanded |= theirs
        members = sorted(expanded)
        encoding[i, members] = np.exp(-d[i, members])
        encoding[i] /= encoding[i].sum()
    if k2 > 1:
        encoding = np.stack([encoding[order[i, :k2]].mean(axis=0) for i in range(n)])
    out = np.zeros((num_probes, n - num_probes))
    for q in range(num_probes):
        for g in range(num_probes, n):
            shared = np.minimum(encoding[q], encoding[g]).sum()
            jaccard = 1 - shared / (2 - shared)
            out[q, g - num_probes] = (1 - weight) * jaccard + weight * d[q, g]
    return out


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    "k1, k2, weight, squared",
    [(6, 3, 0.3, True), (10, 1, 0.5, False), (7, 60, 0, True)],
)
def test_k_reciprocal(seed, k1, k2, weight, squared):
    x = np.concatenate(embeddings(seed))
    distance = pairwise_distance(x, x, metric="euclidean")
    np.fill_diagonal(distance, 0)
    options = dict(k1=k1, k2=k2, weight=weight, squared=squared)
    ours = k_reciprocal.k_reciprocal(distance, QUERIES, **options)
    expected = literal_k_reciprocal(distance, QUERIES, **options)
    np.testing.assert_allclose(ours, expected, atol=2e-6)


def test_k_reciprocal_in_blocks(monkeypatch):
    """Rows and columns handled a few at a time, the last block smaller."""
    x = np.concatenate(embeddings(0))
    distance = pairwise_distance(x, x, metric="euclidean")
    np.fill_diagonal(distance, 0)
    whole = k_reciprocal.k_reciprocal(distance, QUERIES)
    monkeypatch.setattr(k_reciprocal, "ROWS", 5)
    monkeypatch.setattr(k_reciprocal, "COLUMNS", 7)
    parts = k_reciprocal.k_reciprocal(distance, QUERIES)
    np.testing.assert_allclose(parts, whole, atol=1e-6)


@pytest.mark.parametrize("seed", SEEDS)
def test_local_blurring(seed):
    probe, gallery = embeddings(seed)
    rows = np.random.default_rng(seed).integers(0, GALLERY, (QUERIES, 15))
    ours = graph_methods.local_blurring(
        graph_methods.features(probe), graph_methods.features(gallery)[rows]
    )
    for q in range(QUERIES):
        c = features(gallery[rows[q]])
        mixing = np.exp(c @ c.T / 0.3)
        blurred = (mixing / mixing.sum(axis=1, keepdims=True)) @ c
        expected = 1 - blurred @ features(probe)[q]
        np.testing.assert_allclose(ours[q], expected, atol=2e-6)


def literal_graph_convolution(probe, gallery, views, k1, k2, t1, t2, scale, rounds):
    """arXiv 2306.08792 with full matrices."""
    x = features(np.concatenate([probe, gallery]))
    n = len(x)

    def propagate(similarity, k, temperature, barred):
        graph = np.zeros((n, n))
        for i in range(n):
            allowed = np.where(barred[i], -np.inf, similarity[i])
            for j in nearest(-allowed)[:k]:
                if np.isfinite(allowed[j]):
                    graph[i, j] = np.exp(similarity[i, j] / temperature)
            graph[i, i] = np.exp(similarity[i, i] / temperature)
        graph /= np.sqrt(graph.sum(axis=1)[:, None] * graph.sum(axis=0)[None, :])
        return graph @ x

    for _ in range(rounds):
        similarity = x @ x.T
        mixed = propagate(similarity, k1, t1, np.eye(n, dtype=bool))
        if views is not None:
            view = np.concatenate(views)
            same = view[:, None] == view[None, :]
            mixed = scale * propagate(similarity, k2, t2, same) + (1 - scale) * mixed
        x = unit(mixed)
    return 1 - x[:QUERIES] @ x[QUERIES:].T


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("with_views", [False, True])
def test_graph_convolution(seed, with_views):
    probe, gallery = embeddings(seed)
    views = None
    if with_views:  # view "c" is rare: fewer others than k2 for nobody, few for some
        rng = np.random.default_rng(seed)
        views = rng.choice(list("abc"), QUERIES), rng.choice(list("ab"), GALLERY)
    ours = graph_methods.graph_convolution(
        probe, gallery, views=views, k1=6, k2=3, temperature1=0.2, temperature2=0.3,
        scale=0.4, rounds=3,
    )  # fmt: skip
    expected = literal_graph_convolution(probe, gallery, views, 6, 3, 0.2, 0.3, 0.4, 3)
    np.testing.assert_allclose(ours, expected, atol=5e-6)


def test_graph_convolution_where_no_other_view_exists():
    """Only the sequence itself is left in the second graph: finite, and unlike none."""
    probe, gallery = embeddings(0)
    views = np.zeros(QUERIES), np.zeros(GALLERY)
    ours = graph_methods.graph_convolution(probe, gallery, views=views)
    expected = literal_graph_convolution(probe, gallery, views, 15, 3, 0.2, 0.2, 0.3, 3)
    np.testing.assert_allclose(ours, expected, atol=5e-6)


def literal_graph_network(probe, gallery, k1, k2, weight):
    """arXiv 2012.07620, row by row."""
    x = features(np.concatenate([probe, gallery]))
    similarity = x @ x.T
    order = np.stack([nearest(-row) for row in similarity])
    a = np.zeros_like(similarity)
    for i in range(len(x)):
        a[i, order[i, :k1]] = 1
    for _ in range(2):
        a = a + a.T
        a = unit(
            np.stack(
                [
                    sum(similarity[i, j] ** 2 * a[j] for j in order[i, :k2])
                    for i in range(len(x))
                ]
            )
        )
    score = (1 - weight) * a[:QUERIES] @ a[QUERIES:].T
    return 1 - (score + weight * similarity[:QUERIES, QUERIES:])


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("k1, k2", [(9, 4), (26, 7), (5, 1)])
def test_graph_network(seed, k1, k2):
    probe, gallery = embeddings(seed)
    ours = graph_methods.graph_network(probe, gallery, k1=k1, k2=k2, weight=0.3)
    expected = literal_graph_network(probe, gallery, k1, k2, 0.3)
    np.testing.assert_allclose(ours, expected, atol=5e-6)


@pytest.mark.parametrize("seed", SEEDS)
def test_query_expansion(seed):
    probe, gallery = embeddings(seed)
    ours = graph_methods.query_expansion(probe, gallery, k=5, alpha=3.0, tile=5)
    q, g = features(probe), features(gallery)
    for i in range(QUERIES):
        similarity = g @ q[i]
        best = nearest(-similarity)[:5]
        asked = q[i] + sum(max(similarity[j], 0) ** 3 * g[j] for j in best)
        np.testing.assert_allclose(ours[i], 1 - g @ unit(asked), atol=2e-6)


def test_neighbourhoods_larger_than_the_data():
    probe, gallery = (x[:4] for x in embeddings(0))
    x = np.concatenate([probe, gallery])
    distance = pairwise_distance(x, x, metric="euclidean")
    np.fill_diagonal(distance, 0)
    for result in (
        k_reciprocal.k_reciprocal(distance, 4),
        graph_methods.graph_convolution(probe, gallery),
        graph_methods.graph_network(probe, gallery),
        graph_methods.query_expansion(probe, gallery, k=50),
    ):
        assert result.shape == (4, 4) and np.isfinite(result).all()


def test_k_reciprocal_of_copies_and_of_half_precision():
    assert np.isfinite(k_reciprocal.k_reciprocal(np.zeros((60, 60)), 5)).all()
    x = np.concatenate(embeddings(0))
    distance = pairwise_distance(x, x, metric="euclidean")
    np.fill_diagonal(distance, 0)
    half = jnp.asarray(distance, jnp.bfloat16)
    np.testing.assert_allclose(
        k_reciprocal.k_reciprocal(half, QUERIES),
        k_reciprocal.k_reciprocal(np.asarray(half, np.float32), QUERIES),
        atol=1e-6,
    )
