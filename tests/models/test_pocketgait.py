"""PocketGait: which way someone walks, and what key points' faults must not change."""

import jax.numpy as jnp
import numpy as np
import pytest

from gaitjax.data.transforms import flip
from gaitjax.models.pocketgait import (
    energy_images,
    faces_left,
    pose_features,
    steadiness,
)
from gaitjax.parts.skeleton import COCO


@pytest.fixture
def walk():
    """[2 6 17 3], people who walk right, and silhouettes with swinging legs."""
    rng = np.random.default_rng(0)
    points = rng.uniform(10, 50, (2, 6, 17, 3)).astype(np.float32)
    points[..., 0, 0], points[..., 3:5, 0] = 40, 30  # the nose ahead of the ears
    images = np.zeros((2, 6, 64, 44), np.float32)
    images[:, :, :40, 18:26] = 1
    for t in range(6):
        images[:, t, 40:, 20 - 2 * t : 24 - 2 * t] = 1
        images[:, t, 40:, 20 + 2 * t : 24 + 2 * t] = 1
    return points, images, np.ones((2, 6), bool)


def test_everyone_is_turned_to_the_right(walk):
    points, _, valid = walk
    assert not faces_left(points, valid).any()
    mirrored = flip({"keypoints": points[0]}, 64)["keypoints"]
    assert faces_left(mirrored[None], valid[:1]).all()
    points[:, :, 0] = 0  # the nose was never found: nobody is turned
    assert not faces_left(points, valid).any()


def test_energy_images_tell_the_legs_apart(walk):
    _, images, valid = walk
    energy = np.asarray(energy_images(jnp.asarray(images), jnp.asarray(valid)))
    assert energy.shape == (2, 64, 44, 5) and energy.min() >= 0 and energy.max() < 1.001
    np.testing.assert_allclose(energy[..., 0], images.mean(1), atol=1e-5)
    place = np.arange(44)
    width = [  # of the legs in the three parts of the step
        np.sqrt((energy[0, 50, :, i] * (place - 21.5) ** 2).sum()) for i in (2, 3, 4)
    ]
    assert width[0] < width[1] < width[2]
    order = np.array([3, 1, 5, 0, 2, 4])  # a set: the order of frames says nothing
    again = energy_images(jnp.asarray(images[:, order]), jnp.asarray(valid))
    np.testing.assert_allclose(again, energy, atol=1e-5)


def test_poses_know_neither_left_and_right_nor_size_and_place(walk):
    points, _, valid = walk
    features = pose_features(jnp.asarray(points), jnp.asarray(valid))
    swapped = points[:, :, list(COCO.mirror)]
    swapped[:, :, :5] = points[:, :, :5]
    other = swapped * np.array([3, 3, 1], np.float32) + np.array([7, 9, 0], np.float32)
    again = pose_features(jnp.asarray(other), jnp.asarray(valid))
    np.testing.assert_allclose(again, features, rtol=2e-3, atol=2e-3)


def test_a_walk_without_key_points_is_finite(walk):
    points, _, valid = walk
    assert np.isfinite(pose_features(jnp.asarray(0 * points), jnp.asarray(valid))).all()
    nobody = np.zeros_like(valid)
    assert np.isfinite(pose_features(jnp.asarray(points), jnp.asarray(nobody))).all()


def test_steadiness_is_what_an_estimator_s_trembling_makes(walk):
    points, _, valid = walk
    points = np.repeat(points[:, :1], 6, 1)  # a stiff person
    exact = steadiness(jnp.asarray(points), jnp.asarray(valid))
    assert (np.asarray(exact) < 1e-3).all()
    trunk = np.linalg.norm(
        points[:, 0, 5:7, :2].mean(1) - points[:, 0, 11:13, :2].mean(1), axis=-1
    )
    noise = np.random.default_rng(1).normal(0, 0.1, points.shape)
    noisy = points + noise * trunk[:, None, None, None]
    found = np.asarray(steadiness(jnp.asarray(noisy, jnp.float32), jnp.asarray(valid)))
    assert ((found > 0.02) & (found < 0.5)).all()
    larger = steadiness(jnp.asarray(5 * noisy, jnp.float32), jnp.asarray(valid))
    np.testing.assert_allclose(larger, found, rtol=1e-3)  # in trunk lengths
