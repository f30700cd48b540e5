"""The temperature of LMGait's text mask under the paper's optimizer, plain and log.

    python -m benchmarks.temperature            # 2,000 steps of each, a few minutes
    python -m benchmarks.temperature --table    # only the table and the picture

A tiny LMGait (benchmarks/scaling.py: frozen random encoders, frames of 32 x 16) on
rendered walks, SGD with a constant rate of 0.1, momentum 0.9 and a weight decay of
5e-4: the rate of the first 15,000 of the paper's 40,000 steps. `text.temperature`
"plain" learns tau with weight decay, "log" learns log tau without; "slow" is "log" with
a hundredth of the rate for log tau (config.optimizer.rates). Writes
docs/temperature.json, a table of docs/lmgait.md and a picture.
"""

import argparse
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np

from benchmarks import tables

DOCUMENT, STORE = tables.DOCS / "lmgait.md", tables.DOCS / "temperature.json"
PICTURE = tables.DOCS / "pictures" / "temperature.png"
KINDS = {  # name -> (title, config.model.text.temperature, config.optimizer.rates)
    "plain": ('`"plain"`', "plain", ()),
    "log": ('`"log"`', "log", ()),
    "slow": ('`"log"` at 0.01 of the rate', "log", (("log_tau$", 0.01),)),
}
STEPS, EVERY, RATE, DECAY, MOMENTUM = 2_000, 20, 0.1, 5e-4, 0.9
PEOPLE, WALKS, FRAMES = 6, 4, 12  # rendered; a batch has 4 x 4 walks of 3 frames


def make_config(kind: str):
    from benchmarks import scaling
    from configs import common

    config = scaling.lmgait_config()
    config.optimizer.update(
        common.optimizer(
            learning_rate=RATE, momentum=MOMENTUM, weight_decay=DECAY,
            schedule="constant", rates=KINDS[kind][2],
        )
    )  # fmt: skip
    config.model.text.temperature = KINDS[kind][1]
    config.frozen = ("^text_encoder/", "^visual_encoder/")
    return config


def walks(size: tuple[int, int]):
    """Rendered walks: frames uint8 [P W T H W 3], masks 0/1 [P W T H W], ratios."""
    import cv2

    from tfds_builders.features import unpack_mask
    from tfds_builders.frames import decode_jpeg
    from tfds_builders.synthetic_gait import sequences

    plan = sequences.Plan(PEOPLE, 1, WALKS, FRAMES, 12.0, 0)
    kept = []
    for person in range(PEOPLE):
        for camera in range(WALKS):
            task = sequences.Task(plan, person + 1, 0, camera)
            _, record = sequences.record(task)
            for image, mask, ratio in zip(
                map(decode_jpeg, record["frames"]),
                map(unpack_mask, record["masks"]),
                record["ratios"],
                strict=True,
            ):
                scaled = [
                    cv2.resize(x, size[::-1], interpolation=cv2.INTER_AREA)
                    for x in (image, mask)
                ]
                kept.append((scaled[0], scaled[1] > 127, ratio))
    shape = (PEOPLE, WALKS, FRAMES)
    return [np.stack(x).reshape(*shape, *np.shape(x[0])) for x in zip(*kept)]


def batches(config):
    """Endless batches; batch s is a function of s."""
    frames, masks, ratios = walks(tuple(config.data.image_size))
    data, step = config.data, 0
    while True:
        rng = np.random.default_rng([11, step])
        ids = rng.choice(PEOPLE, data.ids_per_batch, replace=False)
        person = np.repeat(ids, data.seqs_per_id)[:, None]
        walk = np.tile(np.arange(WALKS), data.ids_per_batch)[:, None]
        first = rng.integers(0, FRAMES - data.num_frames + 1, (len(person), 1))
        time = first + np.arange(data.num_frames)
        yield {
            "frames": frames[person, walk, time],
            "masks": masks[person, walk, time].astype(np.uint8),
            "ratios": ratios[person, walk, time].astype(np.float32),
            "valid": np.ones(time.shape, bool),
            "labels": person[:, 0].astype(np.int32),
        }
        step += 1


def train(kind: str, steps: int) -> list[dict]:
    """The logged values of every EVERY-th step, and of the first."""
    import jax

    from benchmarks import scaling

    config, rows = make_config(kind), []
    setup, step, _ = scaling.lmgait_run(config)
    state, rng = setup.new_state(), jax.random.key(1)
    for number, batch in zip(range(1, steps + 1), batches(config)):
        state, terms = step(state, batch, rng)
        if number == 1 or number % EVERY == 0:
            values = {name: round(float(x), 4) for name, x in terms.items()}
            rows.append({"step": number} | values)
    return rows


def table() -> str:
    """Markdown: tau of both kinds every 250 steps, and what decay alone would do."""
    stored = tables.stored(STORE)
    shown = [1, *range(250, STEPS + 1, 250)]
    lines, alone, speed, tau = [], {}, 0.0, 10.0
    for step in range(1, STEPS + 1):  # tau before the step, as it is logged
        alone[step] = tau
        speed = MOMENTUM * speed + DECAY * tau
        tau -= RATE * speed
    for kind, (title, *_) in KINDS.items():
        rows = {row["step"]: row for row in stored.get(kind, ())}
        for layer in ("last", "mid"):
            cells = [nearest(rows, step)[f"tau/{layer}"] for step in shown if rows]
            lines.append([f"tau ({layer}), {title}", *(f"{x:.2f}" for x in cells)])
        if kind == "plain":
            lines.append(["decay alone", *(f"{alone[step]:.2f}" for step in shown)])
    return tables.markdown(["step", *(f"{step:,}" for step in shown)], lines)


def nearest(rows: dict[int, dict], step: int) -> dict:
    return rows[min(rows, key=lambda stored: abs(stored - step))]


def picture() -> None:
    from gaitjax.pictures import charts

    names = ("tau/last", "tau/mid", "text_mask/deviation", "triplet")
    metrics = []
    for kind, rows in tables.stored(STORE).items():
        for row in rows:
            values = {
                f"{name.replace('/', ' ')}/{kind}": row[name]
                for name in names
                if name in row
            }
            metrics.append({"kind": "train", "step": row["step"]} | values)
    charts.learning_curves(metrics, PICTURE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--table", action="store_true", help="train nothing")
    parser.add_argument("--kinds", nargs="*", default=list(KINDS), choices=KINDS)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--smoke", action="store_true", help="print, store nothing")
    arguments = parser.parse_args()
    if not arguments.table:
        for kind in arguments.kinds:
            rows = train(kind, arguments.steps)
            print(json.dumps({kind: rows[-1]}), flush=True)
            if not arguments.smoke:
                tables.add(STORE, kind, rows)
    if not arguments.smoke:
        tables.put(DOCUMENT, "temperature.py", table())
        picture()


if __name__ == "__main__":
    main()
