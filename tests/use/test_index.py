"""The shortlist of an index: vectors, what is stored, and exact distances after it."""

import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import test_gallery as drawn

from gaitjax.retrieval.distance import pairwise_distance
from gaitjax.use import identification
from gaitjax.use.gallery import Gallery
from gaitjax.use.index import WIDTH, Milvus, open_index, projection, vectors


class Client:
    """pymilvus.MilvusClient, as far as it is used; collections live in `kept`."""

    kept: dict = {}
    compacted: list = []

    def __init__(self, uri, grpc_options):
        assert uri != "nowhere", "no such host"

    def has_collection(self, name):
        return name in self.kept

    def create_schema(self, auto_id):
        return SimpleNamespace(add_field=lambda *a, **k: None)

    def prepare_index_params(self):
        return SimpleNamespace(add_index=lambda *a, **k: None)

    def create_collection(self, name, schema, index_params):
        self.kept[name] = {}

    def load_collection(self, name):
        pass

    flush = load_collection

    def query_iterator(self, name, **options):
        batches = iter([[{"id": x} for x in self.kept[name]], []])
        return SimpleNamespace(next=lambda: next(batches), close=lambda: None)

    def insert(self, name, rows):
        assert not {row["id"] for row in rows} & self.kept[name].keys()
        self.kept[name] |= {row["id"]: np.array(row["vector"]) for row in rows}

    def drop_collection(self, name):
        del self.kept[name]

    def compact(self, name):
        self.compacted.append(name)

    def delete(self, name, ids):
        for row in ids:
            del self.kept[name][row]

    def search(self, name, data, limit, **options):
        rows = list(self.kept[name].items())
        found = []
        for probe in np.array(data):
            order = np.argsort([((v - probe) ** 2).sum() for _, v in rows])[:limit]
            found.append([{"id": rows[i][0]} for i in order])
        return found


@pytest.fixture(autouse=True)
def milvus(monkeypatch):
    module = ModuleType("pymilvus")
    module.MilvusClient, Client.kept, Client.compacted = Client, {}, []
    module.DataType = SimpleNamespace(VARCHAR=1, FLOAT_VECTOR=2)
    monkeypatch.setitem(sys.modules, "pymilvus", module)


def stored():
    (rows,) = Client.kept.values()
    return rows


@pytest.mark.parametrize("place", ["milvus:x.db", "milvus:http://host:19530"])
def test_a_gallery_answers_as_without_an_index(place, tmp_path, monkeypatch):
    monkeypatch.setattr(identification, "SHORTLIST", 40)
    plain = Gallery.open(tmp_path / "people", drawn.recogniser())
    for person in range(12):
        walks = [(f"p{person}", drawn.sample(person, walk)) for walk in range(3)]
        plain.add_all(walks)
    indexed = Gallery.open(tmp_path / "people", drawn.recogniser(), place)
    first = stored()
    assert len(first) == 36
    for person in (3, 200):
        probe = drawn.sample(person, 9)
        expected, found = plain.answer(probe), indexed.answer(probe)
        assert found.nearest[0].name == expected.nearest[0].name
        assert found.distance == pytest.approx(expected.distance, rel=1e-4)
        assert found.confidence == pytest.approx(expected.confidence, abs=1e-3)
    monkeypatch.setattr(identification, "SHORTLIST", 4)
    few = indexed.answer(drawn.sample(3, 9))
    assert few.name == "p3" and len(few.nearest) < 5
    indexed.add("late", [drawn.sample(50)])
    assert len(stored()) == 37
    indexed.remove("p3")
    server = "//" in place  # a file is written anew, so that nothing stays in it
    assert (stored() is first) == server == bool(Client.compacted)
    assert len(stored()) == 34 and indexed.answer(drawn.sample(3, 9)).name != "p3"
    plain.remove("p4")  # by somebody without the index
    Gallery.open(tmp_path / "people", drawn.recogniser(), place)
    assert len(stored()) == 31


def test_cosine_is_one_inner_product_and_long_embeddings_are_projected():
    rng = np.random.default_rng(0)
    strips = rng.normal(size=(20, 5, 7)).astype(np.float32)
    flat = vectors(strips, "cosine")
    expected = 1 - pairwise_distance(strips, strips, metric="cosine")
    np.testing.assert_allclose(flat @ flat.T, expected, atol=1e-5)
    np.testing.assert_array_equal(vectors(strips, "euclidean"), strips.reshape(20, -1))
    assert projection((5, 7)) is None
    long = rng.normal(size=(30, 4, 1024)).astype(np.float32)
    short = vectors(long, "euclidean", projection((4, 1024)))  # to a sixteenth
    assert short.shape == (30, WIDTH)
    np.testing.assert_array_equal(projection((4, 1024)), projection((4, 1024)))
    ratio = np.linalg.norm(short[1:] - short[0], axis=1)
    ratio = ratio / np.linalg.norm((long[1:] - long[0]).reshape(29, -1), axis=1)
    np.testing.assert_allclose(ratio, 1, atol=0.2)


@pytest.mark.parametrize("spec", ["milvus:", "faiss:x", "x.db"])
def test_what_is_no_index_is_one_sentence(spec, monkeypatch):
    with pytest.raises(ValueError, match="is not understood; give milvus:FILE"):
        open_index(spec, "f", (2, 3), "euclidean")
    with pytest.raises(ValueError, match="Milvus does not open nowhere"):
        open_index("milvus:nowhere", "f", (2, 3), "euclidean")
    assert isinstance(open_index("milvus:x", "f", (2, 3), "cosine"), Milvus)
    monkeypatch.setitem(sys.modules, "pymilvus", None)
    with pytest.raises(ValueError, match="pip install -r requirements-milvus.txt"):
        open_index("milvus:x", "f", (2, 3), "euclidean")
