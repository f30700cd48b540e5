"""Depth-buffer rasteriser of sphere-swept cones ("round cones"), numpy float32.

A round cone is the union of all spheres whose centre runs along a segment and whose
radius changes linearly. Limbs, torso, head, sleeves and bags are made of them. Seen
along the depth axis, its surface over a pixel p is

    height(p) = max over t in [0, 1] of  z(t) + sqrt(r(t)^2 - |p - c(t)|^2)

The argument of the root is a quadratic a t^2 + 2 b t + g with a < 0, so the maximum has
a closed form (set the derivative to zero), and t is that solution clamped to the
segment. The caller applies perspective: it projects every end point and scales its
radius by its depth.
"""

from typing import NamedTuple

import numpy as np


class Surface(NamedTuple):
    """What is visible in each pixel.

    owner: int16 [T H W], number of the cone, -1 where there is none.
    height: float32 [T H W], towards the viewer, in pixels; -inf where there is none.
    along: float32 [T H W], position on the owner's axis, 0..1.
    """

    owner: np.ndarray
    height: np.ndarray
    along: np.ndarray


def rasterise(
    start: np.ndarray,
    end: np.ndarray,
    start_radius: np.ndarray,
    end_radius: np.ndarray,
    height: int,
    width: int,
) -> Surface:
    """Renders P round cones into T images of `height` x `width` pixels.

    start, end: [T P 3], x to the right and y downwards in pixels (pixel i has its
    centre at i + 0.5), z towards the viewer in pixels. radii: [T P], pixels.
    """
    start, end = start.astype(np.float32), end.astype(np.float32)
    start_radius = start_radius.astype(np.float32)
    end_radius = end_radius.astype(np.float32)
    num_frames, num_cones = start_radius.shape
    size = num_frames * height * width
    nearest = np.full(size, -np.inf, np.float32)
    along = np.zeros(size, np.float32)
    owner = np.full(size, -1, np.int16)
    low = np.minimum(
        start[..., :2] - start_radius[..., None], end[..., :2] - end_radius[..., None]
    )  # [T P 2]
    high = np.maximum(
        start[..., :2] + start_radius[..., None], end[..., :2] + end_radius[..., None]
    )  # [T P 2]
    limits = np.array([width, height])
    low = np.clip(np.floor(low), 0, limits).astype(np.int32)
    high = np.clip(np.ceil(high), 0, limits).astype(np.int32)
    frame_offset = np.arange(num_frames) * (height * width)
    for cone in range(num_cones):
        # one window size for all frames, at its own place in each
        columns, rows = (high[:, cone] - low[:, cone]).max(0)
        if columns <= 0 or rows <= 0:
            continue
        left = np.minimum(low[:, cone, 0], width - columns)  # [T]
        top = np.minimum(low[:, cone, 1], height - rows)  # [T]
        x = left[:, None] + np.arange(columns)  # [T w]
        y = top[:, None] + np.arange(rows)  # [T h]
        surface, t = _height(
            x.astype(np.float32) + np.float32(0.5),
            y.astype(np.float32) + np.float32(0.5),
            start[:, cone],
            end[:, cone],
            start_radius[:, cone],
            end_radius[:, cone],
        )
        pixel = (frame_offset[:, None] + y * width)[:, :, None] + x[:, None, :]
        wins = surface > nearest[pixel]  # [T h w]
        pixel = pixel[wins]
        nearest[pixel] = surface[wins]
        along[pixel] = t[wins]
        owner[pixel] = cone
    shape = (num_frames, height, width)
    return Surface(owner.reshape(shape), nearest.reshape(shape), along.reshape(shape))


def _height(x, y, start, end, start_radius, end_radius):
    """Height [T h w] of one cone over the pixels x [T w], y [T h], and its t."""
    axis = end - start  # [T 3]
    growth = end_radius - start_radius  # [T]
    flat_square = np.maximum(axis[:, 0] ** 2 + axis[:, 1] ** 2, 1e-3)
    depth = axis[:, 2]
    # If the projection of one sphere contained the other, `a` would not be negative:
    # such a cone is drawn with slightly less taper.
    growth = np.clip(growth, -0.98 * np.sqrt(flat_square), 0.98 * np.sqrt(flat_square))
    bigger = np.maximum(start_radius, end_radius)
    first = np.where(end_radius > start_radius, bigger - growth, start_radius)
    a = growth**2 - flat_square  # [T], negative
    dx, dy = x - start[:, :1], y - start[:, 1:2]  # [T w], [T h]
    b = (dx * axis[:, :1])[:, None, :] + (
        dy * axis[:, 1:2] + (first * growth)[:, None]
    )[:, :, None]  # [T h w]
    g = ((first**2)[:, None] - dy**2)[:, :, None] - (dx**2)[:, None, :]  # [T h w]
    a3 = a[:, None, None]
    root = np.maximum(b * b - a3 * g, 0)
    np.sqrt(root, out=root)
    root *= (-depth / np.sqrt(depth**2 - a))[:, None, None]
    t = root
    t -= b
    t /= a3
    np.clip(t, 0, 1, out=t)
    inside = (a3 * t + 2 * b) * t + g
    covered = inside > 0
    surface = np.sqrt(np.maximum(inside, 0))
    surface += start[:, 2][:, None, None] + depth[:, None, None] * t
    surface[~covered] = -np.inf
    return surface, t


class Visible(NamedTuple):
    """The N pixels that show a cone.

    pixel: index into the flattened images [T H W]. cone: index into the flattened cones
    [T P]. normal: float32 [3 N], unit length, z towards the viewer. along: float32 [N].
    """

    pixel: np.ndarray
    cone: np.ndarray
    normal: np.ndarray
    along: np.ndarray


def visible_pixels(surface: Surface, start: np.ndarray, end: np.ndarray) -> Visible:
    """Surface normals where a cone is visible; start, end: [T P 3] as rasterised."""
    num_frames, height, width = surface.owner.shape
    pixel = np.flatnonzero(surface.owner >= 0)
    frame, inside = np.divmod(pixel, height * width)
    cone = frame * start.shape[1] + surface.owner.ravel()[pixel]  # [N]
    along = surface.along.ravel()[pixel]
    y, x = np.divmod(inside, width)
    point = (
        x.astype(np.float32) + np.float32(0.5),
        y.astype(np.float32) + np.float32(0.5),
        surface.height.ravel()[pixel],
    )
    start = start.astype(np.float32).reshape(-1, 3).T.copy()  # [3 T*P]
    axis = end.astype(np.float32).reshape(-1, 3).T - start
    normal = np.empty((3, len(pixel)), np.float32)
    for i in range(3):
        normal[i] = point[i] - start[i][cone] - along * axis[i][cone]
    x, y, z = normal
    normal /= np.sqrt(x * x + y * y + z * z)[None] + np.float32(1e-6)
    return Visible(pixel, cone, normal, along)
