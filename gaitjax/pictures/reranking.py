"""Pictures of a re-ranker: ranked lists before and after, attention between strips."""

from pathlib import Path

import jax
import numpy as np

from gaitjax.data.source import Source
from gaitjax.pictures import charts, clips

PROBES_SHOWN, RANKS_SHOWN = 4, 5
ATTENTION_PAIRS = 64  # averaged in one map


def ranked_lists(ranking, data: Source, modality: str, path: str | Path) -> None:
    """Probes with their first matches before and, in the row below, after re-ranking.

    ranking: of `rerank.compare.rankings`. modality: what of a sequence is shown. The
    probes are those of `changed_probes`.
    """
    index, rows = data.index, []
    for number in changed_probes(ranking, index.subject, PROBES_SHOWN):
        probe = ranking["probe"][number]
        for when, name in (("before", "base"), ("after", "cargait")):
            first = ranking[name][number, :RANKS_SHOWN]
            frames = clips.rgb_frames(data, probe, modality)
            cells = [("probe\n" + index.key[probe], frames, None)]
            for row in first[first >= 0]:
                right = bool(index.subject[row] == index.subject[probe])
                frames = clips.rgb_frames(data, row, modality)
                cells.append((index.key[row], frames, right))
            rows.append((when, cells))
    charts.filmstrips(rows, path)


def changed_probes(ranking, subject, count: int) -> list[int]:
    """Which probes to show: the largest gains and the largest losses, alternating.

    A probe gains where its first true match moved up within the first K. If fewer than
    `count` probes changed, evenly chosen others follow.
    """
    own = subject[ranking["probe"]][:, None]  # [Q 1]
    place = {}
    for name in ("base", "cargait"):
        match = (subject[ranking[name]] == own) & (ranking[name] >= 0)  # [Q K]
        place[name] = np.where(match.any(1), match.argmax(1), match.shape[1])
    gain = place["base"] - place["cargait"]  # [Q]
    gains = [row for row in np.argsort(-gain, kind="stable") if gain[row] > 0]
    losses = [row for row in np.argsort(gain, kind="stable") if gain[row] < 0]
    both = min(len(gains), len(losses))
    chosen = [row for pair in zip(gains, losses) for row in pair]
    chosen += gains[both:] + losses[both:]
    chosen += list(np.linspace(0, len(gain) - 1, count).round().astype(int))
    return [int(row) for row in dict.fromkeys(chosen)][:count]


def attention(model, params, embeddings, ranking, subject, path: str | Path) -> None:
    """Attention of the probe's strips over the other's, mean over heads and pairs.

    Two maps: probes with their first true match of the new list, and with their first
    wrong one. The base model compares each strip with its own counterpart, so none of
    its attention would lie off the diagonal.
    """
    weights_of = jax.jit(
        lambda probe, other: model.apply(
            {"params": params}, probe, other[:, None], method="attention"
        )[0]
    )
    match = subject[ranking["cargait"]] == subject[ranking["probe"]][:, None]  # [Q K]
    maps = {}
    for title, wanted in (
        ("probe and its match", match),
        ("probe and another walker", ~match),
    ):
        wanted = wanted & (ranking["cargait"] >= 0)
        rows = np.flatnonzero(wanted.any(axis=1))[:ATTENTION_PAIRS]
        if len(rows):
            others = ranking["cargait"][rows, wanted[rows].argmax(axis=1)]
            weights = weights_of(
                embeddings[ranking["probe"][rows]], embeddings[others]
            )  # [P 1 H S S]
            maps[title] = np.asarray(weights).mean(axis=(0, 1, 2))  # [S S]
    if maps:
        charts.attention_maps(maps, path)
