"""Runs the benchmarks' protocols: from embeddings to "protocol/task/metric".

The protocols themselves are data, in `gaitjax/retrieval/definitions.py`.
"""

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils

from gaitjax.engine.guards import require
from gaitjax.retrieval.definitions import Protocol, protocol_of
from gaitjax.retrieval.distance import pairwise_distance
from gaitjax.retrieval.metrics import Outcomes, probe_outcomes, summarise
from gaitjax.retrieval.view_pairs import ViewTable, pair_metrics, view_table

CHUNK = 1 << 26  # distances in memory at a time (256 MiB)


class Index(NamedTuple):
    """One row per sequence: str arrays [n]. Any object with these columns works."""

    subject: np.ndarray
    condition: np.ndarray
    view: np.ndarray
    key: np.ndarray


class Task(NamedTuple):
    """One retrieval problem: rows of the index, and which pairs do not count.

    probe: int [Q], gallery: int [G], rows of the index. *_subject, *_view: their
    subjects and views (cameras if the protocol says so). rule: Protocol.excluded.
    """

    name: str
    probe: np.ndarray
    gallery: np.ndarray
    probe_subject: np.ndarray
    gallery_subject: np.ndarray
    probe_view: np.ndarray
    gallery_view: np.ndarray
    rule: str

    @property
    def excluded(self) -> np.ndarray:
        """bool [Q G]: pairs that are not compared."""
        shape = (len(self.probe), len(self.gallery))
        if self.rule == "none":
            return np.zeros(shape, bool)
        mask = self.probe_view[:, None] == self.gallery_view[None, :]
        if self.rule == "subject_and_view":
            mask &= self.probe_subject[:, None] == self.gallery_subject[None, :]
        return mask

    def probes(self, selection) -> "Task":
        """The task of some probes against the same gallery."""
        return self._replace(
            probe=self.probe[selection],
            probe_subject=self.probe_subject[selection],
            probe_view=self.probe_view[selection],
        )

    def blocks(self) -> Iterator["Task"]:
        """The task split by probes into parts of at most CHUNK distances.

        Probes do not influence each other, so the results stay the same.
        """
        size = max(1, CHUNK // max(1, len(self.gallery)))
        for start in range(0, max(1, len(self.probe)), size):
            yield self.probes(slice(start, start + size))

    def distances(self, embeddings, metric: str):
        """[Q G] of embeddings [n S D], rows of the index."""
        return pairwise_distance(
            embeddings[self.probe], embeddings[self.gallery], metric=metric
        )


class TaskResult(NamedTuple):
    """metrics: what `evaluate` reports. outcomes: per probe, [Q] or, if the gallery
    is split by view, [Q V]. table: the per-view table of such tasks, else None."""

    task: Task
    metrics: dict[str, float]
    outcomes: Outcomes
    table: ViewTable | None


def tasks(protocol: str, index) -> list[Task]:
    """The retrieval problems of a protocol, rows in index order.

    A task is empty if its condition was not recorded. Raises ValueError for an unknown
    protocol and if all tasks are empty, because the index is then of other data.
    """
    definition = protocol_of(protocol)
    subject, condition, view = (
        np.asarray(column) for column in (index.subject, index.condition, index.view)
    )
    kept = ~np.isin(view, definition.ignored_views)
    if definition.camera:
        view = np.array([name.partition("_")[0] for name in view.tolist()], dtype=str)
    names, number = np.unique(condition, return_inverse=True)
    found = []
    for name, predicates in definition.tasks.items():
        gallery, probe = (
            np.flatnonzero(
                np.array([accept(c) for c in names.tolist()], bool)[number] & kept
            )
            for accept in predicates
        )
        found.append(
            Task(
                name, probe, gallery, subject[probe], subject[gallery],
                view[probe], view[gallery], definition.excluded,
            )
        )  # fmt: skip
    require(
        any(len(task.probe) and len(task.gallery) for task in found),
        f"Protocol {protocol!r} finds no task with both probes and gallery among "
        f"{len(condition)} sequences of conditions {names.tolist()[:20]}. Is the index "
        "of another data set (config.data.test_dataset, config.evaluation.protocols)? "
        'Gait3D and CCGR-mini need conditions "probe..." and "gallery..." (see '
        "with_roles).",
    )
    return found


def with_roles(index, *, probe_keys=None, gallery_keys=None) -> Index:
    """The index with condition "probe" or "gallery" from one of the two lists of keys.

    For benchmarks that list their probes (Gait3D) or their gallery (CCGR-mini) one by
    one; all other sequences get the other role. Raises ValueError if the index lacks a
    listed key.
    """
    listed = np.unique(np.asarray(probe_keys if gallery_keys is None else gallery_keys))
    missing = listed[~np.isin(listed, index.key)]
    require(
        not len(missing),
        f"{len(missing)} of {len(listed)} listed keys are not in the index: "
        f"{missing[:1].tolist()}...; keys look like {str(index.key[0])!r}.",
    )
    inside = np.isin(index.key, listed)
    is_probe = inside if gallery_keys is None else ~inside
    condition = np.where(is_probe, "probe", "gallery")
    return Index(index.subject, condition, index.view, index.key)


def evaluate(protocol: str, embeddings, index, **options) -> dict[str, float]:
    """Runs a protocol: {"protocol/task/metric": value}, percentages in 0..100.

    Metrics: rankK, mAP, mINP; "view_pairs" protocols have rank1_same_view (the pairs of
    identical views, never part of rank1) instead of mINP. Counts: probes;
    probes_without_match or, with a gallery per view, trials_without_match (one trial is
    one probe in one other view); empty_pairs, view pairs without probes or gallery. A
    metric with nothing to average is absent and left out of means, never NaN.
    Arguments and errors are those of `evaluate_tasks`.
    """
    results = evaluate_tasks(protocol, embeddings, index, **options)
    by_task = {result.task.name: result.metrics for result in results}
    if protocol_of(protocol).mean:
        by_task["mean"] = mean = {}
        for name in dict.fromkeys(key for values in by_task.values() for key in values):
            values = [metrics[name] for metrics in by_task.values() if name in metrics]
            if name.startswith(("rank", "mAP", "mINP")):
                mean[name] = float(np.mean(values))
    return {
        f"{protocol}/{task}/{name}": value
        for task, metrics in by_task.items()
        for name, value in metrics.items()
    }


def by_protocol(results: Mapping[str, float]) -> dict[str, dict[str, dict[str, float]]]:
    """{protocol: {task: {metric: value}}} of `evaluate`'s results, task "mean" last."""
    tables: dict[str, dict[str, dict[str, float]]] = {}
    for key, value in results.items():
        protocol, task, metric = key.split("/")
        tables.setdefault(protocol, {}).setdefault(task, {})[metric] = value
    return {
        protocol: dict(sorted(by_task.items(), key=lambda item: item[0] == "mean"))
        for protocol, by_task in tables.items()
    }


def evaluate_tasks(
    protocol: str,
    embeddings,
    index,
    *,
    metric: str = "euclidean",
    rerank: Callable[[np.ndarray, Any, Any], Any] | None = None,
    round_cells: bool = True,
    split: bool = False,
) -> list[TaskResult]:
    """Runs a protocol and keeps the per-probe outcomes and the per-view tables.

    If several tasks share probes, the distances of these probes are computed once.
    Distances are computed in blocks of at most 256 MiB.

    Args:
      protocol: a name that `definitions.protocol_of` knows.
      embeddings: float [n S D], one row per row of the index.
      index: columns subject, condition, view, key, each [n].
      metric: "euclidean" | "cosine", see `pairwise_distance`.
      rerank: f(distance [Q G], probe [Q S D], gallery [G S D]) -> distance [Q G],
        called once per task or, for "view_pairs", per task and gallery view. Pairs that
        do not count are +inf in its input and are ignored in its output. If f has an
        argument `views`, it gets (probe views [Q], gallery views [G]). See
        `rerank.methods.RERANKERS`.
      round_cells: round Rank-k of a view pair (with "probe_views": of a probe view) to
        2 decimals before the mean, as OpenGait does; this changes means by at most
        0.005.
      split: each process of a multi-host run takes a share of the probes, and all get
        the whole result; call it on all of them. With `rerank`, nothing is shared.

    Raises:
      ValueError: unknown protocol, nothing to evaluate, embeddings of other data, NaN.
    """
    run = tasks(protocol, index)
    definition, embeddings = protocol_of(protocol), np.asarray(embeddings)
    require(
        embeddings.ndim == 3 and len(embeddings) == len(index.subject),
        f"embeddings must be [n S D] with n = {len(index.subject)}, the rows of the "
        f"index; got {embeddings.shape}.",
    )

    def plain(task: Task) -> Outcomes:
        parts = [
            _outcomes(definition, part, part.distances(embeddings, metric))
            for part in task.blocks()
        ]
        return Outcomes(*(np.concatenate(columns) for columns in zip(*parts)))

    def second_stage(task: Task, rerank: Callable) -> Outcomes:
        def scored(matrix, columns):
            gallery = embeddings[task.gallery[columns]]
            views = {"views": (task.probe_view, task.gallery_view[columns])}
            views = views if takes_views else {}
            return np.asarray(rerank(matrix, embeddings[task.probe], gallery, **views))

        matrix = task.distances(embeddings, metric)
        return _outcomes(definition, task, matrix, scored)

    takes_views = rerank and "views" in inspect.signature(rerank).parameters
    if rerank is not None:
        found = [second_stage(task, rerank) for task in run]
    else:
        found = _shared(run, functools.partial(_split, plain) if split else plain)
    return [
        _result(definition, task, outcomes, round_cells)
        for task, outcomes in zip(run, found)
    ]


def _shared(run: list[Task], compute: Callable[[Task], Outcomes]) -> list[Outcomes]:
    """compute(task) of each task; tasks with the same gallery are computed as one."""
    groups: dict[bytes, list[Task]] = {}
    for task in run:
        groups.setdefault(task.gallery.tobytes(), []).append(task)
    found = {}
    for group in groups.values():
        every = np.concatenate([task.probe for task in group])
        probe, first = np.unique(every, return_index=True)
        subject = np.concatenate([task.probe_subject for task in group])[first]
        view = np.concatenate([task.probe_view for task in group])[first]
        together = group[0]._replace(
            probe=probe, probe_subject=subject, probe_view=view
        )
        outcomes = compute(together)
        for task in group:
            found[task.name] = outcomes.rows(np.searchsorted(probe, task.probe))
    return [found[task.name] for task in run]


def _split(compute: Callable[[Task], Outcomes], task: Task) -> Outcomes:
    """compute(task), where each process computes a share of the probes."""
    if not len(task.probe) or not len(task.gallery):
        return compute(task)
    share = -(-len(task.probe) // jax.process_count())
    start = share * jax.process_index()
    own = compute(task.probes(slice(start, start + share)))

    def gathered(column: np.ndarray) -> np.ndarray:
        padding = [(0, share - len(column))] + [(0, 0)] * (column.ndim - 1)
        bits = np.pad(column, padding)[..., None].view(np.uint32)  # jax has no float64
        every = np.asarray(multihost_utils.process_allgather(bits, tiled=True))
        return every.view(column.dtype)[: len(task.probe), ..., 0]

    return Outcomes(*map(gathered, own))


def _outcomes(definition: Protocol, task: Task, matrix, scored=None) -> Outcomes:
    """Outcomes of a distance matrix [Q G]: [Q], or [Q V] over the sorted gallery views.

    scored: a second stage, (matrix, gallery columns) -> matrix.
    """
    if definition.average != "view_pairs":
        excluded = None if task.rule == "none" else task.excluded
        if scored is not None and matrix.size:
            if excluded is not None:
                matrix = np.where(excluded, np.float32(np.inf), matrix)
            matrix = scored(matrix, slice(None))
        return probe_outcomes(
            matrix, task.probe_subject, task.gallery_subject, excluded
        )
    parts = [probe_outcomes(matrix[:, :0], task.probe_subject, [])]
    for view in np.unique(task.gallery_view):
        columns = np.flatnonzero(task.gallery_view == view)
        part = matrix[:, columns]
        if scored is not None and part.size:
            part = scored(part, columns)
        ids = task.gallery_subject[columns]
        parts.append(probe_outcomes(part, task.probe_subject, ids))
    stacked = (np.stack(columns, axis=1) for columns in zip(*parts))  # [Q 1+V]
    return Outcomes(*(column[:, 1:] for column in stacked))  # [Q V]


def _result(
    definition: Protocol, task: Task, outcomes: Outcomes, round_cells: bool
) -> TaskResult:
    if definition.average == "view_pairs":
        table = view_table(task.probe_view, task.gallery_view, outcomes)
        metrics = pair_metrics(definition, table, round_cells)
        return TaskResult(task, metrics, outcomes, table)
    metrics: dict[str, Any] = summarise(outcomes, definition.ranks)
    if definition.average == "probe_views":
        views = [task.probe_view == view for view in np.unique(task.probe_view)]
    else:
        views = [np.ones(len(task.probe), bool)]
    matched = outcomes.first_match > 0
    cell = (lambda x: round(x, 2)) if round_cells else float

    def mean(values, kept) -> float | None:
        """Mean over views of the mean over their kept probes; None if none is kept."""
        cells = [cell(100 * np.mean(values[v & kept])) for v in views if any(v & kept)]
        return float(np.mean(cells)) if cells else None

    if definition.unmatched == "miss":
        for k in definition.ranks:
            hit = matched & (outcomes.first_match <= k)
            metrics[f"rank{k}"] = mean(hit, np.ones_like(hit))
            if definition.both:
                metrics[f"rank{k}_matched"] = mean(hit, matched)
        if definition.average == "probe_views":
            metrics["mAP"] = mean(outcomes.average_precision, matched)
            metrics["mINP"] = mean(outcomes.inverse_penalty, matched)
    if not len(task.gallery):  # every probe would be a miss, but nothing was measured
        metrics = {k: v for k, v in metrics.items() if k.startswith("probes")}
    metrics = {name: value for name, value in metrics.items() if value is not None}
    return TaskResult(task, metrics, outcomes, None)


def cmc(protocol: str, result: TaskResult, max_rank: int = 50) -> np.ndarray:
    """Rank-k in percent, k = 1 .. K, averaged as `protocol` averages Rank-1: [K].

    result: of `evaluate_tasks`. K is at most max_rank and the size of the largest
    gallery that a probe is compared with; it is 0 if the task has no Rank-1.
    """
    task, table = result.task, result.table
    sizes = [len(task.gallery)] if table is None else table.gallery_size
    ranks = tuple(range(1, min(max_rank, int(np.max(sizes, initial=0))) + 1))
    definition = protocol_of(protocol)._replace(ranks=ranks)
    metrics = _result(definition, task, result.outcomes, True).metrics
    return np.array([metrics[f"rank{k}"] for k in ranks if f"rank{k}" in metrics])


def chance(task: Task) -> float:
    """Rank-1 in percent if a gallery sequence were drawn at random for each probe.

    Only pairs that count are drawn. Mean over the probes; 0 if there are none.
    """
    shares = [np.zeros(0)]
    for part in task.blocks():
        match = part.probe_subject[:, None] == part.gallery_subject[None, :]  # [Q G]
        kept = ~part.excluded
        shares.append((match & kept).sum(1) / np.maximum(kept.sum(1), 1))  # [Q]
    shares = np.concatenate(shares)
    return 100 * float(np.mean(shares)) if len(shares) else 0.0
