"""Charts of distances: histograms, open-set error rates, a map of embeddings."""

from collections.abc import Mapping
from os import PathLike

import numpy as np

from gaitjax.pictures import charts, page
from gaitjax.pictures.charts import BLUE, COLOURS, GREY, MARKERS, VERMILION

BINS = 60  # at most


def histograms(
    genuine: np.ndarray,
    impostor: np.ndarray,
    path: str | PathLike,
    *,
    marks: Mapping[str, float] | None = None,
) -> None:
    """How far pairs of one person and pairs of two persons lie apart.

    genuine, impostor: distances [n]. marks: {name: distance}, drawn as vertical lines.
    """
    low = float(min(genuine.min(), impostor.min()))
    high = float(max(np.quantile(impostor, 0.999), genuine.max()))
    bins = int(np.clip(2 * min(len(genuine), len(impostor)) ** 0.5, 10, BINS))
    edges = np.linspace(low, high if high > low else low + 1, bins + 1)
    with charts.page(path, 1, 1, 6.4, 3.8) as (_, grid):
        axes = grid[0, 0]
        for name, values, colour in (
            (f"one person ({len(genuine):,} pairs)", genuine, BLUE),
            (f"two persons ({len(impostor):,} pairs)", impostor, VERMILION),
        ):
            share = np.histogram(values, edges)[0] / len(values) * 100
            axes.stairs(share, edges, fill=True, alpha=0.35, color=colour)
            axes.stairs(share, edges, color=colour, linewidth=1.5, label=name)
        _vertical(axes, marks)
        axes.set(xlabel="distance", ylabel="share of the pairs (%)", ylim=(0, None))
        axes.legend()


def open_set(
    false_names: np.ndarray,
    missed: np.ndarray,
    path: str | PathLike,
    *,
    points: Mapping[float, float] | None = None,
) -> None:
    """FNIR over FPIR, both as shares [n], FPIR ascending.

    points: {FPIR: FNIR} that are marked.
    """
    least = max(float(false_names[false_names > 0].min(initial=1.0)), 1e-5)
    with charts.page(path, 1, 1, 6.4, 3.8) as (_, grid):
        axes = grid[0, 0]
        axes.step(100 * false_names, 100 * missed, where="post", color=BLUE)
        for x, y in (points or {}).items():
            axes.plot(100 * x, 100 * y, "o", ms=6, color=VERMILION)
            axes.annotate(
                f"{100 * y:.1f} %", (100 * x, 100 * y), (5, 5),
                textcoords="offset points", size=8, color=VERMILION,
            )  # fmt: skip
        axes.set_xscale("log")
        axes.set(xlim=(100 * least * 0.9, 100), ylim=(0, 102))
        axes.set(xlabel="FPIR: searches for strangers that return a name (%)")
        axes.set(ylabel="FNIR: searches missed (%)")
        axes.xaxis.set_major_formatter("{x:g}")


def embedding_map(
    points: np.ndarray, names: np.ndarray, path: str | PathLike, *, title: str = ""
) -> None:
    """Points [n 2] coloured and marked by name [n], at most 64 names."""
    found = sorted(set(names.tolist()))
    with charts.page(path, 1, 1, 6.4, 5.2, title) as (_, grid):
        axes = grid[0, 0]
        for i, name in enumerate(found):
            row = points[names == name]
            axes.plot(
                *row.T, MARKERS[i // len(COLOURS) % len(MARKERS)], ms=5, alpha=0.8,
                color=COLOURS[i % len(COLOURS)], mew=0, label=charts.literal(name),
            )  # fmt: skip
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set(visible=True, color="#CCCCCC")
        axes.grid(False)
        axes.legend(loc="upper left", bbox_to_anchor=(1, 1), title="person")


def neighbour_map(distance: np.ndarray, steps: int = 400) -> np.ndarray:
    """Points [n 2] whose neighbours are those of the distances [n n]; n of 3 and more.

    t-SNE (van der Maaten and Hinton, "Visualizing Data using t-SNE", JMLR 2008), which
    begins at the two main axes of classical scaling.
    """
    count, squares = len(distance), np.asarray(distance, np.float64) ** 2
    near = _neighbour_shares(squares, min(20, count / 4))
    near = np.maximum((near + near.T) / (2 * count), 1e-12)
    means = squares.mean(axis=0)
    axes = np.linalg.eigh(means[:, None] + means - squares)[1][:, -2:]
    points = 1e-2 * count**0.5 * axes
    moved, gain = np.zeros_like(points), np.ones_like(points)
    for step in range(steps):
        early = step < steps // 4
        gap = points[:, None] - points[None]  # [n n 2]
        kernel = 1 / (1 + (gap**2).sum(-1))
        np.fill_diagonal(kernel, 0)
        shares = np.maximum(kernel / kernel.sum(), 1e-12)
        pull = (near * (12 if early else 1) - shares) * kernel
        gradient = 4 * (pull[..., None] * gap).sum(1)
        turned = np.sign(gradient) != np.sign(moved)
        gain = np.maximum(np.where(turned, gain + 0.2, gain * 0.8), 0.01)
        moved = (0.5 if early else 0.8) * moved - 20 * gain * gradient
        points = points + moved
        points -= points.mean(0)
    return points


def _neighbour_shares(squares: np.ndarray, perplexity: float) -> np.ndarray:
    """Row-wise shares of Gaussian neighbours with one perplexity, by bisection."""
    squares = squares.copy()
    np.fill_diagonal(squares, np.inf)
    squares = squares - squares.min(axis=1, keepdims=True)
    low, high = np.full(len(squares), -30.0), np.full(len(squares), 30.0)
    for _ in range(50):  # of the logarithm of each row's precision
        middle = (low + high) / 2
        share = np.exp(-squares * np.exp(middle)[:, None])
        share /= share.sum(1, keepdims=True)
        entropy = -(share * np.log(np.maximum(share, 1e-300))).sum(1)
        wide = entropy > np.log(perplexity)
        low, high = np.where(wide, middle, low), np.where(wide, high, middle)
    return share


def _vertical(axes, marks) -> None:
    for name, place in (marks or {}).items():
        axes.axvline(place, color=GREY, linestyle=":")
        at = axes.get_xaxis_transform()  # x in data, y in axes
        axes.text(
            place, 1, f" {name}", transform=at, size=8, color=GREY, ha="left", va="top"
        )


def map_figure(distance: np.ndarray, names: np.ndarray) -> str:
    """The map of walks with distances [n n], coloured by name [n], for a page."""
    points = neighbour_map(distance)
    return page.picture(
        lambda path: embedding_map(points, names, path),
        "Map of embeddings, coloured by person",
        f"{len(names)} walks of {len(np.unique(names))} persons; t-SNE of the model's "
        "distances: neighbours are near each other, far distances mean little.",
    )
