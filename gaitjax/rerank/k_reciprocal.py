"""KR: re-ranking with k-reciprocal neighbour sets, as sparse arrays on the device."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

ROWS = 256  # rows handled at a time
COLUMNS = 1024  # gallery sequences handled at a time


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
    2017. n = Q + G sequences. An encoding is zero outside the few members of its set,
    so only the members are kept: `columns` int [n m], filled up with n, and their
    `values` [n m]. Memory beyond the distances and the result: n x COLUMNS, and n x k2
    x the largest set (at most (k1 + 1)(k1 / 2 + 2), in practice tens).

    Differences from the paper: none known. As in its code, round(k1 / 2) rounds halves
    to even, a neighbour's own set joins if more than 2/3 of it is shared, and distances
    are divided by the maximum of their row. k1 and k2 above n mean n. All probes are
    ranked together, so a probe's result depends on the other probes.

    Args:
      distance: [n n] of all against all, probes first: finite, not negative, symmetric,
        zero diagonal.
      num_probes: Q.
      k1, k2: sizes of the neighbourhoods for the sets and for the query expansion of
        their encodings (1: none), self included in k2 and not in k1.
      weight: of the original (scaled) distance in the result.
      squared: square the distances first, as the paper does; OpenGait does not.

    Returns:
      float32 [Q G].
    """
    xp = jnp if isinstance(distance, jax.Array) else np
    distance = xp.asarray(distance, np.float32)
    n = distance.shape[0]
    near = min(k1 + 1, n)
    half = min(round(k1 / 2) + 1, near)
    expand = min(max(k2, 1), n)
    found = [
        _nearest_of_rows(distance[row : row + ROWS], max(near, expand))
        for row in range(0, n, ROWS)
    ]
    nearest, largest = zip(*found)
    # if a row is all zeros, 0 / tiny = 0
    largest = np.maximum(np.concatenate(largest), np.finfo(np.float32).tiny)
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
    """(k nearest [q k], largest distance [q]) of distances [q n]; ties by position."""
    nearest = jax.lax.top_k(0 - distance, k)[1]  # 0 - x: no negative zeros
    return nearest, jnp.max(distance, axis=1)


@functools.partial(jax.jit, static_argnums=1)
def _sets(neighbours, half: int):
    """The expanded k-reciprocal sets with repetitions: columns [n *], n = no member.

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
    """bool [n k]: row i is among the k neighbours of its a-th neighbour."""
    back = neighbours[neighbours]  # [n k k]
    self_index = jnp.arange(neighbours.shape[0])[:, None, None]
    return jnp.any(back == self_index, axis=2)


def _compact(columns, n: int):
    """Each row's distinct columns below n, ascending, then n: [n *] -> [n m].

    m: the size of the largest set, rounded up to a power of two so that few shapes are
    compiled.
    """
    distinct, most = _distinct(columns, n)
    return distinct[:, : 1 << max(int(most) - 1, 0).bit_length()]


@functools.partial(jax.jit, static_argnums=1)
def _distinct(columns, n: int):
    """(columns [n *] as in `_compact`, filled up with n; size of the largest set).

    Each pass takes every row's smallest column above its last one.
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
    """exp(-scaled distance) on the sets, each row with sum 1: values [n m]."""
    values = jnp.exp(-_scaled(distance, largest, squared))
    values = jnp.where(columns < columns.shape[0], values, 0)
    total = jnp.sum(values, axis=1, keepdims=True)
    # a set can be empty if sequences are copies of each other
    return values / jnp.where(total > 0, total, 1)


@jax.jit
def _of_neighbours(columns, values, neighbours):
    """Mean encoding of each row's k neighbours: columns, values [n k*m].

    Columns may repeat; their values then add up.
    """
    n, k = neighbours.shape
    return columns[neighbours].reshape(n, -1), values[neighbours].reshape(n, -1) / k


@jax.jit
def _amounts(members, columns, values):
    """The encodings (columns, values) [q *] at `members` [q m]: values [q m]."""

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
    """sum_k min(probe[q, k], gallery[k, g]): [q g].

    members, amounts: the probes' encodings [q m]. gallery: encodings [n g].
    """

    def add(number, total):
        theirs = gallery[members[:, number]]  # [q g]; index n: amount 0
        return total + jnp.minimum(theirs, amounts[:, number][:, None])

    start = jnp.zeros((members.shape[0], gallery.shape[1]), jnp.float32)
    return jax.lax.fori_loop(0, members.shape[1], add, start)
