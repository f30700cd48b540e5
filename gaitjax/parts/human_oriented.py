"""GPGait's input: a person's pose made upright and equally large, bones and angles.

Paper: Fu et al., "GPGait: Generalized Pose-based Gait Recognition" (ICCV 2023), section
3, human-oriented transformation (HOT) and human-oriented descriptors (HOD).
Points are float32 [... V 2] in pixels, y down, in COCO's order if nothing else is said.
"""

from typing import Literal

import jax
import jax.numpy as jnp

from gaitjax.parts.skeleton import COCO, Skeleton

Straighten = Literal["none", "sheared", "rotated"]
NECK, HEAD, HIP = (5, 6), (1, 2), (11, 12)  # joints whose middle they are
HEIGHT = 225.0
# joint, and the two between which the angle at it is measured; with one alone, the
# angle of this bone to the vertical
Angles = tuple[tuple[int, ...], ...]
COCO_ANGLES: Angles = (
    *((0, 1, 2), (1, 0, 3), (2, 4, 0), (3, 1), (4, 2), (5, 7, 11), (6, 8, 12)),
    *((7, 5, 9), (8, 10, 6), (9, 7), (10, 8), (11, 5, 13), (12, 6, 14)),
    *((13, 11, 15), (14, 12, 16), (15, 13), (16, 14)),
)
# AlphaPose's joint for each of COCO's
FROM_ALPHAPOSE = (0, 15, 14, 17, 16, 5, 2, 6, 3, 7, 4, 11, 8, 12, 9, 13, 10)


def middle(points: jax.Array, joints: tuple[int, int]) -> jax.Array:
    """[... V 2] -> [... 1 2]."""
    return jnp.mean(points[..., joints, :], axis=-2, keepdims=True)


def straighten(points: jax.Array, how: Straighten) -> jax.Array:
    """The hip comes below (or above) the neck, in each frame: [... V 2] -> [... V 2].

    "rotated" turns around the neck. "sheared" is what the published models were trained
    with: it computes y of the x that is already turned, which shortens the torso by the
    squared cosine of the angle.
    """
    if how == "none":
        return points
    neck = middle(points, NECK)
    dx, dy = jnp.split(middle(points, HIP) - neck, 2, axis=-1)  # [... 1 1] each
    flat = dy == 0
    theta = jnp.where(flat, 0, jnp.arctan(dx / jnp.where(flat, 1, dy)))
    cos, sin = jnp.cos(theta), jnp.sin(theta)
    x, y = jnp.split(points - neck, 2, axis=-1)  # [... V 1] each
    turned = cos * x - sin * y
    y = cos * y + sin * (turned if how == "sheared" else x)
    return neck + jnp.concatenate([turned, y], axis=-1)


def rescale(points: jax.Array, centre=NECK, height: float = HEIGHT) -> jax.Array:
    """Every frame's pose `height` high, relative to the middle of two joints.

    [... V 2] -> [... V 2]; not a number if all joints have one y.
    """
    y = points[..., 1]
    size = jnp.max(y, axis=-1) - jnp.min(y, axis=-1)
    points = points * height / size[..., None, None]
    return points - middle(points, centre)


def angles_at(points: jax.Array, angles: Angles) -> jax.Array:
    """pi minus the angle at each joint, [... V 2] -> [... A]: 0 where it is straight,
    pi where a side has no length."""
    centre = points[..., [angle[0] for angle in angles], :]  # [... A 2]
    first = points[..., [angle[1] for angle in angles], :]
    last = points[..., [angle[-1] for angle in angles], :]
    alone = jnp.asarray([len(angle) == 2 for angle in angles])[:, None]
    vertical = jnp.stack([centre[..., 0], first[..., 1]], axis=-1)
    last = jnp.where(jnp.broadcast_to(alone, last.shape), vertical, last)
    a, b = first - centre, last - centre
    cross = a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]
    return jnp.pi - jnp.arctan2(jnp.abs(cross), jnp.sum(a * b, axis=-1))


def descriptors(
    points: jax.Array, body: Skeleton = COCO, angles: Angles = COCO_ANGLES
) -> jax.Array:
    """[... V 2] -> [... V 5]: points, bones to the parents, angles; no NaN."""
    bones = points - points[..., body.parents, :]
    angle = angles_at(points, angles)
    missing = body.joints - angle.shape[-1]
    angle = jnp.pad(angle, ((0, 0),) * (angle.ndim - 1) + ((0, missing),))
    features = jnp.concatenate([points, bones, angle[..., None]], axis=-1)
    return jnp.where(jnp.isnan(features), 0, features)
