"""Random clothes, hair, bags and scenes for a rendered walker.

No draw depends on who walks: each outfit has its own random generator, so clothes,
hair, skin tone, bags, light and background carry no identity.
"""

from typing import NamedTuple

import cv2
import numpy as np

# materials: rows of the texture atlas
SKIN, HAIR, UPPER, LOWER, SHOES, BAG = range(6)
# what surrounds the person; BESIDE: black, beside the detector's box
WALL, PANEL, FLOOR, SKY, BESIDE = range(5)
TILE = 32  # texels per side of a texture


class Upper(NamedTuple):
    """Upper garment. Lengths in metres.

    sleeve: share of the arm that it covers (0 none, 0.5 short, 1 long). loose_torso,
    loose_arm: distance of the cloth from the skin. hem: share of the thigh that it
    covers (0: it ends at the hips). hood: whether a hood hangs at the neck. texture:
    float32 [32 32 3].
    """

    sleeve: float
    loose_torso: float
    loose_arm: float
    hem: float
    hood: bool
    texture: np.ndarray


class Lower(NamedTuple):
    """Lower garment and shoes; kind is "trousers", "shorts" or "skirt"."""

    kind: str
    loose_thigh: float
    loose_shank: float
    texture: np.ndarray
    shoe_texture: np.ndarray
    shoe_height: float


class Head(NamedTuple):
    """Skin tone and hair, drawn anew for each session.

    If they were drawn once per person, colour alone would identify the person.
    """

    skin: np.ndarray
    hair: np.ndarray
    hair_volume: float
    hair_length: float


class Scene(NamedTuple):
    """Camera, light and sensor of one sequence.

    azimuth: degrees from the walking direction to the camera (0: the person walks
    towards it, 90: it sees the person's left side). elevation: degrees above the
    horizon. distance: metres. light: unit vector towards the light, in the walker's
    axes. ambient: 0..1. tint: float32 [3], colour of the light. margin: space around
    the person in the detector's box, as a share of the box's height. jitter: standard
    deviation of the box's position per frame, in the same unit. noise: standard
    deviation of the sensor's noise, in grey levels (0..255). seed: for background and
    noise. outdoors: before a sky, not before a wall.
    """

    azimuth: float
    elevation: float
    distance: float
    light: np.ndarray
    ambient: float
    tint: np.ndarray
    margin: float
    jitter: float
    blur: float
    noise: float
    seed: tuple[int, ...]
    outdoors: bool = False


def draw_upper(rng: np.random.Generator) -> Upper:
    style = rng.choice(4, p=[0.3, 0.25, 0.25, 0.2])  # T-shirt, shirt, pullover, coat
    cloth = (0.004, 0.006, 0.012, 0.02)[style]
    wide = rng.uniform(0, 1)  # 0: fits, 1: much too large
    return Upper(
        sleeve=0.5 if style == 0 else 1.0,
        loose_torso=cloth + rng.uniform(0, 0.014) + 0.03 * wide,
        loose_arm=0.6 * cloth + rng.uniform(0, 0.008) + rng.uniform(0, 0.015) * wide,
        hem=(0.07, 0.13, 0.16, 0.6)[style] * rng.uniform(0.3, 1.2),
        hood=bool(style >= 2 and rng.random() < 0.35),
        texture=draw_texture(rng),
    )


def draw_lower(rng: np.random.Generator) -> Lower:
    kind = rng.choice(["trousers", "shorts", "skirt"], p=[0.74, 0.14, 0.12])
    flare = rng.uniform(0, 0.03) if rng.random() < 0.4 else 0.0
    wide = rng.uniform(0, 1)
    return Lower(
        kind=str(kind),
        loose_thigh=rng.uniform(0.003, 0.018) + 0.022 * wide,
        loose_shank=rng.uniform(0.003, 0.016) + flare + rng.uniform(0, 0.025) * wide,
        texture=draw_texture(rng),
        shoe_texture=draw_texture(rng),
        shoe_height=rng.uniform(0.0, 0.024),
    )


def draw_head(rng: np.random.Generator) -> Head:
    light, dark = np.array([241, 204, 177]), np.array([88, 56, 40])
    hairs = np.array(
        [[28, 22, 20], [62, 42, 30], [112, 78, 48], [190, 152, 98], [140, 138, 136]]
    )
    skin = light + (dark - light) * rng.beta(1.0, 1.6)
    hair = hairs[rng.choice(5, p=[0.35, 0.3, 0.17, 0.1, 0.08])] * rng.uniform(0.8, 1.2)
    length = rng.uniform(0.4, 1.0) if rng.random() < 0.35 else 0.0
    return Head(
        skin.astype(np.float32),
        hair.astype(np.float32),
        rng.uniform(0.006, 0.03),
        length,
    )


def draw_scene(
    rng: np.random.Generator, azimuth: float, elevation: float, seed: tuple[int, ...]
) -> Scene:
    """A scene for a camera at about `azimuth` and `elevation` degrees."""
    side = rng.uniform(-np.pi, np.pi)
    up = rng.uniform(0.35, 0.9)
    flat = np.sqrt(1 - up**2)
    warm = rng.uniform(-1, 1)
    tint = np.array([1 + 0.08 * warm, 1.0, 1 - 0.1 * warm]) * rng.uniform(0.9, 1.1)
    return Scene(
        azimuth=azimuth + rng.uniform(-7, 7),
        elevation=elevation + rng.uniform(-3, 3),
        distance=rng.uniform(8, 11),
        light=np.array([flat * np.sin(side), up, flat * np.cos(side)], np.float32),
        ambient=rng.uniform(0.45, 0.65),
        tint=tint.astype(np.float32),
        margin=rng.uniform(0.015, 0.05),
        jitter=rng.uniform(0.002, 0.008),
        blur=rng.uniform(0.4, 0.75),
        noise=rng.uniform(1, 3),
        seed=seed,
    )


def draw_colour(rng: np.random.Generator) -> np.ndarray:
    """A colour for cloth, float32 [3] in 0..255: any hue, often pale, dark or grey."""
    hue, value = rng.uniform(0, 180), rng.uniform(30, 240)
    saturation = rng.choice([rng.uniform(0, 60), rng.uniform(60, 230)], p=[0.4, 0.6])
    pixel = np.array([[[hue, saturation, value]]]).astype(np.uint8)
    return cv2.cvtColor(pixel, cv2.COLOR_HSV2RGB)[0, 0].astype(np.float32)


def draw_texture(rng: np.random.Generator) -> np.ndarray:
    """A tile of cloth, float32 [32 32 3] in 0..255.

    The first axis runs along the limb, the second around it (column 0 faces forward).
    """
    first, second = draw_colour(rng), draw_colour(rng)
    row, column = np.mgrid[:TILE, :TILE]
    period = int(rng.choice([4, 8, 16]))
    pattern = rng.choice(6, p=[0.38, 0.17, 0.12, 0.1, 0.13, 0.1])
    share = {
        0: np.zeros((TILE, TILE)),
        1: row % period < period // 2,
        2: column % period < period // 2,
        3: (row % period < period // 2) ^ (column % period < period // 2),
        4: cv2.resize(rng.random((6, 6)).astype(np.float32), (TILE, TILE)) > 0.55,
        5: np.minimum(column, TILE - column) < 7,  # a front panel
    }[int(pattern)]
    share = np.asarray(share, np.float32)[..., None]
    weave = rng.normal(1, rng.uniform(0.02, 0.1), (TILE, TILE, 1))
    cloth = (first * (1 - share) + second * share) * weave  # [32 32 3]
    return np.clip(cloth, 0, 255).astype(np.float32)


def atlas(
    upper: Upper, lower: Lower, head: Head, bag_texture: np.ndarray
) -> np.ndarray:
    """Textures of the 6 materials, float32 [6 32 32 3]."""
    flat = np.ones((TILE, TILE, 1), np.float32)
    tiles = [flat * head.skin, flat * head.hair, upper.texture, lower.texture]
    return np.stack([*tiles, lower.shoe_texture, bag_texture])


def draw_background(
    rng: np.random.Generator, height: int, width: int, horizon: float,
    outdoors: bool = False,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """A wall with panels and stains above a floor, or a sky above the ground.

    horizon: the row where the floor begins; it may lie outside the image.

    Returns the picture, uint8 [height width 3], and WALL, PANEL, FLOOR or SKY of each
    pixel, uint8 [height width].
    """
    image = np.empty((height, width, 3), np.float32)
    kind = np.full((height, width), SKY if outdoors else WALL, np.uint8)
    rows = np.linspace(0, 1, height, dtype=np.float32)[:, None, None]
    wall, far = _dull(draw_colour(rng)), _dull(draw_colour(rng))
    if outdoors:
        wall, far = _sky(rng, wall), _sky(rng, far)
    image[:] = wall + (far - wall) * rows * np.float32(rng.uniform(0, 0.5))
    for _ in range(0 if outdoors else rng.integers(2, 7)):  # doors, windows, posters
        x, y = rng.integers(0, width), rng.integers(-height // 4, height)
        w, h = rng.integers(8, 60), rng.integers(10, 90)
        share = np.float32(rng.uniform(0.1, 0.4))
        place = slice(max(y, 0), max(y + h, 0)), slice(x, x + w)
        image[place] = image[place] * (1 - share) + _dull(draw_colour(rng)) * share
        kind[place] = PANEL
    edge = int(np.clip(horizon, 0, height))
    if edge < height:
        floor, depth = _dull(draw_colour(rng)), rows[edge:] - rows[edge]
        image[edge:] = floor * (1 - np.float32(rng.uniform(0, 0.6)) * depth)
        kind[edge:] = FLOOR
    for cells in (3, 10, 40):  # large stains, shrubs, grain
        shape = (max(2, cells * height // 128), max(2, cells * width // 128))
        grey = rng.standard_normal(shape, np.float32) * rng.uniform(1, 4)
        hue = rng.normal(1, 0.12, 3).astype(np.float32)
        noise = cv2.resize(grey, (width, height), interpolation=cv2.INTER_CUBIC)
        image += noise[..., None] * hue
    return np.clip(image, 0, 255).astype(np.uint8), kind


def _sky(rng: np.random.Generator, colour: np.ndarray) -> np.ndarray:
    """A blue to white sky, a little of `colour` in it."""
    blue = np.array([120, 175, 235], np.float32)
    white = np.array([225, 232, 240], np.float32)
    share = np.float32(rng.uniform(0, 1))
    return 0.85 * (blue + (white - blue) * share) + 0.15 * colour


def _dull(colour: np.ndarray) -> np.ndarray:
    """The colour made paler and greyer, as walls and floors are."""
    grey = 0.35 * colour + 0.65 * colour.mean()
    return (150 + 0.4 * grey).astype(np.float32)
