"""How fast sequences reach the training loop, and how long it waits for them.

    python -m benchmarks.input_pipeline [--quick] [--config configs/lmgait.py]

Builds a small data set of CCPG's frame size (rendered walks of 48 frames, 256 x 128)
with the ccpg builder in a temporary folder and reads training batches of 30 frames:
silhouettes 30 x 64 x 44 and RGB 30 x 256 x 128, with 1 and 2 reading threads in turns,
medians. The wait is that of `benchmarks.train_step` for --config on its own data (null
if that is not prepared). The last line is one JSON object: silhouette_sequences_per_s,
rgb_sequences_per_s (with the better number of threads), wait_share, and each
measurement.
"""

import argparse
import json
import os
import pickle
import statistics
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import cv2
import numpy as np

from benchmarks.train_step import load_config, measure
from configs import common

SUBJECTS, VIEWS, FRAMES = 4, 4, 48
MODALITIES = {"silhouette": ("silhouettes",), "rgb": ("frames",)}
WORKERS = (1, 2)


def write_pickles(folder: Path) -> None:
    """Rendered walks, enlarged, as ID/TYPE/VIEW/*.pkl of the ccpg/opengait source."""
    from tfds_builders.frames import decode_jpeg
    from tfds_builders.synthetic_gait import sequences

    plan = sequences.Plan(SUBJECTS, 2, VIEWS, FRAMES, 12.0, 0)
    for subject in range(SUBJECTS):
        for camera in range(VIEWS):
            task = sequences.Task(plan, subject + 1, 0, camera)
            _, record = sequences.record(task)
            small = [decode_jpeg(frame) for frame in record["frames"]]
            large = [cv2.resize(image, (128, 256)) for image in small]
            view = f"{camera + 1:02d}_0"
            place = folder / f"{subject:03d}" / "U0_D0" / view
            place.mkdir(parents=True)
            arrays = {
                "aligned-rgbs": np.moveaxis(np.stack(large), 3, 1),  # [T 3 256 128]
                "aligned-sils": record["silhouettes"],
                "ratios": np.minimum(record["ratios"], 0.5),
            }
            for name, array in arrays.items():
                (place / f"{view}-{name}.pkl").write_bytes(pickle.dumps(array))


def prepare(folder: Path) -> None:
    from tfds_builders.prepare import prepare as build

    write_pickles(folder / "raw")
    build("ccpg/opengait", folder / "data", manual_dir=folder / "raw")


def make_config(folder: Path, kind: str, workers: int):
    """P x K = 4 x 4 sequences of 30 frames."""
    config = common.base("input_pipeline", "ccpg")
    config.data.update(
        data_dir=str(folder / "data"), train_dataset="ccpg/opengait",
        modalities=MODALITIES[kind], workers=workers, ids_per_batch=4, seqs_per_id=4,
        num_frames=30, flip=0.5,
    )  # fmt: skip
    return config


def sequences_per_s(source, config, steps: int) -> float:
    """Without the first batch, which starts the threads and the read-ahead."""
    from gaitjax.data import pipeline

    batches = pipeline.host_batches(source, config, start_step=0, stop_step=steps + 3)
    next(batches)
    started, count = time.perf_counter(), 0
    for batch in batches:
        count += len(batch["labels"])
    return count / (time.perf_counter() - started)


def throughput(folder: Path, steps: int, repeats: int) -> dict[str, float]:
    """name_workers -> median sequences per second; variants are interleaved."""
    from gaitjax.data import source

    data = source.open_split(str(folder / "data"), "ccpg/opengait", "train")
    found: dict[str, list[float]] = {}
    for _ in range(repeats):
        for kind in MODALITIES:
            for workers in WORKERS:
                config = make_config(folder, kind, workers)
                rate = sequences_per_s(data, config, steps)
                name = f"{kind}_sequences_per_s_{workers}_workers"
                found.setdefault(name, []).append(rate)
    return {name: round(statistics.median(v), 1) for name, v in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="configs/lmgait.py")
    parser.add_argument("--data_dir", default=str(ROOT / "data"))
    parser.add_argument("--quick", action="store_true", help="fewer batches and steps")
    arguments = parser.parse_args()
    steps, repeats, train_steps = (4, 3, 6) if arguments.quick else (16, 5, 30)
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder))
        rates = throughput(Path(folder), steps, repeats)
    result = {
        f"{kind}_sequences_per_s": max(
            rate for name, rate in rates.items() if name.startswith(kind)
        )
        for kind in MODALITIES
    }
    config = load_config(arguments.config)
    config.data.data_dir = arguments.data_dir
    result["wait_share"] = result["step_ms"] = None
    if (Path(arguments.data_dir) / config.data.train_dataset).is_dir():
        step = measure(config, train_steps, random=False)
        result["wait_share"], result["step_ms"] = step["wait_share"], step["step_ms"]
    else:
        print(f"{config.data.train_dataset} is not prepared, so no wait is measured")
    result |= rates
    result["cores"] = len(os.sched_getaffinity(0))
    for name, value in result.items():
        print(f"  {name:38} {value}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
