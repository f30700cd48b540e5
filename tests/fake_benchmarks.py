"""Tiny archives in the layouts of the benchmarks' authors, and of OpenGait's pickles.

Each writer returns the "subject/condition/view" of the sequences it wrote, by split.
"""

import pickle
from pathlib import Path

import cv2
import numpy as np


def person(width: int, height: int, frame: int = 0) -> np.ndarray:
    """A mask uint8 [height width], 0/255: head, trunk and two legs that swing."""
    mask = np.zeros((height, width), np.uint8)
    unit, x = height // 16, width // 2
    cv2.circle(mask, (x, 2 * unit), max(1, int(1.3 * unit)), 255, -1)
    cv2.rectangle(mask, (x - 2 * unit, 3 * unit), (x + unit, 9 * unit), 255, -1)
    for side in (-1, 1):
        foot = (x + side * (1 + frame % 3) * unit, 15 * unit)
        cv2.line(mask, (x, 9 * unit), foot, 255, max(1, unit))
    return mask


def picture(mask: np.ndarray, colour=(200, 120, 40)) -> np.ndarray:
    """RGB uint8 [H W 3]: the person in one colour on grey."""
    return np.where(mask[..., None] > 0, np.uint8(colour), np.uint8(60))


def save(file: Path, image: np.ndarray) -> None:
    """Writes a grey or RGB image."""
    file.parent.mkdir(parents=True, exist_ok=True)
    if image.ndim == 3:
        image = image[..., ::-1]
    assert cv2.imwrite(str(file), image)


def dump(file: Path, array, protocol: int = 4) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(pickle.dumps(array, protocol))


def keys(subject: str, walks) -> list[str]:
    return [f"{subject}/{condition}/{view}" for condition, view in walks]


CCPG_WALKS = [("U0_D0", "01_0"), ("U0_D0", "02"), ("U3_D3", "10_1")]


def ccpg(root: Path) -> dict[str, list[str]]:
    """CCPG_D_MASK_FACE_SHOE and CCPG_G_SIL, id/type/view/frames, detections of several
    sizes."""
    for subject in ("000", "101"):
        for condition, view in CCPG_WALKS:
            place = f"{subject}/{condition}/{view}"
            for frame in range(1, 7):
                mask = person(60 + 4 * frame, 160 + frame, frame)
                name = f"{frame:05d}"
                save(root / f"CCPG_G_SIL/{place}/{name}.png", mask)
                save(root / f"CCPG_D_MASK_FACE_SHOE/{place}/{name}.jpg", picture(mask))
    return {"train": keys("000", CCPG_WALKS), "test": keys("101", CCPG_WALKS)}


def ccpg_pickles(root: Path) -> dict[str, list[str]]:
    """id/type/view/ with four pickles."""
    for subject in ("000", "101"):
        for condition, view in CCPG_WALKS:
            multimodal_pickles(root / subject / condition / view, view)
    return {"train": keys("000", CCPG_WALKS), "test": keys("101", CCPG_WALKS)}


def multimodal_pickles(folder: Path, view: str, cut: bool = False) -> None:
    """-aligned-sils, -ratios, -rgbs, -sils; frames squeezed into squares of 128."""
    masks = [cv2.resize(person(70, 160, t), (128, 128)) for t in range(6)]
    frames = np.stack([np.moveaxis(picture(m), 2, 0) for m in masks])  # [T 3 128 128]
    aligned = np.stack([person(64, 64, t) for t in range(6)])
    aligned = aligned[:, :, 10:54] if cut else aligned
    dump(folder / f"{view}-aligned-sils.pkl", aligned)
    dump(folder / f"{view}-ratios.pkl", np.full(6, 0.4375))
    dump(folder / f"{view}-rgbs.pkl", frames, protocol=5)
    dump(folder / f"{view}-sils.pkl", np.stack(masks), protocol=2)
