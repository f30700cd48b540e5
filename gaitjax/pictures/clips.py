"""A few frames of a sequence as images that a person can look at."""

import numpy as np

from gaitjax.data import pipeline
from gaitjax.data.source import Source


def rgb_frames(data: Source, row: int, modality: str, count: int = 3) -> np.ndarray:
    """`count` evenly spaced frames of a sequence: uint8 RGB [count H W 3].

    Silhouettes become grey images, classes of parsing shades of grey. Key points are
    coordinates, so the skeleton maps that are drawn from them are shown (limbs and
    joints in one grey image).
    """
    last = data.index.num_frames[row] - 1
    frames = np.linspace(0, last, count).round().astype(int)
    shown = "heatmaps" if modality == "keypoints" else modality
    images = pipeline.load_clip(data, row, frames, (shown,))[shown]
    if shown == "frames":
        return images
    grey = images.max(-1) if shown == "heatmaps" else images  # [count H W]
    bright = {"masks": 255, "parsing": 12}.get(shown, 1)
    grey = np.minimum(grey.astype(int) * bright, 255).astype(np.uint8)
    return np.stack([grey] * 3, axis=-1)
