"""3-D walker -> RGB frames, pixel-exact masks and COCO-17 keypoints.

Synthetic and motion-captured walks share this renderer: it takes joint positions, a
body (radii), an outfit, optionally a bag, and a scene. Axes: x to the walker's left, y
up, z in the walking direction; metres. The frames are crops like those of a person
detector.
"""

from typing import NamedTuple

import cv2
import numpy as np

from tfds_builders import appearance
from tfds_builders.figure import JOINTS, dress, unit
from tfds_builders.frames import normalise_silhouettes
from tfds_builders.rasteriser import rasterise, visible_pixels

HEIGHT, WIDTH = 128, 64
MATERIALS_PER_PART = 8  # number of a region = 8 * figure.PARTS + material
CANVAS = 96  # silhouettes see the whole stride; frames are cut from here to WIDTH


class Walk(NamedTuple):
    """One rendered sequence.

    frames: uint8 [T 128 64 3]. masks: uint8 [T 128 64], 0/255. silhouettes: uint8
    [T 64 64], normalised. keypoints: float32 [T 17 3], COCO order, pixels of the frame;
    confidence 1 visible, 0.5 hidden by the body, 0 outside. ratios: float32 [T].
    regions: uint8 [T 128 64], what each pixel shows: 8 * part + material (`region`).
    """

    frames: np.ndarray
    masks: np.ndarray
    silhouettes: np.ndarray
    keypoints: np.ndarray
    ratios: np.ndarray
    regions: np.ndarray


class _Camera(NamedTuple):
    position: np.ndarray  # [3]
    axes: np.ndarray  # [3 3]: right, up, towards the viewer

    def project(self, points):
        """[... 3] metres -> x right, y down, z towards the viewer, at unit focal
        length (z is relative to the distance), and the distance [...]."""
        local = (points - self.position) @ self.axes.T
        distance = -local[..., 2]
        flat = local[..., :2] * np.array([1.0, -1.0]) / distance[..., None]
        return flat, distance


def _camera(scene, target) -> _Camera:
    azimuth, elevation = np.deg2rad(scene.azimuth), np.deg2rad(scene.elevation)
    back = np.array(
        [
            np.sin(azimuth) * np.cos(elevation),
            np.sin(elevation),
            np.cos(azimuth) * np.cos(elevation),
        ]
    )
    right = unit(np.cross([0.0, 1.0, 0.0], back))
    axes = np.stack([right, np.cross(back, right), back])
    return _Camera(target + scene.distance * back, axes)


class Painted(NamedTuple):
    """A walk before it is cut to WIDTH: arrays as in Walk, but CANVAS columns.

    images: uint8 [T 128 96 3], without lens, sensor and the black beside the box.
    """

    images: np.ndarray
    masks: np.ndarray
    keypoints: np.ndarray
    ratios: np.ndarray
    regions: np.ndarray


def render(joints, body, upper, lower, head, scene, bag="", bag_texture=None) -> Walk:
    """Renders joints [T J 3], in the order JOINTS and metres, into a Walk.

    upper, lower, head: from `appearance.draw_*`. bag: one of BAGS or "". Equal
    arguments give identical bits: scene.seed determines background, noise and jitter.
    """
    rng = np.random.default_rng(scene.seed)
    dressed = joints, body, upper, lower, head
    painted = paint(rng, *dressed, scene, bag, bag_texture)
    images, masks, keypoints, ratios, regions = painted
    cut = (CANVAS - WIDTH) // 2
    keypoints[..., 0] -= cut
    outside = (keypoints[..., 0] < 0) | (keypoints[..., 0] >= WIDTH)
    keypoints[outside, 2] = 0
    inside = slice(cut, cut + WIDTH)
    frames = _expose(rng, images[:, :, inside], ratios, scene)
    inside_box = _columns_inside(ratios)[:, None]
    return Walk(
        frames,
        np.where(inside_box, masks[:, :, inside], 0).astype(np.uint8),
        normalise_silhouettes(masks),
        keypoints.astype(np.float32),
        ratios.astype(np.float32),
        np.where(inside_box, regions[:, :, inside], appearance.BESIDE).astype(np.uint8),
    )


def paint(
    rng, joints, body, upper, lower, head, scene, bag="", bag_texture=None
) -> Painted:
    """The walk on its background, as `render` cuts it. rng: draws background, jitter.

    A large scene.margin leaves space around the person.
    """
    cones = dress(joints, body, upper, lower, head, bag)
    start, end = np.stack(cones.start, 1), np.stack(cones.end, 1)  # [T P 3]
    radii = np.array(cones.radii)  # [P 2]
    target = joints[:, JOINTS.index("pelvis")].mean(0)
    camera = _camera(scene, target)
    flat, distance = camera.project(np.stack([start, end]))  # [2 T P 2], [2 T P]
    size = radii.T[:, None] / distance  # [2 T P]
    box = _detect(rng, scene, flat, size)  # [T 4]
    scale = HEIGHT / (box[:, 3] - box[:, 1])  # [T]
    origin = np.stack(
        [(box[:, 0] + box[:, 2]) / 2 - CANVAS / 2 / scale, box[:, 1]], -1
    )  # [T 2]
    reference = distance.mean((0, 2))  # [T]

    def to_pixels(flat, distance):
        xy = (flat - origin[:, None]) * scale[:, None, None]
        z = (reference[:, None] - distance) * (scale / reference)[:, None]
        return np.concatenate([xy, z[..., None]], -1)

    ends = [to_pixels(f, d) for f, d in zip(flat, distance)]
    pixel_radii = size * scale[None, :, None]
    surface = rasterise(
        ends[0], ends[1], pixel_radii[0], pixel_radii[1], HEIGHT, CANVAS
    )
    seen = visible_pixels(surface, ends[0], ends[1])
    textures = appearance.atlas(
        upper, lower, head, upper.texture if bag_texture is None else bag_texture
    )
    lengths = np.median(np.linalg.norm(end - start, axis=-1), 0)
    forward = camera.axes @ np.array([0.0, 0.0, 1.0])  # in the camera's axes
    colours = _shade(
        seen, ends, np.array(cones.material), lengths, textures, forward,
        camera.axes @ scene.light, scene,
    )  # fmt: skip
    feet, feet_distance = camera.project(_floor_points(joints))
    feet = to_pixels(feet, feet_distance)[:, 0]
    images, kinds = _backgrounds(rng, camera, target, box, origin, scale, feet, scene)
    images.reshape(-1, 3)[seen.pixel] = colours
    ratios = (box[:, 2] - box[:, 0]) / (box[:, 3] - box[:, 1])
    masks = np.where(surface.owner >= 0, 255, 0).astype(np.uint8)
    points = to_pixels(*camera.project(_coco(joints, body)))
    keypoints = _visibility(points, surface, scale / reference)
    codes = MATERIALS_PER_PART * np.array(cones.part) + np.array(cones.material)
    regions = np.where(masks, codes[surface.owner], kinds).astype(np.uint8)
    return Painted(images, masks, keypoints, ratios, regions)


def _detect(rng, scene, flat, size):
    """A detector's boxes [T 4] at unit focal length: exact box, margin, jitter."""
    low = (flat - size[..., None]).min((0, 2))  # [T 2]
    high = (flat + size[..., None]).max((0, 2))
    tall = (high - low)[:, 1:]
    noise = rng.normal(0, scene.jitter, (len(low), 4))
    noise = np.clip(noise, -scene.margin, scene.margin)
    return np.concatenate(
        [low - scene.margin * tall, high + scene.margin * tall], 1
    ) + (noise * tall)


def _floor_points(joints):
    """The point on the floor below the pelvis, [T 1 3]."""
    return joints[:, [JOINTS.index("pelvis")]] * np.array([1.0, 0.0, 1.0])


def _shade(seen, ends, material, lengths, textures, forward, light, scene):
    """Colours uint8 [N 3] of the visible pixels: texture x (ambient + Lambert) x tint.

    ends: [T P 3] twice, material, lengths: [P]. forward, light: in the camera's axes.
    """
    flip = np.array([1.0, -1.0, 1.0])  # image axes: y downwards
    axis = unit(ends[1] - ends[0])  # [T P 3]
    ahead = forward * flip
    e1 = unit(ahead - (axis @ ahead)[..., None] * axis)  # [T P 3]
    e2 = np.cross(axis, e1)
    x, y, z = seen.normal
    first, second = (
        e.astype(np.float32).reshape(-1, 3).T.copy() for e in (e1, e2)
    )  # [3 T*P]
    across, facing = (
        x * e[0][seen.cone] + y * e[1][seen.cone] + z * e[2][seen.cone]
        for e in (second, first)
    )
    tile = appearance.TILE
    angle = np.arctan2(across, facing)  # 0: facing forward
    around = (angle * np.float32(tile / (2 * np.pi))).astype(np.int32) % tile
    scale = np.tile(lengths * (tile / 0.4), len(axis)).astype(
        np.float32
    )  # texels, [T*P]
    down = (seen.along * scale[seen.cone]).astype(np.int32) % tile
    kind = np.tile(material, len(axis))[seen.cone]
    albedo = textures.reshape(-1, 3)[(kind * tile + down) * tile + around]  # [N 3]
    light = (light * flip).astype(np.float32)
    diffuse = np.maximum(x * light[0] + y * light[1] + z * light[2], 0)
    rim = np.float32(0.75) + np.float32(0.25) * z  # darker at grazing angles
    ambient = np.float32(scene.ambient)
    power = (ambient + (np.float32(1.15) - ambient) * diffuse) * rim
    colours = albedo * power[:, None]
    colours *= scene.tint[None]
    return np.minimum(colours, 255).astype(np.uint8)


def _backgrounds(rng, camera, target, box, origin, scale, feet, scene):
    """The scene behind each crop, uint8 [T 128 CANVAS 3], and its kinds [T 128 CANVAS].

    All crops are cut from one still picture; each gets a shadow on the floor.
    """
    typical = np.median(scale)
    low, high = box[:, :2].min(0), box[:, 2:].max(0)
    low, high = low - CANVAS / 2 / typical, high + CANVAS / 2 / typical
    extent = np.minimum(np.ceil((high - low) * typical).astype(int), 640)  # x, y
    behind = camera.axes[2] * np.array([1.0, 0.0, 1.0]) * -rng.uniform(1.5, 8)
    wall, _ = camera.project(target * np.array([1.0, 0.0, 1.0]) + behind)
    picture, kind = appearance.draw_background(
        rng, extent[1], extent[0], (wall[1] - low[1]) * typical, scene.outdoors
    )
    images = np.empty((len(box), HEIGHT, CANVAS, 3), np.uint8)
    kinds = np.empty((len(box), HEIGHT, CANVAS), np.uint8)
    depth = rng.uniform(0.25, 0.65)  # of the shadow
    row, column = np.mgrid[-12:13, -48:49].astype(np.float32)
    shadow = 1 - depth * np.exp(-((column / 22) ** 2) - (row / 5) ** 2)
    for i in range(len(box)):
        # picture = (origin + pixel / scale - low) * typical
        shift = (origin[i] - low) * typical
        factor = typical / scale[i]
        matrix = np.array([[factor, 0, shift[0]], [0, factor, shift[1]]])
        for source, out, how in (
            (picture, images, cv2.INTER_LINEAR),
            (kind, kinds, cv2.INTER_NEAREST),
        ):
            out[i] = cv2.warpAffine(
                source,
                matrix,
                (CANVAS, HEIGHT),
                flags=how | cv2.WARP_INVERSE_MAP,
                borderMode=cv2.BORDER_REPLICATE,
            )
        _darken(images[i], shadow, feet[i])
    return images, kinds


def _darken(image, factor, centre):
    """Multiplies `image` around `centre` (x, y) by `factor`, in place."""
    left, top = (int(centre[i]) - factor.shape[1 - i] // 2 for i in (0, 1))
    x0, y0 = max(left, 0), max(top, 0)
    x1 = min(left + factor.shape[1], image.shape[1])
    y1 = min(top + factor.shape[0], image.shape[0])
    if x1 > x0 and y1 > y0:
        part = factor[y0 - top : y1 - top, x0 - left : x1 - left, None]
        image[y0:y1, x0:x1] = image[y0:y1, x0:x1] * part


def _columns_inside(ratios):
    """bool [T WIDTH]: columns that the detector's box covers."""
    kept = np.minimum(np.round(ratios * HEIGHT), WIDTH)[:, None]
    centre = np.arange(WIDTH)[None] + 0.5 - WIDTH / 2
    return np.abs(centre) < np.maximum(kept / 2, 0.5)


def _expose(rng, images, ratios, scene):
    """Lens blur, sensor noise, black beside the box. images: uint8 [T H W 3]."""
    images = np.stack([cv2.GaussianBlur(i, (0, 0), scene.blur) for i in images])
    noise = rng.standard_normal(images.shape[:3], np.float32)
    noise = (noise * np.float32(scene.noise)).astype(np.int16)[..., None]  # [T H W 1]
    images = np.clip(images + noise, 0, 255).astype(np.uint8)
    return images * _columns_inside(ratios)[:, None, :, None]


def _coco(joints, body):
    """COCO-17 points [T 17 3] of the joints; eyes and ears from the head's axes."""
    at = {name: joints[:, i] for i, name in enumerate(JOINTS)}
    face = unit(at["nose"] - at["head"])
    axis = unit(at["head"] - at["neck"])
    left = unit(np.cross(axis, face))
    radius = body.head
    points = [at["nose"]]
    for sign in (1.0, -1.0):
        points.append(
            at["head"] + radius * (0.85 * face + 0.35 * sign * left + 0.15 * axis)
        )
    for sign in (1.0, -1.0):
        points.append(at["head"] + radius * 0.95 * sign * left)
    for part in ("shoulder", "elbow", "wrist", "hip", "knee", "ankle"):
        points += [at[f"left_{part}"], at[f"right_{part}"]]
    return np.stack(points, 1)


def _visibility(points, surface, pixels_per_metre):
    """x, y, confidence [T 17 3]: a point deep below the surface is hidden."""
    x = np.clip(points[..., 0].astype(int), 0, CANVAS - 1)
    y = np.clip(points[..., 1].astype(int), 0, HEIGHT - 1)
    top = surface.height[np.arange(len(points))[:, None], y, x]  # [T 17]
    hidden = top - points[..., 2] > 0.13 * pixels_per_metre[:, None]
    inside = (points[..., 1] >= 0) & (points[..., 1] < HEIGHT)
    confidence = np.where(hidden, 0.5, 1.0) * inside
    return np.concatenate([points[..., :2], confidence[..., None]], -1)
