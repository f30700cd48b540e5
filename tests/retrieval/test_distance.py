"""Distances against float64 loops, exact search against sorting, tiles and devices."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT

from gaitjax.retrieval.distance import nearest, pairwise_distance


def embeddings(rows, seed, strips=5, size=8, offset=0.0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, strips, size)) + offset
    return x.astype(np.float32)


def direct(probe, gallery, metric):
    """float64, written as the definition: [Q G]."""
    p, g = probe.astype(float)[:, None], gallery.astype(float)[None]
    if metric == "euclidean":
        return np.sqrt(((p - g) ** 2).sum(-1)).mean(-1)
    cosine = (p * g).sum(-1) / np.sqrt((p * p).sum(-1) * (g * g).sum(-1))
    return 1 - cosine.mean(-1)


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("kind", [np.asarray, jnp.asarray], ids=["numpy", "jax"])
def test_distance_is_the_mean_over_strips(metric, kind):
    probe, gallery = embeddings(37, 0), embeddings(91, 1)
    ours = pairwise_distance(
        kind(probe), kind(gallery), metric=metric, probe_tile=16, gallery_tile=32
    )
    assert ours.dtype == np.float32 and ours.shape == (37, 91)
    np.testing.assert_allclose(ours, direct(probe, gallery, metric), atol=2e-6)


def test_neither_squared_nor_concatenated():
    probe = np.zeros((1, 2, 2), np.float32)
    gallery = np.array([[[3, 4], [0, 0]], [[1, 0], [5, 12]]], np.float32)
    ours = pairwise_distance(probe, gallery, metric="euclidean")
    np.testing.assert_allclose(ours, [[2.5, 7.0]], rtol=1e-6)


def test_a_common_offset_costs_no_digits():
    """Raw |p|^2 + |g|^2 - 2pg would be wrong by ~0.1 here."""
    probe, gallery = embeddings(20, 0, offset=300), embeddings(30, 1, offset=300)
    ours = pairwise_distance(probe, gallery, metric="euclidean")
    np.testing.assert_allclose(ours, direct(probe, gallery, "euclidean"), atol=5e-6)


def test_equal_sequences_and_zero_strips():
    gallery = embeddings(4, 0)
    same = np.diag(pairwise_distance(gallery, gallery, metric="euclidean"))
    assert np.abs(same).max() < 2e-3
    gallery[1, 2] = 0
    cosine = pairwise_distance(gallery, gallery, metric="cosine")
    assert np.isfinite(cosine).all()
    assert cosine[1, 1] == pytest.approx(1 / 5, abs=1e-6)


def test_tile_sizes_change_nothing_but_rounding():
    probe, gallery = embeddings(33, 0), embeddings(70, 1)
    one = pairwise_distance(probe, gallery, metric="euclidean")
    many = pairwise_distance(
        probe, gallery, metric="euclidean", probe_tile=7, gallery_tile=11
    )
    np.testing.assert_allclose(one, many, atol=1e-6)


def test_bfloat16_storage_is_computed_in_float32():
    probe = embeddings(9, 0)
    gallery = jnp.asarray(embeddings(40, 1), jnp.bfloat16)
    expected = direct(probe, np.asarray(gallery, np.float32), "euclidean")
    ours = pairwise_distance(probe, gallery, metric="euclidean")
    np.testing.assert_allclose(ours, expected, atol=2e-6)
    found, _ = nearest(probe, np.asarray(gallery), k=3, metric="euclidean", tile=16)
    np.testing.assert_allclose(found, np.sort(expected, axis=1)[:, :3], atol=2e-6)


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("k", [1, 10, 500])
def test_nearest_equals_a_stable_sort(metric, k):
    probe, gallery = embeddings(13, 0), embeddings(91, 1)
    distance = direct(probe, gallery, metric)
    order = np.argsort(distance, axis=1, kind="stable")[:, :k]
    values, rows = nearest(probe, gallery, k=k, metric=metric, tile=16, probe_tile=8)
    assert rows.shape == (13, min(k, 91))
    np.testing.assert_array_equal(rows, order)
    expected = np.take_along_axis(distance, order, axis=1)
    np.testing.assert_allclose(values, expected, atol=2e-6)


def test_ties_go_to_the_earlier_gallery_row():
    """Every embedding three times, across tiles."""
    gallery = np.tile(embeddings(10, 1), (3, 1, 1))
    _, rows = nearest(embeddings(6, 0), gallery, k=9, metric="cosine", tile=8)
    groups = rows.reshape(6, 3, 3)  # [Q neighbours copies]
    assert (groups % 10 == groups[..., :1] % 10).all()
    assert (np.diff(groups, axis=2) == 10).all()


def test_a_gallery_split_over_devices():
    """Eight fake devices, ragged shares, ties across shards: the same answer as one."""
    program = f"""
import sys
sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "tests")!r}]
import conftest, jax, numpy as np
from tests.retrieval.test_distance import embeddings
from gaitjax.retrieval.distance import nearest
mesh = jax.make_mesh((4, 2), ("data", "model"))
for rows, metric in ((45, "euclidean"), (5, "cosine")):
    gallery = np.concatenate([embeddings(rows, 1), embeddings(rows, 1)])
    one = nearest(embeddings(13, 0), gallery, k=7, metric=metric)
    eight = nearest(embeddings(13, 0), gallery, k=7, metric=metric, mesh=mesh, tile=4)
    np.testing.assert_array_equal(one[1], eight[1])
    np.testing.assert_allclose(one[0], eight[0], atol=1e-6)
print(jax.device_count())
"""
    environment = {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        "JAX_PLATFORMS": "cpu",
        "PATH": "",
    }
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip() == "8"


@pytest.mark.parametrize("stored", [jnp.float32, jnp.uint16], ids=["f32", "bf16"])
def test_memory_is_bound_by_the_tile(stored):
    """Beyond the gallery, a pass over 16 times more rows needs no more memory."""
    from gaitjax.retrieval import distance

    mesh = jax.make_mesh((1,), ("gallery",), axis_types=(jax.sharding.AxisType.Auto,))
    temporary = []
    for rows in (1024, 16384):
        search = distance._search(mesh, 4, 128, rows, "euclidean")
        arguments = [
            jax.ShapeDtypeStruct((64, 2, 8), jnp.float32),
            jax.ShapeDtypeStruct((rows, 2, 8), stored),  # uint16: bits of bfloat16
            jax.ShapeDtypeStruct((2, 8), jnp.float32),
        ]
        compiled = search.lower(*arguments).compile()
        temporary.append(compiled.memory_analysis().temp_size_in_bytes)
    assert temporary[1] - temporary[0] < 16384 * 4 / 8


def test_broken_and_empty_data():
    good = embeddings(3, 0)
    broken = good.copy()
    broken[1, 0, 0] = np.nan
    with pytest.raises(ValueError, match="isfinite"):
        nearest(good, broken, k=1, metric="euclidean")
    assert pairwise_distance(good[:0], good, metric="cosine").shape == (0, 3)
    assert pairwise_distance(good, good[:0], metric="euclidean").shape == (3, 0)
