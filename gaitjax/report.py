"""Writes report.html of a finished run: one file with its numbers and pictures.

    python -m gaitjax.report runs/lmgait             (writes runs/lmgait/report.html)
    python -m gaitjax.report runs/lmgait --reranker=runs/cargait_lmgait --out=FILE

The test split is embedded again, for what results.json does not hold: error rates where
some persons are unknown, a map of the embeddings, the hardest confusions. Where its
data are missing, the report says so and has the rest.
"""

import argparse
import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from gaitjax import __version__, evaluate, restore, run_folder
from gaitjax.data.source import Source
from gaitjax.engine import log
from gaitjax.engine.guards import require
from gaitjax.phases import phases_of
from gaitjax.pictures import charts, clips, page, scores
from gaitjax.pictures import run as run_pictures
from gaitjax.retrieval import error_rates, protocols
from gaitjax.retrieval.distance import pairwise_distance
from gaitjax.state import model_variables

PAIRS = 1 << 24  # distances that error rates are taken from, at most
SHOWN_SCORES = 1_000_000  # of either kind, at most
CONFUSIONS = 6
MAP_PEOPLE, MAP_WALKS = 16, 320  # in the map of embeddings
OPERATING_POINTS = (0.01, 0.1)  # FPIR
PERCENT = ("mAP", "mINP")  # and Rank-k; other metrics are counts
METHODS = {"base": "before", "cargait": "CarGait"}
WORDS = (
    "FPIR: how often a search for somebody who is not in the gallery returns a name. "
    "FNIR: how often a search for somebody who is in it does not return theirs first, "
    "or nobody. Both depend on the distance up to which a name is given. Strangers are "
    "simulated: each probe is also searched without its own person in the gallery."
)


class Evaluated(NamedTuple):
    """A split under a model. embeddings: [n S D] in row order; metric: of distances."""

    config: Any
    model: Any
    variables: Any
    data: Source
    embeddings: np.ndarray
    metric: str


def of_run(
    folder: Path, path: Path, *, reranker: Path | None = None, data_dir: str = ""
) -> None:
    """Writes the report of the run in `folder` to `path`.

    reranker: the folder of a re-ranker on this run; None: one that lies beside it, if
    there is one. data_dir: of the test data; "" is that of the run.
    Raises ValueError if there is no such run.
    """
    config = restore.read_config(folder)
    require(
        config.model.name != "cargait",
        f"{folder} is a re-ranker's run. Name its base run, {config.base_run}, and the "
        f"re-ranker with --reranker={folder}.",
    )
    if data_dir:
        config.data.data_dir = data_dir
    results = _json(folder / "results.json")
    setup, state = restore.open_run(config, folder)
    missing, evaluated = "", None
    try:
        found = evaluate.evaluate_state(config, setup, state)
    except (ValueError, OSError) as error:
        missing = f"The test split could not be embedded: {error}"
    else:
        results["results"] = found.metrics
        evaluated = Evaluated(
            config, setup.model, model_variables(state), found.data, found.embeddings,
            config.evaluation.metric,
        )  # fmt: skip
    reranker = reranker or reranker_of(folder)
    sections = [
        ("Identification", _tables(results.get("results", {})) + _note(missing))
    ]
    headlines = _headlines(results.get("results", {}))
    if evaluated:
        more, parts = _of_embeddings(evaluated)
        headlines |= more
        sections += parts
    sections += [
        ("Training", _training(config, folder)),
        ("Before and after CarGait", _reranking(reranker) if reranker else ""),
        ("Data", _data(config, evaluated)),
        ("Config", _config(config)),
    ]
    page.write(
        path,
        f"{config.name} on {config.data.test_dataset}",
        f"Model {config.model.name} at step {int(state.step):,}, trained on "
        f"{config.data.train_dataset}, tested on "
        f"persons of {config.data.test_dataset}/{config.data.test_split} whom it never "
        "saw.",
        sections,
        headlines=headlines,
        footer=f"gaitjax {__version__}, jax {jax.__version__}. Run: {folder}",
    )


# ---------------- the sections of a run


def _headlines(results: Mapping[str, float]) -> dict[str, Any]:
    """Rank-1 and mAP of each protocol's mean; of its first task if it has no mean."""
    shown = {}
    for protocol, tasks in protocols.by_protocol(results).items():
        task = "mean" if "mean" in tasks else next(iter(tasks))
        for name, title in {"rank1": "Rank-1", "mAP": "mAP"}.items():
            if name in tasks[task]:
                shown[f"{title}, {protocol} {task}"] = _percent(tasks[task][name] / 100)
    return shown


def _tables(results: Mapping[str, float]) -> str:
    parts = []
    for protocol, tasks in protocols.by_protocol(results).items():
        rows = {
            task: {_title(name): _number(name, value) for name, value in row.items()}
            for task, row in tasks.items()
        }
        parts.append(f"<h3>{page.text(protocol)}</h3>{page.table(rows, 'task')}")
    return "".join(parts)


def _number(metric: str, value: float) -> float:
    percent = metric in PERCENT or metric.startswith("rank")
    return float(value) if percent or value % 1 else int(value)


def _title(metric: str) -> str:
    """ "rank1_same_view" as "Rank-1 same view"."""
    return re.sub(r"^rank(\d+)", r"Rank-\1", metric).replace("_", " ")


def _percent(share: float, digits: int = 1) -> str:
    return f"{100 * share:.{digits}f} %"


def _note(sentence: str) -> str:
    return page.paragraph(sentence, soft=True) if sentence else ""


def _of_embeddings(found: Evaluated) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """(headline numbers, sections) of what only embeddings tell."""
    protocol = found.config.evaluation.protocols[0]
    run = [
        result
        for result in protocols.evaluate_tasks(
            protocol, found.embeddings, found.data.index, metric=found.metric
        )
        if len(result.task.probe) and len(result.task.gallery)
    ]
    task = _thinned(run[0].task)
    matrix = np.asarray(task.distances(found.embeddings, found.metric))
    matrix = np.where(task.excluded, np.inf, matrix)  # [Q G]
    rates = error_rates.scores(matrix, task.probe_subject, task.gallery_subject)
    headlines, open_set = _open_set(rates, f"{protocol}, {task.name}")
    return headlines, [
        ("Cumulative match characteristic", _cmc(protocol, run)),
        ("By condition and view", _views(run, found.data.index)),
        ("Known or unknown", open_set),
        ("Map of the embeddings", _map(found)),
        ("Hardest confusions", _confusions(found, task, matrix)),
        ("What the model sees", _maps(found)),
    ]


def _thinned(task: protocols.Task) -> protocols.Task:
    """The task of evenly chosen probes, so that it has at most PAIRS distances."""
    most = max(1, PAIRS // len(task.gallery))
    last, count = len(task.probe) - 1, min(len(task.probe), most)
    return task.probes(np.linspace(0, last, count).round().astype(int))


def _cmc(protocol: str, run) -> str:
    curves, chance = {}, {}
    for result in run:
        curve = protocols.cmc(protocol, result)
        if len(curve):
            curves[result.task.name] = curve
            chance[result.task.name] = protocols.chance(result.task)
    if not curves:
        return ""
    return page.picture(
        lambda path: charts.cmc_curves(curves, path, protocol=protocol, chance=chance),
        "CMC: share of probes identified over rank",
    )


def _views(run, index) -> str:
    """Rank-1 in percent: by probe and gallery view, or by condition and probe view."""
    parts = []
    for result in run:
        task, outcomes = result.task, result.outcomes
        if result.table is not None:
            table = result.table
            rates, kind = table.rates(1), "probe view \\ gallery view"
            rows = {
                str(view): {
                    str(other): None if np.ma.is_masked(rate) else float(rate)
                    for other, rate in zip(table.views, row)
                }
                for view, row in zip(table.views, rates)
                if not np.ma.getmaskarray(row).all()
            }
        else:
            kind, rows = "condition \\ probe view", {}
            hit = 100.0 * (np.asarray(outcomes.first_match) == 1)
            condition = np.asarray(index.condition)[task.probe]
            for one in np.unique(condition):
                rows[str(one)] = {
                    str(view): float(hit[kept].mean())
                    for view in np.unique(task.probe_view)
                    if (kept := (condition == one) & (task.probe_view == view)).any()
                }
        if rows:
            title = f"<h3>{page.text(task.name)}: Rank-1 in percent</h3>"
            parts.append(title + page.table(rows, kind, heat=True))
    folded = parts[2:] and page.folded(
        f"{len(parts) - 2} more tasks", "".join(parts[2:])
    )
    return "".join(parts[:2]) + (folded or "")


def _open_set(rates: error_rates.Scores, where: str) -> tuple[dict[str, Any], str]:
    """(headline numbers, section) of genuine and impostor distances of one task."""
    genuine, impostor = (_evenly(x) for x in (rates.genuine, rates.impostor))
    if not len(genuine) or not len(impostor) or not len(rates.stranger):
        return {}, ""
    eer, at = error_rates.equal_error_rate(genuine, impostor)
    searches = len(rates.stranger)
    points, rows = {}, {}
    for fpir in OPERATING_POINTS:
        if fpir * searches >= 1:  # fewer searches cannot show so small a rate
            fnir, threshold = error_rates.fnir_at(rates, fpir)
            points[fpir] = fnir
            row = {"FNIR": _percent(fnir), "distance": f"{threshold:.3g}"}
            rows[f"FPIR {_percent(fpir, 0)}"] = row
    _, false_names, missed = error_rates.open_set_rates(rates)
    left = page.picture(
        lambda path: scores.histograms(genuine, impostor, path, marks={"EER": at}),
        "Histograms of distances of one person and of two persons",
        f"Pairs of {where}. Equal error rate: {_percent(eer)} at distance {at:.3g}.",
    )
    right = page.picture(
        lambda path: scores.open_set(false_names, missed, path, points=points),
        "FNIR over FPIR",
        f"{searches:,} searches, each with and without its person.",
    )
    content = page.side_by_side(left, right) + page.table(rows, "operating point")
    headlines: dict[str, Any] = {"equal error rate": _percent(eer)}
    for fpir, fnir in list(points.items())[:1]:
        headlines[f"FNIR at FPIR {_percent(fpir, 0)}"] = _percent(fnir)
    return headlines, content + page.paragraph(WORDS, soft=True)


def _evenly(values: np.ndarray) -> np.ndarray:
    return values[:: max(1, len(values) // SHOWN_SCORES)]


def _map(found: Evaluated) -> str:
    subject = np.asarray(found.data.index.subject)
    people = np.unique(subject)
    most = np.linspace(0, len(people) - 1, min(len(people), MAP_PEOPLE))
    rows = np.flatnonzero(np.isin(subject, people[most.round().astype(int)]))
    if len(rows) < 3:
        return ""
    chosen = np.linspace(0, len(rows) - 1, min(len(rows), MAP_WALKS))
    rows = rows[np.unique(chosen.round().astype(int))]
    walks = found.embeddings[rows]
    distance = np.asarray(pairwise_distance(walks, walks, metric=found.metric))
    return scores.map_figure(distance, subject[rows])


def hardest(
    matrix, probe_subject, gallery_subject, count: int
) -> list[tuple[int, ...]]:
    """(probe, nearest other person, nearest own walk) with the largest gap between the
    two, rows and columns of the distances [Q G]; each pair of persons once."""
    same = probe_subject[:, None] == gallery_subject[None, :]
    own = np.where(same, matrix, np.inf)
    other = np.where(same, np.inf, matrix)
    gap = own.min(1) - other.min(1)
    gap = np.where(np.isfinite(own.min(1)) & np.isfinite(other.min(1)), gap, -np.inf)
    shown: dict[tuple, tuple[int, ...]] = {}
    for row in np.argsort(-gap, kind="stable"):
        if gap[row] <= 0 or len(shown) == count:
            break
        wrong, right = int(other[row].argmin()), int(own[row].argmin())
        pair = (probe_subject[row], gallery_subject[wrong])
        shown.setdefault(pair, (int(row), wrong, right))
    return list(shown.values())


def _confusions(found: Evaluated, task: protocols.Task, matrix) -> str:
    persons = task.probe_subject, task.gallery_subject
    index, modality = found.data.index, found.config.data.modalities[0]
    rows: list[Any] = []
    for row, wrong, right in hardest(matrix, *persons, CONFUSIONS):
        cells: list[Any] = []
        for what, walk, fits in (
            ("probe", task.probe[row], None),
            (f"{matrix[row, wrong]:.2f}", task.gallery[wrong], False),
            (f"{matrix[row, right]:.2f}", task.gallery[right], True),
        ):
            frames = clips.rgb_frames(found.data, int(walk), modality)
            cells.append((f"{index.key[walk]}\n{what}", frames, fits))
        rows.append(("", cells))
    if not rows:
        return page.paragraph(f"None in {task.name}: every nearest walk is right.")
    return page.picture(
        lambda path: charts.filmstrips(rows, path),
        "Film strips of confused walks",
        f"{task.name}: a probe, the nearest walk of another person (✗) and the nearest "
        "of its own (✓), with distances; where the gap between the two is largest.",
    )


def _maps(found: Evaluated) -> str:
    if "frames" not in found.config.data.modalities:
        return ""
    frames, maps = run_pictures.maps(found.model, found.variables, found.data)
    if not maps:
        return ""
    return page.picture(
        lambda path: charts.frame_maps(frames, maps, path),
        "Frames of one walk above what the model computes from them",
        f"{found.data.index.key[0]}: {', '.join(maps)}.",
    )


def _training(config, folder: Path) -> str:
    file = folder / log.FILE_NAME
    history = log.read_metrics(file) if file.exists() else []
    if not any(row["kind"] in ("train", "eval") for row in history):
        return page.paragraph("This run has no rows of training in metrics.jsonl.")
    phases = {phase.name: phase.last for phase in phases_of(config)[:-1]}
    return page.picture(
        lambda path: charts.learning_curves(history, path, phases), "Learning curves"
    )


def reranker_of(folder: Path) -> Path | None:
    """The folder beside `folder` with a finished re-ranker on it, the newest."""
    found = []
    for file in folder.absolute().parent.glob("*/rerank.json"):
        base = Path(_json(file).get("base_run", ""))
        if base.name == folder.absolute().name:
            found.append(file)
    return max(found, key=lambda x: x.stat().st_mtime).parent if found else None


def _reranking(folder: Path) -> str:
    report = _json(folder / "rerank.json")
    require(report, f"{folder} has no rerank.json: train that re-ranker first.")
    methods = {name: row["results"] for name, row in report["rerankers"].items()}
    parts = [page.paragraph(f"Re-ranker of {folder}, shortlist {report['shortlist']}.")]
    for protocol, tasks in protocols.by_protocol(methods["base"]).items():
        rows: dict[str, dict[str, Any]] = {}
        for task, numbers in tasks.items():
            for name in ("rank1", "mAP"):
                if name not in numbers:
                    continue
                title = f"{task}, {_title(name)}"
                key = f"{protocol}/{task}/{name}"
                rows[title] = {
                    METHODS.get(method, method): values.get(key)
                    for method, values in methods.items()
                }
        parts.append(f"<h3>{page.text(protocol)}</h3>{page.table(rows, 'task')}")
    for file in sorted((folder / "pictures").glob("*.png")):
        if file.name.startswith(("reranked_", "attention")):
            what = file.stem.replace("_", " ")
            parts.append(page.picture(file.read_bytes(), what, what))
    return "".join(parts)


def _data(config, found: Evaluated | None) -> str:
    rows = {
        "trained on": f"{config.data.train_dataset}/{config.data.train_split}, "
        f"{config.data.num_classes} persons",
        "tested on": f"{config.data.test_dataset}/{config.data.test_split}",
        "what is read": ", ".join(config.data.modalities),
    }
    if found:
        index = found.data.index
        rows |= {
            "persons in the test": len(np.unique(index.subject)),
            "walks in the test": len(index.key),
            "conditions": ", ".join(map(str, np.unique(index.condition)[:40])),
            "views": ", ".join(map(str, np.unique(index.view)[:40])),
            "fingerprint of the test data": found.data.fingerprint,
        }
    return page.listing(rows)


def _config(config) -> str:
    fields = run_folder.flat(run_folder.plain(config))
    rows = {name: json.dumps(value) for name, value in fields.items()}
    return page.folded(f"{len(rows)} fields", page.listing(rows))


def _json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.exists() else {}


def main(arguments: list[str] | None = None) -> int:
    """Exit codes: 0; 2 after a mistake of the user."""
    parser = argparse.ArgumentParser(
        prog="python -m gaitjax.report", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("run", type=Path, help="folder of a finished run")
    parser.add_argument("--out", type=Path, help="file to write; RUN/report.html")
    parser.add_argument("--reranker", type=Path, help="folder of a re-ranker on it")
    parser.add_argument("--data_dir", default="", help="where the test data lie")
    given = parser.parse_args(arguments)
    path = given.out or given.run / "report.html"
    try:
        of_run(given.run, path, reranker=given.reranker, data_dir=given.data_dir)
    except (ValueError, OSError) as error:
        print(f"gaitjax: {error}", file=sys.stderr)
        return 2
    print(f"report: {path}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
