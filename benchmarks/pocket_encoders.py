"""Measures trained pocket encoders on people held out, and stores them in the package.

    python -m benchmarks.pocket_encoders runs/pocket_encoders [--store]

Retrieval of words: every patch of the test split's frames that shows one thing only (by
90 %) is asked for the nearest of the words below. Rank-1 is the share of patches whose
word is right, per word and as their mean; average precision ranks all patches by one
word's score. Body: the intersection over union of each part's cells (2 x 2 pixels),
read from single tokens, and how far the joints that can be seen are from where they
should be, in pixels of 128. With --store the four files and the card go to
gaitjax/weights/pocket/.
"""

import argparse
import importlib
import json
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from configs import words
from gaitjax import restore, run_folder
from gaitjax.data import clips, source
from gaitjax.engine import log
from gaitjax.engine.atomic import replacing
from gaitjax.state import model_variables
from gaitjax.weights import encoders
from tfds_builders import figure

ASKED = {  # word -> the regions that it names
    "wall": words.surroundings("wall"),
    "window": words.surroundings("panel"),
    "ground": words.surroundings("floor"),
    "sky": words.surroundings("sky"),
    "face": words.regions(("head",), ("skin",)),
    "hair": words.regions(("head",), ("hair",)),
    "torso": words.regions(("torso",)),
    "arm": words.regions(("upper arm",)),
    "forearm": words.regions(("forearm",)),
    "hand": words.regions(("hand",)),
    "thigh": words.regions(("thigh",)),
    "shin": words.regions(("shank",)),
    "foot": words.regions(("foot",)),
    "bag": words.regions(("bag",)),
}
PARTS = (
    "visual_encoder",
    "text_encoder",
    "text_projection_last",
    "text_projection_mid",
)
WALKS = 280
PURE = 0.9


def measure(model, variables, data) -> dict:
    """Retrieval of ASKED over WALKS walks of `data`, by the last and the mid mask."""
    from gaitjax.models import pocket_encoders as pocket

    meanings = np.zeros((len(ASKED), pocket.NUM_REGIONS), np.float32)
    for row, named in zip(meanings, ASKED.values()):
        row[list(named)] = 1
    ids = pocket.padded(tuple(words.token_ids(f"the {word}") for word in ASKED))

    @jax.jit
    def look(frames, regions):
        def inner(module):
            images = pocket.normalised(frames, module.visual_encoder.kind)
            final, mid = module.encoders.see(images)
            texts = module.read(jnp.asarray(ids))
            last = module.encoders.text_projection_last(texts)
            middle = module.encoders.text_projection_mid(texts)
            return (
                pocket.scores(final[:, 1:], last),
                pocket.scores(mid[:, 1:], middle),
            )

        share = pocket.region_shares(regions, model.visual_encoder.patch_size)
        return model.apply(variables, method=inner), share @ jnp.asarray(meanings).T

    scores, shares = {"last": [], "mid": []}, []
    for row in np.linspace(0, len(data.index.key) - 1, WALKS).astype(int):
        frames = np.arange(data.index.num_frames[row])
        clip = clips.load_clip(data, row, frames, ("frames", "regions"))
        found, share = look(clip["frames"], clip["regions"][None])
        for name, value in zip(scores, found):
            scores[name].append(np.asarray(value).reshape(-1, len(ASKED)))
        shares.append(np.asarray(share).reshape(-1, len(ASKED)))
    share = np.concatenate(shares)
    pure, truth = share.max(1) > PURE, share.argmax(1)
    out = {"patches": int(pure.sum()), "chance": 1 / len(ASKED)}
    for name, rows in scores.items():
        score = np.concatenate(rows)[pure]
        right = score.argmax(1) == truth[pure]
        out[name] = {
            word: _retrieval(score[:, k], right, truth[pure] == k)
            for k, word in enumerate(ASKED)
        }
        for metric in ("rank1", "average_precision"):
            values = [
                row[metric] for row in out[name].values() if isinstance(row, dict)
            ]
            values = [value for value in values if value is not None]
            out[name][f"mean_{metric}"] = float(np.mean(values))
    return out


def measure_body(model, variables, data) -> dict:
    """Parts and joints as the heads of the training read them, over WALKS walks."""
    from gaitjax.models import pocket_encoders as pocket

    @jax.jit
    def look(frames, regions, keypoints):
        def inner(module):
            images = pocket.normalised(frames, module.visual_encoder.kind)
            tokens = module.encoders.see(images)[0][:, 1:]
            cells = module._cells(module.part_head(tokens))
            return cells, module._joints(tokens, keypoints)

        cells, joints = model.apply(variables, method=inner)
        patch = model.visual_encoder.patch_size
        truth = jnp.argmax(pocket.part_shares(regions, patch, model.cells), -1)
        parts = jnp.arange(pocket.NUM_PARTS)
        found, wanted = (x[..., None] == parts for x in (jnp.argmax(cells, -1), truth))
        axes = tuple(range(found.ndim - 1))
        apart = joints["joint_places"] - joints["joint_targets"]
        apart = jnp.linalg.norm(apart, axis=-1) * model.image_size[0]
        return (
            jnp.sum(found & wanted, axes), jnp.sum(found | wanted, axes),
            apart, joints["joint_seen"],
        )  # fmt: skip

    both, either, apart, seen = 0, 0, [], []
    for row in np.linspace(0, len(data.index.key) - 1, WALKS).astype(int):
        frames = np.arange(data.index.num_frames[row])
        clip = clips.load_clip(data, row, frames, ("frames", "regions", "keypoints"))
        keypoints = np.asarray(clip["keypoints"], np.float32)
        one = look(clip["frames"], clip["regions"][None], keypoints)
        both, either = both + np.asarray(one[0]), either + np.asarray(one[1])
        apart.append(np.asarray(one[2]))
        seen.append(np.asarray(one[3]))
    pixels = np.concatenate(apart)[np.concatenate(seen)]
    overlap = {
        part: round(float(a / b), 3) for part, a, b in zip(figure.PARTS, both, either)
    }
    return {
        "part_overlap": overlap,
        "joints_mean_pixels": round(float(pixels.mean()), 2),
        "joints_median_pixels": round(float(np.median(pixels)), 2),
    }


def _retrieval(score, right, shown) -> dict:
    """Of one word: its scores [N], which patches got the right word, which show it."""
    found = {"rank1": None, "average_precision": None, "patches": int(shown.sum())}
    if shown.any():
        precision = _precision(score, shown)
        found |= {"rank1": float(right[shown].mean()), "average_precision": precision}
    return found


def _precision(score: np.ndarray, right: np.ndarray) -> float:
    hits = right[np.argsort(-score, kind="stable")]
    places = np.flatnonzero(hits) + 1
    return float(np.mean(np.arange(1, len(places) + 1) / places))


def store(folder: Path, config, params, card: dict) -> None:
    """Writes the four parts and the card."""
    from safetensors.numpy import save

    folder.mkdir(parents=True, exist_ok=True)
    for part in PARTS:
        flat = traverse_util.flatten_dict(params[part], sep="/")
        flat = {name: np.asarray(value, np.float32) for name, value in flat.items()}
        if part == "text_encoder":
            flat[encoders.TOKEN_IDS] = np.asarray(config.model.words, np.int32)
        with replacing(folder / f"{part}.safetensors", "wb") as file:
            file.write(save(flat))
    run_folder.write_json(folder / "encoders.json", card)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run")
    parser.add_argument("--store", action="store_true")
    parser.add_argument("--data_dir", default="")
    parser.add_argument("--hours", type=float, help="what the training took")
    args = parser.parse_args(argv)
    config = restore.read_config(args.run)
    config.data.data_dir = args.data_dir or config.data.data_dir
    setup, state = restore.open_run(config, args.run)
    variables = model_variables(state)
    data = source.open_split(
        config.data.data_dir,
        config.data.test_dataset,
        "test",
        ("frames", "regions", "keypoints"),
    )
    result = measure(setup.model, variables, data)
    result["body"] = measure_body(setup.model, variables, data)
    print(json.dumps(result, indent=1))
    if not args.store:
        return
    rows = log.read_metrics(Path(args.run) / log.FILE_NAME)
    rows = [row for row in rows if row["kind"] == "train"]
    builder = importlib.import_module(
        "tfds_builders.synthetic_gait.synthetic_gait_dataset_builder"
    )
    kept = ("words", "parts", "joints", "captions", "total")
    card = {
        "name": "pocket encoders",
        "what": "a small image encoder (DINOv2's architecture) and text tower "
        "(CLIP's), trained on rendered walkers",
        "not": "no DINOv2 and no CLIP: no weight and no image of either was used. They "
        "know the renderer's world only. Numbers reached with them are no benchmark "
        "numbers.",
        "config": "configs/pocket_encoders.py",
        "data": {
            "dataset": config.data.train_dataset,
            "identities": config.data.num_classes,
            "renderer_seed": builder.POCKET_SEED,
            "licence": "made by this project (Apache-2.0)",
        },
        "seed": config.seed,
        "steps": int(state.step),
        "hours": args.hours,
        "stored": time.strftime("%Y-%m-%d"),
        "parameters": {
            part: sum(x.size for x in jax.tree.leaves(variables["params"][part]))
            for part in PARTS
        },
        "curves": {
            name: [
                [int(r["step"]), round(float(r[name]), 4)]
                for r in rows[::5]
                if name in r
            ]
            for name in kept
        },
        "words_on_held_out_people": result,
    }
    store(encoders.POCKET, config, variables["params"], card)
    print(f"stored in {encoders.POCKET}")


if __name__ == "__main__":
    main()
