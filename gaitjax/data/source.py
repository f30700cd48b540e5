"""Prepared data sets on disk: random access to records, and the table of sequences.

`tfds_builders` writes what is read here; neither imports the other. Reading needs no
TensorFlow: TFDS's `as_data_source` over array_record shards.
"""

import hashlib
import json
import re
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gaitjax.engine.atomic import replacing
from gaitjax.engine.guards import require


class Index(NamedTuple):
    """One row per sequence of a split, in record order; every column is an array [n].

    subject, condition, view, key: str. num_frames: int, frames stored of the sequence.
    """

    subject: np.ndarray
    condition: np.ndarray
    view: np.ndarray
    key: np.ndarray
    num_frames: np.ndarray

    def rows(self, selection) -> "Index":
        """The sub-table of `selection` (row numbers or a bool mask)."""
        return Index(*(column[selection] for column in self))


class Source(NamedTuple):
    """A prepared split: `records[i]` decodes the i-th record; `index` describes it.

    fingerprint: hash over the table and the shard sizes; equal for equal builds.
    shards: the files behind `records`, to tell a vanished file from a damaged record.
    present: modality -> bool [n], which sequences have it; of other modalities this is
    unknown.
    packed_masks: masks are files, one per frame, as frames are. Data sets prepared
    before that was so, and records made in memory, have one array [T H W].
    """

    name: str
    records: Sequence[dict[str, Any]]
    index: Index
    fingerprint: str
    shards: tuple[Path, ...] = ()
    present: Mapping[str, np.ndarray] = {}
    packed_masks: bool = False


# compressed in a record
ARRAYS = ("masks", "silhouettes", "keypoints", "regions", "captions", "parsing")
STORED = ("frames", *ARRAYS, "points")  # modalities that a sequence may lack
NAMES = ("subject", "condition", "view", "key")
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
VERSION = r"[0-9]{1,9}(\.[0-9]{1,9}){2}"


def open_split(data_dir: str, name: str, split: str, modalities=ARRAYS) -> Source:
    """Opens `split` ("train", "test") of data set `name` ("ccpg", "cmu_walk/tiny").

    modalities: what is read of the records; other arrays stay compressed bytes there.

    Raises ValueError if nothing is prepared, with the command that prepares it;
    if the split does not exist or is empty; if a record cannot be read, or has a
    name that is no plain name (see `_check_name`).
    """
    import tensorflow_datasets as tfds

    folder = version_folder(data_dir, name)
    require(
        folder is not None,
        f"No prepared data set at {Path(data_dir, name)}. Run: ./run.sh build {name} "
        f"--data_dir={data_dir} (add --manual_dir=DIR for data you downloaded).",
    )
    try:
        builder = tfds.builder_from_directory(str(folder))
        splits = sorted(builder.info.splits)
    except Exception as error:  # TFDS raises a dozen types for damaged metadata
        raise ValueError(
            f"The prepared data set at {folder} cannot be read ({error}). "
            f"Build it again: ./run.sh build {name} --overwrite"
        ) from error
    require(split in splits, f"{name} has no split {split!r}; it has {splits}.")
    shards = [Path(file) for file in builder.info.splits[split].filepaths]
    check_shards(name, shards)
    found = builder.info.splits[split].num_examples
    require(found, f"{name}: split {split!r} has no sequences.")
    features = builder.info.features
    bare = builder.as_data_source(split, decoders=_left_compressed(features, ()))
    index, fingerprint, present = _index(folder, split, bare, shards)
    left = _left_compressed(features, modalities)
    records = builder.as_data_source(split, decoders=left)
    packed = isinstance(features["masks"], tfds.features.Sequence)
    return Source(name, records, index, fingerprint, tuple(shards), present, packed)


def check_modalities(
    source: Source, modalities, *, rows: np.ndarray | None = None, limit: int = 0
) -> None:
    """Raises ValueError if over `limit` of `rows` (None: all) lack a modality.

    The index says which have it, so no record is read. Heat maps are drawn from key
    points. A protocol needs all of its sequences, so none is left out silently.
    """
    for name in modalities:
        has = source.present.get("keypoints" if name == "heatmaps" else name)
        absent = np.flatnonzero(~has) if has is not None else np.array([], int)
        if rows is not None:
            absent = np.intersect1d(absent, rows)
        if len(absent) <= limit:
            continue
        start = f"{source.name}: {len(absent)} of {len(source.index.key)} sequences"
        require(
            len(absent) < len(source.index.key),
            f"{start} have no {name!r}. If `lost` in build_report.json beside the "
            "shards has an entry, it says why the build left them out; if not, the "
            "data set does not distribute it: choose another model or data set.",
        )
        raise ValueError(
            f"{start} have no {name!r}, the first is {source.index.key[absent[0]]}; "
            "build_report.json tells why. Complete their files, or take them out of "
            "the archive (the report then counts them), and build again; or choose a "
            "model that does not read it."
        )


def _left_compressed(features, modalities) -> dict[str, Any]:
    """TFDS decoders that inflate of ARRAYS only what these modalities are made of."""
    import tensorflow_datasets as tfds

    read = {"keypoints" if name == "heatmaps" else name for name in modalities}
    return {
        name: tfds.decode.SkipDecoding()
        for name in ARRAYS
        if name in features and name not in read
        if isinstance(features[name], tfds.features.Tensor)
    }


def check_shards(name: str, shards: Sequence[Path]) -> None:
    """Raises ValueError if files of data set `name` are not there (any more)."""
    missing = [str(shard) for shard in shards if not shard.exists()]
    require(
        not missing,
        f"{name}: {len(missing)} of {len(shards)} shards are missing, the first is "
        f"{(missing or [''])[0]}. Bring the disk back, or build it again: "
        f"./run.sh build {name} --overwrite",
    )


def version_folder(data_dir: str, name: str) -> Path | None:
    """DATA_DIR/NAME[/CONFIG]/VERSION, the newest that is whole; None if there is none.

    Folders with other names, such as a copy of a version, are left aside.
    """
    root = Path(data_dir, name)
    for folder in (root, root / "default"):  # NAME alone means its config `default`
        versions = [
            path
            for path in (folder.iterdir() if folder.is_dir() else [])
            if re.fullmatch(VERSION, path.name)
            and (path / "dataset_info.json").exists()
        ]
        if versions:
            return max(versions, key=lambda p: [int(x) for x in p.name.split(".")])
    return None


def _index(folder: Path, split: str, records, shards):
    """(Index, fingerprint, Source.present), scanned once and cached beside the shards.

    The cache holds the shards' names, sizes and times, so a rebuilt data set is scanned
    again. A cache that cannot be read is made anew; if the folder cannot be written, it
    is scanned at every start.
    """
    state = [(s.name, s.stat().st_size, s.stat().st_mtime_ns) for s in shards]
    state = json.dumps(state)
    cache = folder / f"index_{split}.npz"
    if found := _cached(cache, state, len(records)):
        return found
    rows, has = _scan(folder, split, records)
    digest = hashlib.sha256()
    for row in sorted(rows, key=lambda row: row[3]):
        digest.update(repr(row).encode())
    digest.update(repr([(s.name, s.stat().st_size) for s in shards]).encode())
    fingerprint = digest.hexdigest()[:16]
    index = Index(*(np.array(column) for column in zip(*rows)))
    try:
        columns = index._asdict() | {"present": has}
        with replacing(cache, "wb") as file:
            np.savez(file, state=state, fingerprint=fingerprint, **columns)
    except OSError:
        pass  # read-only folder
    return index, fingerprint, dict(zip(STORED, has.T, strict=True))


def _cached(cache: Path, state: str, count: int):
    """What `_index` returns, from its cache; None if the cache cannot be used.

    It cannot if it is absent, damaged in any way, or of other shards.
    """
    expected = {name: ((count,), "U") for name in NAMES}
    expected |= {"num_frames": ((count,), "i"), "present": ((count, len(STORED)), "b")}
    expected |= {"state": ((), "U"), "fingerprint": ((), "U")}
    try:
        with zipfile.ZipFile(cache) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
        if size > cache.stat().st_size:
            return None  # ours are not compressed; this one could fill the memory
        with np.load(cache, allow_pickle=False) as stored:
            columns = dict(stored)
        found = {name: (x.shape, x.dtype.kind) for name, x in columns.items()}
        if found != expected or str(columns["state"]) != state:
            return None
        index = Index(*(columns[name] for name in Index._fields))
        for name in NAMES:
            for text in set(columns[name].tolist()):
                _check_name(name, text)
    except Exception:  # zipfile, zlib and numpy have dozens
        return None
    present = dict(zip(STORED, columns["present"].T, strict=True))
    return index, str(columns["fingerprint"]), present


def _scan(folder: Path, split: str, records) -> tuple[list[tuple], np.ndarray]:
    """Reads every record: (subject, condition, view, key, frames); bool [n STORED]."""
    rows, has = [], []
    for number in range(len(records)):
        try:
            record = records[number]
            names = [_text(record[name]) for name in NAMES]
            for name, text in zip(NAMES, names):
                _check_name(name, text)
            rows.append((*names, len(record["ratios"])))
            has.append([_has(record.get(name, ())) for name in STORED])
        except Exception as error:  # array_record's own, for damaged bytes
            raise ValueError(
                f"{folder}: record {number} of split {split!r} cannot be read "
                f"({error}). Build it again with --overwrite."
            ) from error
    unique = len({row[3] for row in rows}) == len(rows)
    require(unique, f"{folder}: sequence keys of split {split!r} are not unique.")
    return rows, np.array(has)


def _check_name(field: str, text: str) -> None:
    """Raises ValueError for a name that could leave a folder or break a line.

    Names become parts of file names, tables and logs: no control characters, no part
    "..", and "/" in keys only, between their parts. Subject and key are not empty.
    """
    parts = text.split("/")
    plain = parts[0] if field == "key" else len(parts) == 1
    plain = plain and (text or field != "subject")
    safe = not ({".", ".."} & set(parts)) and not CONTROL.search(text)
    require(plain and safe, f"its {field} {text!r} is no plain name")


def _has(value) -> bool:
    """Whether a modality is stored. value: list of files, or compressed array."""
    if isinstance(value, bytes):
        return bool(zlib.decompressobj().decompress(value, 1))
    return len(value) > 0


def _text(value) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
