"""Enrols a prepared data set: python -m gaitjax.use.archive DATA_SET --gallery=DIR

    python -m gaitjax.use.archive gait3d --data_dir=data --model=runs/gaitset
    python -m gaitjax.use.archive gait3d ... --part=3/16       on the fourth of 16 hosts

Every sequence becomes an enrolled walk of its subject, with its key as the source. All
devices of a host embed at once. A fleet of hosts takes a part each (0/N to N-1/N) and
writes into one gallery on a shared disk, without talking to each other. What is
enrolled already is left out, so that a killed program goes on where it was.
"""

import argparse
import re
import sys
from collections.abc import Iterator

import jax
import numpy as np
from absl import logging
from jax.sharding import NamedSharding, PartitionSpec

from gaitjax import evaluate
from gaitjax.data import pipeline, source
from gaitjax.engine import sharding
from gaitjax.engine.guards import require
from gaitjax.use.gallery import Gallery
from gaitjax.use.recogniser import Recogniser, Sample, load

AT_ONCE = 4096  # sequences of one file


class Rows:
    """Some records of a data set, as the data set itself."""

    def __init__(self, records, rows: np.ndarray):
        self.records, self.rows = records, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int):
        return self.records[int(self.rows[row])]


def enrol(
    gallery: Gallery, recogniser: Recogniser, data: source.Source, part=(0, 1)
) -> int:
    """Enrols rows part[0], part[0] + part[1] and on of `data`; how many were new."""
    known = {row.source for row in gallery.rows()}
    rows = np.arange(part[0], len(data.index.key), part[1])
    rows = rows[[data.index.key[row] not in known for row in rows]]
    count = 0
    for start in range(0, len(rows), AT_ONCE):
        some = rows[start : start + AT_ONCE]
        index = data.index.rows(some)
        chosen = data._replace(
            records=Rows(data.records, some), index=index,
            present={name: has[some] for name, has in data.present.items()},
        )  # fmt: skip
        named = list(zip(index.subject.tolist(), _samples(recogniser, chosen)))
        count += gallery.add_all(named)
    return count


def _samples(recogniser: Recogniser, data: source.Source) -> Iterator[Sample]:
    mesh = sharding.make_mesh(recogniser.config.mesh, jax.local_devices())
    whole = NamedSharding(mesh, PartitionSpec())
    variables = jax.device_put(recogniser.variables, whole)
    embeddings = evaluate.embed_split(
        recogniser.model, variables, data, recogniser.config, mesh
    )
    for key, frames, view, embedding in zip(
        data.index.key, data.index.num_frames, data.index.view, embeddings
    ):
        quality = {"frames": float(frames)}
        yield Sample(str(key), 1, 0.0, 0.0, str(view), quality, "", embedding, b"")


def main(arguments: list[str] | None = None) -> int:
    """Exit codes: 0; 2 after a mistake of the user."""
    parser = argparse.ArgumentParser(
        prog="python -m gaitjax.use.archive", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("data_set")
    parser.add_argument("--data_dir", default="data")
    parser.add_argument("--split", default="test")
    parser.add_argument("--gallery", default="people", metavar="DIR")
    parser.add_argument("--model", default="", metavar="RUN|CARD")
    parser.add_argument("--part", default="0/1", metavar="K/N")
    given = parser.parse_args(arguments)
    logging.set_verbosity(logging.WARNING)
    try:
        match = re.fullmatch(r"(\d+)/(\d+)", given.part)
        part = tuple(map(int, match.groups())) if match else (0, 0)
        require(
            part[0] < part[1],
            f"--part={given.part} must be K/N, K from 0 to N-1: 0/4, 1/4, 2/4 and 3/4 "
            "on four hosts.",
        )
        recogniser = load(given.model)
        modalities = pipeline.eval_modalities(recogniser.config)
        data = source.open_split(
            given.data_dir, given.data_set, given.split, modalities
        )
        gallery = Gallery.open(given.gallery, recogniser)
        count = enrol(gallery, recogniser, data, part)
    except (ValueError, OSError) as error:
        print(f"gaitjax: {error}", file=sys.stderr)
        return 2
    print(f"{count} sequences were enrolled; {given.gallery} has {len(gallery.rows())}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
