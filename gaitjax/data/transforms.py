"""Frame decoding and augmentation; one draw of parameters for a whole sequence.

Arrays are numpy, time first. Every augmentation treats all modalities of a sequence
alike, so frames, masks, silhouettes and heat maps stay registered.
"""

import numpy as np

IMAGE_LIKE = ("frames", "masks", "silhouettes", "heatmaps")  # width is axis 2


def decode_frames(encoded: list[bytes], key: str) -> np.ndarray:
    """JPEG or PNG bytes of one sequence -> RGB uint8 [T H W 3]."""
    import cv2

    images = []
    for number, data in enumerate(encoded):
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
        if image is None:
            raise ValueError(
                f"Sequence {key}: frame {number} is not a decodable image."
            )
        images.append(cv2.cvtColor(image, cv2.COLOR_BGR2RGB))
    if len({image.shape for image in images}) != 1:
        raise ValueError(f"Sequence {key}: frames differ in size.")
    return np.stack(images)


def cut_silhouettes(silhouettes: np.ndarray, key: str) -> np.ndarray:
    """Central 44 of 64 (88 of 128) columns: [T H H] -> [T H 11H/16].

    The field's "cut" (`ZOO` 0.6). Data that is already cut is refused, never cut twice.
    """
    height, width = silhouettes.shape[1:]
    if width != height or height % 16:
        raise ValueError(
            f"Sequence {key}: silhouettes are {height}x{width}; expected square ones "
            "(64x64 or 128x128) as the builders store them. Already cut data must not "
            "be cut again."
        )
    margin = 5 * height // 32
    return silhouettes[:, :, margin : width - margin]


def flip(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Mirrors every image-like modality left to right, all frames of the sequence."""
    return {
        name: np.ascontiguousarray(value[:, :, ::-1]) if name in IMAGE_LIKE else value
        for name, value in arrays.items()
    }


def recolour(frames: np.ndarray, strength: float, rng: np.random.Generator):
    """RGB uint8 [T H W 3] in other colours, the same ones in all frames.

    Each output channel is a random mix of the three (weights sum to 1), then gets a
    random gain and offset. strength 0 is the identity; at 1 hue, saturation and
    brightness say little about what somebody wears. Not in the papers: small training
    sets have too few outfits to unlearn clothes by themselves.
    """
    mix = rng.dirichlet((1.0, 1.0, 1.0), 3)  # [3 3]
    mix = (1 - strength) * np.eye(3) + strength * mix
    gain = np.exp(strength * rng.uniform(-0.5, 0.5, 3))
    offset = 64 * strength * rng.uniform(-1, 1, 3)
    mixed = frames @ (mix * gain[:, None]).T.astype(np.float32) + offset
    return np.clip(mixed, 0, 255).astype(np.uint8)  # [T H W 3]


def augment(
    arrays: dict[str, np.ndarray],
    *,
    flip_probability: float,
    colour_strength: float,
    rng: np.random.Generator,
) -> dict[str, np.ndarray]:
    """Training augmentation of one sequence; draws from `rng` in a fixed order."""
    if rng.random() < flip_probability:
        arrays = flip(arrays)
    if colour_strength and "frames" in arrays:
        frames = recolour(arrays["frames"], colour_strength, rng)
        arrays = arrays | {"frames": frames}
    return arrays
