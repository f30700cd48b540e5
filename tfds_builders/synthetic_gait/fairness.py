"""Checks that a prepared data set is a fair problem: nearest neighbours of features.

    python -m tfds_builders.synthetic_gait.fairness [synthetic_gait] [--data_dir=data]

Prints Rank-1 in percent under CCPG's gait protocol on the test split, averaged over
pairs of different cameras ("cross") and of equal cameras ("same"). Colour (mean over
the frames, mean over the person's pixels, mean image) should be at chance in CL, where
probe and gallery share no garment. The gait energy image (the mean silhouette, Han &
Bhanu 2006) should be well above chance and well below 100. The gait energy image after
PCA and linear discriminant analysis, fitted on the train split, shows how much a model
can learn.
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
FEATURES = ("mean colour", "person colour", "mean image", "GEI")


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
        features = (mean_image.mean((0, 1)), person, small.ravel(), energy.ravel())
        rows.append((*names, *features))
    subject, condition, camera, *features = map(np.array, zip(*rows))
    features = dict(zip(FEATURES, features))
    return Table(subject, condition, camera, features)


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
    if train is not None:
        project = discriminant(train.features["GEI"], train.subject)
        features["GEI, PCA + LDA"] = project(test.features["GEI"])
    return {
        name: {task: rank1(test, feature, task) for task in TASKS}
        for name, feature in features.items()
    }


def main():
    import tensorflow_datasets as tfds

    from tfds_builders.prepare import make_builder

    parser = argparse.ArgumentParser(description="Nearest neighbours without learning.")
    parser.add_argument("name", nargs="?", default="synthetic_gait")
    parser.add_argument("--data_dir", default="data")
    args = parser.parse_args()
    folder = Path(make_builder(args.name, args.data_dir).data_dir)
    if not (folder / "dataset_info.json").exists():
        raise SystemExit(
            f"Nothing prepared in {folder}. Run: python -m tfds_builders.prepare "
            f"{args.name} --data_dir={args.data_dir}"
        )
    builder = tfds.builder_from_directory(str(folder))
    source: dict = builder.as_data_source()  # type: ignore  # all splits
    tables = {split: describe(records) for split, records in source.items()}
    result = measure(tables.get("train"), tables["test"])
    blind = {task: (chance(tables["test"], task),) * 2 for task in TASKS}
    result = {"chance": blind, **result}
    print(f"{folder}: Rank-1 %, cross-camera (same camera)")
    for name, row in result.items():
        cells = [f"{task} {a:5.1f} ({b:5.1f})" for task, (a, b) in row.items()]
        print(f"{name:16s}" + "   ".join(cells))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
