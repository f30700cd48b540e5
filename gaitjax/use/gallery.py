"""A gallery: people whose walks are known, in a folder.

    gallery = Gallery.open("people", load("runs/gaitset"))
    gallery.enroll("anna", "anna.mp4")
    for answer in gallery.identify("street.mp4"):
        print(answer.verdict, answer.name, answer.distance, answer.confidence)
    gallery.remove("anna")

FOLDER/gallery.json  which model's embeddings these are; any other model is refused
FOLDER/walks/*.safetensors  one file per enrolment: embeddings [n S D], thumbnails, and
                            in its header, as JSON, the names, sources, times, qualities
FOLDER/lock          held while somebody writes

Each file appears whole or not at all, and none is needed to read another, so that a
crash, a full disk or a second writer loses nothing that was enrolled. Reading needs no
lock. Nothing in a file is code.
"""

import datetime
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from gaitjax import run_folder
from gaitjax.engine.atomic import replacing
from gaitjax.engine.guards import reading, require, require_whole
from gaitjax.retrieval.distance import pairwise_distance
from gaitjax.use import identification, unknown, walk_files
from gaitjax.use.identification import Answer, Search
from gaitjax.use.index import Index, open_index
from gaitjax.use.quality import LIMITS, Limits
from gaitjax.use.recogniser import Recogniser, Sample, Scene
from gaitjax.use.video import Video
from gaitjax.use.walk_files import Contents, Part, Row

FORMAT = "gaitjax-gallery-1"
NAME_LENGTH = 100
TOGETHER = 0.5  # seconds in which two walks are of two people


class Gallery:
    """Reading methods may be called from several threads; writing ones too, they wait.

    Made by `open`.
    """

    def __init__(self, folder: Path, description: dict, recogniser: Recogniser | None):
        self.folder, self.recogniser = folder, recogniser
        self.fingerprint: str = description["fingerprint"]
        self.shape: tuple[int, ...] = tuple(description["shape"])
        self.metric: str = description["metric"]
        self.index: Index | None = None
        self._contents: Contents | None = None
        self._calibrated: tuple[Any, int, Any] = (None, 0, None)

    @classmethod
    def open(
        cls, folder: str | Path, recogniser: Recogniser | None = None, index: str = ""
    ) -> "Gallery":
        """The gallery in `folder`, which is made if there is none.

        recogniser: None to list, remove and export only. index: "milvus:FILE|URI", see
        `use.index`.

        Raises ValueError if it was enrolled with another model; FileNotFoundError if
        there is none and no recogniser to make one for.
        """
        folder = Path(folder)
        path = folder / "gallery.json"
        if not path.is_file():
            require(
                recogniser is not None,
                f"There is no gallery in {folder}: enrol somebody first (gaitjax "
                "enroll NAME VIDEO --gallery=...).",
                FileNotFoundError,
            )
            assert recogniser is not None
            _found(folder, path, recogniser)
        with reading(path, "it is no description of a gallery"):
            content = json.loads(path.read_text())
            kind = content["format"]
            made = cls(folder, content, recogniser)
        require_whole(kind == FORMAT, path, f"format {kind!r}, expected {FORMAT!r}")
        require(
            recogniser is None or recogniser.fingerprint == made.fingerprint,
            f"The gallery {folder} was enrolled with the model {content.get('model')} "
            f"(fingerprint {made.fingerprint}), this is "
            f"{getattr(recogniser, 'name', '')} "
            f"({getattr(recogniser, 'fingerprint', '')}): their embeddings cannot be "
            "compared. Name that model, or enrol again into another folder.",
        )
        if index:
            made.index = open_index(index, made.fingerprint, made.shape, made.metric)
            made._to_index()
        return made

    # ------------------------------------------------------------------ reading

    def rows(self) -> tuple[Row, ...]:
        """Every enrolled walk, oldest first."""
        return self.contents().rows

    def names(self) -> tuple[str, ...]:
        return self.contents().names

    def contents(self) -> Contents:
        """A snapshot of the gallery. Raises Damaged for a file that is not whole."""
        before = self._contents
        known = before.parts if before else {}
        for attempt in range(5):
            try:
                parts = {path: self._part(path, known) for path in self._paths()}
                break
            except FileNotFoundError:  # another process removed it just now
                require(attempt < 4, f"{self.folder} changes too often.", OSError)
        if before and parts == known:
            return before
        rows = [row for part in parts.values() for row in part.rows]
        rows = tuple(sorted(rows, key=lambda row: (row.enrolled, row.id)))
        names = tuple(sorted({row.name for row in rows}))
        places = {name: place for place, name in enumerate(names)}
        own = np.array([places[row.name] for row in rows], int)
        made = Contents(rows, names, own, parts)
        self._contents = made  # one assignment: other threads see the old or the new
        return made

    def _paths(self) -> list[Path]:
        return sorted((self.folder / "walks").glob("*.safetensors"))

    def _part(self, path: Path, known: dict[Path, Part]) -> Part:
        kept = known.get(path)
        if kept is not None and kept.state == walk_files.state_of(path):
            return kept
        return walk_files.read(path, self.fingerprint, self.shape)

    def thumbnail(self, row: Row) -> bytes:
        """The image file that was kept of a walk; b"" if none was."""
        return self._part(row.part, self.contents().parts).thumbnail(row)

    # ---------------------------------------------------------------- identifying

    def identify(
        self,
        what: Scene,
        *,
        fpir: float = 0.05,
        threshold: float | None = None,
        least_people: int = unknown.PEOPLE,
        top: int = 5,
        limits: Limits = LIMITS,
        max_rate: float = 30.0,
    ) -> list[Answer]:
        """An Answer for each walk in `what`.

        Options are those of `answer`, and `limits` and `max_rate` of
        `Recogniser.samples`.
        """
        return [
            self.answer(
                sample, fpir=fpir, threshold=threshold, least_people=least_people,
                top=top,
            )
            for sample in self.samples(what, limits=limits, max_rate=max_rate)
        ]  # fmt: skip

    def samples(
        self, what: Scene, *, limits: Limits = LIMITS, max_rate: float = 30.0
    ) -> Iterator[Sample]:
        """`Recogniser.samples`."""
        return self._model().samples(what, limits=limits, max_rate=max_rate)

    def answer(
        self,
        sample: Sample,
        *,
        fpir: float = 0.05,
        threshold: float | None = None,
        least_people: int = unknown.PEOPLE,
        top: int = 5,
    ) -> Answer:
        """Who the walk is.

        fpir: the share of strangers who may be given a name. threshold: a distance in
        place of the calibration: further is unknown. least_people: under so many, the
        gallery is not calibrated. top: names in `nearest`.
        """
        search = self._search()
        law = None if sample.embedding is None else self._law(search, least_people)
        return identification.decide(sample, search, law, fpir, threshold, top)

    def calibration(self, least_people: int = unknown.PEOPLE):
        """The law of strangers' scores (`unknown.Calibration`); None: too few people.

        It needs no data beside the gallery.
        """
        return self._law(self._search(), least_people)

    def _search(self) -> Search:
        return Search(self.contents(), self._model(), self.index)

    def _law(self, search: Search, least: int):
        known, people, law = self._calibrated
        if known is not search.contents or people != least:
            law = search.calibrate(least)
            self._calibrated = search.contents, least, law
        return law

    def _model(self) -> Recogniser:
        require(self.recogniser is not None, "This gallery was opened without a model.")
        assert self.recogniser is not None
        return self.recogniser

    # -------------------------------------------------------------------- writing

    def enroll(
        self, name: str, what: Scene, *, thumbnails: bool = True
    ) -> list[Sample]:
        """Enrols the one person in `what` under a name.

        Returns all walks, also the refused ones, which are not enrolled.

        Raises ValueError if no walk is fit, if two people are in the picture at once,
        or if a walk is enrolled under another name.
        """
        check_name(name)
        samples = list(self.samples(what))
        fit = [sample for sample in samples if not sample.refused]
        why = "; ".join(sorted({sample.refused for sample in samples}))
        require(
            fit,
            f"Nobody was enrolled: {why or 'no person was found'} ({what_is(what)}).",
        )
        until = -1.0
        for sample in sorted(fit, key=lambda x: x.start):
            stop = min(until, sample.end)
            require(
                stop - sample.start < TOGETHER,
                f"{what_is(what)} shows several people at once ({sample.start:.1f} to "
                f"{stop:.1f} s), so who is {name} is not clear. Cut the video, or "
                "enrol from one that shows this person alone.",
            )
            until = max(until, sample.end)
        self.add(name, fit, thumbnails=thumbnails)
        return samples

    def add(self, name: str, samples: list[Sample], *, thumbnails: bool = True) -> int:
        """Enrols embedded walks under a name; how many were new.

        Raises ValueError if one is enrolled under another name.
        """
        return self.add_all([(name, sample) for sample in samples], thumbnails)

    def add_all(self, named: list[tuple[str, Sample]], thumbnails: bool = True) -> int:
        """Enrols (name, walk) of many people in one file; as `add`."""
        for name in {name for name, _ in named}:
            check_name(name)
        now = datetime.datetime.now(datetime.UTC).isoformat("T", "seconds")
        with walk_files.writing(self.folder):
            known = {row.id: row.name for row in self.rows()}
            heads, embeddings, images = [], [], {}
            for name, sample in named:
                assert sample.embedding is not None
                embedding = np.asarray(sample.embedding, np.float32)
                require(
                    np.isfinite(embedding).all(),
                    f"The embedding of walk {sample.number} of {sample.source} is not "
                    "finite; the model may have diverged.",
                )
                digest = hashlib.sha256(embedding.tobytes()).hexdigest()[:16]
                require(
                    known.get(digest, name) == name,
                    f"The walk {sample.number} of {sample.source} is enrolled as "
                    f"{known.get(digest)}; remove that name first, or use it.",
                )
                if digest in known:
                    continue
                known[digest] = name
                if thumbnails and sample.thumbnail:
                    images[len(heads)] = sample.thumbnail
                kept = sample._asdict()
                for field in ("refused", "embedding", "thumbnail"):
                    del kept[field]
                heads.append({"id": digest, "name": name, "enrolled": now} | kept)
                embeddings.append(embedding)
            if heads:
                path = self.folder / "walks" / f"{heads[0]['id']}.safetensors"
                walk_files.write(
                    path, self.fingerprint, heads, np.stack(embeddings), images
                )
                self._to_index()
        return len(heads)

    def remove(self, name: str) -> int:
        """Deletes every walk of a name, with its thumbnails; how many there were.

        Raises ValueError if nobody has that name.
        """
        with walk_files.writing(self.folder):
            contents = self.contents()
            names = contents.names
            known = ", ".join(names[:20]) or "nobody"
            more = f" and {len(names) - 20} more" if len(names) > 20 else ""
            require(
                name in names,
                f"Nobody is called {name!r} in {self.folder}; it has {known}{more}.",
            )
            removed = 0
            for path, part in contents.parts.items():
                rest = [row for row in part.rows if row.name != name]
                removed += len(part.rows) - len(rest)
                if not rest:
                    path.unlink()
                elif len(rest) < len(part.rows):
                    self._rewrite(path, part, rest)
            self._to_index()
        return removed

    def _rewrite(self, path: Path, part: Part, rest: list[Row]) -> None:
        """The file with these of its rows only."""
        images = {
            place: image
            for place, row in enumerate(rest)
            if (image := part.thumbnail(row))
        }
        facts = [row.facts() for row in rest]
        kept = part.embeddings[[row.place for row in rest]]
        walk_files.write(path, self.fingerprint, facts, kept, images)

    def _to_index(self) -> None:
        if self.index is not None:
            contents = self.contents()
            self.index.sync([row.id for row in contents.rows], contents.take)

    # ------------------------------------------------------------------- checking

    def check(self) -> list[str]:
        """What is wrong with the gallery, a sentence each; [] if nothing.

        Damaged files; people of one walk; walks that are nearer to somebody else than
        to their own name, which may be enrolled under the wrong one.
        """
        faults = []
        for path in self._paths():
            try:
                finite = np.isfinite(self._part(path, {}).embeddings).all()
                require_whole(finite, path, "an embedding is not finite")
            except ValueError as error:
                faults.append(str(error))
        if faults:
            return faults
        contents = self.contents()
        counts = np.bincount(contents.own, minlength=len(contents.names))
        for name, count in zip(contents.names, counts):
            if count < 2:
                faults.append(f"{name} has one walk; two or more are safer.")
        if len(contents.names) < 2:
            return faults
        everybody = contents.embeddings
        between = pairwise_distance(everybody, everybody, metric=self.metric)
        np.fill_diagonal(between, np.inf)
        for place, row in enumerate(contents.rows):
            nearest = contents.rows[int(between[place].argmin())]
            if counts[contents.own[place]] > 1 and nearest.name != row.name:
                faults.append(
                    f"Walk {row.number} of {row.source} is enrolled as {row.name}, but "
                    f"nearest to {nearest.name}."
                )
        return faults

    def export(self, path: str | Path) -> int:
        """Writes all rows: FILE.jsonl with the facts, FILE.safetensors beside it with
        `embeddings` [n S D] in the same order; how many rows."""
        from safetensors.numpy import save

        contents, path = self.contents(), Path(path)
        with replacing(path.with_suffix(".jsonl")) as file:
            for row in contents.rows:
                file.write(json.dumps(row.facts(), ensure_ascii=False) + "\n")
        empty = np.zeros((0, *self.shape), np.float32)
        embeddings = contents.embeddings if contents.rows else empty
        with replacing(path.with_suffix(".safetensors"), "wb") as file:
            file.write(save({"embeddings": embeddings}))
        return len(contents.rows)


def _found(folder: Path, path: Path, recogniser: Recogniser) -> None:
    """Makes an empty gallery for the recogniser's embeddings."""
    content = {
        "format": FORMAT,
        "model": recogniser.name,
        "fingerprint": recogniser.fingerprint,
        "metric": recogniser.metric,
        "shape": list(recogniser.shape),
    }
    (folder / "walks").mkdir(parents=True, exist_ok=True)
    with walk_files.writing(folder):
        if not path.is_file():
            run_folder.write_json(path, content)


def check_name(name: str) -> None:
    """Raises ValueError for a name that would break a line of a table."""
    plain = name.strip() == name and name.isprintable() and 0 < len(name) <= NAME_LENGTH
    require(
        plain,
        f"The name {name[:NAME_LENGTH]!r} must be printable, without spaces at its "
        f"ends, and of 1 to {NAME_LENGTH} characters.",
    )


def what_is(what: Scene) -> str:
    """A name for messages."""
    if isinstance(what, np.ndarray):
        return f"array {what.shape}"
    return what.source if isinstance(what, Video) else str(what)
