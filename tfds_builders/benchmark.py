"""The base of the benchmarks' builders: sources, parallel reading, checks, a report.

A builder says where its sequences are and how to read one. The base class reads them in
parallel, skips and lists unreadable ones, and compares the totals with the known ones.
"""

import dataclasses
import fnmatch
import functools
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from etils import epath

from tfds_builders.archives import (
    Outcome,
    Sequence,
    complete,
    files_in,
    readable,
    subfolders,
)
from tfds_builders.checks import Expected, report_of, summary
from tfds_builders.features import (
    EXTRAS,
    MODALITIES,
    NUM_KEYPOINTS,
    RecordBuilder,
    empty_extra,
    record_features,
)
from tfds_builders.parallel import ordered_map
from tfds_builders.poses import ALPHAPOSE, Joints

ARCHIVE_SUFFIXES = (".zip", ".tar", ".gz", ".tgz", ".7z", ".rar")


@dataclasses.dataclass
class BenchmarkConfig(tfds.core.BuilderConfig):
    """source: a name in the builder's SOURCES. silhouette_size: 64 or 128 pixels.

    height: height of frames and masks in pixels, twice their width. joints: of the key
    points: COCO's 17, or AlphaPose's 18.
    """

    source: str = "raw"
    silhouette_size: int = 64
    height: int = 256
    joints: int = NUM_KEYPOINTS


class Source(NamedTuple):
    """One form in which a data set is distributed.

    folders: possible names of the folder with the data, inside --manual_dir or its
    sub-folder named like the builder ("": that folder itself). markers: glob patterns;
    the right folder matches all of them. layout: the layout in words, for messages.
    find: (folder, manual_dir) -> sequences. read: (sequence, height=...,
    silhouette_size=...) -> Outcome. required: a sequence without one of these files is
    skipped ("a|b": either will do). optional: it is kept, with a note. Both apply only
    if another sequence has the file; otherwise the modality was not downloaded.
    """

    folders: tuple[str, ...]
    markers: tuple[str, ...]
    layout: str
    find: Callable[[epath.Path, epath.Path], Iterable[Sequence]]
    read: Callable[..., Outcome]
    required: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()


def configs(
    raw: str,
    opengait: str = "",
    sizes: tuple[int, ...] = (64, 128),
    opengait_sizes: tuple[int, ...] = (64, 128),
    alphapose: bool = False,
) -> list[BenchmarkConfig]:
    """The configs default, raw_128, opengait and opengait_128, if their size exists.

    alphapose: also joints_18 and opengait_joints_18, which keep 18 joints; the others
    have COCO's 17 of them.
    raw, opengait: descriptions of the sources. sizes, opengait_sizes: heights of
    silhouettes in pixels.
    """
    rows = [("default" if n == 64 else f"raw_{n}", "raw", raw, n) for n in sizes]
    rows += [
        ("opengait" if n == 64 else f"opengait_{n}", "opengait", opengait, n)
        for n in (opengait_sizes if opengait else ())
    ]
    made = [
        BenchmarkConfig(
            name=name,
            description=f"{text}; silhouettes {size} x {size}.",
            source=source,
            silhouette_size=size,
        )
        for name, source, text, size in rows
    ]
    for config in [c for c in made if alphapose and c.silhouette_size == 64]:
        name = "joints_18" if config.source == "raw" else "opengait_joints_18"
        text = f"{config.description} Key points are AlphaPose's 18 joints."
        made.append(
            dataclasses.replace(config, name=name, description=text, joints=ALPHAPOSE)
        )
    return made


class BenchmarkBuilder(RecordBuilder, skip_registration=True):
    """A benchmark. A subclass defines SOURCES, EXPECTED and the instructions.

    With Beam options (`--beam_pipeline_options`) a Beam pipeline reads the sequences on
    any runner, otherwise all cores of this machine do.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First release."}
    SOURCES: dict[str, Source]
    EXPECTED: Expected
    EXTRAS: tuple[str, ...] = ()  # names in features.EXTRAS
    JOINTS: tuple[int, ...] = (NUM_KEYPOINTS,)  # that the files' skeletons may have
    _listed: dict[str, list[Sequence]] = {}  # split -> sequences to read

    @property
    def settings(self) -> BenchmarkConfig:
        """The chosen config."""
        assert isinstance(self.builder_config, BenchmarkConfig)
        return self.builder_config

    def _info(self) -> tfds.core.DatasetInfo:
        config = self.settings
        return self.dataset_info_from_configs(
            features=record_features(
                config.height,
                config.height // 2,
                config.silhouette_size,
                joints=config.joints,
                extras=self.EXTRAS,
            ),
            metadata=tfds.core.MetadataDict(),
        )

    def _download_and_prepare(self, dl_manager, download_config):
        # a user who names a runner or options wants a pipeline
        self._beam = bool(download_config.beam_options or download_config.beam_runner)
        try:
            super()._download_and_prepare(dl_manager, download_config)
        except Exception as error:  # Beam's runners wrap errors in their own types
            for split in self._listed if self._beam else ():
                if f"generated examples is 0 for split {split}" in str(error):
                    raise self._none_readable(split) from error
            raise
        self._finish()

    def _split_generators(self, dl_manager):
        source = self.SOURCES[self.settings.source]
        folder, given = self._find_folder(dl_manager, source)
        print(f"{self.name}: listing {folder}", flush=True)
        found = complete(source.find(folder, given), source.required, source.optional)
        by_split, left_out = readable(found)
        self._listed = by_split
        notes = [_note(outcome) for outcome in left_out]
        (_scratch(self.data_dir) / "listing.json").write_text(json.dumps(notes))
        if not by_split:
            first = next((f", {n['key']}: {n['problem']}" for n in notes), "")
            raise FileNotFoundError(
                f"No complete sequence of a listed subject in {folder}{first}; "
                f"expected {source.layout}. {self.MANUAL_DOWNLOAD_INSTRUCTIONS}"
            )
        make = self._pipeline if self._beam else self._generate_examples
        return {split: make(split, by_split[split]) for split in by_split}

    def _find_folder(self, dl_manager, source: Source):
        """(folder with the data, --manual_dir), or FileNotFoundError."""
        try:
            given = epath.Path(dl_manager.manual_dir)
        except AssertionError as error:  # TFDS: there is no such folder, or it is empty
            raise FileNotFoundError(
                f"--manual_dir is missing or empty. {self.MANUAL_DOWNLOAD_INSTRUCTIONS}"
            ) from error
        folder = self._folder_in(given, source)
        if folder:
            return folder, given
        looked = [
            str(folder / marker)
            for folder in self._places(given, source)
            for marker in source.markers
        ]
        raise FileNotFoundError(
            f"No {source.layout}.{self._hint(given, source)} Looked for "
            f"{', '.join(looked)}. {self.MANUAL_DOWNLOAD_INSTRUCTIONS}"
        )

    def _places(self, given: epath.Path, source: Source) -> list[epath.Path]:
        roots = given, given / self.name
        return [root / name for root in roots for name in source.folders]

    def _folder_in(self, given: epath.Path, source: Source) -> epath.Path | None:
        """The first place where all markers of `source` match."""
        for folder in self._places(given, source):
            if all(_any_match(folder, marker) for marker in source.markers):
                return folder
        return None

    def _hint(self, given: epath.Path, source: Source) -> str:
        """A guess at the mistake: another config, another folder, a packed archive."""
        for config in self.BUILDER_CONFIGS:
            other = self.SOURCES[config.source]
            if other is not source and self._folder_in(given, other):
                return f" That folder is for the config {self.name}/{config.name}."
        names = {marker.partition("/")[0] for marker in source.markers}
        above = [given.parent] if given.name in names else []
        for near in (*above, *subfolders(given)[:20]):
            if self._folder_in(near, source):
                return f" Did you mean --manual_dir={near}?"
        packed = [file.name for file in files_in(given, ARCHIVE_SUFFIXES)]
        return f" Unpack {', '.join(packed[:5])}." if packed else ""

    def _reader(self) -> Callable[[Sequence], Outcome]:
        config, more = self.settings, {}
        if self.JOINTS != (NUM_KEYPOINTS,):
            more["joints"] = Joints(config.joints, self.JOINTS)
        return functools.partial(
            self.SOURCES[config.source].read,
            height=config.height,
            silhouette_size=config.silhouette_size,
            **more,
        )

    def _to_records(self) -> Callable[[Outcome], list[tuple[str, dict]]]:
        size = self.settings.silhouette_size
        empty = {name: empty_extra(name, size) for name in self.EXTRAS}
        return functools.partial(_record, empty=empty, joints=self.settings.joints)

    def _generate_examples(
        self, split: str, sequences: list[Sequence]
    ) -> Iterator[tuple[str, dict]]:
        notes, to_records = [], self._to_records()
        for outcome in ordered_map(
            self._reader(), sequences, f"{self.name} {split}", unit="sequence"
        ):
            notes.append(_note(outcome))
            yield from to_records(outcome)
        if all(note["problem"] for note in notes):
            raise self._none_readable(split)
        (_scratch(self.data_dir) / f"{split}.json").write_text(json.dumps(notes))

    def _none_readable(self, split: str) -> FileNotFoundError:
        """The error for a split without a record; it has the first problem."""
        first = self._reader()(self._listed[split][0])
        return FileNotFoundError(
            f"None of {len(self._listed[split])} sequences of split {split!r} is "
            f"readable, the first is {first.sequence.key}: {first.problem}. "
            f"{self.MANUAL_DOWNLOAD_INSTRUCTIONS}"
        )

    def _pipeline(self, split: str, sequences: list[Sequence]):
        """`_generate_examples` as a Beam PTransform."""
        import apache_beam as beam  # pyright: ignore[reportMissingImports]

        file = str(_scratch(self.data_dir) / f"{split}.json")
        read, to_records = self._reader(), self._to_records()

        def expand(begin):
            outcomes = (
                begin
                | "sequences" >> beam.Create(sequences)
                | "spread" >> beam.Reshuffle()
                | "read" >> beam.Map(read)
            )
            _ = (
                outcomes
                | "note" >> beam.Map(_note)
                | "gather" >> beam.combiners.ToList()
                | "write" >> beam.Map(_write_json, file)
            )
            return outcomes | "records" >> beam.FlatMap(to_records)

        return beam.ptransform_fn(expand)()

    def _finish(self):
        """Compares the totals; writes build_report.json and the metadata."""
        scratch = _scratch(self.data_dir)
        notes = []
        for file in sorted(scratch.glob("*.json")):
            notes += json.loads(file.read_text())
        notes.sort(key=lambda note: note["key"])
        scratch.rmtree()
        report = report_of(self.EXPECTED, notes) | {"source": self.settings.source}
        file = epath.Path(self.data_dir) / "build_report.json"
        file.write_text(json.dumps(report, indent=1))
        metadata = self.info.metadata
        assert metadata is not None  # `_info` made one
        stored = (
            "sequences",
            "sequences_expected",
            "mismatches",
            "modalities",
            "totals",
        )
        for name in stored:
            metadata[name] = report[name]
        metadata["skipped"] = len(report["skipped"])
        print(summary(self.name, report), file=sys.stderr, flush=True)


def _any_match(folder: epath.Path, marker: str) -> bool:
    """Whether `folder` has a match of marker, "A/*/B"; stops at the first one."""
    if not marker:
        return True
    name, _, rest = marker.partition("/")
    if not set("*[?") & set(name):
        children = [folder / name] if (folder / name).exists() else []
    else:
        listed = folder.iterdir() if folder.is_dir() else ()
        children = (c for c in listed if fnmatch.fnmatch(c.name, name))
    return any(_any_match(child, rest) for child in children)


def _scratch(data_dir) -> epath.Path:
    folder = epath.Path(data_dir) / "outcomes.tmp"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _note(outcome: Outcome) -> dict[str, Any]:
    """What the report needs of an outcome."""
    sequence, record = outcome.sequence, outcome.record
    walk = [sequence.split, sequence.subject, sequence.condition, sequence.view]
    return {
        "key": sequence.key,
        "walk": walk,
        "problem": outcome.problem,
        "frames": outcome.num_frames,
        "dropped": outcome.dropped,
        "lost": {**sequence.lost, **outcome.lost},
        "note": outcome.note,
        "unpaired": outcome.unpaired,
        "has": [
            name
            for name in (*MODALITIES, *EXTRAS)
            if record and len(record.get(name, ()))
        ],
    }


def _record(outcome: Outcome, empty: dict, joints: int) -> list[tuple[str, dict]]:
    """[(key, record)] or []; empty: the extras that the sequence may lack."""
    if outcome.record is None:
        return []
    record = {**empty, **outcome.record}
    if not len(record["keypoints"]):
        record["keypoints"] = np.zeros((0, joints, 3), np.float32)
    return [(outcome.sequence.key, record)]


def _write_json(content, file: str):
    epath.Path(file).write_text(json.dumps(content))
