"""A shortlist from a vector store, for a gallery that outgrows memory.

The distance of gait models, a mean over strips of distances, is computed by no vector
store. A store finds the SHORTLIST nearest by one vector a walk, and their exact
distances are computed here. By cosine the two agree: one inner product of the unit
strips, side by side, is the mean of their cosines. By Euclidean distance they differ,
and the shortlist has to be long enough.

`--index=milvus:FILE` keeps the vectors in a file (milvus-lite), `milvus:http://...` on
a server; pymilvus is needed (requirements-milvus.txt). The gallery's own files stay the
truth: whatever differs between them and the store is brought into line.
"""

import logging
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from gaitjax.engine.guards import require

WIDTH = 256  # numbers of a stored vector, at most; more are projected
BATCH = 1000  # vectors sent at once
# pymilvus asks every 10 s whether the server lives, and a server that is at work for
# half a minute (milvus-lite, when it indexes) then ends the connection
CONNECTION = {"grpc.keepalive_time_ms": 300_000}


class Index(Protocol):
    """ids: of rows. take: places -> embeddings float32 [k S D]."""

    def sync(self, ids: Sequence[str], take: Callable[..., np.ndarray]) -> None:
        """Makes the store hold exactly these rows."""
        ...

    def search(self, probes: np.ndarray, k: int) -> list[list[str]]:
        """ids of the k nearest of each probe [Q S D], nearest first."""
        ...


def open_index(spec: str, fingerprint: str, shape, metric: str) -> Index:
    """The index of "milvus:FILE" or "milvus:URI"; ValueError for anything else."""
    kind, _, where = spec.partition(":")
    require(
        kind == "milvus" and where,
        f"--index={spec!r} is not understood; give milvus:FILE.db or "
        "milvus:http://HOST:19530.",
    )
    try:
        import pymilvus  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ValueError(
            "--index=milvus needs pymilvus: pip install -r requirements-milvus.txt."
        ) from error
    for name in ("pymilvus", "grpc._server"):  # they tell what milvus-lite lacks
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        client = pymilvus.MilvusClient(uri=where, grpc_options=CONNECTION)
    except Exception as error:  # pymilvus and gRPC have their own
        raise ValueError(f"Milvus does not open {where} ({error}).") from error
    embedded = "://" not in where
    return Milvus(client, f"gaitjax_{fingerprint}", shape, metric, embedded)


class Milvus:
    """One collection for each model: the row's id and its vector.

    embedded: a file, not a server.
    """

    def __init__(self, client, name: str, shape, metric: str, embedded: bool):
        self.client, self.name, self.metric = client, name, metric
        self.project, self.embedded = projection(shape), embedded
        self.width = min(WIDTH, int(np.prod(shape)))
        if not client.has_collection(name):
            self._create()

    def _create(self) -> None:
        from pymilvus import DataType  # pyright: ignore[reportMissingImports]

        schema = self.client.create_schema(auto_id=False)
        schema.add_field("id", DataType.VARCHAR, is_primary=True, max_length=64)
        schema.add_field("vector", DataType.FLOAT_VECTOR, dim=self.width)
        kinds = self.client.prepare_index_params()
        kinds.add_index(
            "vector", index_type="AUTOINDEX",
            metric_type="IP" if self.metric == "cosine" else "L2",
        )  # fmt: skip
        self.client.create_collection(self.name, schema=schema, index_params=kinds)

    def sync(self, ids: Sequence[str], take: Callable[..., np.ndarray]) -> None:
        stored = self._stored()
        wanted = {row: place for place, row in enumerate(ids)}
        if stale := sorted(stored - wanted.keys()):
            stored -= self._deleted(stale, stored)
        absent = [row for row in ids if row not in stored]
        for start in range(0, len(absent), BATCH):
            some = absent[start : start + BATCH]
            self.insert(some, take([wanted[row] for row in some]))
        if absent:
            self.client.flush(self.name)

    def _deleted(self, stale: list[str], stored: set[str]) -> set[str]:
        """Deletes rows; which of `stored` the store has lost.

        milvus-lite marks rows as deleted and keeps their vectors in its file, so there
        the collection is made anew. A server drops them when it compacts.
        """
        if self.embedded:
            self.client.drop_collection(self.name)
            self._create()
            return stored
        for start in range(0, len(stale), BATCH):
            self.client.delete(self.name, ids=stale[start : start + BATCH])
        self.client.flush(self.name)
        self.client.compact(self.name)
        return set(stale)

    def insert(self, ids: Sequence[str], embeddings: np.ndarray) -> None:
        """Adds rows that the store does not hold. embeddings: [n S D]."""
        for start in range(0, len(ids), BATCH):
            some = self.vectors(embeddings[start : start + BATCH])
            rows = [
                {"id": row, "vector": vector}
                for row, vector in zip(ids[start : start + BATCH], some.tolist())
            ]
            self.client.insert(self.name, rows)

    def _stored(self) -> set[str]:
        self.client.load_collection(self.name)
        reader = self.client.query_iterator(
            self.name, batch_size=10_000, filter="", output_fields=["id"],
            consistency_level="Strong",
        )  # fmt: skip
        found: set[str] = set()
        while batch := reader.next():
            found |= {row["id"] for row in batch}
        reader.close()
        return found

    def search(self, probes: np.ndarray, k: int) -> list[list[str]]:
        found: Any = self.client.search(
            self.name, self.vectors(probes).tolist(), limit=k, output_fields=["id"],
            consistency_level="Strong",
        )  # fmt: skip
        return [[hit["id"] for hit in hits] for hits in found]

    def vectors(self, embeddings: np.ndarray) -> np.ndarray:
        """float32 [n W] of embeddings [n S D], as they are stored."""
        return vectors(embeddings, self.metric, self.project)


def projection(shape) -> np.ndarray | None:
    """float32 [S*D WIDTH], random and always the same; None if S*D <= WIDTH.

    Distances and inner products change by some per cent (Johnson and Lindenstrauss,
    1984), which a shortlist bears.
    """
    size = int(np.prod(shape))
    if size <= WIDTH:
        return None
    drawn = np.random.default_rng(0).standard_normal((size, WIDTH), np.float32)
    return drawn / np.float32(np.sqrt(WIDTH))


def vectors(embeddings: np.ndarray, metric: str, project=None) -> np.ndarray:
    """One vector a walk, float32 [n W], of embeddings [n S D]."""
    embeddings = np.asarray(embeddings, np.float32)
    strips = embeddings.shape[1]
    if metric == "cosine":
        norms = np.linalg.norm(embeddings, axis=-1, keepdims=True)
        embeddings = embeddings / np.maximum(norms, 1e-12) / np.sqrt(strips)
    flat = embeddings.reshape(len(embeddings), -1)
    return flat if project is None else flat @ project
