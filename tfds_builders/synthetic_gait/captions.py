"""Captions of rendered frames, as token ids: clothes, colours, bag, side, place."""

import numpy as np

from configs import words

LENGTH = 32  # tokens of a caption, padded with 0
COLOURS = {
    "red": (190, 40, 40),
    "orange": (225, 130, 40),
    "yellow": (215, 205, 60),
    "green": (60, 150, 70),
    "blue": (50, 80, 190),
    "purple": (130, 60, 160),
    "pink": (225, 140, 180),
    "brown": (110, 75, 50),
    "black": (35, 35, 35),
    "white": (225, 225, 225),
    "grey": (130, 130, 130),
}


def of_frames(drawn, count: int) -> np.ndarray:
    """int32 [count LENGTH] of a walk (sequences.Drawn); its frames have one caption."""
    ids = words.token_ids(caption(drawn))
    row = np.zeros(LENGTH, np.int32)
    row[: len(ids)] = ids
    return np.tile(row, (count, 1))


def caption(drawn) -> str:
    """A sentence of configs/words.py."""
    upper, lower = drawn.upper, drawn.lower
    coat = "coat" if upper.hem > 0.18 else "sweater" if upper.hood else "shirt"
    sleeves = "short" if upper.sleeve < 1 else "long"
    text = (
        f"a person in a {colour(upper.texture)} {coat} with {sleeves} sleeves and "
        f"{colour(lower.texture)} {lower.kind}"
    )
    if drawn.bag:
        bag = "bag" if drawn.bag == "shoulder bag" else drawn.bag
        text += f", with a {colour(drawn.bag_texture)} {bag}"
    return text + (", sky and ground" if drawn.scene.outdoors else ", wall and floor")


def colour(texture: np.ndarray) -> str:
    """The name of COLOURS nearest to the mean of a texture [32 32 3]."""
    mean = texture.mean((0, 1))
    return min(COLOURS, key=lambda name: np.abs(mean - COLOURS[name]).sum())
