"""Damaged caches of an index: scanned anew, never an error, whatever is in the file."""

import io
import zipfile

import numpy as np

from gaitjax.data import source
from tests.data.test_source import RECORDS, Counted, assert_equal, folder, index_of
from tests.mutants import mutants, read_all

__all__ = ["folder"]  # a fixture


def resealed(content: bytes):
    """`content` with mutants of one array each, checksums right."""
    with zipfile.ZipFile(io.BytesIO(content)) as stored:
        entries = {name: stored.read(name) for name in stored.namelist()}
    for name, value in entries.items():
        for mutant in mutants(value, 40):
            stream = io.BytesIO()
            with zipfile.ZipFile(stream, "w") as archive:
                for other, array in (entries | {name: mutant}).items():
                    archive.writestr(other, array)
            yield stream.getvalue()


def test_mutants_of_the_cache_are_scanned_anew(folder):
    first = index_of(folder, RECORDS)
    cache = folder / "index_test.npz"
    content, scanned = cache.read_bytes(), []

    def read(_):
        records = Counted(RECORDS)
        found = index_of(folder, records)
        assert {len(column) for column in found[0]} == {3}
        if records.read:
            assert_equal(found, first)
            assert cache.read_bytes() != b""
            scanned.append(1)

    found = [*mutants(content, 300), *resealed(content)]
    assert read_all(found, cache, read, ()) == []
    assert len(scanned) > 200  # the others changed a value, or nothing that counts


def test_a_cache_that_unpacks_to_more_than_its_size_is_not_unpacked(folder):
    first = index_of(folder, RECORDS)
    with np.load(folder / "index_test.npz") as stored:
        columns = dict(stored) | {"num_frames": np.zeros(10**7, int)}
    np.savez_compressed(folder / "index_test.npz", **columns)
    state = columns["state"].item()
    assert source._cached(folder / "index_test.npz", state, 10**7) is None
    assert_equal(index_of(folder, RECORDS), first)
