"""Batches: records -> sampled, decoded, augmented, stacked, one global array each.

Everything about step s is a function of (seed, s), so Grain only supplies threads and
read-ahead, and a resumed run continues the stream exactly.
"""

import threading
from collections.abc import Iterator

import jax
import numpy as np
from absl import logging
from jax.sharding import Mesh, NamedSharding

from gaitjax.data import heatmaps, sampling, transforms
from gaitjax.data.source import Source, check_modalities, check_shards
from gaitjax.engine import sharding

Batch = dict[str, jax.Array]
IMAGES = {  # modality -> the field of config.data that tells its (height, width)
    "frames": "image_size",
    "masks": "image_size",
    "silhouettes": "silhouette_size",
    "heatmaps": "silhouette_size",
}


class DamagedRecord(ValueError):
    """A sequence that cannot be read or decoded, or lacks what the model reads."""


def train_rows(source: Source, config, step: int) -> np.ndarray:
    """Rows of the global batch of `step`, also to name them when a step goes wrong."""
    return _rows(source.index.subject, config, step)


def _rows(identity: np.ndarray, config, step: int) -> np.ndarray:
    return sampling.identity_batch(
        identity,
        ids_per_batch=config.data.ids_per_batch,
        seqs_per_id=config.data.seqs_per_id,
        seed=config.seed,
        step=step,
    )


def train_batches(
    source: Source,
    config,
    mesh: Mesh,
    *,
    start_step: int,
    stop_step: int,
    damaged: dict[int, str] | None = None,
) -> Iterator[Batch]:
    """Batches of steps start_step .. stop_step - 1; P x K sequences, T frames each.

    damaged: filled with the rows that this host could not read, and why.
    """
    batches = host_batches(
        source,
        config,
        mesh,
        start_step=start_step,
        stop_step=stop_step,
        damaged=damaged,
    )
    rows = config.data.ids_per_batch * config.data.seqs_per_id
    for batch in batches:
        yield to_global(batch, mesh, rows)


def host_batches(
    source: Source,
    config,
    mesh: Mesh | None = None,
    *,
    start_step: int,
    stop_step: int,
    damaged: dict[int, str] | None = None,
) -> Iterator[dict[str, np.ndarray]]:
    """What this host reads of each training batch: the rows of its devices.

    mesh: None means all rows. `labels` number the split's identities in sorted order.
    A sequence that cannot be read is replaced by the next one of the same person, a
    function of the data alone; more than config.data.max_damaged are an error, before
    the first batch where they lack a modality.
    """
    data = config.data
    identity = np.unique(source.index.subject, return_inverse=True)[1].astype(np.int32)
    damaged, lock = {} if damaged is None else damaged, threading.Lock()
    check_modalities(source, data.modalities, limit=data.max_damaged)
    parts = config.train.accumulate
    devices = 1 if mesh is None else mesh.shape["data"]

    def load_row(step: int, position: int, wanted: int) -> dict[str, np.ndarray]:
        same = np.flatnonzero(identity == identity[wanted])
        for row in np.roll(same, -int(np.searchsorted(same, wanted))):
            if int(row) in damaged:
                continue
            try:
                return load_one(step, position, row)
            except DamagedRecord as error:
                with lock:
                    damaged[int(row)] = str(error)
                    _count_damaged(source, damaged, data.max_damaged)
        raise ValueError(
            f"{source.name}: no sequence of identity {source.index.subject[wanted]} "
            f"can be read: {damaged[wanted]} Build the data set again."
        )

    def load_one(step: int, position: int, row: int) -> dict[str, np.ndarray]:
        rng = np.random.default_rng([config.seed, step, position])
        length = most = config.data.num_frames
        if data.min_frames:
            length = int(rng.integers(min(data.min_frames, most), most + 1))
        frames = sampling.clip_indices(
            int(source.index.num_frames[row]),
            length,
            ordered=data.ordered,
            skip=data.skip,
            rng=rng,
        )
        clip = load_clip(source, row, frames, data.modalities)
        _check_sizes(source.name, clip, data)
        clip = transforms.augment(
            clip,
            flip_probability=data.flip,
            colour_strength=data.colour,
            perspective=data.perspective,
            rotate=data.rotate,
            shift=data.shift,
            erasing=data.erasing,
            frame_size=tuple(data.image_size),
            rng=rng,
        )
        clip["valid"] = np.ones(length, bool)
        return {name: _pad_frames(value, most) for name, value in clip.items()}

    def load(step: int) -> dict[str, np.ndarray]:
        rows = _rows(identity, config, step)  # quicker than by the names
        order = part_order(len(rows), parts, devices)
        own = slice(None) if mesh is None else sharding.own_rows(len(rows), mesh)
        order = order[own]
        clips = [load_row(step, int(i), int(rows[i])) for i in order]
        batch = {name: np.stack([clip[name] for clip in clips]) for name in clips[0]}
        batch["labels"] = identity[rows[order]]
        return batch

    yield from _prefetch(load, range(start_step, stop_step), data)


def part_order(count: int, parts: int, devices: int) -> np.ndarray:
    """Order of a batch's rows such that each device holds its share of every part.

    Part p of a step (gradient accumulation) is rows p * count / parts and on, whatever
    the number of devices: `optim.split_parts` is the inverse. parts=1: unchanged.
    """
    cells = np.arange(count).reshape(parts, devices, -1)
    return cells.swapaxes(0, 1).ravel()


def _count_damaged(source: Source, damaged: dict[int, str], limit: int) -> None:
    """Warns of the last one; raises ValueError where there are more than `limit`."""
    reason = list(damaged.values())[-1]
    if len(damaged) > limit:
        raise ValueError(
            f"{source.name}: {len(damaged)} sequences cannot be read, more than "
            f"config.data.max_damaged={limit}; the last: {reason} The others: "
            f"{', '.join(str(source.index.key[row]) for row in list(damaged)[:-1])}. "
            "Build the data set again, or raise the limit."
        )
    logging.warning(
        "%s Another sequence of the same person is taken (%d of at most %d).",
        reason, len(damaged), limit,
    )  # fmt: skip


def eval_batches(
    source: Source, rows: np.ndarray, config, mesh: Mesh
) -> Iterator[tuple[Batch, np.ndarray]]:
    """Whole sequences in order, in length buckets: (batch, row numbers [B]).

    A batch is filled up with row number -1 (its arrays are zero, nothing valid), so
    every batch has one shape per bucket; batches are as large as config.evaluation
    says, up to a multiple of the devices. Only `limit` first frames are read.
    """
    settings, modalities = config.evaluation, eval_modalities(config)
    check_modalities(source, modalities, rows=rows)
    devices = mesh.shape["data"]
    size = -(-settings.batch_size // devices) * devices
    own = sharding.own_rows(size, mesh)
    plan = []
    for row in rows:
        used, padded = sampling.length_bucket(
            int(source.index.num_frames[row]),
            multiple=settings.frame_multiple,
            limit=settings.max_frames,
        )
        plan.append((padded, used, int(row)))
    plan.sort(key=lambda item: item[0])  # stable: rows keep their order in a bucket
    chunks = []
    for padded in dict.fromkeys(item[0] for item in plan):
        bucket = [item for item in plan if item[0] == padded]
        chunks += [bucket[i : i + size] for i in range(0, len(bucket), size)]

    def load(number: int) -> dict[str, np.ndarray]:
        chunk = chunks[number] + [(chunks[number][0][0], 0, -1)] * (
            size - len(chunks[number])
        )
        chunk = chunk[own]
        clips = []
        for padded, used, row in chunk:
            source_row = row if row >= 0 else chunks[number][0][2]
            frames = np.arange(used if row >= 0 else 1)
            clip = load_clip(source, source_row, frames, modalities)
            _check_sizes(source.name, clip, config.data)
            clip["valid"] = np.ones(len(frames), bool) & (row >= 0)
            clips.append({k: _pad_frames(v, padded) for k, v in clip.items()})
        batch = {name: np.stack([clip[name] for clip in clips]) for name in clips[0]}
        batch["labels"] = np.zeros(len(clips), np.int32)
        return batch

    for number, batch in enumerate(_prefetch(load, range(len(chunks)), config.data)):
        chunk_rows = [item[2] for item in chunks[number]]
        chunk_rows += [-1] * (size - len(chunk_rows))
        yield to_global(batch, mesh, size), np.array(chunk_rows)


def eval_modalities(config) -> tuple[str, ...]:
    """What evaluation reads: config.evaluation.modalities, or those of training; masks,
    which only losses read, where they are named."""
    trained = tuple(name for name in config.data.modalities if name != "masks")
    return tuple(config.evaluation.modalities) or trained


def load_clip(
    source: Source, row: int, frames: np.ndarray, modalities
) -> dict[str, np.ndarray]:
    """The chosen frames of one sequence: {modality: [T ...]}; only these are decoded.

    Raises DamagedRecord, naming the sequence, where a modality is absent, cannot be
    read or decoded, or does not fit the others.
    """
    key = str(source.index.key[row])
    try:
        record = source.records[int(row)]
    except Exception as error:  # array_record and zlib have their own
        check_shards(source.name, source.shards)
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DamagedRecord(
            f"{source.name}: sequence {key} cannot be read ({text})."
        ) from error
    ratios = np.asarray(record["ratios"], np.float32)
    clip: dict[str, np.ndarray] = {"ratios": ratios[frames]}
    for name in modalities:
        stored = name  # heat maps are drawn from key points where none are stored
        if name == "heatmaps" and len(record.get(name, ())) == 0:
            stored = "keypoints"
        if name not in transforms.MODALITIES or len(record.get(stored, ())) == 0:
            raise DamagedRecord(  # single sequences may lack what is optional
                f"{source.name}: sequence {key} has no {name!r}. The data set may not "
                "distribute this modality; choose another model or data set."
            )
        if len(record[stored]) != source.index.num_frames[row]:
            raise DamagedRecord(
                f"{source.name}: sequence {key} has {len(record[stored])} {stored} but "
                f"{source.index.num_frames[row]} ratios; modalities must match in time."
            )
        if name == "frames":
            chosen = [record["frames"][i] for i in frames]
            try:
                clip[name] = transforms.decode_frames(chosen, key)
            except ValueError as error:
                raise DamagedRecord(f"{source.name}: {error}") from error
        elif name == "silhouettes":
            chosen = np.asarray(record[name])[frames]
            clip[name] = transforms.cut_silhouettes(chosen, key)
        elif name == "masks":
            clip[name] = (np.asarray(record[name])[frames] > 127).astype(np.uint8)
        elif stored != name:
            points = heatmaps.impute(np.asarray(record[stored]))[frames]
            clip[name] = transforms.cut_silhouettes(heatmaps.skeleton_maps(points), key)
        else:
            clip[name] = np.asarray(record[name])[frames]
    return clip


def _check_sizes(name: str, clip: dict[str, np.ndarray], data) -> None:
    """Raises ValueError where images are of another size than the config says."""
    for modality in clip.keys() & IMAGES.keys():
        field = IMAGES[modality]
        height, width = clip[modality].shape[1:3]
        if (height, width) != tuple(data[field]):
            cut = " after the cut" if field == "silhouette_size" else ""
            raise ValueError(
                f"{name}: {modality} are {height}x{width}{cut}, the config says "
                f"{tuple(data[field])}. Use the data set's config of that size, or set "
                f"--config.data.{field}={height},{width}."
            )


def to_global(
    batch: dict[str, np.ndarray], mesh: Mesh, count: int | None = None
) -> Batch:
    """This host's rows -> global arrays of `count` rows, split over the data axis.

    count: None on one process, which holds all rows.
    """
    split = NamedSharding(mesh, sharding.BATCH)
    return {
        name: jax.make_array_from_process_local_data(
            split, value, (count or len(value), *value.shape[1:])
        )
        for name, value in batch.items()
    }


def _pad_frames(value: np.ndarray, length: int) -> np.ndarray:
    if len(value) == length:
        return value
    padding = [(0, length - len(value))] + [(0, 0)] * (value.ndim - 1)
    return np.pad(value, padding)


def _prefetch(load, steps: range, data) -> Iterator[dict[str, np.ndarray]]:
    """`load(step)` for each step, in order, by `data.workers` threads reading ahead."""
    import cv2
    import grain

    cv2.setNumThreads(0)  # our threads are the parallelism
    if len(steps) == 0:
        return
    dataset = grain.MapDataset.range(steps.start, steps.stop).map(load)
    options = grain.ReadOptions(
        num_threads=data.workers, prefetch_buffer_size=2 * data.workers
    )
    yield from dataset.to_iter_dataset(options)
