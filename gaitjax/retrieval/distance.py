"""Distances between strip embeddings, and exact nearest neighbours in any gallery.

Everything is computed in float32, whatever the inputs are stored in, in tiles of
probes x gallery, so no array of size Q x G x S is ever in memory.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from gaitjax.engine.guards import require

METRICS = ("euclidean", "cosine")
PROBE_TILE, GALLERY_TILE = 512, 1024  # rows; a tile of distances is 2 MiB


def pairwise_distance(
    probe,
    gallery,
    *,
    metric: str,
    probe_tile: int = PROBE_TILE,
    gallery_tile: int = GALLERY_TILE,
) -> np.ndarray:
    """Distances [Q G] between all probes and all gallery sequences.

    "euclidean": the mean over strips of each strip's L2 distance. (Squared distances,
    or one distance of the concatenated strips, would rank differently.) Rounding makes
    the distance of identical sequences up to ~3e-4 of the embeddings' spread, not 0.
    "cosine": 1 - the mean over strips of the cosines; a strip of zeros has cosine 0.

    The common mean of the gallery is subtracted first: distances do not change, but
    |p|^2 + |g|^2 - 2pg then cancels far fewer digits than on raw embeddings.

    Args:
      probe: [Q S D], numpy or jax, any floating type.
      gallery: [G S D].
      metric: "euclidean" or "cosine".
      probe_tile, gallery_tile: rows per tile; memory beyond the result is about
        two tiles of embeddings and three tiles of distances.

    Returns:
      float32 numpy array [Q G].
    """
    center = gallery_center(gallery)
    out = np.empty((probe.shape[0], gallery.shape[0]), np.float32)
    probe_tile = _tile_size(probe.shape[0], probe_tile)
    gallery_tile = _tile_size(gallery.shape[0], gallery_tile)
    for column in range(0, gallery.shape[0], gallery_tile):
        candidates = _padded(gallery[column : column + gallery_tile], gallery_tile)
        candidates = jnp.asarray(candidates)
        for row in range(0, probe.shape[0], probe_tile):
            block = out[row : row + probe_tile, column : column + gallery_tile]
            queries = _padded(probe[row : row + probe_tile], probe_tile)
            tile = tile_distance(queries, candidates, center, metric=metric)
            block[:] = np.asarray(tile)[: block.shape[0], : block.shape[1]]
    return out


def nearest(
    probe,
    gallery,
    *,
    k: int,
    metric: str,
    mesh=None,
    tile: int = GALLERY_TILE,
    probe_tile: int = PROBE_TILE,
) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest gallery sequences of each probe: exact, ties by gallery order.

    Gallery rows are split over all devices of the mesh. Each device scans its rows in
    tiles and keeps k candidates per probe; then the lists are merged. No Q x G array is
    made. Memory per device: its share of the gallery in the gallery's own dtype
    (bfloat16 halves it), one float32 tile, `probe_tile` x (tile + k) distances.

    Args:
      probe: [Q S D], numpy or jax.
      gallery: [G S D], G >= 1, numpy or jax; on several hosts the same on each.
      k: how many, at least 1; above G it means G.
      metric: "euclidean" or "cosine", as in `pairwise_distance`.
      mesh: jax.sharding.Mesh whose devices share the gallery; None: one device.
      tile: gallery rows per step. probe_tile: probes per pass over the gallery.

    Returns:
      (distances float32, gallery rows int32), both [Q min(k, G)], nearest first.

    Raises:
      ValueError: an embedding is NaN or infinite.
    """
    rows = gallery.shape[0]
    k = min(k, rows)
    if mesh is None:
        mesh = jax.make_mesh(
            (1,), ("gallery",), devices=jax.devices()[:1],
            axis_types=(jax.sharding.AxisType.Auto,),
        )  # fmt: skip
    center = gallery_center(gallery)
    share = math.ceil(rows / mesh.size)  # rows of one device
    tile = min(tile, share)
    stored = _split(gallery, share * mesh.size, mesh)
    probe_tile = _tile_size(probe.shape[0], probe_tile)
    search = _search(mesh, k, tile, rows, metric)
    distances = np.empty((probe.shape[0], k), np.float32)
    indices = np.empty((probe.shape[0], k), np.int32)
    for row in range(0, probe.shape[0], probe_tile):
        queries = _padded(probe[row : row + probe_tile], probe_tile)
        found = search(np.asarray(queries), stored, center)
        require(
            not found[2],
            f"Some distances of probes {row} to {min(row + probe_tile, len(probe)) - 1}"
            " are NaN or infinite, so embeddings of these probes or of the gallery are "
            "too. Find them with np.isfinite; the model may have diverged.",
        )
        stop = min(row + probe_tile, probe.shape[0])
        distances[row:stop] = np.asarray(found[0])[: stop - row]
        indices[row:stop] = np.asarray(found[1])[: stop - row]
    return distances, indices


def gallery_center(gallery) -> np.ndarray:
    """Mean embedding float32 [S D] of at most 4,096 evenly chosen rows.

    Any constant gives the right distances (see `pairwise_distance`), so a rough mean
    is enough.
    """
    if gallery.shape[0] == 0:
        return np.zeros(gallery.shape[1:], np.float32)
    some = gallery[:: math.ceil(gallery.shape[0] / 4096)]
    return np.asarray(some).astype(np.float32).mean(axis=0)  # [S D]


@functools.partial(jax.jit, static_argnames="metric")
def tile_distance(probe, gallery, center, *, metric: str):
    """float32 [q g] of one tile: probe [q S D], gallery [g S D], center [S D]."""
    strips = probe.shape[1]
    probe = jnp.swapaxes(probe, 0, 1).astype(jnp.float32)  # [S q D]
    gallery = jnp.swapaxes(gallery, 0, 1).astype(jnp.float32)  # [S g D]
    if metric == "cosine":
        probe, gallery = unit_strips(probe), unit_strips(gallery)
    else:
        probe, gallery = probe - center[:, None], gallery - center[:, None]

    def add_strip(total, strip):
        p, g = strip  # [q D], [g D]
        product = jnp.einsum("qd,gd->qg", p, g, precision=jax.lax.Precision.HIGHEST)
        if metric == "cosine":
            return total - product, None
        p2, g2 = jnp.sum(p * p, axis=1), jnp.sum(g * g, axis=1)
        squared = p2[:, None] + g2[None, :] - 2 * product  # [q g]
        return total + jnp.sqrt(jnp.maximum(squared, 0)), None

    start = jnp.full((probe.shape[1], gallery.shape[1]), 0.0, jnp.float32)
    if metric == "cosine":
        start = start + strips
    total, _ = jax.lax.scan(add_strip, start, (probe, gallery))
    return total / strips  # [q g]


def unit_strips(x):
    """x [... D] divided by its L2 norm along D; zeros stay zeros."""
    norm = jnp.sqrt(jnp.sum(x * x, axis=-1, keepdims=True))
    return x / jnp.maximum(norm, 1e-12)


@functools.lru_cache(maxsize=32)
def _search(mesh, k: int, tile: int, rows: int, metric: str):
    """Jitted (probe [q S D], gallery split over the mesh, center) -> top k [q k]."""
    split = PartitionSpec(mesh.axis_names)

    def local(probe, gallery, center):
        share = gallery.shape[0]
        first = jax.lax.axis_index(mesh.axis_names) * share

        def scan_tile(carry, start):
            best, broken = carry
            # The last tile is moved back so that it ends with the last row. The rows
            # that it shares with the tile before are ignored.
            moved = jnp.minimum(start, share - tile)
            block = jax.lax.dynamic_slice_in_dim(gallery, moved, tile)  # [t S D]
            if block.dtype == jnp.uint16:  # see _split
                block = jax.lax.bitcast_convert_type(block, jnp.bfloat16)
            d = tile_distance(probe, block, center, metric=metric)  # [q t]
            row = moved + jnp.arange(tile, dtype=jnp.int32)
            real = (row >= start) & (first + row < rows)
            real = jnp.broadcast_to(real[None, :], d.shape)
            index = jnp.broadcast_to((first + row)[None, :], d.shape)
            broken |= jnp.any(real & ~jnp.isfinite(d))
            best = _smallest(best, (jnp.where(real, d, jnp.inf), index), k)
            return (best, broken), None

        start = (
            jnp.full((probe.shape[0], k), jnp.inf),
            jnp.full((probe.shape[0], k), rows, jnp.int32),
        )
        starts = jnp.arange(0, share, tile, dtype=jnp.int32)
        (best, broken), _ = jax.lax.scan(scan_tile, (start, jnp.array(False)), starts)
        lists = [
            jax.lax.all_gather(x, mesh.axis_names, axis=1, tiled=True) for x in best
        ]  # [q devices*k], in gallery order where distances are equal
        empty = (lists[0][:, :0], lists[1][:, :0])
        d, index = _smallest(empty, lists, k)
        return d, index, jax.lax.psum(broken.astype(jnp.int32), mesh.axis_names)

    search = jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(PartitionSpec(), split, PartitionSpec()),
        out_specs=PartitionSpec(),
        check_vma=False,
    )
    return jax.jit(search)


def _smallest(first, second, k: int):
    """The k smallest of two (distance, index) lists [q *], earlier ones first on ties.

    lax.top_k puts the lower position first where values are equal, and positions are
    in gallery order.
    """
    d = jnp.concatenate([first[0], second[0]], axis=1)
    index = jnp.concatenate([first[1], second[1]], axis=1)
    values, position = jax.lax.top_k(-d, k)
    return -values, jnp.take_along_axis(index, position, axis=1)


def _split(gallery, total: int, mesh):
    """The gallery padded to `total` rows, rows split over all devices of the mesh.

    bfloat16 is passed as uint16, because XLA for CPU would copy all of it to float32.
    """
    sharding = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    gallery = np.asarray(gallery)
    if gallery.dtype == jnp.bfloat16:
        gallery = gallery.view(np.uint16)

    def rows_of(index):
        start, stop, _ = index[0].indices(total)
        return _padded(gallery[start:stop], stop - start)

    shape = (total, *gallery.shape[1:])
    return jax.make_array_from_callback(shape, sharding, rows_of)


def _tile_size(rows: int, limit: int) -> int:
    """The smallest power of two >= 64 that holds `rows`, at most `limit`.

    Tasks of all sizes thus share a few compiled shapes.
    """
    return min(limit, 1 << max(rows - 1, 63).bit_length())


def _padded(x, rows: int):
    """x [n ...] with zeros appended up to `rows` rows."""
    missing = rows - x.shape[0]
    if missing == 0:
        return x
    stack: Any = np if isinstance(x, np.ndarray) else jnp
    return stack.pad(x, [(0, missing)] + [(0, 0)] * (x.ndim - 1))
