"""Opening a prepared data set: names, versions, and the cache of its index."""

import numpy as np
import pytest

from gaitjax.data import source


def record(subject="a", condition="nm", view="000", key=None):
    return {
        "subject": subject.encode(),
        "condition": condition.encode(),
        "view": view.encode(),
        "key": (key or f"{subject}/{condition}/{view}").encode(),
        "ratios": [1.0, 1.0],
        "frames": [b"x"],
        **dict.fromkeys(source.ARRAYS, b""),
    }


class Counted(list):
    """Records that count how often one is read."""

    read = 0

    def __getitem__(self, row):
        self.read += 1
        return super().__getitem__(row)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "shard").write_bytes(b"shard")
    return tmp_path


def index_of(folder, records):
    return source._index(folder, "test", records, [folder / "shard"])


RECORDS = [record(subject) for subject in ("a", "b", "c d")]


def assert_equal(one, other):
    for x, y in zip(one[0], other[0], strict=True):
        np.testing.assert_array_equal(x, y)
    assert one[1] == other[1]
    assert one[2].keys() == other[2].keys()
    for name in one[2]:
        np.testing.assert_array_equal(one[2][name], other[2][name])


def test_records_are_scanned_once(folder):
    records = Counted(RECORDS)
    first = index_of(folder, records)
    assert first[0].key.tolist() == ["a/nm/000", "b/nm/000", "c d/nm/000"]
    assert first[0].num_frames.tolist() == [2, 2, 2]
    assert first[2]["frames"].all() and not first[2]["masks"].any()
    assert records.read == 3
    assert_equal(index_of(folder, records), first)
    assert records.read == 3
    (folder / "shard").write_bytes(b"another build")
    assert index_of(folder, records)[1] != first[1]
    assert records.read == 6


def columns(folder):
    with np.load(folder / "index_test.npz") as stored:
        return dict(stored)


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x.update(key=x["key"][:2]),
        lambda x: x.update(subject=x["subject"][:, None]),
        lambda x: x.update(num_frames=x["num_frames"].astype(float)),
        lambda x: x.update(view=np.arange(3)),
        lambda x: x.update(view=x["view"].astype("S")),
        lambda x: x.update(present=x["present"][:, :3]),
        lambda x: x.update(present=x["present"].astype(int)),
        lambda x: x.update(condition=np.array(["..", "nm", "nm"])),
        lambda x: x.update(fingerprint=np.arange(3)),
        lambda x: x.update(more=np.arange(3)),
        lambda x: x.pop("present"),
        lambda x: x.pop("state"),
        lambda x: [x.update({name: x[name][:2]}) for name in source.Index._fields],
    ],
    ids=range(13),
)
def test_a_cache_with_wrong_columns_is_made_anew(folder, change):
    first = index_of(folder, RECORDS)
    stored = columns(folder)
    change(stored)
    np.savez(folder / "index_test.npz", **stored)
    assert_equal(index_of(folder, RECORDS), first)
    np.testing.assert_array_equal(columns(folder)["key"], first[0].key)


@pytest.mark.parametrize("content", [b"", b"PK\3\4", b"no archive", b"\x93NUMPY\1\0"])
def test_an_unreadable_cache_is_made_anew(folder, content):
    first = index_of(folder, RECORDS)
    (folder / "index_test.npz").write_bytes(content)
    assert_equal(index_of(folder, RECORDS), first)
    assert_equal(index_of(folder, None or Counted(RECORDS)), first)


def test_a_folder_in_place_of_the_cache(folder):
    (folder / "index_test.npz").mkdir()
    assert index_of(folder, RECORDS)[0].num_frames.tolist() == [2, 2, 2]
    assert [x.name for x in sorted(folder.iterdir())] == ["index_test.npz", "shard"]


@pytest.mark.parametrize(
    ("field", "text"),
    [
        *(
            ("subject", text)
            for text in ("..", ".", "", "a/b", "a\nb", "a\0", "\x1b[m")
        ),
        *(("condition", text) for text in ("..", "x\r", "a/..")),
        *(("view", text) for text in ("\x7f", "/")),
        *(
            ("key", text)
            for text in ("../a", "a/../b", "/a", "a/b\n", "a\0b", "a/.", "/")
        ),
    ],
)
def test_names_that_leave_a_folder_or_break_a_line_are_refused(folder, field, text):
    records = [record(), record("b") | {field: text.encode()}]
    with pytest.raises(
        ValueError, match=rf"record 1 .*its {field} .* is no plain name"
    ):
        index_of(folder, records)
    assert not (folder / "index_test.npz").exists()


@pytest.mark.parametrize("name", ["Ünal-1 (b)", "張偉", "a..b", "$x", "=1,2", " "])
def test_other_names_are_read(folder, name):
    assert index_of(folder, [record(name, name, name)])[0].subject.tolist() == [name]


def test_equal_keys_and_damaged_records_are_named(folder):
    with pytest.raises(ValueError, match="keys of split 'test' are not unique"):
        index_of(folder, [record(), record()])
    with pytest.raises(ValueError, match=r"record 1 of split 'test'.*--overwrite"):
        index_of(folder, [record(), {}])


def test_the_newest_version_is_opened_and_other_folders_are_left(tmp_path):
    for name in ("1.0.0", "1.10.0", "1.9.0", "2.0.0.bak", "9", "latest", "3.0.0 copy"):
        folder = tmp_path / "ccpg" / name
        folder.mkdir(parents=True)
        (folder / "dataset_info.json").write_text("{}")
    (tmp_path / "ccpg" / "4.0.0").mkdir()  # a build that did not end
    assert source.version_folder(tmp_path, "ccpg").name == "1.10.0"
    with pytest.raises(ValueError, match="No prepared data set at .*./run.sh build x"):
        source.open_split(tmp_path, "x", "test")
