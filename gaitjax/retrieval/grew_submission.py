"""GREW's submission file: only its server knows the identities of the true probes."""

import csv

import numpy as np

from gaitjax.engine.atomic import replacing
from gaitjax.engine.guards import require
from gaitjax.retrieval.distance import nearest, pairwise_distance


def has_probes(protocols, index) -> bool:
    """Whether GREW is evaluated on a test split with the server's probes."""
    return "grew" in protocols and bool((np.asarray(index.subject) == "probe").any())


def write(
    path, embeddings, index, *, metric: str = "euclidean", ranks: int = 20, rerank=None
) -> int:
    """The CSV that GREW's CodaLab server scores; returns the number of probes.

    Gallery: conditions "01" and "02". Probes: subject "probe" (their identities are
    secret), named by their view. One line per probe, "videoId,rank1,...,rank20": the
    identities of its 20 nearest gallery sequences, so an identity may occur repeatedly.

    rerank: f(distance [Q G], probe [Q S D], gallery [G S D], views) -> distance [Q G],
    a re-ranker; None: the base model's order.

    Raises:
      ValueError: no such probes, or fewer than `ranks` gallery sequences.
    """
    subject, condition = np.asarray(index.subject), np.asarray(index.condition)
    probe = np.flatnonzero(subject == "probe")
    gallery = np.flatnonzero(np.isin(condition, ("01", "02")) & (subject != "probe"))
    require(
        len(probe) and len(gallery) >= ranks,
        f"A GREW submission needs probes (subject 'probe') and at least {ranks} "
        f"gallery sequences (conditions '01', '02'); got {len(probe)} and "
        f"{len(gallery)}. Is the index that of GREW's test split?",
    )
    pair = embeddings[probe], embeddings[gallery]
    if rerank is None:
        _, nearest_rows = nearest(*pair, k=ranks, metric=metric)
    else:
        views = index.view[probe], index.view[gallery]
        distance = rerank(pairwise_distance(*pair, metric=metric), *pair, views)
        nearest_rows = np.argsort(distance, axis=1, kind="stable")[:, :ranks]
    names = index.view[probe].tolist()
    # a table program would run such a name as a formula
    wrong = [name for name in names if name[:1] in ("=", "+", "-", "@", "")]
    require(not wrong, f"GREW has no such video ids: {', '.join(map(repr, wrong))}.")
    identities = subject[gallery].astype(int)[nearest_rows]  # [Q ranks]
    with replacing(path) as file:
        lines = csv.writer(file, lineterminator="\n")
        lines.writerow(["videoId", *(f"rank{k + 1}" for k in range(ranks))])
        lines.writerows([name, *row] for name, row in zip(names, identities.tolist()))
    return len(probe)
