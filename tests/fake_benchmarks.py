"""Tiny archives in the layouts of the benchmarks' authors, and of OpenGait's pickles.

Each writer returns the "subject/condition/view" of the sequences it wrote, by split.
"""

import json
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


def silhouettes(folder: Path, names, width: int, height: int) -> None:
    """One silhouette image per name."""
    for frame, name in enumerate(names):
        save(folder / name, person(width, height, frame))


CASIA_WALKS = [("nm-01", "000"), ("bg-02", "018"), ("cl-01", "180")]


def casia_b(root: Path) -> dict[str, list[str]]:
    """001/bg-01/000/001-bg-01-000-001.png, images of 320 x 240."""
    for subject in ("001", "075"):
        for condition, view in CASIA_WALKS:
            stem = f"{subject}-{condition}-{view}"
            names = [f"{stem}-{frame:03d}.png" for frame in range(1, 7)]
            place = root / "GaitDatasetB-silh" / subject / condition / view
            silhouettes(place, names, 320, 240)
    return {"train": keys("001", CASIA_WALKS), "test": keys("075", CASIA_WALKS)}


def casia_b_pickles(root: Path, size: int = 64) -> dict[str, list[str]]:
    for subject in ("001", "075"):
        for condition, view in CASIA_WALKS:
            array = np.stack([person(size, size, t) for t in range(6)])
            dump(root / subject / condition / view / f"{view}.pkl", array)
    return {"train": keys("001", CASIA_WALKS), "test": keys("075", CASIA_WALKS)}


def casia_b_star(root: Path) -> dict[str, list[str]]:
    """crop_im and crop_seg, id/type/view/frames."""
    for subject in ("001", "075"):
        for condition, view in CASIA_WALKS:
            place = f"{subject}/{condition}/{view}"
            for frame in range(6):
                mask = person(60 + 4 * frame, 160, frame)
                save(root / f"crop_im/{place}/{frame:03d}.jpg", picture(mask))
                save(root / f"crop_seg/{place}/{frame:03d}.png", mask)
    return {"train": keys("001", CASIA_WALKS), "test": keys("075", CASIA_WALKS)}


def casia_b_star_pickles(root: Path) -> dict[str, list[str]]:
    """Four pickles, silhouettes already cut to 64 x 44."""
    for subject in ("001", "075"):
        for condition, view in CASIA_WALKS:
            multimodal_pickles(root / subject / condition / view, view, cut=True)
    return {"train": keys("001", CASIA_WALKS), "test": keys("075", CASIA_WALKS)}


OUMVLP_WALKS = [("00", "000"), ("01", "000"), ("01", "270")]


def oumvlp(root: Path) -> dict[str, list[str]]:
    """Silhouette_VIEW-SEQ/ID/FRAME.png; odd ids train, even ids and 10307 test."""
    for subject in ("10305", "00002", "10307"):
        for walk, view in OUMVLP_WALKS:
            names = [f"{frame:04d}.png" for frame in range(1, 7)]
            silhouettes(root / f"Silhouette_{view}-{walk}" / subject, names, 240, 180)
    test = [*keys("00002", OUMVLP_WALKS), *keys("10307", OUMVLP_WALKS)]
    return {"train": keys("10305", OUMVLP_WALKS), "test": test}


def oumvlp_pickles(root: Path) -> dict[str, list[str]]:
    for subject in ("00001", "00002"):
        for walk, view in OUMVLP_WALKS:
            array = np.stack([person(64, 64, t) for t in range(6)])
            dump(root / subject / walk / view / f"{view}.pkl", array)
    return {"train": keys("00001", OUMVLP_WALKS), "test": keys("00002", OUMVLP_WALKS)}


def listed(file: Path, **lists) -> None:
    """A partition file: TRAIN_SET, TEST_SET, PROBE_SET, GALLERY_SET."""
    file.parent.mkdir(parents=True, exist_ok=True)
    content = {f"{name.upper()}_SET": names for name, names in lists.items()}
    file.write_text(json.dumps(content))


SUSTECH_WALKS = [("00-nm", "000"), ("01-bg-cr", "180-far")]


def sustech1k(root: Path, channels_first: bool = False) -> dict[str, list[str]]:
    """id/type/view/ with numbered pickles; frames squeezed into squares of 64."""
    listed(root / "SUSTech1K.json", train=["0003"], test=["0000"])
    for subject in ("0000", "0003"):
        for condition, view in SUSTECH_WALKS:
            masks = np.stack([cv2.resize(person(70, 160, t), (64, 64)) for t in (0, 1)])
            frames = np.stack([picture(mask) for mask in masks])  # [T 64 64 3]
            if channels_first:
                frames = np.moveaxis(frames, 3, 1)  # [T 3 64 64]
            files = {
                "00-000-LiDAR-PCDs": [np.zeros((9, 3)), np.zeros((7, 3))],
                "03-000-Camera-Pose": np.full((2, 17, 3), 0.5),
                "04-000-Camera-Ratios": np.array([[160, 70], [160, 70]]),
                "05-000-Camera-RGB": frames,
                "06-000-Camera-Sils-aligned": np.stack(
                    [person(64, 64, t) for t in (0, 1)]
                ),
                "07-000-Camera-Sils-raw": masks,
                "12-000-Camera-Ratios-sync": np.array([[160, 70]]),
            }
            for name, array in files.items():
                dump(root / subject / condition / view / f"{name}.pkl", array)
    return {"train": keys("0003", SUSTECH_WALKS), "test": keys("0000", SUSTECH_WALKS)}


def sustech1k_pickles(root: Path) -> dict[str, list[str]]:
    return sustech1k(root, channels_first=True)


GAIT3D_WALKS = [("camid0_videoid2", "seq0"), ("camid9_videoid2", "seq10")]


def gait3d(root: Path) -> dict[str, list[str]]:
    """2D_Silhouettes/id/camidX_videoidY/seqZ/*.png; one listed probe a test id."""
    for subject in ("0000", "0005"):
        for place, number in GAIT3D_WALKS:
            names = [f"human_{frame}.png" for frame in range(6)]
            folder = root / "2D_Silhouettes" / subject / place / number
            silhouettes(folder, names, 60, 120)
    return gait3d_lists(root)


def gait3d_pickles(root: Path) -> dict[str, list[str]]:
    for subject in ("0000", "0005"):
        for place, number in GAIT3D_WALKS:
            array = np.stack([person(64, 64, t) for t in range(6)])
            dump(root / subject / place / number / f"{number}.pkl", array)
    return gait3d_lists(root)


def gait3d_lists(root: Path) -> dict[str, list[str]]:
    probe = "0005-camid0_videoid2-seq0"
    listed(root / "Gait3D.json", train=["0000"], test=["0005"], probe=[probe])
    views = ["camid0_videoid2_seq0", "camid9_videoid2_seq10"]
    return {
        "train": keys("0000", [("train", view) for view in views]),
        "test": keys("0005", [("probe", views[0]), ("gallery", views[1])]),
    }


def grew(root: Path) -> dict[str, list[str]]:
    """train/id/seq, test/gallery/id/seq, test/probe/seq; images of 64 x 64. The first
    gallery walk in sorted order is 01."""
    walks = ("train/00001/s1", "train/00001/s2", "test/gallery/00001/s10",
             "test/gallery/00001/s9", "test/probe/p1", "test/probe/p2")  # fmt: skip
    for walk in walks:
        names = [f"{frame}.png" for frame in range(1, 12)]
        silhouettes(root / walk, names, 64, 64)
    return grew_keys("s9", "s10")


def grew_pickles(root: Path) -> dict[str, list[str]]:
    names = grew_keys("s9", "s10")
    for key in [*names["train"], *names["test"]]:
        array = np.stack([person(64, 64, t) for t in range(6)])
        dump(root / key / f"{key.rpartition('/')[2]}.pkl", array)
    return names


def grew_keys(first: str, second: str) -> dict[str, list[str]]:
    return {
        "train": keys("00001train", [("00", "s1"), ("00", "s2")]),
        "test": [
            *keys("00001", [("01", first), ("02", second)]),
            *keys("probe", [("03", "p1"), ("03", "p2")]),
        ],
    }


def ccgr_mini(root: Path, rgb: bool = True) -> dict[str, list[str]]:
    """id/type/view.avi/ with ratios_HW, rgb_f, sil, par, pose; one listed gallery walk.

    Poses are a box, its confidence and 17 joints; parsing is class x 13.
    """
    walks = [("1_ST", "0_0.avi"), ("2_BX", "90_5.avi")]
    listed(root / "CCGR-MINI.json", gallery=["601-1_ST-0_0.avi"])
    for subject in ("1", "601"):
        for condition, view in walks:
            folder = root / subject / condition / view
            masks = np.stack([cv2.resize(person(70, 160, t), (128, 128)) for t in (0,)])
            frames = np.stack([np.moveaxis(picture(mask), 2, 0) for mask in masks])
            dump(folder / "000-ratios_HW.pkl", np.array([[160, 70]]))
            if rgb:
                dump(folder / "001-rgb_f.pkl", frames)
            dump(folder / "002-sil.pkl", person(64, 64)[None])
            # both ways in which its files are named
            stem = f"{view.removesuffix('.avi')}par-{subject}-{condition}"
            stem = stem if subject == "1" else f"003-{stem}"
            dump(folder / f"{stem}.pkl", np.uint8(13 * 2) * (person(64, 64) > 0)[None])
            pose = np.full((1, 17, 3), 0.5).reshape(1, 51)
            box = np.array([[1.0, 2.0, 30.0, 40.0, 0.9]])
            dump(folder / "004-pose.pkl", np.concatenate([box, pose], axis=1))
    return {
        "train": keys("1", walks),
        "test": keys("601", [("gallery_1_ST", "0_0.avi"), ("probe_2_BX", "90_5.avi")]),
    }


def ccgr_mini_without_rgb(root: Path) -> dict[str, list[str]]:
    return ccgr_mini(root, rgb=False)


# metres, the person's left is +x, facing +z: name -> (x, height, z)
_SKELETON = {
    "Head": (0, 1.62, 0), "Shoulder-Center": (0, 1.42, 0),
    "Shoulder-Right": (-0.18, 1.38, 0), "Shoulder-Left": (0.18, 1.38, 0),
    "Elbow-Right": (-0.22, 1.1, 0), "Elbow-Left": (0.22, 1.1, 0),
    "Wrist-Right": (-0.23, 0.86, 0), "Wrist-Left": (0.23, 0.86, 0),
    "Hand-Right": (-0.23, 0.78, 0), "Hand-Left": (0.23, 0.78, 0),
    "Spine": (0, 1.1, 0), "Hip-centro": (0, 0.92, 0),
    "Hip-Right": (-0.09, 0.88, 0), "Hip-Left": (0.09, 0.88, 0),
    "Knee-Right": (-0.1, 0.48, 0), "Knee-Left": (0.1, 0.48, 0),
    "Ankle-Right": (-0.1, 0.08, 0), "Ankle-Left": (0.1, 0.08, 0),
    "Foot-Right": (-0.1, 0.02, 0.12), "Foot-Left": (0.1, 0.02, 0.12),
}  # fmt: skip


def kinect_walk(num_frames: int, heading: float, sway: float = 0.0) -> str:
    """A recording's text: a walk towards `heading` (degrees about y, 0 is +z), 3 m
    before the sensor, which stands 0.9 m high."""
    lines, angle = [], np.deg2rad(heading)
    ahead = np.array([np.sin(angle), np.cos(angle)])  # x, z
    left = np.array([np.cos(angle), -np.sin(angle)])
    for frame in range(num_frames):
        for name, (x, y, z) in _SKELETON.items():
            swing = np.sin(2 * np.pi * frame / 30) * (1 if "Left" in name else -1)
            z = z + 0.25 * swing * ("Ankle" in name or "Foot" in name)
            flat = (x + sway) * left + (z + 0.04 * frame) * ahead
            lines.append(f"{name};{flat[0]:.5f};{y - 0.9:.5f};{flat[1] + 3:.5f}")
    return "\n".join(lines) + "\n"


def kinect_gait(root: Path) -> dict[str, list[str]]:
    """Data/PersonNNN/K.txt."""
    for subject in ("074", "075"):
        for number in (1, 2):
            file = root / f"Data/Person{subject}/{number}.txt"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(kinect_walk(12, 90.0 * number))
    (root / "GenderBMIData").mkdir()
    walks = [(number, view) for number in ("01", "02") for view in
             ("000", "030", "060", "090")]  # fmt: skip
    return {"train": keys("074", walks), "test": keys("075", walks)}
