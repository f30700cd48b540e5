"""Training-free re-ranking by cosines: LBR, GCR, GNN, QE, as dense linear algebra.

n = Q + G sequences. `local_blurring` scores the candidates it is given; the other
functions score all Q x G pairs. GCR and GNN build one graph of probes and gallery, so a
probe's result depends on the other probes of the call, as published. `methods.py` puts
all of them under one contract and can restrict them to a shortlist.

All work on `features`: the L2-normalised strips of a sequence side by side, divided by
sqrt(S), so that a dot product is the mean of the strips' cosines.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from gaitjax.retrieval.distance import unit_strips

ROWS = 256  # rows handled at a time; temporary arrays are ROWS x n or ROWS x n x k
HIGHEST = jax.lax.Precision.HIGHEST


def features(embeddings) -> jax.Array:
    """Embeddings [n S D] -> unit vectors float32 [n S*D] (see the module)."""
    x = unit_strips(jnp.asarray(embeddings).astype(jnp.float32))  # [n S D]
    return x.reshape(x.shape[0], -1) / np.sqrt(x.shape[1])  # [n S*D]


def local_blurring(probe, candidates, *, temperature: float = 0.3) -> jax.Array:
    """LBR: candidates blurred with each other, then compared with the probe.

    Luo et al., "Spectral Feature Transformation for Person Re-identification", ICCV
    2019: W = row-normalised exp(C C^T / temperature), C' = W C; score q . C'. Probes do
    not influence each other. Memory: [B K F] and [B K K].

    Args:
      probe: `features` of the probes, [B F].
      candidates: `features` of each probe's shortlist, [B K F].

    Returns:
      float32 [B K], 1 - similarity (smaller is nearer).
    """
    gram = jnp.einsum("bkf,blf->bkl", candidates, candidates, precision=HIGHEST)
    mixing = jax.nn.softmax(gram / temperature, axis=2)  # [B K K]
    similarity = jnp.einsum("bf,bkf->bk", probe, candidates, precision=HIGHEST)
    # q . (W C) = W (C q), which needs no blurred candidates
    return 1 - jnp.einsum("bkl,bl->bk", mixing, similarity, precision=HIGHEST)


def graph_convolution(
    probe,
    gallery,
    *,
    views=None,
    k1: int = 15,
    k2: int = 3,
    temperature1: float = 0.2,
    temperature2: float = 0.2,
    scale: float = 0.3,
    rounds: int = 3,
) -> np.ndarray:
    """GCR: features are propagated over their nearest-neighbour graph, then compared.

    Zhang et al., "Graph Convolution Based Efficient Re-Ranking for Visual Retrieval"
    (arXiv 2306.08792). Each round: A_ij = exp(x_i.x_j / temperature1) for the k1
    nearest j of i and i itself; X_g = D_row^-1/2 A D_col^-1/2 X. With views, a second
    graph of the k2 nearest of *other* views (and i itself) gives X_cross, and X = scale
    X_cross + (1 - scale) X_g; rows are L2-normalised. Memory: three [n S*D] and
    ROWS x n, never n x n.

    Difference from the paper: a gait data set's views take the place of its cameras.

    Args:
      probe: [Q S D], gallery: [G S D].
      views: (probe views [Q], gallery views [G]), any comparable type; None: no second
        graph (scale 0).

    Returns:
      float32 [Q G], 1 - cosine.
    """
    x = jnp.concatenate([features(probe), features(gallery)])
    n, count = x.shape[0], np.shape(probe)[0]
    cross = views is not None
    if cross:
        names = np.concatenate([np.asarray(views[0]), np.asarray(views[1])])
        view = jnp.asarray(np.unique(names, return_inverse=True)[1].astype(np.int32))
    else:
        view = jnp.zeros(n, jnp.int32)
    for _ in range(rounds):
        graph = _knn(x, view, min(k1, n - 1), False)
        mixed = _propagate(x, *graph, temperature1)
        if cross:
            graph = _knn(x, view, min(k2, n - 1), True)
            other = _propagate(x, *graph, temperature2)
            mixed = scale * other + (1 - scale) * mixed
        x = unit_strips(mixed)
    return 1 - np.asarray(_dot(x[:count], x[count:]))


@functools.partial(jax.jit, static_argnums=(2, 3))
def _knn(x, view, k: int, other_views: bool):
    """(similarity [n k+1], index [n k+1]): self, then the k most similar others.

    other_views: only sequences of another view; missing ones have similarity -inf.
    """
    n = x.shape[0]

    def nearest_of(row):
        similarity = jnp.dot(x, x[row], precision=HIGHEST)  # [n]
        barred = jnp.arange(n) == row
        if other_views:
            barred |= view == view[row]
        values, index = jax.lax.top_k(jnp.where(barred, -jnp.inf, similarity), k)
        own = similarity[row][None]
        return jnp.concatenate([own, values]), jnp.concatenate([row[None], index])

    return jax.lax.map(nearest_of, jnp.arange(n), batch_size=ROWS)


@jax.jit
def _propagate(x, similarity, index, temperature):
    """D_row^-1/2 A D_col^-1/2 X of the sparse graph A_i,index[i,a] = exp(s / t)."""
    weight = jnp.exp(similarity / temperature)  # [n k]; exp(-inf) = 0
    rows = jnp.sum(weight, axis=1)  # [n]
    columns = jnp.zeros_like(rows).at[index].add(weight)  # [n]
    weight = weight / jnp.sqrt(rows[:, None] * columns[index])

    def add(number, total):
        return total + weight[:, number][:, None] * x[index[:, number]]

    return jax.lax.fori_loop(0, index.shape[1], add, jnp.zeros_like(x))


def graph_network(
    probe, gallery, *, k1: int = 26, k2: int = 7, weight: float = 0.3, rounds: int = 2
) -> np.ndarray:
    """GNN: compares neighbour lists, passed on like messages, instead of features.

    Zhang et al., "Understanding Image Retrieval Re-Ranking: A Graph Neural Network
    Perspective" (arXiv 2012.07620). A = 0/1 of the k1 nearest (self included); twice:
    A <- A + A^T, A_i <- sum over the k2 nearest j (self included) of s_ij^2 A_j, rows
    L2-normalised. Similarity (1 - weight) A_q.A_g + weight cosine. Memory: four float32
    arrays [n n].

    Args:
      probe: [Q S D], gallery: [G S D].

    Returns:
      float32 [Q G], 1 - similarity.
    """
    x = jnp.concatenate([features(probe), features(gallery)])
    n, count = x.shape[0], np.shape(probe)[0]
    none = jnp.zeros(n, jnp.int32)
    similarity, index = _knn(x, none, min(max(k1, k2), n) - 1, False)
    a = _adjacency(index[:, : min(k1, n)])
    k2 = min(k2, n)
    for _ in range(rounds):
        a = _message(a, similarity[:, :k2], index[:, :k2])
    cosine = _dot(x[:count], x[count:])
    score = (1 - weight) * _dot(a[:count], a[count:]) + weight * cosine
    return 1 - np.asarray(score)


@jax.jit
def _adjacency(index):
    n = index.shape[0]
    return jnp.zeros((n, n), jnp.float32).at[jnp.arange(n)[:, None], index].set(1.0)


@jax.jit
def _message(a, similarity, index):
    a = a + a.T

    def add(number, total):
        strength = similarity[:, number] ** 2  # [n]
        return total + strength[:, None] * a[index[:, number]]

    return unit_strips(jax.lax.fori_loop(0, index.shape[1], add, jnp.zeros_like(a)))


def query_expansion(
    probe, gallery, *, k: int = 5, alpha: float = 3.0, tile: int = ROWS
) -> np.ndarray:
    """alpha-QE: the probe plus its k nearest, weighted by cosine^alpha, searches again.

    Radenovic et al., "Fine-tuning CNN Image Retrieval with No Human Annotation", TPAMI
    2019, section 3.3 (the probe itself has weight 1). Negative cosines count as 0.
    Probes do not influence each other. Memory: `tile` x G.

    Args:
      probe: [Q S D], gallery: [G S D].

    Returns:
      float32 [Q G], 1 - cosine.
    """
    q, g = features(probe), features(gallery)
    k = min(k, g.shape[0])
    blocks = [
        np.asarray(_expanded(q[row : row + tile], g, k, alpha))
        for row in range(0, q.shape[0], tile)
    ]
    return 1 - np.concatenate([np.zeros((0, g.shape[0]), np.float32), *blocks])


@functools.partial(jax.jit, static_argnums=2)
def _expanded(q, g, k: int, alpha):
    values, index = jax.lax.top_k(_dot(q, g), k)  # [q k]
    weight = jnp.maximum(values, 0) ** alpha
    asked = q + jnp.einsum("qk,qkf->qf", weight, g[index], precision=HIGHEST)
    return _dot(unit_strips(asked), g)


@jax.jit
def _dot(a, b):
    """a [q f], b [g f] -> [q g] in float32."""
    return jnp.einsum("qf,gf->qg", a, b, precision=HIGHEST)
