"""A prepared data set becomes a gallery, in parts, and goes on where it was."""

import fake_datasets
import numpy as np
import pytest

from configs import gei
from gaitjax import run_folder
from gaitjax.data import source
from gaitjax.use import archive
from gaitjax.use.gallery import Gallery
from gaitjax.use.recogniser import load


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    folder = tmp_path_factory.mktemp("archive")
    fake_datasets.tiny_synthetic(folder / "data")
    run_folder.write_config(gei.get_config(), folder)
    return [
        "synthetic_gait/tiny", f"--data_dir={folder / 'data'}", f"--model={folder}",
        f"--gallery={folder / 'people'}",
    ]  # fmt: skip


def test_parts_of_a_data_set_become_one_gallery(words, capsys, monkeypatch):
    monkeypatch.setattr(archive, "AT_ONCE", 10)  # several files
    assert archive.main([*words, "--part=1/2"]) == 0
    gallery = Gallery.open(words[-1].partition("=")[2])
    half = len(gallery.rows())
    assert archive.main([*words, "--part=1/2"]) == 0
    assert "0 sequences were enrolled" in capsys.readouterr().out
    assert archive.main(words) == 0
    data = source.open_split(words[1].partition("=")[2], words[0], "test")
    rows = gallery.rows()
    assert half == len(data.index.key) // 2 and len(rows) == len(data.index.key)
    subjects = dict(zip(data.index.key.tolist(), data.index.subject.tolist()))
    assert {row.source: row.name for row in rows} == subjects
    model = load(words[2].partition("=")[2])
    place = data.index.key.tolist().index(rows[3].source)
    np.testing.assert_allclose(
        gallery.contents().embeddings[3], model.embed(data.records[place])[0], atol=1e-5
    )


@pytest.mark.parametrize("part", ["2/2", "x", "1/0"])
def test_a_part_that_is_none_is_refused(words, part, capsys):
    assert archive.main([*words, f"--part={part}"]) == 2
    assert "must be K/N" in capsys.readouterr().err
