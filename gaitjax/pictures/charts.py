"""Charts from arrays: curves, maps over frames, ranked lists, bars, attention.

Each function takes arrays and a path and writes one PNG at 100 dpi, below 400 KB even
for six rows of grainy video. Marks can be told apart without colour vision.
"""

import contextlib
import io
import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from os import PathLike
from typing import Any

import numpy as np

from gaitjax.engine.atomic import replacing

DPI = 100
MAX_BYTES = 400_000
MAX_FRAMES = 8  # columns of frame_maps
CELL_FRAMES = 3  # frames of one filmstrip cell
CELL_INCHES = 1.7
RANKS = (1, 5, 10, 20, 30, 40, 50)
HEADLINES = ("rank1", "mAP")  # evaluation metrics that get learning curves
FIRST = ("loss", "total")  # training metrics
LAST = ("gradient_norm", "learning_rate", "wait_share")
EXACT = ("learning rate", "wait share")  # panels without noise to smooth
# Okabe & Ito, "Color Universal Design", 2008: told apart by colour-blind readers
BLUE, ORANGE, GREEN, PINK = "#0072B2", "#E69F00", "#009E73", "#CC79A7"
SKY, VERMILION, BLACK, GREY = "#56B4E9", "#D55E00", "#000000", "#7A7A7A"
COLOURS = (BLUE, ORANGE, GREEN, PINK, SKY, VERMILION, BLACK, GREY)
MARKERS = "osD^vPX*"
STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E4E4E4",
    "legend.frameon": False,
    "legend.fontsize": 8,
}


def learning_curves(
    metrics: Sequence[Mapping[str, Any]],
    path: str | PathLike,
    phases: Mapping[str, int] | None = None,
) -> None:
    """Every training metric and the headline evaluation metrics over the steps.

    Args:
      metrics: rows of metrics.jsonl, at least one of kind "train" or "eval". Names of
        "train" rows with the same first part ("triplet/text", "triplet/gait") share a
        panel; curves are drawn raw (pale) and smoothed. Names of "eval" rows are
        "protocol/task/metric": one panel per protocol and headline metric (rank1, mAP;
        every metric of a protocol that has neither), one line per task.
      path: of the PNG.
      phases: {name: last step}; a dotted line marks where a phase ends before the last
        row.
    """
    train, evaluation = _train_panels(metrics), _eval_panels(metrics)
    titles = [*train, *evaluation]
    columns = min(4, math.ceil(math.sqrt(len(titles)))) or 1  # empty rows, empty page
    lines = math.ceil(len(titles) / columns) or 1
    last = max(row["step"] for row in metrics)
    ends = {name: end for name, end in (phases or {}).items() if 0 < end < last}
    with page(path, lines, columns, 3.4 * columns, 2.4 * lines) as (_, grid):
        for axes, title in zip(grid.flat, titles):
            if title in evaluation:
                _evaluation_panel(axes, evaluation[title])
            else:
                _train_panel(axes, train[title], smooth=title not in EXACT)
            axes.set(title=title, xlabel="step", xlim=(0, 1.02 * max(last, 1)))
            if len(axes.get_legend_handles_labels()[1]) > 1:
                axes.legend(ncols=2)
            for end in ends.values():
                axes.axvline(end, color=GREY, linestyle=":", linewidth=1)
        place = grid[0, 0].get_xaxis_transform()  # x in data, y in axes
        for name, end in ends.items():
            grid[0, 0].text(
                end, 1, f"{name} ends ", transform=place, size=8, color=GREY,
                ha="right", va="top",
            )  # fmt: skip
        for axes in list(grid.flat)[len(titles) :]:
            axes.remove()


def _train_panel(axes, curves: Mapping[str, np.ndarray], smooth: bool) -> None:
    """Curves of training steps; a log axis if they span more than a factor of 30."""
    for i, (label, curve) in enumerate(curves.items()):
        colour = COLOURS[i % len(COLOURS)]
        if smooth:
            axes.plot(*curve, color=colour, alpha=0.3, linewidth=1)
        shown = _smooth(curve[1]) if smooth else curve[1]
        axes.plot(curve[0], shown, color=colour, label=label)
    drawn = np.concatenate([line.get_ydata() for line in axes.lines])
    drawn = drawn[np.isfinite(drawn)]
    if drawn.size and drawn.min() > 0 and drawn.max() > 30 * drawn.min():
        axes.set_yscale("log")


def _evaluation_panel(axes, curves: Mapping[str, np.ndarray]) -> None:
    """Curves of evaluations, a mark at each."""
    for i, (label, curve) in enumerate(curves.items()):
        colour, marker = COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]
        axes.plot(*curve, marker + "-", ms=4, color=colour, label=label)
    axes.set_ylim(bottom=0)


def cmc_curves(
    curves: Mapping[str, np.ndarray],
    path: str | PathLike,
    *,
    protocol: str,
    chance: Mapping[str, float] | None = None,
) -> None:
    """Cumulative match characteristic: identification rate over rank.

    Args:
      curves: name -> [R], percent of probes whose identity is among the first r + 1;
        at least one curve.
      path: of the PNG.
      protocol: how that was counted; in the title.
      chance: name -> percent that guessing reaches at rank 1, drawn as a cross there.
    """
    shown = [rank for rank in RANKS if rank <= max(map(len, curves.values()))]
    with page(path, 1, 1, 6.4, 4.4) as (_, grid):
        axes = grid[0, 0]
        for i, (name, curve) in enumerate(curves.items()):
            colour = COLOURS[i % len(COLOURS)]
            label = f"{name}  (Rank-1 {curve[0]:.1f} %)"
            if chance is not None:
                label = f"{label[:-1]}, chance {chance[name]:.1f} %)"
                axes.plot([1], [chance[name]], "x", ms=8, mew=2, color=colour)
            axes.plot(
                np.arange(1, len(curve) + 1),
                curve,
                MARKERS[i % len(MARKERS)] + "-",
                ms=5,
                markevery=[rank - 1 for rank in shown if rank <= len(curve)],
                color=colour,
                label=label,
            )
        if chance is not None:
            axes.plot([], [], "x", ms=8, mew=2, color=GREY, label="chance at Rank-1")
        title = f"Cumulative match characteristic, {protocol}"
        axes.set(title=title, xlabel="rank", xticks=shown)
        axes.set(ylabel="probes identified by this rank (%)", ylim=(0, 102))
        axes.legend(loc="lower right")


def frame_maps(
    frames: np.ndarray,
    maps: Mapping[str, np.ndarray],
    path: str | PathLike,
    title: str = "",
) -> None:
    """Frames of one walk above what a model sees in them, frame by frame.

    Args:
      frames: uint8 [T H W 3], RGB.
      maps: name -> float [T h w], any resolution of the same field of view, laid over
        the grey frame. One colour scale per map, for all its frames: from 0 (or its
        minimum) to its maximum; symmetric about 0 if it takes both signs. NaN is
        left out.
      path: of the PNG. At most 8 frames are shown, evenly spaced.
      title: above all.
    """
    num_frames, height, width = frames.shape[:3]
    shown = _evenly(num_frames, MAX_FRAMES)
    grey = frames[shown].mean(-1)  # [n H W]
    lines, columns = 1 + len(maps), len(shown)
    size = (1.2 + columns, 0.4 + (height / width + 0.05) * lines)
    with page(path, lines, columns, *size, title) as (figure, grid):
        for axes, t in zip(grid[0], shown):
            axes.imshow(frames[t])
            axes.set_title(f"frame {t}", fontsize=9, fontweight="normal")
        for line, values in zip(grid[1:], maps.values()):
            values = np.ma.masked_invalid(np.asarray(values, np.float32))
            scale = _colour_scale(values)
            extent = (-0.5, width - 0.5, height - 0.5, -0.5)
            for axes, t, backdrop in zip(line, shown, grey):
                axes.imshow(backdrop, cmap="gray", vmin=0, vmax=255)
                heat = axes.imshow(
                    values[t],
                    **scale,
                    alpha=0.7,
                    extent=extent,
                    interpolation="nearest",
                )
            beside = line[-1].inset_axes((1.08, 0, 0.1, 1))
            figure.colorbar(heat, cax=beside).ax.tick_params(labelsize=8)
        for axes in grid.flat:
            _bare(axes)
        for axes, name in zip(grid[:, 0], ["RGB", *maps]):
            axes.set_ylabel(name, fontweight="bold")


def filmstrips(
    rows: Sequence[tuple[str, Sequence[tuple[str, np.ndarray, bool | None]]]],
    path: str | PathLike,
    title: str = "",
) -> None:
    """Ranked lists as pictures: the probe on the left, then its nearest neighbours.

    Args:
      rows: (label, cells) per probe. A cell is (caption, uint8 [t H W 3], correct):
        True gets a green solid border and a tick, False a vermilion dashed border and
        a cross, None (the probe) a grey border. Three evenly spaced frames are shown.
      path: of the PNG.
      title: above all.
    """
    columns = max(len(cells) for _, cells in rows)
    looks = {True: ("✓ ", GREEN), False: ("✗ ", VERMILION), None: ("", GREY)}
    ratio = max(
        _strip(f).shape[0] / _strip(f).shape[1] for _, c in rows for _, f, _ in c
    )
    height = len(rows) * max(1.4, CELL_INCHES * ratio + 0.45)
    width = CELL_INCHES * columns
    with page(path, len(rows), columns, width, height, title) as (_, grid):
        for line, (label, cells) in zip(grid, rows):
            for axes, (caption, frames, correct) in zip(line, cells):
                mark, colour = looks[correct]
                axes.imshow(_strip(frames))
                _bare(axes)
                axes.spines[:].set(visible=True, color=colour, linewidth=3.5)
                if correct is False:
                    axes.spines[:].set(linestyle=(0, (2, 1)), capstyle="butt")
                weight = "normal" if correct is None else "bold"
                text = "black" if correct is None else colour
                title = mark + literal(caption)
                axes.set_title(title, size=8, fontweight=weight, color=text)
            label = textwrap.fill(label, 18, break_long_words=False)
            line[0].set_ylabel(literal(label), size=7)
            for axes in line[len(cells) :]:
                axes.remove()


def grouped_bars(
    table: Mapping[str, Mapping[str, tuple[float, float]]],
    path: str | PathLike,
    *,
    label: str,
    chance: float | None = None,
) -> None:
    """Results side by side: one group of bars per column, one bar per row of a table.

    Args:
      table: row (model, ablation) -> column (task) -> (mean, spread). Absent columns
        leave a gap.
      path: of the PNG.
      label: of the value axis, for example "Rank-1 (%), ccpg_gait".
      chance: drawn as a dotted line.
    """
    columns = list(dict.fromkeys(column for row in table.values() for column in row))
    bar_width = 0.84 / max(len(table), 1)
    inches = min(16.0, max(6.0, 1.2 + 0.27 * len(columns) * (len(table) + 1)))
    with page(path, 1, 1, inches, 4.4) as (_, grid):
        axes = grid[0, 0]
        for i, (name, row) in enumerate(table.items()):
            bars = axes.bar(
                [
                    columns.index(column) + (i - (len(table) - 1) / 2) * bar_width
                    for column in row
                ],
                [mean for mean, _ in row.values()],
                0.92 * bar_width,
                yerr=[spread for _, spread in row.values()],
                label=literal(name),
                color=_bar_colour(i, len(table)),
                error_kw={"elinewidth": 1, "capsize": 2, "ecolor": "#333333"},
            )
            axes.bar_label(bars, fmt="%.0f", fontsize=7, padding=1)
        if chance is not None:
            axes.axhline(chance, color="#333333", linestyle=":")
            place = axes.get_yaxis_transform()  # x in axes, y in data
            axes.text(1.005, chance, "chance", transform=place, va="center", size=8)
        axes.set_xticks(range(len(columns)), columns)
        axes.set_ylabel(label)
        axes.margins(x=0.01)
        axes.grid(axis="x", visible=False)
        axes.tick_params(axis="x", length=0)
        axes.legend(ncols=4, loc="lower left", bbox_to_anchor=(0, 1.01))


def attention_maps(maps: Mapping[str, np.ndarray], path: str | PathLike) -> None:
    """Attention between the strips of two sequences, one panel per map.

    Args:
      maps: title -> f32 [S S], from the strip that looks (row, 0 = head) to the strip
        looked at; rows sum to one. All share one colour scale. Below the title stands
        which share lies off the diagonal, and which it would be if all strips got equal
        attention.
      path: of the PNG.
    """
    high = max(float(values.max()) for values in maps.values())
    width = 3.7 * len(maps) + 0.9
    with page(path, 1, len(maps), width, 4.0) as (figure, grid):
        for axes, (title, values) in zip(grid[0], maps.items()):
            image = axes.imshow(values, cmap="magma", vmin=0, vmax=high)
            elsewhere = 100 * (1 - np.trace(values) / len(values))
            equal = 100 * (1 - 1 / len(values))
            axes.set_title(
                f"{title}\n{elsewhere:.1f} % off the diagonal (equal: {equal:.1f} %)"
            )
            axes.set(xlabel="strip looked at", ylabel="strip that looks (0 = head)")
            axes.grid(False)
        figure.colorbar(image, ax=list(grid[0]), shrink=0.8, label="attention")


def _train_panels(metrics) -> dict[str, dict[str, np.ndarray]]:
    """Panel title -> curve label -> [2 n]: steps, values."""
    series = _series(metrics, "train")
    panels: dict[str, dict[str, np.ndarray]] = {}
    for name in sorted(series, key=lambda name: (name not in FIRST, name in LAST)):
        head, _, tail = name.partition("/")
        panels.setdefault(head.replace("_", " "), {})[tail or head] = series[name]
    return panels


def _eval_panels(metrics) -> dict[str, dict[str, np.ndarray]]:
    """As `_train_panels`, from names "protocol/task/metric"."""
    series = _series(metrics, "eval")
    parts = {name: name.split("/") for name in series if name.count("/") >= 2}
    with_headline = {p[0] for p in parts.values() if p[-1] in HEADLINES}
    panels: dict[str, dict[str, np.ndarray]] = {}
    for name, (protocol, *task, metric) in parts.items():
        if metric in HEADLINES or protocol not in with_headline:
            panel = panels.setdefault(f"{protocol}: {metric}", {})
            panel["/".join(task)] = series[name]
    return panels


def _series(metrics, kind: str) -> dict[str, np.ndarray]:
    """Metric name -> [2 n]: steps and values over the rows of one kind."""
    points: dict[str, list[tuple[float, float]]] = {}
    for row in metrics:
        if row["kind"] == kind:
            for name, value in row.items():
                if name not in ("step", "kind"):
                    points.setdefault(name, []).append((row["step"], value))
    return {name: np.asarray(pairs, float).T for name, pairs in points.items()}


def _smooth(values: np.ndarray) -> np.ndarray:
    """Median over a centred tenth of the curve, without NaN; [n] -> [n]."""
    half = len(values) // 20
    windows = (values[max(0, i - half) : i + half + 1] for i in range(len(values)))
    finite = (window[np.isfinite(window)] for window in windows)
    return np.asarray([np.median(w) if w.size else np.nan for w in finite])


def _strip(frames: np.ndarray) -> np.ndarray:
    """Evenly spaced frames side by side; [t H W 3] -> [H n*W 3]."""
    return np.concatenate(list(frames[_evenly(len(frames), CELL_FRAMES)]), axis=1)


def _evenly(count: int, most: int) -> np.ndarray:
    """Indices of at most `most` of `count` frames, first and last included."""
    return np.linspace(0, count - 1, min(count, most)).round().astype(int)


def _colour_scale(values: np.ma.MaskedArray) -> dict[str, Any]:
    """Arguments of imshow: limits and colour map for all frames of a map."""
    finite = values.compressed()
    low, high = float(finite.min(initial=0)), float(finite.max(initial=0))
    if low < 0 < high:
        bound = max(-low, high)
        return {"vmin": -bound, "vmax": bound, "cmap": "RdBu_r"}
    return {"vmin": low, "vmax": high if high > low else low + 1, "cmap": "magma"}


def _bar_colour(index: int, count: int):
    if count <= len(COLOURS):
        return COLOURS[index]
    import matplotlib

    return matplotlib.colormaps["viridis"](index / (count - 1))


def literal(text: str) -> str:
    """Text with its dollar signs as they are, which matplotlib takes for formulas."""
    return text.replace("$", r"\$")


def _bare(axes) -> None:
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    axes.grid(False)


@contextlib.contextmanager
def page(
    path, lines: int, columns: int, width, height, title: str = ""
) -> Iterator[tuple[Any, Any]]:
    """A styled figure (size in inches) and its axes [lines columns]; saved at the end.

    Without pyplot, so there is no global state and no window. A picture above MAX_BYTES
    is saved in fewer shades.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from PIL import Image

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
        if title:
            figure.suptitle(literal(title), fontsize=9)
        canvas = FigureCanvasAgg(figure)
        yield figure, figure.subplots(lines, columns, squeeze=False)
        canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())[..., :3].astype(np.int32)  # [H W 3]
    png = io.BytesIO()
    for step in (1, 4, 8, 16):  # coarser shades keep the hues, a palette would not
        shades = np.minimum((pixels + step // 2) // step * step, 255).astype(np.uint8)
        png = io.BytesIO()
        Image.fromarray(shades).save(png, "png")
        if png.tell() <= MAX_BYTES:
            break
    with replacing(path, "wb") as file:
        file.write(png.getvalue())
