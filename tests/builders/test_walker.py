"""The rasteriser against brute force, and properties of rendered walks."""

import numpy as np
import pytest

from tfds_builders import appearance, walker
from tfds_builders.figure import BAGS
from tfds_builders.frames import normalise_silhouettes
from tfds_builders.rasteriser import rasterise, visible_pixels
from tfds_builders.synthetic_gait import gait


def _brute_force(start, end, start_radius, end_radius, height, width):
    """Union of 4001 spheres along the axis: height over each pixel centre."""
    y, x = np.mgrid[:height, :width] + 0.5
    surface = np.full((height, width), -np.inf)
    for t in np.linspace(0, 1, 4001):
        centre = start + t * (end - start)
        radius = start_radius + t * (end_radius - start_radius)
        inside = radius**2 - (x - centre[0]) ** 2 - (y - centre[1]) ** 2
        over = centre[2] + np.sqrt(np.maximum(inside, 0))
        surface = np.where(inside > 0, np.maximum(surface, over), surface)
    return surface


@pytest.mark.parametrize("seed", range(6))
def test_round_cone_equals_the_union_of_its_spheres(seed):
    rng = np.random.default_rng(seed)
    start, end = rng.uniform(8, 32, (2, 3))
    radii = rng.uniform(2, 6, 2)
    drawn = rasterise(
        start[None, None], end[None, None], radii[None, :1], radii[None, 1:], 40, 40
    )
    expected = _brute_force(start, end, *radii, 40, 40)
    flat = np.linalg.norm((end - start)[:2])
    assert flat > abs(radii[0] - radii[1]), "the formula's domain"
    covered = np.isfinite(expected)
    # a pixel whose centre lies within 1e-3 of the outline may fall on either side
    assert (covered != (drawn.owner[0] == 0)).sum() <= 1
    both = covered & (drawn.owner[0] == 0)
    np.testing.assert_allclose(drawn.height[0][both], expected[both], atol=0.02)


def test_a_sphere_has_its_analytic_height_and_normal():
    centre = np.array([[[10.0, 12.0, 3.0]]])
    radius = np.array([[5.0]])
    drawn = rasterise(centre, centre, radius, radius, 24, 20)
    y, x = np.mgrid[:24, :20] + 0.5
    square = 25 - (x - 10) ** 2 - (y - 12) ** 2
    np.testing.assert_array_equal(drawn.owner[0] == 0, square > 0)
    np.testing.assert_allclose(
        drawn.height[0][square > 0], 3 + np.sqrt(square[square > 0]), rtol=1e-4
    )
    seen = visible_pixels(drawn, centre, centre)
    expected = np.stack([x - 10, y - 12, np.sqrt(np.maximum(square, 0))])[:, square > 0]
    np.testing.assert_allclose(seen.normal, expected / 5, atol=1e-3)


def test_the_nearer_cone_hides_the_farther():
    far, near = [8.0, 8.0, 0.0], [8.0, 8.0, 10.0]
    points = np.array([[far, near]])
    radii = np.array([[6.0, 3.0]])
    drawn = rasterise(points, points, radii, radii, 16, 16)
    assert drawn.owner[0, 8, 8] == 1
    assert drawn.owner[0, 8, 3] == 0
    assert drawn.owner[0, 0, 0] == -1


def test_cones_outside_the_image_are_clipped():
    start = np.array([[[-30.0, 5.0, 0.0]], [[4.0, 5.0, 0.0]]])
    radii = np.full((2, 1), 3.0)
    drawn = rasterise(start, start + 1, radii, radii, 12, 12)
    assert (drawn.owner[0] == -1).all()
    assert (drawn.owner[1] == 0).any()


def _walk(azimuth=90.0, num_frames=6, bag="", seed=0, **scene_fields):
    rng = np.random.default_rng(seed)
    person = gait.draw_person(rng)
    joints = gait.walk(person, rng, num_frames=num_frames, fps=12)
    clothes = [
        appearance.draw_upper(rng),
        appearance.draw_lower(rng),
        appearance.draw_head(rng),
    ]
    scene = appearance.draw_scene(rng, azimuth, 8.0, (seed, 1))
    scene = scene._replace(**scene_fields)
    body = gait.body_of(person)
    walk = walker.render(joints, body, *clothes, scene, bag)
    return walk, joints


def test_a_walk_is_registered_padded_and_reproducible():
    walk, _ = _walk()
    assert walk.frames.shape == (6, 128, 64, 3) and walk.frames.dtype == np.uint8
    assert walk.masks.shape == (6, 128, 64) and set(np.unique(walk.masks)) == {0, 255}
    assert walk.silhouettes.shape == (6, 64, 64)
    assert walk.keypoints.shape == (6, 17, 3) and walk.ratios.shape == (6,)
    again, _ = _walk()
    for one, two in zip(walk, again):
        np.testing.assert_array_equal(one, two)
    for frame, mask, ratio in zip(walk.frames, walk.masks, walk.ratios):
        kept = min(64, round(128 * ratio))
        outside = np.abs(np.arange(64) + 0.5 - 32) > kept / 2 + 0.5
        assert not frame[:, outside].any() and not mask[:, outside].any()
        rows = np.flatnonzero(mask.any(1))
        # the box is the person's plus a margin of at most 2 x 5 % on each side
        assert 0 <= rows[0] <= 14 and 114 <= rows[-1] <= 127


def test_visible_keypoints_lie_on_the_person():
    walk, _ = _walk(num_frames=12)
    x, y, confidence = np.moveaxis(walk.keypoints, -1, 0)
    inside = (x >= 0) & (x < 64)
    assert (confidence[~inside] == 0).all()
    frame = np.broadcast_to(np.arange(12)[:, None], x.shape)
    on_mask = walk.masks[frame[inside], y[inside].astype(int), x[inside].astype(int)]
    assert (on_mask == 255).mean() > 0.97
    # from the left, the left shoulder, elbow and hip are nearer than the right ones
    left, right = confidence[:, 5::2].mean(), confidence[:, 6::2].mean()
    assert left > right
    ankles = y[:, 15:]
    assert (ankles > y[:, 11:13]).all() and (y[:, 11:13] > y[:, 5:7]).all()


def test_cameras_see_the_side_they_stand_on():
    front, _ = _walk(azimuth=0.0)
    assert (front.keypoints[:, 5, 0] > front.keypoints[:, 6, 0]).all()  # mirror-like
    left, joints = _walk(azimuth=90.0)
    travel = joints[-1, 0, 2] - joints[0, 0, 2]
    assert travel > 0
    nose, ears = left.keypoints[:, 0, 0], left.keypoints[:, 3:5, 0].mean(1)
    assert (nose < ears).all()  # it walks to the left of the picture


def test_mask_and_silhouette_do_not_depend_on_light_noise_or_colour():
    bright, _ = _walk(ambient=0.9, noise=0.0)
    dark, _ = _walk(ambient=0.1, noise=20.0)
    np.testing.assert_array_equal(bright.masks, dark.masks)
    np.testing.assert_array_equal(bright.silhouettes, dark.silhouettes)
    assert np.abs(bright.frames.astype(int) - dark.frames).mean() > 5


def test_silhouettes_are_the_normalised_masks_where_nothing_was_cut():
    walk, _ = _walk(azimuth=10.0)
    uncut = (walk.ratios < 0.5).nonzero()[0]
    assert len(uncut) > 0
    # equal up to the convention's rounding: resized width and centre are whole columns
    for one, mask in zip(walk.silhouettes[uncut] > 127, walk.masks[uncut]):
        two = normalise_silhouettes(mask[None])[0] > 127
        shifted = [np.roll(two, shift, 1) for shift in (-1, 0, 1)]
        overlap = [(one & two).sum() / (one | two).sum() for two in shifted]
        assert max(overlap) > 0.85


@pytest.mark.parametrize("bag", BAGS)
def test_a_bag_changes_the_outline(bag):
    with_bag, _ = _walk(bag=bag, jitter=0.0)
    without, _ = _walk(jitter=0.0)
    assert (with_bag.silhouettes != without.silhouettes).mean() > 0.01
