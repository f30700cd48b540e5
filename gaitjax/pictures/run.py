"""Pictures of an evaluated run: learning curves, CMC, ranked lists, maps in a walk."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gaitjax.data import pipeline
from gaitjax.data.source import Source
from gaitjax.pictures import charts, clips
from gaitjax.retrieval import protocols

PROBES_SHOWN, RANKS_SHOWN, CMC_RANKS = 6, 5, 50
RANKED_TITLE = (
    f"probe and its {RANKS_SHOWN} nearest (✓ same person, ✗ another; number: distance)"
)
MAPS = {  # names in GaitOutput.aux of what models see in a frame
    "text_mask": "text mask",
    "foreground_probability": "decoder silhouette",
    "motion": "motion",
}
MAP_FRAMES = 8


def draw(
    config,
    model,
    variables,
    data: Source,
    embeddings: np.ndarray,
    folder: Path,
    *,
    history: Sequence[Mapping[str, Any]] = (),
    phases: Mapping[str, int],
    texts: Mapping[str, Any] = {},
) -> list[str]:
    """Draws all pictures of a run into `folder`; returns their file names.

    embeddings: [n S D], rows as in data. history: rows of metrics.jsonl. phases: {name
    of a phase of the training: its last step}. texts: {prompt: text vectors} whose
    masks are drawn beside each other (text_masks.vectors).
    """
    drawn = []
    if history:
        charts.learning_curves(history, folder / "learning.png", phases)
        drawn.append("learning.png")
    drawn += _matches(config, data, embeddings, folder)
    if "frames" in config.data.modalities:
        title = f"{config.name} on {data.index.key[0]} of {data.name}"
        frames, seen = maps(model, variables, data, texts)
        charts.frame_maps(frames, seen, folder / "maps.png", title)
        drawn.append("maps.png")
    return drawn


def _matches(config, data: Source, embeddings, folder: Path) -> list[str]:
    """The CMC of the first protocol's tasks and the ranked lists of its first task.

    The CMC is averaged as the protocol averages Rank-1, so the curves begin at the
    numbers in the table. Tasks without a Rank-1 are left out.
    """
    protocol, metric = config.evaluation.protocols[0], config.evaluation.metric
    found = {}
    for result in protocols.evaluate_tasks(
        protocol, embeddings, data.index, metric=metric
    ):
        curve = protocols.cmc(protocol, result, CMC_RANKS)
        if len(curve):
            found[result.task.name] = result.task, curve
    if not found:
        return []
    first, _ = next(iter(found.values()))
    ranked = f"ranked_{first.name}.png"
    title = f"{config.name}, {protocol}, {first.name}: {RANKED_TITLE}"
    rows = _ranked_lists(config, data, embeddings, first)
    charts.filmstrips(rows, folder / ranked, title)
    charts.cmc_curves(
        {name: curve for name, (_, curve) in found.items()},
        folder / "cmc.png",
        protocol=protocol,
        chance={name: protocols.chance(task) for name, (task, _) in found.items()},
    )
    return [ranked, "cmc.png"]


def _ranked_lists(config, data: Source, embeddings, task: protocols.Task):
    """Rows for charts.filmstrips: evenly chosen probes with their nearest matches."""
    index, modality = data.index, config.data.modalities[0]
    chosen = np.linspace(0, len(task.probe) - 1, PROBES_SHOWN).round().astype(int)
    task = task.probes(np.unique(chosen))
    matrix = task.distances(embeddings, config.evaluation.metric)
    matrix = np.where(task.excluded, np.inf, matrix)  # [probes G]
    rows = []
    for probe, distances in zip(task.probe.tolist(), matrix):
        frames = clips.rgb_frames(data, probe, modality)
        cells: list[Any] = [("probe\n" + index.key[probe], frames, None)]
        order = np.argsort(distances, kind="stable")[:RANKS_SHOWN]
        for column in order[np.isfinite(distances[order])]:
            match = int(task.gallery[column])
            caption = f"{index.key[match]}\n{distances[column]:.2f}"
            right = bool(index.subject[match] == index.subject[probe])
            cells.append((caption, clips.rgb_frames(data, match, modality), right))
        rows.append(("", cells))
    return rows


def maps(model, variables, data: Source, texts: Mapping[str, Any] = {}):
    """(frames [T H W 3], {title: [T h w]}) of the first sequence of the split."""

    def look(**text):
        return model.apply(variables, batch, train=False, **text).aux

    frames = np.arange(min(MAP_FRAMES, data.index.num_frames[0]))
    clip = pipeline.load_clip(data, 0, frames, ("frames",))
    batch = {name: value[None] for name, value in clip.items()}
    batch["valid"] = np.ones((1, len(frames)), bool)
    aux = look()
    seen = {title: aux[key][0] for key, title in MAPS.items() if key in aux}
    if texts:
        seen.pop(MAPS["text_mask"], None)
    for name, vectors in texts.items():
        seen[f"text mask, {name} prompt"] = look(text=vectors)["text_mask"][0]
    return clip["frames"], {title: np.asarray(values) for title, values in seen.items()}
