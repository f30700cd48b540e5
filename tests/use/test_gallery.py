"""The gallery folder: enrolled, named, unknown, removed; two writers, a full disk."""

import json
import os
import resource
import subprocess
import sys
import threading
from types import SimpleNamespace

import numpy as np
import pytest

from gaitjax.engine.guards import Damaged
from gaitjax.retrieval.distance import pairwise_distance
from gaitjax.use import walk_files
from gaitjax.use.gallery import Gallery
from gaitjax.use.recogniser import Sample

SHAPE = 3, 8


def recogniser(**changes):
    made = {
        "name": "tiny", "fingerprint": "f" * 16, "metric": "euclidean", "shape": SHAPE,
        "distance": lambda p, g: pairwise_distance(p, g, metric="euclidean"),
        "rerank": lambda distance, probe, gallery: distance,
    }  # fmt: skip
    return SimpleNamespace(**(made | changes))


def sample(person, walk=0, noise=0.3, refused="", **changes):
    """A walk of a drawn person: people differ more than the walks of one."""
    base = np.random.default_rng(person).normal(size=SHAPE)
    base = base + noise * np.random.default_rng(1000 * person + walk).normal(size=SHAPE)
    made = Sample(
        f"video{person}.mp4", walk, 2.0 * walk, 2.0 * walk + 1.5, "left",
        {"frames": 40.0}, refused, None if refused else base.astype(np.float32),
        b"" if refused else b"image%d" % person,
    )  # fmt: skip
    return made._replace(**changes)


@pytest.fixture
def people(tmp_path):
    """Twelve people of three walks each."""
    gallery = Gallery.open(tmp_path / "people", recogniser())
    for person in range(12):
        walks = [sample(person, walk) for walk in range(3)]
        assert gallery.add(f"p{person}", walks) == 3
    return gallery


def test_who_is_enrolled_is_found_again(people):
    opened = Gallery.open(people.folder, recogniser())
    assert len(opened.names()) == 12 and len(opened.rows()) == 36
    row = next(x for x in opened.rows() if x.name == "p7")
    assert row.source == "video7.mp4" and row.quality == {"frames": 40.0}
    assert opened.thumbnail(row) == b"image7" and row.enrolled.endswith("+00:00")
    contents = opened.contents()
    place = contents.rows.index(row)
    np.testing.assert_array_equal(
        contents.embeddings[place], sample(7, row.number).embedding
    )
    assert opened.contents() is contents  # read once


def test_a_known_person_is_named_and_a_stranger_is_not(people):
    named = [people.answer(sample(person, 9), fpir=0.05) for person in range(12)]
    assert [x.name for x in named] == [f"p{person}" for person in range(12)]
    assert {x.verdict for x in named} == {"known"}
    assert min(x.confidence for x in named) > 0.95
    first = named[3].nearest
    assert first[0].name == "p3" and first[0].distance == named[3].distance
    assert len(first) == 5 and len({x.name for x in first}) == 5
    strangers = [people.answer(sample(100 + n), fpir=0.05) for n in range(60)]
    assert all(x.verdict in ("known", "unknown") for x in strangers)
    assert sum(x.verdict == "known" for x in strangers) <= 6
    assert {x.name for x in strangers if x.verdict == "unknown"} == {""}
    refused = people.answer(sample(1, refused="too short"))
    assert refused.verdict == "refused" and refused.nearest == ()
    with pytest.raises(ValueError, match="fpir=0 must lie"):
        people.answer(sample(1), fpir=0)


def test_few_people_are_not_calibrated_and_a_threshold_is_the_user_s(people):
    for person in range(9, 12):
        people.remove(f"p{person}")
    answer = people.answer(sample(3, 9))
    assert (answer.verdict, answer.name, answer.confidence) == ("nearest", "p3", None)
    assert people.calibration() is None and people.calibration(9) is not None
    assert people.answer(sample(3, 9), least_people=9).verdict == "known"
    given = people.answer(sample(200), threshold=answer.distance)
    assert (given.verdict, given.name) == ("unknown", "")
    assert people.answer(sample(3, 9), threshold=answer.distance).verdict == "known"


def test_an_empty_gallery_and_a_gallery_of_one(tmp_path):
    gallery = Gallery.open(tmp_path / "people", recogniser())
    assert gallery.rows() == () and gallery.names() == () and gallery.check() == []
    assert gallery.answer(sample(1)).verdict == "empty"
    assert gallery.export(tmp_path / "none") == 0
    gallery.add("anna", [sample(1)])
    answer = gallery.answer(sample(2))
    assert (answer.verdict, answer.name) == ("nearest", "anna")
    assert gallery.check() == ["anna has one walk; two or more are safer."]
    with pytest.raises(FileNotFoundError, match="enrol somebody first"):
        Gallery.open(tmp_path / "nothing")


def test_removing_leaves_nothing_behind(tmp_path):
    gallery = Gallery.open(tmp_path / "people", recogniser())
    walks = [("anna", sample(1)), ("bob", sample(2)), ("anna", sample(1, 1))]
    assert gallery.add_all(walks) == 3  # one file
    embedding = sample(1).embedding.tobytes()

    def anywhere(what):
        files = [x for x in gallery.folder.rglob("*") if x.is_file()]
        return any(what in x.read_bytes() for x in files)

    assert anywhere(embedding) and anywhere(b"anna") and anywhere(b"image1")
    assert gallery.remove("anna") == 2 and gallery.names() == ("bob",)
    assert not anywhere(embedding[:16]) and not anywhere(b"anna")
    assert not anywhere(b"image1") and not anywhere(b"video1")
    (row,) = gallery.rows()
    assert gallery.thumbnail(row) == b"image2"
    np.testing.assert_array_equal(gallery.contents().embeddings[0], sample(2).embedding)
    assert gallery.remove("bob") == 1 and list(gallery.folder.glob("walks/*")) == []
    with pytest.raises(ValueError, match="Nobody is called 'anna' .* it has nobody"):
        gallery.remove("anna")


def test_no_thumbnail_is_kept_if_none_is_wanted(tmp_path):
    gallery = Gallery.open(tmp_path / "people", recogniser())
    gallery.add("anna", [sample(1)], thumbnails=False)
    (file,) = gallery.folder.glob("walks/*")
    assert b"image1" not in file.read_bytes()
    assert gallery.thumbnail(gallery.rows()[0]) == b""


def test_an_unknown_name_is_refused_with_those_there(people):
    with pytest.raises(ValueError, match="Nobody is called 'zoe' in .* it has p0, p1"):
        people.remove("zoe")
    assert len(people.rows()) == 36


@pytest.mark.parametrize("name", ["", " anna", "a\nb", "x" * 101])
def test_names_that_would_break_a_line_are_refused(people, name):
    with pytest.raises(ValueError, match="must be printable"):
        people.add(name, [sample(50)])


def test_a_walk_is_enrolled_once_and_under_one_name(people):
    assert people.add("p1", [sample(1)]) == 0
    with pytest.raises(ValueError, match="is enrolled as p1; remove that name first"):
        people.add("other", [sample(1)])
    with pytest.raises(ValueError, match="not finite"):
        people.add("p1", [sample(1, 8, embedding=np.full(SHAPE, np.nan))])
    assert len(people.rows()) == 36


def test_another_model_is_refused(people):
    other = recogniser(fingerprint="e" * 16, name="other")
    with pytest.raises(ValueError, match="enrolled with the model tiny .* other"):
        Gallery.open(people.folder, other)
    path = next(people.folder.glob("walks/*"))
    elsewhere = Gallery.open(people.folder.parent / "elsewhere", other)
    (elsewhere.folder / "walks" / path.name).write_bytes(path.read_bytes())
    with pytest.raises(Damaged, match="it is of another model"):
        elsewhere.rows()


@pytest.mark.parametrize("damage", [b"", b"\x10", b"half", b"flipped", b"more"])
def test_a_damaged_file_is_named_and_the_others_stay(people, damage):
    path = sorted(people.folder.glob("walks/*"))[3]
    whole = path.read_bytes()
    changed = {
        b"half": whole[: len(whole) // 2],
        b"flipped": whole[:20] + b"\xff\x00\xff" + whole[23:],
        b"more": whole + b"x",
    }
    path.write_bytes(changed.get(damage, damage))
    fresh = Gallery.open(people.folder, recogniser())
    with pytest.raises(Damaged, match=f"{path.name} is damaged.*Move it away"):
        fresh.rows()
    (fault,) = fresh.check()
    assert path.name in fault
    path.unlink()
    assert len(fresh.rows()) == 33


def test_a_damaged_description_is_one_sentence(people):
    (people.folder / "gallery.json").write_text("{")
    with pytest.raises(Damaged, match="gallery.json is damaged"):
        Gallery.open(people.folder, recogniser())


def test_a_walk_under_a_wrong_name_is_found(people):
    people.add("p1", [sample(5, 7)])
    (fault,) = people.check()
    assert fault == "Walk 7 of video5.mp4 is enrolled as p1, but nearest to p5."


def test_export_gives_facts_and_embeddings_in_one_order(people, tmp_path):
    from safetensors.numpy import load_file

    assert people.export(tmp_path / "all.jsonl") == 36
    rows = [json.loads(x) for x in (tmp_path / "all.jsonl").read_text().splitlines()]
    embeddings = load_file(tmp_path / "all.safetensors")["embeddings"]
    for row, embedding in zip(rows, embeddings, strict=True):
        person = int(row["name"][1:])
        np.testing.assert_array_equal(
            embedding, sample(person, row["number"]).embedding
        )
        assert "part" not in row


def test_a_full_disk_loses_nobody(people):
    before = {x: x.read_bytes() for x in people.folder.rglob("*.safetensors")}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            people.add("late", [sample(60)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    after = {
        x: x.read_bytes()
        for x in people.folder.rglob("*.*")
        if x.parent != people.folder
    }
    assert after == before
    assert people.add("late", [sample(60)]) == 1 and len(people.rows()) == 37


WRITER = """
import sys
sys.path[:0] = sys.argv[2:]
import test_gallery as t
gallery = t.Gallery.open(sys.argv[1], t.recogniser())
for walk in range(8):
    gallery.add("other", [t.sample(500, walk)])
gallery.remove("p0")
"""


def test_two_writers_wait_for_each_other(people):
    command = [sys.executable, "-c", WRITER, str(people.folder)]
    paths = [x for x in sys.path if x]
    process = subprocess.Popen([*command, *paths], env={**os.environ})
    fresh = Gallery.open(people.folder, recogniser())
    threads = [
        threading.Thread(
            target=lambda k=k: [
                fresh.add(f"t{k}", [sample(600 + k, w)]) for w in range(4)
            ]
        )
        for k in range(2)
    ]
    for thread in threads:
        thread.start()
    while process.poll() is None:
        assert fresh.answer(sample(4, 9)).name == "p4"  # reading goes on
    for thread in threads:
        thread.join()
    assert process.returncode == 0
    names = [row.name for row in Gallery.open(people.folder).rows()]
    assert names.count("other") == 8 and "p0" not in names
    assert names.count("t0") == names.count("t1") == 4 and len(names) == 33 + 16


def test_a_writer_that_never_ends_is_told(people, monkeypatch):
    monkeypatch.setattr(walk_files, "PATIENCE", 0.2)
    with (
        walk_files.writing(people.folder),
        pytest.raises(ValueError, match="Another process writes in the gallery"),
    ):
        people.add("late", [sample(70)])


def enrolling(folder, found):
    return Gallery.open(folder, recogniser(samples=lambda what, **options: iter(found)))


def test_enrolling_needs_one_person_who_is_fit(tmp_path):
    walks = [sample(1), sample(1, 1, refused="too short"), sample(1, 2)]
    gallery = enrolling(tmp_path / "a", walks)
    assert gallery.enroll("anna", "anna.mp4") == walks
    assert len(gallery.rows()) == 2
    together = [sample(1), sample(2, start=0.5, end=1.4)]
    with pytest.raises(ValueError, match=r"several people at once \(0.5 to 1.4 s\)"):
        enrolling(tmp_path / "b", together).enroll("anna", "anna.mp4")
    with pytest.raises(ValueError, match="Nobody was enrolled: too short"):
        enrolling(tmp_path / "c", walks[1:2]).enroll("anna", "anna.mp4")
    with pytest.raises(ValueError, match="no person was found"):
        enrolling(tmp_path / "d", []).enroll("anna", "anna.mp4")


def test_a_re_ranker_changes_the_order(people):
    def rerank(distance, probe, gallery):  # p5 first, whoever asks
        order = np.argsort(distance, 1)
        wanted = np.abs(gallery - sample(5).embedding).sum((1, 2)).argmin()
        for row, places in zip(distance, order):
            row[wanted], row[places[0]] = row[places[0]], row[wanted]
        return distance

    other = Gallery.open(people.folder, recogniser(rerank=rerank))
    assert other.answer(sample(3, 9)).nearest[0].name == "p5"
