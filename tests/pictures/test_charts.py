"""Pictures: the pixels say what the arrays say, at 100 dpi and under 400 KB."""

import contextlib

import numpy as np
import pytest
from PIL import Image

from gaitjax.pictures import charts

LIMIT = 400_000


def _pixels(path) -> np.ndarray:
    assert path.stat().st_size <= LIMIT
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def _near(pixels, colour: str) -> np.ndarray:
    """Where a picture shows the colour "#rrggbb"; bool [H W]."""
    target = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return np.abs(pixels - np.asarray(target)).max(-1) <= 10


def _longest_run(hits: np.ndarray) -> int:
    """The longest unbroken stretch in the row with the most hits."""
    row = hits[hits.sum(1).argmax()]
    return int(np.diff(np.flatnonzero(~np.pad(row, 1))).max()) - 1


def _metrics():
    rows = []
    for step in range(10, 310, 10):
        train = {"total": 9 / step, "triplet/text": 1.0, "triplet/gait": float("nan")}
        rows.append({"step": step, "kind": "train", "learning_rate": 1e-3, **train})
        if step % 100 == 0:
            flat = {"ccpg_gait/CL/rank1": step / 10, "ccpg_gait/CL/rank5": 50.0}
            rows.append({"step": step, "kind": "eval", **flat, "other/all/score": 1.0})
    return rows


def test_learning_curves_panels():
    train, evaluation = (
        panels(_metrics()) for panels in (charts._train_panels, charts._eval_panels)
    )
    assert list(train) == ["total", "triplet", "learning rate"]
    assert list(train["triplet"]) == ["text", "gait"]
    assert list(evaluation) == ["ccpg_gait: rank1", "other: score"]
    curve = evaluation["ccpg_gait: rank1"]["CL"]
    np.testing.assert_array_equal(curve, [[100, 200, 300], [10, 20, 30]])


@pytest.mark.parametrize("rows", [_metrics(), _metrics()[:1], _metrics()[10:11]])
def test_learning_curves_are_drawn_from_many_rows_or_one(tmp_path, rows):
    charts.learning_curves(rows, tmp_path / "deep" / "learning.png")
    assert _near(_pixels(tmp_path / "deep" / "learning.png"), charts.BLUE).any()


def test_rows_without_curves_are_an_empty_page(tmp_path):
    rows = [{"step": 1, "kind": "note"}, {"step": 2, "kind": "eval", "loss": 1.0}]
    charts.learning_curves(rows, tmp_path / "learning.png")
    assert (tmp_path / "learning.png").is_file()


def test_a_dotted_line_marks_the_end_of_a_phase(tmp_path, monkeypatch):
    """One line in each panel per phase that ends before the last row, at step 300."""
    drawn = []
    page = charts.page

    @contextlib.contextmanager
    def watched(*arguments):
        with page(*arguments) as (figure, grid):
            yield figure, grid
            for axes in grid.flat:
                dotted = [line for line in axes.lines if line.get_linestyle() == ":"]
                drawn.append([line.get_xdata()[0] for line in dotted])
            drawn.append([text.get_text() for text in grid[0, 0].texts])

    monkeypatch.setattr(charts, "page", watched)
    phases = {"warm-up": 50, "second": 100, "empty": 0, "training": 300}
    charts.learning_curves(_metrics(), tmp_path / "learning.png", phases)
    *panels, labels = drawn
    assert labels == ["warm-up ends ", "second ends "]
    assert [panel for panel in panels if panel] == [[50, 100]] * 5


def test_smoothing_ignores_nan_and_one_outlier_and_keeps_steps():
    values = np.repeat([1.0, 0.1], 50)
    noisy = values.copy()
    noisy[[10, 70]] = np.nan, 100
    np.testing.assert_array_equal(charts._smooth(noisy), values)
    assert np.isnan(charts._smooth(np.full(3, np.nan))).all()


def test_cmc_curve_rises_where_the_array_rises(tmp_path):
    path = tmp_path / "cmc.png"
    curves = {"CL": np.linspace(10, 90, 20)}
    charts.cmc_curves(curves, path, protocol="ccpg_gait", chance={"CL": 3.3})
    rows, columns = np.nonzero(_near(_pixels(path), charts.BLUE))
    left, right = rows[columns < 150], rows[(columns > 500) & (rows < 250)]
    assert left.size and right.size and left.min() > right.max() + 100


def test_frame_maps_are_hot_where_the_map_is(tmp_path):
    """A patch in the upper half of the second of two frames, nowhere else."""
    frames = np.full((2, 64, 32, 3), 128, np.uint8)
    heat = np.zeros((2, 4, 2))
    heat[1, :2] = 5
    charts.frame_maps(frames, {"heat": heat}, tmp_path / "maps.png")
    pixels = _pixels(tmp_path / "maps.png")
    height, width = pixels.shape[:2]
    # magma's top (252, 253, 191) at 70 % over grey 128
    rows, columns = np.nonzero(_near(pixels, "#D7D8AC")[:, : int(0.67 * width)])
    assert rows.size > 2000
    assert rows.min() > height / 2 and columns.min() > 0.35 * width
    assert np.ptp(rows) < 0.3 * height


def test_frame_maps_show_at_most_eight_frames_and_share_a_scale():
    picked = charts._evenly(40, 8)
    assert len(picked) == 8 and picked[0] == 0 and picked[-1] == 39
    np.testing.assert_array_equal(charts._evenly(3, 8), [0, 1, 2])

    def limits(*values):
        scale = charts._colour_scale(np.ma.masked_invalid(values))
        return scale["vmin"], scale["vmax"]

    assert limits(0.2, 0.9, np.nan) == (0, 0.9)
    assert limits(-0.5, 0.25) == (-0.5, 0.5)
    assert limits(-3.0, -1.0) == (-3, 0)
    assert limits(0.0, 0.0) == limits(np.nan) == (0, 1)


def test_filmstrips_mark_right_and_wrong_by_colour_and_by_line(tmp_path):
    frames = np.full((5, 32, 16, 3), 255, np.uint8)
    cells = [("probe", frames, None), ("a", frames, True), ("b", frames[:1], False)]
    charts.filmstrips([("031", cells), ("032", cells[:2])], tmp_path / "strips.png")
    pixels = _pixels(tmp_path / "strips.png")
    third = pixels.shape[1] // 3
    for i, colour in enumerate((charts.GREY, charts.GREEN, charts.VERMILION)):
        _, columns = np.nonzero(_near(pixels, colour))
        assert columns.size > 100, colour
        centre = np.median(columns)
        assert i * third < centre < (i + 1) * third + 20, colour
    solid = _longest_run(_near(pixels, charts.GREEN))
    assert solid > 5 * _longest_run(_near(pixels, charts.VERMILION))


def test_names_with_dollar_signs_are_drawn_as_they_are(tmp_path):
    frames = np.full((3, 32, 16, 3), 255, np.uint8)
    for name in ("a$b", "$x_{", r"\$y$"):
        path = tmp_path / "strips.png"
        charts.filmstrips([(name, [(name, frames, True)])], path, title=name)
        charts.cmc_curves({name: np.array([1.0, 2.0])}, path, protocol=name)
        charts.grouped_bars({name: {name: (1.0, 0.0)}}, path, label=name)


def test_attention_is_hot_where_strips_look_and_its_share_is_named(tmp_path):
    """Every strip looks at the last one; 2/3 of that lies off the diagonal."""
    weights = np.zeros((3, 3), np.float32)
    weights[:, 2] = 1
    maps = {"a pair": weights, "all alike": np.full((3, 3), 1 / 3, np.float32)}
    charts.attention_maps(maps, tmp_path / "attention.png")
    pixels = _pixels(tmp_path / "attention.png")
    half = pixels.shape[1] // 2
    hot = _near(pixels, "#FCFDBF")[:, : half - 60]  # magma's top, left of the bar
    rows, columns = np.nonzero(hot)
    assert rows.size > 5000 and np.ptp(rows) > 2 * np.ptp(columns)


def test_bars_are_as_high_as_their_means(tmp_path):
    table = {
        "GEI": {"CL": (20.0, 1.0), "BG": (40.0, 1.0)},
        "LMGait": {"CL": (80.0, 1.0)},
    }
    charts.grouped_bars(table, tmp_path / "bars.png", label="Rank-1 (%)", chance=3.3)
    pixels = _pixels(tmp_path / "bars.png")[60:]  # below the legend

    def heights(colour):
        return _near(pixels, colour).sum(0)

    assert heights(charts.ORANGE).max() / heights(charts.BLUE).max() == (
        pytest.approx(2, rel=0.05)
    )
    many = {f"row {i}": {"CL": (float(i), 0.5)} for i in range(12)}
    charts.grouped_bars(many, tmp_path / "many.png", label="Rank-1 (%)")
    assert len({charts._bar_colour(i, 12) for i in range(12)}) == 12


def test_grain_of_real_video_is_written_within_the_limit(tmp_path):
    """Six probes with five matches each, every frame with a texture of its own."""
    rng = np.random.default_rng(0)

    def clip():
        texture = rng.normal(128, 60, (3, 16, 8, 3)).repeat(16, 1).repeat(16, 2)
        grain = rng.normal(0, 5, (3, 256, 128, 1))
        return (texture + grain).clip(0, 255).astype(np.uint8)

    rows = [(str(i), [("a", clip(), True) for _ in range(6)]) for i in range(6)]
    charts.filmstrips(rows, tmp_path / "strips.png")
    _pixels(tmp_path / "strips.png")
