"""Checks that a prepared data set is a fair problem: nearest neighbours of features.

    python -m tfds_builders.synthetic_gait.fairness [synthetic_gait] [--data_dir=data]

Prints Rank-1 in percent under CCPG's gait protocol on the test split, averaged over
pairs of different cameras ("cross") and of equal cameras ("same"). Colour (mean over
the frames, mean over the person's pixels, mean image) should be at chance in CL, where
probe and gallery share no garment. The gait energy image (the mean silhouette, Han &
Bhanu 2006) and the joints (where the key points are about the hips, and how far each
moves) should be well above chance and well below 100. Both after PCA and linear
discriminant analysis, fitted on the train split, show how much a model can learn.
"""

import argparse
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np

# task -> probe conditions, gallery conditions (CCPG)
TASKS = {
    "CL": (("U0_D0_BG", "U0_D0"), ("U1_D1", "U2_D2", "U3_D3")),
    "UP": (("U3_D3",), ("U0_D3",)),
    "DN": (("U1_D0",), ("U1_D1",)),
    "BG": (("U0_D0_BG",), ("U0_D0",)),
}
FEATURES = ("mean colour", "person colour", "mean image", "GEI", "joints")
LEARNED = ("GEI", "joints")  # also after PCA and LDA
HIPS = (11, 12)  # COCO


class Table(NamedTuple):
    """One row for each sequence: names [n] and features {name: float32 [n D]}."""

    subject: np.ndarray
    condition: np.ndarray
    camera: np.ndarray
    features: dict


def describe(records) -> Table:
    """Reads every record of a data source once."""
    from tfds_builders.features import unpack_mask
    from tfds_builders.frames import decode_jpeg

    rows = []
    for record in records:
        images = np.stack([decode_jpeg(frame) for frame in record["frames"]])
        mean_image = images.mean(0, dtype=np.float32)  # [H W 3]
        small = mean_image.reshape(16, 8, 8, 8, 3).mean((1, 3))  # [16 8 3]
        energy = record["silhouettes"][:, :, 10:54].mean(0, dtype=np.float32)
        names = [record[n].decode() for n in ("subject", "condition", "camera")]
        inside = np.stack([unpack_mask(mask) for mask in record["masks"]]) > 0
        person = images[inside].mean(0, dtype=np.float32)  # [3]
        rows.append((
            *names, mean_image.mean((0, 1)), person, small.ravel(), energy.ravel(),
            joint_feature(np.asarray(record["keypoints"], np.float32)),
        ))  # fmt: skip
    subject, condition, camera, *features = map(np.array, zip(*rows))
    features = dict(zip(FEATURES, features))
    return Table(subject, condition, camera, features)


def joint_feature(keypoints: np.ndarray) -> np.ndarray:
    """Key points [T 17 3] -> [68]: mean and deviation over the frames, of each joint's
    place about the middle of the hips, in mean heights of the figure."""
    places = keypoints[..., :2]
    height = np.ptp(places[..., 1], axis=1).mean()
    about = (places - places[:, HIPS].mean(1, keepdims=True)) / max(height, 1.0)
    return np.concatenate([about.mean(0).ravel(), about.std(0).ravel()])


def rank1(table: Table, feature: np.ndarray, task: str) -> tuple[float, float]:
    """Rank-1 in percent of nearest neighbours (L2): (cross-camera, same-camera)."""
    probes, galleries = TASKS[task]
    cameras = np.unique(table.camera)
    cross, same = [], []
    for probe_camera in cameras:
        for gallery_camera in cameras:
            probe = np.isin(table.condition, probes) & (table.camera == probe_camera)
            gallery = np.isin(table.condition, galleries)
            gallery &= table.camera == gallery_camera
            if not probe.any() or not gallery.any():
                continue
            a, b = feature[probe], feature[gallery]
            squared = (a**2).sum(1)[:, None] + (b**2).sum(1)[None] - 2 * a @ b.T
            found = table.subject[gallery][squared.argmin(1)]
            cell = 100 * float((found == table.subject[probe]).mean())
            (same if probe_camera == gallery_camera else cross).append(cell)
    return float(np.mean(cross or [np.nan])), float(np.mean(same or [np.nan]))


def chance(table: Table, task: str) -> float:
    """Rank-1 in percent of a gallery sequence drawn at random, over all cameras."""
    probes, galleries = (np.isin(table.condition, names) for names in TASKS[task])
    same = table.subject[probes][:, None] == table.subject[galleries][None]
    return 100 * float(same.mean())


def discriminant(
    train: np.ndarray, labels: np.ndarray, components: int = 100, kept: int = 30
):
    """PCA, then LDA, fitted on train [n D]; returns a function [N D] -> [N kept]."""
    mean = train.mean(0)
    _, _, axes = np.linalg.svd(train - mean, full_matrices=False)
    axes = axes[:components]
    reduced = (train - mean) @ axes.T  # [n C]
    classes = np.unique(labels)
    centres = np.stack([reduced[labels == one].mean(0) for one in classes])
    within = reduced - centres[np.searchsorted(classes, labels)]
    scatter = within.T @ within / len(within)
    scatter += 0.01 * np.trace(scatter) / len(scatter) * np.eye(len(scatter))
    values, vectors = np.linalg.eigh(scatter)
    whiten = vectors / np.sqrt(values)
    _, _, directions = np.linalg.svd((centres - centres.mean(0)) @ whiten)
    projection = axes.T @ whiten @ directions[:kept].T  # [D kept]
    return lambda features: (features - mean) @ projection


def measure(train: Table | None, test: Table) -> dict[str, dict[str, tuple]]:
    """{feature: {task: (cross, same)}} on the test split."""
    features = dict(test.features)
    for name in LEARNED if train is not None else ():
        project = discriminant(train.features[name], train.subject)
        features[f"{name}, PCA + LDA"] = project(test.features[name])
    return {
        name: {task: rank1(test, feature, task) for task in TASKS}
        for name, feature in features.items()
    }


def of_prepared(
    name: str, data_dir: str, fitted_on: str = ""
) -> dict[str, dict[str, tuple]]:
    """`measure` of a data set that is prepared in data_dir, and "chance" before it.

    fitted_on: the data set whose train split PCA and LDA are fitted on; "": its own, if
    it has one.
    """
    splits = _splits(name, data_dir)
    train = _splits(fitted_on, data_dir) if fitted_on not in ("", name) else splits
    test = describe(splits["test"])
    blind = {task: (chance(test, task),) * 2 for task in TASKS}
    fitted = describe(train["train"]) if "train" in train else None
    return {"chance": blind} | measure(fitted, test)


def _splits(name: str, data_dir: str) -> dict:
    """{split: records} of a prepared data set."""
    import tensorflow_datasets as tfds

    from tfds_builders.prepare import make_builder

    folder = Path(make_builder(name, data_dir).data_dir)
    if not (folder / "dataset_info.json").exists():
        raise SystemExit(
            f"Nothing prepared in {folder}. Run: python -m tfds_builders.prepare "
            f"{name} --data_dir={data_dir}"
        )
    builder = tfds.builder_from_directory(str(folder))
    return builder.as_data_source()  # type: ignore  # all splits


def main():
    parser = argparse.ArgumentParser(description="Nearest neighbours without learning.")
    parser.add_argument("name", nargs="?", default="synthetic_gait")
    parser.add_argument("--data_dir", default="data")
    parser.add_argument(
        "--fitted_on", default="", metavar="NAME",
        help="whose train split PCA and LDA are fitted on; default: its own",
    )  # fmt: skip
    args = parser.parse_args()
    result = of_prepared(args.name, args.data_dir, args.fitted_on)
    print("Rank-1 %, cross-camera (same camera)")
    for name, row in result.items():
        cells = [f"{task} {a:5.1f} ({b:5.1f})" for task, (a, b) in row.items()]
        print(f"{name:19s}" + "   ".join(cells))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
