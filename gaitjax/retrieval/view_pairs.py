"""Rank-k and mAP per probe view x gallery view, and their means: "view_pairs"."""

from typing import NamedTuple

import numpy as np

from gaitjax.retrieval.definitions import Protocol
from gaitjax.retrieval.metrics import Outcomes


class ViewTable(NamedTuple):
    """Rates of each probe view (rows) x gallery view (columns), in percent.

    views: sorted names [V]. first_match: int [Q V], rank of a probe's nearest match in
    the gallery of one view, 0 = no match there. average_precision: [Q V], in that
    gallery. probe_view: int [Q] into views. gallery_size: int [V].
    """

    views: np.ndarray
    first_match: np.ndarray
    average_precision: np.ndarray
    probe_view: np.ndarray
    gallery_size: np.ndarray

    def rates(self, k: int, *, matched: bool = False, round_cells: bool = True):
        """Rank-k, masked array [V V]; pairs without probes or gallery are masked.

        matched: leave out probes that have no match in that gallery view, which
        otherwise count as misses. round_cells: to 2 decimals, as the field does before
        it averages.
        """
        hit = (self.first_match > 0) & (self.first_match <= k)
        return self._means(hit, matched, round_cells)

    def precision(self, *, round_cells: bool = True):
        """mAP, masked array [V V], of the probes that have a match in that gallery."""
        return self._means(self.average_precision, True, round_cells)

    def _means(self, values, matched: bool, round_cells: bool):
        member = self.probe_view[None, :] == np.arange(len(self.views))[:, None]
        tried = self.first_match > 0 if matched else np.ones(values.shape, bool)
        trials = member.astype(float) @ (tried & (self.gallery_size > 0)[None, :])
        cells = 100 * (member.astype(float) @ values) / np.maximum(trials, 1)  # [V V]
        cells = np.round(cells, 2) if round_cells else cells
        return np.ma.masked_array(cells, trials == 0)


def view_table(probe_view, gallery_view, outcomes: Outcomes) -> ViewTable:
    """The table over the union of probe and gallery views.

    probe_view: [Q]. gallery_view: [G]. outcomes: [Q V] over the sorted gallery views.
    """
    gallery_views, sizes = np.unique(gallery_view, return_counts=True)
    views = np.union1d(probe_view, gallery_views)
    columns = np.searchsorted(views, gallery_views)
    first_match = np.zeros((len(probe_view), len(views)), np.int64)
    first_match[:, columns] = outcomes.first_match
    precision = np.zeros(first_match.shape)
    precision[:, columns] = outcomes.average_precision
    gallery_size = np.zeros(len(views), np.int64)
    gallery_size[columns] = sizes
    number = np.searchsorted(views, probe_view)
    return ViewTable(views, first_match, precision, number, gallery_size)


def pair_metrics(
    definition: Protocol, table: ViewTable, round_cells: bool
) -> dict[str, float]:
    """Means over view pairs: over the other gallery views, then over probe views."""
    same = np.eye(len(table.views), dtype=bool)

    def mean(cells) -> float | None:
        total = np.ma.masked_array(cells, same).mean(axis=1).mean()
        return None if total is np.ma.masked else float(total)

    metrics = {}
    for k in definition.ranks:
        metrics[f"rank{k}"] = mean(table.rates(k, round_cells=round_cells))
        if definition.both:
            cells = table.rates(k, matched=True, round_cells=round_cells)
            metrics[f"rank{k}_matched"] = mean(cells)
    metrics["mAP"] = mean(table.precision(round_cells=round_cells))
    cells = table.rates(1, round_cells=round_cells)
    diagonal = np.ma.masked_array(cells, ~same).mean()
    metrics["rank1_same_view"] = None if diagonal is np.ma.masked else float(diagonal)
    metrics = {name: value for name, value in metrics.items() if value is not None}
    other = (table.probe_view[:, None] != np.arange(len(table.views))[None, :]) & (
        table.gallery_size > 0
    )[None, :]
    metrics["probes"] = len(table.probe_view)
    metrics["trials_without_match"] = int(np.sum(other & (table.first_match == 0)))
    metrics["empty_pairs"] = int(np.sum(np.ma.getmaskarray(cells) & ~same))
    return metrics
