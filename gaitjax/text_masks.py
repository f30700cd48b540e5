"""Where the text mask looks: under several prompts, measured and handed to pictures.

A mask that guides lies on what its prompt names. With "the swinging arms, the striding
legs" it should be high on arms and legs, and with "the blue sky, the clean ground" on
what surrounds the person.
"""

import functools
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from gaitjax import text_vectors
from gaitjax.data import clips, source
from gaitjax.state import Setup, TrainState, model_variables

WALKS, FRAMES = 24, 4  # of the test split that are looked at
# COCO-17: (shoulder, elbow), (elbow, wrist), (hip, knee), (knee, ankle), both sides
LIMBS = ((5, 7), (7, 9), (11, 13), (13, 15), (6, 8), (8, 10), (12, 14), (14, 16))
POINTS = 9  # on each limb
NEEDED = ("frames", "masks", "keypoints")


def vectors(config, model, variables) -> dict[str, Any]:
    """{name: text vectors} of config.evaluation.prompts.

    {} without such prompts, of a model without text, or if the text tower is gone.
    """
    prompts = config.evaluation.get("prompts") or {}
    towers = [part for part in model.text_tower if part in variables["params"]]
    if not prompts or not getattr(model, "uses_text", False) or not towers:
        return {}
    text = config.model.text
    found = {}
    for name in prompts:
        options = model.text._replace(
            prompts=tuple(prompts[name]), shipped=text.shipped,
            vocabulary=text.vocabulary,
        )  # fmt: skip
        found[name] = text_vectors.compute(model.clone(text=options), variables)
    return found


def report(config, setup: Setup, state: TrainState, data) -> dict[str, Any]:
    """For results.json: {"text": where the text came from, "text_masks": means}.

    text_masks: {"trained" | "untrained": {prompt: {"arms_and_legs", "person",
    "background": mean of the mask}}}; only if `data`, the test split, has NEEDED.
    "untrained", the state before the first step, is measured after a training only.
    """
    found: dict[str, Any] = text_vectors.origin(setup.model, state)
    if not found:
        return {}
    measured, states = {}, {"trained": lambda: state}
    if config.mode == "train":
        states["untrained"] = setup.new_state
    if all(name in data.present and data.present[name].all() for name in NEEDED):
        where = config.data.data_dir, config.data.test_dataset, config.data.test_split
        data = source.open_split(*where, NEEDED)
        for when, make in states.items():
            variables = model_variables(make())
            if jax.process_count() > 1:  # each host then measures alone
                variables = multihost_utils.process_allgather(variables, tiled=True)
            if texts := vectors(config, setup.model, variables):
                measured[when] = measure(setup.model, variables, texts, data)
    return found | ({"text_masks": measured} if measured else {})


def measure(model, variables, texts, data) -> dict[str, dict[str, float]]:
    """{prompt: {place: mean of its mask}} over WALKS walks of `data`.

    Of the positions of the feature grid, "person" has those that the person covers by
    more than half, "arms_and_legs" those of them that a limb of the key points runs
    through, "background" those in the person's columns that the person does not touch.
    """
    rows = np.linspace(0, len(data.index.key) - 1, WALKS).astype(int)
    sums = {name: np.zeros((3, 2)) for name in texts}
    for row in np.unique(rows):
        count = data.index.num_frames[row]
        frames = np.unique(np.linspace(0, count - 1, FRAMES).astype(int))
        clip = clips.load_clip(data, row, frames, NEEDED)
        batch = {name: value[None] for name, value in clip.items()}
        batch["valid"] = np.ones((1, len(frames)), bool)
        for name, text in texts.items():
            mask, inside = _mask(model, variables, batch, text)  # [T h w]
            places = _places(clip, inside)
            sums[name] += [(mask[x].sum(), x.sum()) for x in places]
    names = ("arms_and_legs", "person", "background")
    return {
        prompt: {name: float(a / max(n, 1)) for name, (a, n) in zip(names, pairs)}
        for prompt, pairs in sums.items()
    }


@functools.partial(jax.jit, static_argnames="model")
def _apply(model, variables, batch, text):
    aux = model.apply(variables, batch, train=False, text=text).aux
    return aux["text_mask"][0], aux["token_valid"][0]


def _mask(model, variables, batch, text):
    batch = {name: batch[name] for name in ("frames", "ratios", "valid")}
    return map(np.asarray, _apply(model, variables, batch, text))


def _places(clip, inside) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """bool [T h w] of arms and legs, person, background. inside: valid positions."""
    masks, (height, width) = clip["masks"], inside.shape[1:]
    rows, columns = masks.shape[1] // height, masks.shape[2] // width
    covered = masks.reshape(len(masks), height, rows, width, columns).mean((2, 4))
    person = (covered > 0.5) & inside
    limbs = np.zeros_like(person)
    share = np.linspace(0, 1, POINTS)[:, None]
    for t, points in enumerate(clip["keypoints"]):
        for first, last in LIMBS:
            if min(points[first, 2], points[last, 2]) > 0.5:  # both are seen
                line = points[first, :2] * (1 - share) + points[last, :2] * share
                x = np.clip(line[:, 0] / columns, 0, width - 1).astype(int)
                y = np.clip(line[:, 1] / rows, 0, height - 1).astype(int)
                limbs[t, y, x] = True
    return limbs & person, person, (covered == 0) & inside
