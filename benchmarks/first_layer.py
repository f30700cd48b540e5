"""What LMGait's gait network attends to (the paper's Figure 5), one run beside another.

    python -m benchmarks.first_layer runs/lmgait runs/without_text --out=figure5.png

For one walk of each condition, side by side for each run: the frame; the activation
energy of the first layer of both stems (root of the sum of squares over channels); the
weight that the fusion gives the appearance map (mean over channels; the denoised map
has the rest). Prints how much of the energy lies on the person.
"""

import argparse
from pathlib import Path

import jax
import numpy as np

from gaitjax import restore, text_vectors
from gaitjax.data import clips, source
from gaitjax.pictures import charts
from gaitjax.state import model_variables

LAYERS = ("stem_denoised", "stem_appearance", "expand")
ROWS = ("energy, denoised", "energy, appearance", "fusion: appearance")
FRAME = 6  # of each walk


def look(model, variables, batch, text) -> dict[str, np.ndarray]:
    """{name of ROWS: [T h w]} of one walk, batch [1 T ...]."""
    _, state = model.apply(
        variables, batch, train=False, text=text,
        capture_intermediates=lambda module, _: module.name in LAYERS,
    )  # fmt: skip
    found = {}

    def collect(path, value):
        names = [getattr(key, "key", "") for key in path]
        for name in LAYERS:
            if name in names:
                found[name] = np.asarray(value)

    jax.tree_util.tree_map_with_path(collect, state["intermediates"])
    logits = found["expand"]  # [N h w 2C], the source is the fastest index
    logits = logits.reshape(*logits.shape[:-1], -1, 2)
    weights = jax.nn.softmax(logits, axis=-1)
    energies = [np.sqrt((found[name] ** 2).sum(-1)) for name in LAYERS[:2]]
    return dict(zip(ROWS, (*energies, np.asarray(weights[..., 1].mean(-1)))))


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+")
    parser.add_argument("--out", default="figure5.png")
    parser.add_argument("--data_dir", default="")
    args = parser.parse_args(argv)
    strips: dict[str, list] = {}
    for run in args.runs:
        config = restore.read_config(run)
        config.mode = "evaluate"
        config.data.data_dir = args.data_dir or config.data.data_dir
        setup, state = restore.open_run(config, run)
        variables = model_variables(state)
        text = None
        if setup.model.uses_text:
            text = text_vectors.compute(setup.model, variables)
        data = source.open_split(
            config.data.data_dir, config.data.test_dataset, "test", ("frames", "masks")
        )
        conditions, first = np.unique(data.index.condition, return_index=True)
        on_person = {row: [] for row in ROWS[:2]}
        for row in first:
            frames = np.arange(min(2 * FRAME, data.index.num_frames[row]))
            clip = clips.load_clip(data, row, frames, ("frames", "masks"))
            batch = {k: clip[k][None] for k in ("frames", "ratios")}
            batch["valid"] = np.ones((1, len(frames)), bool)
            seen = look(setup.model, variables, batch, text)
            strips.setdefault("frame", [])
            if run == args.runs[0]:
                strips["frame"].append(clip["frames"][FRAME])
            height, width = seen[ROWS[0]].shape[1:]
            shape = len(frames), height, -1, width, clip["masks"].shape[2] // width
            covered = clip["masks"].reshape(shape).mean((2, 4))
            for name, values in seen.items():
                strips.setdefault(f"{Path(run).name}\n{name}", []).append(values[FRAME])
                if name in on_person:
                    on_person[name].append((values * covered).sum() / values.sum())
        for name, shares in on_person.items():
            print(f"{run}: {name}: {100 * np.mean(shares):.1f} % on the person")
    frames = np.stack(strips.pop("frame"))
    maps = {name: np.stack(values) for name, values in strips.items()}
    title = "first layer of the gait network: " + ", ".join(conditions)
    charts.frame_maps(frames, maps, args.out, title)
    print(args.out)


if __name__ == "__main__":
    main()
