"""How fast sequences reach the training loop, and how long it waits for them.

    python -m benchmarks.input_pipeline [--quick] [--config configs/lmgait.py] [--store]

Builds a small data set of CCPG's frame size (rendered walks of 48 frames, 256 x 128) in
a temporary folder and reads training batches of 30 frames: silhouettes 30 x 64 x 44,
RGB 30 x 256 x 128, and RGB with masks, as LMGait reads them, with 1, 2, 4 .. reading
threads up to the cores of this machine. Per second: sequences of the wall clock, and
"a core", sequences per second of this process's CPU time, which other programs disturb
little. The wait is that of `benchmarks.train_step` for --config on its own data (null
if that is not prepared). Then the arithmetic for eight H100. The last line is one JSON
object; --store keeps it in docs/input_pipeline.json and writes its part of
docs/scaling.md.
"""

import argparse
import contextlib
import io
import json
import os
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
import tensorflow_datasets as tfds

from benchmarks import memory, tables
from configs import common
from tfds_builders import features, frames
from tfds_builders.synthetic_gait import sequences

STORE = tables.DOCS / "input_pipeline.json"
SUBJECTS, VIEWS, FRAMES, SIZE = 4, 4, 48, (256, 128)
MODALITIES = {
    "silhouette": ("silhouettes",),
    "rgb": ("frames",),
    "rgb_masks": ("frames", "masks"),
}
TITLES = {
    "silhouette": "silhouettes, 30 x 64 x 44",
    "rgb": "RGB, 30 x 256 x 128",
    "rgb_masks": "RGB and masks, 30 x 256 x 128",
}
THREADS = (1, 2, 4, 8, 16, 32)
# What eight H100 need: dense bfloat16 FLOP/s of a card, the share of it that training
# reaches (an assumption: good implementations of ViTs reach 0.4 to 0.5), and the step
# of LMGait on CCPG.
PEAK, SHARE, CARDS, ROW, STEP = 989e12, 0.4, 8, "lmgait:ccpg/h100x1", 48


class Walks(features.RecordBuilder, skip_registration=True):
    """Rendered walks, enlarged to CCPG's size."""

    VERSION = tfds.core.Version("1.0.0")
    pkg_dir_path = None

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self, features=features.record_features(*SIZE)
        )

    def _split_generators(self, _):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        plan = sequences.Plan(SUBJECTS, 2, VIEWS, FRAMES, 12.0, 0)
        for subject in range(SUBJECTS):
            for camera in range(VIEWS):
                task = sequences.Task(plan, subject + 1, 0, camera)
                _, record = sequences.record(task)
                images = map(frames.decode_jpeg, record["frames"])
                masks = map(features.unpack_mask, record["masks"])
                yield features.make_record(
                    record["subject"], record["condition"], record["view"],
                    ratios=record["ratios"], height=SIZE[0], width=SIZE[1],
                    frames=[frames.encode_jpeg(enlarged(image)) for image in images],
                    masks=np.stack([enlarged(mask) for mask in masks]),
                    silhouettes=record["silhouettes"],
                )  # fmt: skip


def enlarged(image: np.ndarray) -> np.ndarray:
    kind = cv2.INTER_LINEAR if image.ndim == 3 else cv2.INTER_NEAREST
    return cv2.resize(image, SIZE[::-1], interpolation=kind)


def prepare(folder: Path) -> None:
    builder = Walks(data_dir=str(folder), file_format="array_record")
    with contextlib.redirect_stdout(io.StringIO()):
        builder.download_and_prepare()


def make_config(folder: Path, kind: str, workers: int):
    """P x K = 4 x 4 sequences of 30 frames."""
    config = common.base("input_pipeline", "ccpg")
    config.data.update(
        data_dir=str(folder), train_dataset="walks", modalities=MODALITIES[kind],
        workers=workers, ids_per_batch=4, seqs_per_id=4, num_frames=30, flip=0.5,
    )  # fmt: skip
    return config


def sequences_per_s(source, config, steps: int) -> tuple[float, float]:
    """By the wall clock and by CPU time, from before the threads start.

    The batches that threads read ahead are counted, since all are read.
    """
    from gaitjax.data import pipeline

    batches = pipeline.host_batches(source, config, start_step=0, stop_step=steps)
    started, own, count = time.perf_counter(), time.process_time(), 0
    for batch in batches:
        count += len(batch["labels"])
    seconds = time.perf_counter() - started, time.process_time() - own
    return count / seconds[0], count / seconds[1]


def throughput(folder: Path, steps: int, repeats: int) -> dict[str, float]:
    """name -> sequences per second; variants are interleaved.

    `..._N_workers`: median by the wall clock. `..._a_core`: by CPU time with one
    thread, the best, since neighbours on the same core can only slow it down.
    """
    from gaitjax.data import source

    cores = len(os.sched_getaffinity(0))
    found: dict[str, list[float]] = {}
    for _ in range(repeats):
        for kind, modalities in MODALITIES.items():
            data = source.open_split(str(folder), "walks", "train", modalities)
            for workers in [n for n in THREADS if n <= max(2, cores)]:
                config = make_config(folder, kind, workers)
                # as many batches for each thread
                wall, own = sequences_per_s(data, config, steps * workers)
                found.setdefault(f"{kind}_{workers}_workers", []).append(wall)
                if workers == 1:
                    found.setdefault(f"{kind}_a_core", []).append(own)
    return {
        name: round((max if name.endswith("a_core") else statistics.median)(rates), 1)
        for name, rates in found.items()
    }


def feeding(rate: float) -> str:
    """What CARDS H100 that train LMGait on CCPG read, at `rate` sequences/s a core.

    The work of a step is that of the program that XLA compiles for an H100
    (docs/scaling.json).
    """
    work = memory.stored("targets")[ROW]["step_tflop"]
    seconds = work * 1e12 / (SHARE * PEAK)
    needed = CARDS * STEP / seconds
    cores = f"{needed / rate:.0f} cores at {rate:.0f} sequences/s a core"
    return f"""\
A step of `{ROW.partition("/")[0]}` is {work:.1f} TFLOP for {STEP} sequences, so
{seconds:.3f} s on an H100 that reaches {SHARE:.0%} of its {PEAK / 1e12:.0f} TFLOP/s (an
assumption). {CARDS} cards with {STEP} sequences each read {needed:,.0f} sequences/s:
{cores}, {needed / rate / CARDS:.1f} a card.
"""


def table(result: dict) -> str:
    """Markdown: the rates of each kind of clip."""
    threads = [n for n in THREADS if f"rgb_{n}_workers" in result]
    head = ["clip", "a core", *(f"{n} thread{'s' * (n > 1)}" for n in threads)]
    rows = [
        [TITLES[kind], *(f"{result[f'{kind}_{x}']:,.0f}" for x in columns)]
        for kind in MODALITIES
        for columns in [["a_core", *(f"{n}_workers" for n in threads)]]
    ]
    return tables.markdown(head, rows)


def wait_of(name: str, data_dir: str, steps: int) -> dict[str, float | None]:
    """Step time and share of waiting of config `name`, null if it has no data."""
    from benchmarks.train_step import load_config, measure

    config = load_config(name)
    config.data.data_dir = data_dir
    if not (Path(data_dir) / config.data.train_dataset).is_dir():
        print(f"{config.data.train_dataset} is not prepared, so no wait is measured")
        return {"wait_share": None, "step_ms": None}
    step = measure(config, steps, random=False)
    return {name: step[name] for name in ("wait_share", "step_ms")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="configs/lmgait.py")
    parser.add_argument("--data_dir", default=str(ROOT / "data"))
    parser.add_argument("--store", action="store_true", help="write it into docs/")
    parser.add_argument("--quick", action="store_true", help="fewer batches and steps")
    arguments = parser.parse_args()
    steps, repeats, train_steps = (4, 3, 6) if arguments.quick else (8, 7, 30)
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder))
        result: dict = throughput(Path(folder), steps, repeats)
    result |= wait_of(arguments.config, arguments.data_dir, train_steps)
    result["cores"] = len(os.sched_getaffinity(0))
    for name, value in result.items():
        print(f"  {name:38} {value}")
    text = table(result) + "\n" + feeding(result["rgb_masks_a_core"])
    if arguments.store:
        tables.add(STORE, "rates", result)
        tables.put(memory.DOCUMENT, "input_pipeline.py", text)
    else:
        print(text)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
