"""GREW's submission file: only its server knows the identities of the true probes."""

from pathlib import Path

import numpy as np

from gaitjax.engine.guards import require
from gaitjax.retrieval.distance import nearest


def write(
    path, embeddings, index, *, metric: str = "euclidean", ranks: int = 20
) -> int:
    """The CSV that GREW's CodaLab server scores; returns the number of probes.

    Gallery: conditions "01" and "02". Probes: subject "probe" (their identities are
    secret), named by their view. One line per probe, "videoId,rank1,...,rank20": the
    identities of its 20 nearest gallery sequences, so an identity may occur repeatedly.

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
    _, nearest_rows = nearest(
        embeddings[probe], embeddings[gallery], k=ranks, metric=metric
    )
    lines = [",".join(["videoId", *(f"rank{k + 1}" for k in range(ranks))])]
    for row, columns in zip(probe, nearest_rows):
        ids = [str(int(name)) for name in subject[gallery[columns]].tolist()]
        lines.append(",".join([str(index.view[row]), *ids]))
    Path(path).write_text("\n".join(lines) + "\n")
    return len(probe)
