"""Charts of distances, and the map that brings neighbours together."""

import numpy as np
from PIL import Image

from gaitjax.pictures import scores


def clusters(people=4, walks=12):
    rng = np.random.default_rng(0)
    names = np.repeat([f"${i}" for i in range(people)], walks)
    centres = 10 * rng.normal(size=(people, 8))
    points = np.repeat(centres, walks, axis=0) + rng.normal(size=(len(names), 8))
    return np.linalg.norm(points[:, None] - points[None], axis=-1), names


def test_neighbours_of_the_map_are_neighbours():
    distance, names = clusters()
    points = scores.neighbour_map(distance, steps=200)
    assert points.shape == (48, 2) and np.isfinite(points).all()
    gap = np.linalg.norm(points[:, None] - points[None], axis=-1)
    np.fill_diagonal(gap, np.inf)
    assert (names[gap.argmin(1)] == names).all()


def test_three_equal_walks_have_a_map():
    assert np.isfinite(scores.neighbour_map(np.zeros((3, 3)), steps=20)).all()


def test_charts_are_drawn(tmp_path):
    distance, names = clusters()
    points = np.random.default_rng(0).normal(size=(len(names), 2))
    same = names[:, None] == names[None]
    scores.embedding_map(points, names, tmp_path / "map.png")
    scores.histograms(
        distance[same], distance[~same], tmp_path / "histograms.png", marks={"EER": 3.0}
    )
    rates = np.linspace(0.01, 1, 100)
    scores.open_set(rates, 1 - rates, tmp_path / "rates.png", points={0.1: 0.9})
    one = np.ones(1)
    scores.histograms(one, one, tmp_path / "one.png")  # one pair of each, equal
    scores.open_set(one, one, tmp_path / "one_search.png")
    for file in tmp_path.glob("*.png"):
        assert len(Image.open(file).getcolors(1 << 20)) > 10, file
