"""Training-free re-ranking, as dense linear algebra on the device.

n = Q + G sequences. Every function here takes arrays, scores all Q x G pairs anew
(except `local_blurring`, which scores the candidates it is given) and looks at all
probes together: a probe's result depends on the other probes of the call, as published.
`rerank.py` puts them under one contract and can restrict them to a shortlist.

Cosine methods work on `features`: the L2-normalised strips of a sequence side by side,
divided by sqrt(S), so that a dot product is the mean of the strips' cosines.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from gaitjax.retrieval.distance import unit_strips

ROWS = 256  # rows handled at a time: memory beyond the stated is this times n or n*k
COLUMNS = 1024  # KR: gallery sequences handled at a time

HIGHEST = jax.lax.Precision.HIGHEST


def features(embeddings) -> jax.Array:
    """Embeddings [n S D] -> float32 [n S*D], unit vectors (see the module)."""
    x = unit_strips(jnp.asarray(embeddings).astype(jnp.float32))  # [n S D]
    return x.reshape(x.shape[0], -1) / np.sqrt(x.shape[1])  # [n S*D]


def k_reciprocal(
    distance,
    num_probes: int,
    *,
    k1: int = 20,
    k2: int = 6,
    weight: float = 0.3,
    squared: bool = True,
) -> np.ndarray:
    """KR: Jaccard distance of k-reciprocal neighbour sets, mixed with the distance.

    Zhong et al., "Re-ranking Person Re-identification with k-reciprocal Encoding", CVPR
    2017. An encoding is zero but for the few members of its set, so only those are
    kept: `columns` int [n m], filled up with n, and their `values` [n m]. Memory beyond
    the distances and the result: n x COLUMNS, and n x k2 x the fullest set (at most
    (k1 + 1)(k1 / 2 + 2), in practice tens).

    Differences from the paper: none known. As in its code, round(k1 / 2) rounds halves
    to even, a neighbour's own set joins where more than 2/3 of it is shared, and
    distances are divided by the maximum of their row. k1 and k2 above n mean n.

    Args:
      distance: [n n] of all against all, probes first: symmetric, zero diagonal.
      num_probes: Q.
      k1, k2: sizes of the neighbourhoods for the sets and for the query expansion of
        their encodings (1: none), self included in k2 and not in k1.
      weight: of the original (scaled) distance in the result.
      squared: square the distances first, as the paper does; the field's gait code does
        not.

    Returns:
      float32 [Q G].

    Raises:
      ValueError: distances not square, not finite, negative, or, by a sample of 32
        rows, not symmetric.
    """
    xp = jnp if isinstance(distance, jax.Array) else np
    distance = xp.asarray(distance, np.float32)
    n = distance.shape[0]
    if distance.shape != (n, n) or not 0 < num_probes < n:
        raise ValueError(
            "k_reciprocal needs distances [n n] of probes and gallery together and "
            f"0 < num_probes < n; got {distance.shape}, num_probes={num_probes}."
        )
    near = min(k1 + 1, n)
    half = min(round(k1 / 2) + 1, near)
    expand = min(max(k2, 1), n)
    found = [
        _nearest_of_rows(distance[row : row + ROWS], max(near, expand))
        for row in range(0, n, ROWS)
    ]
    nearest, smallest, largest = zip(*found)
    smallest, largest = np.concatenate(smallest), np.concatenate(largest)
    if not (np.isfinite(largest).all() and np.isfinite(smallest).all()):
        raise ValueError("k_reciprocal needs finite distances; got NaN or infinity.")
    if (smallest < 0).any():
        raise ValueError("k_reciprocal needs distances >= 0.")
    largest = np.maximum(largest, np.finfo(np.float32).tiny)  # all alike: 0 / tiny
    sample = np.unique(np.linspace(0, n - 1, 32).astype(int))
    difference = np.abs(distance[sample] - distance[:, sample].T).max()
    if difference > 1e-3 * largest.max():
        raise ValueError(
            "k_reciprocal needs symmetric distances; got a pair that differs by "
            f"{difference:g} from its mirror image."
        )
    neighbours = jnp.concatenate(nearest)  # [n k]
    columns = _compact(_sets(neighbours[:, :near], half), n)  # [n m]
    original = distance[np.arange(n)[:, None], np.minimum(columns, n - 1)]
    values = _encoded(columns, original, largest, squared)  # [n m]
    if k2 > 1:
        columns, values = _of_neighbours(columns, values, neighbours[:, :expand])
    members = _compact(columns[:num_probes], n)
    amounts = _amounts(members, columns[:num_probes], values[:num_probes])
    out = np.empty((num_probes, n - num_probes), np.float32)
    for first in range(num_probes, n, COLUMNS):
        some = slice(first, min(first + COLUMNS, n))
        gallery = _dense(columns[some], values[some], n)  # [n g]
        for row in range(0, num_probes, ROWS):
            rows = slice(row, min(row + ROWS, num_probes))
            shared = _shared_mass(members[rows], amounts[rows], gallery)  # [q g]
            scaled = _scaled(distance[rows, some], largest[rows], squared)
            mixed = (1 - weight) * (1 - shared / (2 - shared)) + weight * scaled
            out[rows, first - num_probes : some.stop - num_probes] = mixed
    return out


@functools.partial(jax.jit, static_argnums=1)
def _nearest_of_rows(distance, k: int):
    """(k nearest [q k], smallest [q], largest [q]) of distances [q n]."""
    nearest = jax.lax.top_k(0 - distance, k)[1]  # no negative zeros; ties by position
    return nearest, jnp.min(distance, axis=1), jnp.max(distance, axis=1)


@functools.partial(jax.jit, static_argnums=1)
def _sets(neighbours, half: int):
    """The expanded k-reciprocal sets, with repetitions: columns [n *], n where none.

    neighbours: [n near], each row's nearest, itself included.
    """
    n = neighbours.shape[0]
    halves = neighbours[:, :half]
    mutual = _mutual(neighbours)  # [n near], which neighbours are reciprocal
    mutual_half = _mutual(halves)  # [n half]
    size_half = jnp.sum(mutual_half, axis=1)  # [n]

    def members(row):
        mine, is_mine = neighbours[row], mutual[row]  # [near]
        theirs, is_theirs = halves[mine], mutual_half[mine]  # [near half]
        known = (theirs[:, :, None] == mine[None, None, :]) & is_mine[None, None, :]
        shared = jnp.sum(jnp.any(known, axis=2) & is_theirs, axis=1)  # [near]
        joins = is_mine & (3 * shared > 2 * size_half[mine])
        joined = jnp.where(is_theirs & joins[:, None], theirs, n).reshape(-1)
        return jnp.concatenate([jnp.where(is_mine, mine, n), joined])

    return jax.lax.map(members, jnp.arange(n), batch_size=ROWS)


def _mutual(neighbours):
    """bool [n k]: is i among the k neighbours of its a-th neighbour."""
    back = neighbours[neighbours]  # [n k k]
    self_index = jnp.arange(neighbours.shape[0])[:, None, None]
    return jnp.any(back == self_index, axis=2)


def _compact(columns, n: int):
    """Each row's distinct columns below n, ascending, then n: [n *] -> [n m].

    m: what the fullest row needs, as a power of two, so that few shapes are compiled.
    """
    distinct, most = _distinct(columns, n)
    return distinct[:, : 1 << max(int(most) - 1, 0).bit_length()]


@functools.partial(jax.jit, static_argnums=1)
def _distinct(columns, n: int):
    """(columns [n *] as `_compact` makes them, filled up with n; the fullest row's).

    Each pass takes every row's smallest column above the one before.
    """

    def unfinished(state):
        _, last, _ = state
        return jnp.any(last < n)

    def add(state):
        number, last, found = state
        later = jnp.where(columns > last[:, None], columns, n)
        last = jnp.min(later, axis=1)
        return number + 1, last, found.at[:, number].set(last)

    found = jnp.full_like(columns, n)
    start = jnp.full(columns.shape[0], -1, columns.dtype)
    most, _, found = jax.lax.while_loop(unfinished, add, (0, start, found))
    return found, most - 1


def _scaled(distance, largest, squared: bool):
    scaled = distance / largest[:, None]
    return scaled * scaled if squared else scaled


@functools.partial(jax.jit, static_argnums=3)
def _encoded(columns, distance, largest, squared: bool):
    """Rows exp(-scaled) on the sets, sums 1: values [n m] of columns [n m]."""
    values = jnp.exp(-_scaled(distance, largest, squared))
    values = jnp.where(columns < columns.shape[0], values, 0)
    total = jnp.sum(values, axis=1, keepdims=True)
    return values / jnp.where(total > 0, total, 1)  # a set can be empty among copies


@jax.jit
def _of_neighbours(columns, values, neighbours):
    """The mean of the encodings of each row's k neighbours: [n k*m], columns repeat."""
    n, k = neighbours.shape
    return columns[neighbours].reshape(n, -1), values[neighbours].reshape(n, -1) / k


@jax.jit
def _amounts(members, columns, values):
    """What stands at `members` [q m] in rows of repeating columns [q *]: [q m]."""

    def amount(row):
        same = members[row][:, None] == columns[row][None, :]
        return jnp.sum(jnp.where(same, values[row], 0), axis=1)

    return jax.lax.map(amount, jnp.arange(len(members)), batch_size=ROWS)


@functools.partial(jax.jit, static_argnums=2)
def _dense(columns, values, n: int):
    """Encodings (columns, values) [g *] as [n g]."""
    sequence = jnp.arange(len(columns))[:, None]
    zeros = jnp.zeros((n, len(columns)), jnp.float32)
    return zeros.at[columns, sequence].add(values, mode="drop")


@jax.jit
def _shared_mass(members, amounts, gallery):
    """sum_k min(probe[q, k], gallery[k, g]): [q g] of members, amounts [q m]."""

    def add(number, total):
        theirs = gallery[members[:, number]]  # [q g]; beyond n: any row, amount 0
        return total + jnp.minimum(theirs, amounts[:, number][:, None])

    start = jnp.zeros((members.shape[0], gallery.shape[1]), jnp.float32)
    return jax.lax.fori_loop(0, members.shape[1], add, start)


def local_blurring(probe, candidates, *, temperature: float = 0.3) -> jax.Array:
    """LBR: candidates blurred with each other, then compared with the probe.

    Luo et al., "Spectral Feature Transformation for Person Re-identification", ICCV
    2019: W = row-normalised exp(C C^T / temperature), C' = W C; score q . C'. Depends
    on no other probe. Memory: [B K F] and [B K K].

    Args:
      probe: `features` of the probes, [B F].
      candidates: `features` of each probe's shortlist, [B K F].

    Returns:
      float32 [B K], 1 - similarity (smaller is nearer).
    """
    gram = jnp.einsum("bkf,blf->bkl", candidates, candidates, precision=HIGHEST)
    mixing = jax.nn.softmax(gram / temperature, axis=2)  # [B K K]
    similarity = jnp.einsum("bf,bkf->bk", probe, candidates, precision=HIGHEST)
    # q . (W C) = W (C q): the blurred candidates are never formed
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
    ROWS x n; never n x n.

    Differences from the paper: its "camera" is a gait data set's view [choice].

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

    other_views: only those of another view; where there are too few, similarity -inf.
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
    """GNN: neighbour lists travel like messages and are compared, not features.

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
    """alpha-QE: the probe plus its k nearest, weighted by cosine^alpha, asks again.

    Radenovic et al., "Fine-tuning CNN Image Retrieval with No Human Annotation", TPAMI
    2019, section 3.3 (the probe itself has weight 1). Negative cosines count as 0.
    Depends on no other probe. Memory: `tile` x G.

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
