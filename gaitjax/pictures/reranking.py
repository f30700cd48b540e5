"""Pictures of a re-ranker: lists before and after, and which strips look at which."""

from pathlib import Path

import jax
import numpy as np

from gaitjax.data import pipeline
from gaitjax.data.source import Source
from gaitjax.pictures import charts as report

PROBES_SHOWN, RANKS_SHOWN = 4, 5
ATTENTION_PAIRS = 64  # averaged in one map


def ranked_lists(ranking, data: Source, modality: str, path: str | Path) -> None:
    """Probes with their first matches before and, in the row below, after re-ranking.

    ranking: of `compare_rerankers.rankings`. modality: what of a sequence is shown.
    Gains and losses alternate, see `changed_probes`.
    """
    index, rows = data.index, []
    for number in changed_probes(ranking, index.subject, PROBES_SHOWN):
        probe = ranking["probe"][number]
        for when, name in (("before", "base"), ("after", "cargait")):
            first = ranking[name][number, :RANKS_SHOWN]
            cells = [
                ("probe\n" + index.key[probe], _frames(data, probe, modality), None)
            ]
            for row in first[first >= 0]:
                right = bool(index.subject[row] == index.subject[probe])
                cells.append((index.key[row], _frames(data, row, modality), right))
            rows.append((when, cells))
    report.filmstrips(rows, path)


def changed_probes(ranking, subject, count: int) -> list[int]:
    """Which probes to show: the largest gains and the largest losses, alternating.

    A gain: the first true match moved up within the first K. Where too few changed,
    evenly chosen others follow.
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
    wrong one. Each row of a map sums to one; the title says which share lies off the
    diagonal (1 - 1/S where all strips are looked at alike; 0 where every strip looks
    at its own counterpart, as the base model's distance does).
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
    attention_maps(maps, path)


def attention_maps(maps: dict[str, np.ndarray], path: str | Path) -> None:
    """One panel per {title: f32 [S S]} on one colour scale; strip 0 is the top."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context(report.STYLE):
        size = (3.7 * len(maps) + 0.9, 4.0)
        figure = Figure(figsize=size, dpi=report.DPI, layout="constrained")
        FigureCanvasAgg(figure)
        panels = figure.subplots(1, len(maps), squeeze=False)[0]
        high = max(float(values.max()) for values in maps.values())
        for axes, (title, values) in zip(panels, maps.items()):
            image = axes.imshow(values, cmap="magma", vmin=0, vmax=high)
            elsewhere = 100 * (1 - np.trace(values) / len(values))
            alike = 100 * (1 - 1 / len(values))
            axes.set_title(
                f"{title}\n{elsewhere:.1f} % off the diagonal (alike: {alike:.1f} %)"
            )
            axes.set(xlabel="strip looked at", ylabel="strip that looks (0 = head)")
            axes.grid(False)
        figure.colorbar(image, ax=list(panels), shrink=0.8, label="attention")
        figure.savefig(path)


def _frames(data: Source, row: int, modality: str) -> np.ndarray:
    """Three frames of a sequence, uint8 RGB [3 H W 3], whatever the modality."""
    frames = np.linspace(0, data.index.num_frames[row] - 1, 3).round().astype(int)
    images = pipeline.load_clip(data, row, frames, (modality,))[modality]
    if images.ndim == 4 and images.shape[-1] == 3:
        return images
    grey = images if images.ndim == 3 else images.max(axis=-1)  # [3 H W]
    return np.stack([grey] * 3, axis=-1)  # [3 H W 3]
