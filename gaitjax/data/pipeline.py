"""Batches: records -> clips, read by threads ahead of time, one global array each.

Everything about a training batch is a function of (config.seed, step), so a resumed run
continues the stream exactly. Sizes are those of config.data: a phase of training with
other sizes has a config of its own.
"""

import os
from collections.abc import Iterator

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from gaitjax.data import sampling
from gaitjax.data.clips import Clip, TrainingClips, check_sizes, load_clip, pad, stack
from gaitjax.data.source import Source, check_modalities
from gaitjax.engine import sharding

Batch = dict[str, jax.Array]


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
    count = config.data.ids_per_batch * config.data.seqs_per_id
    batches = host_batches(
        source,
        config,
        mesh,
        start_step=start_step,
        stop_step=stop_step,
        damaged=damaged,
    )
    for batch in batches:
        yield to_global(batch, mesh, count)


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


def host_batches(
    source: Source,
    config,
    mesh: Mesh | None = None,
    *,
    start_step: int,
    stop_step: int,
    damaged: dict[int, str] | None = None,
) -> Iterator[Clip]:
    """What this host reads of each training batch: the rows of its devices.

    mesh: None means all rows. `labels` number the split's identities in sorted order.
    Raises ValueError if more than config.data.max_damaged sequences cannot be read;
    before the first batch if it is a modality that they lack.
    """
    check_modalities(source, config.data.modalities, limit=config.data.max_damaged)
    identity = np.unique(source.index.subject, return_inverse=True)[1].astype(np.int32)
    clips = TrainingClips(source, config, {} if damaged is None else damaged)
    devices = 1 if mesh is None else mesh.shape["data"]

    def load(step: int) -> Clip:
        rows = _rows(identity, config, step)  # quicker than by the names
        order = part_order(len(rows), config.train.accumulate, devices)
        if mesh is not None:
            order = order[sharding.own_rows(len(rows), mesh)]
        batch = clips.batch(step, order, rows[order])
        return batch | {"labels": identity[rows[order]]}

    yield from _prefetch(load, range(start_step, stop_step), config.data.workers)


def part_order(count: int, parts: int, devices: int) -> np.ndarray:
    """Order of a batch's rows in which each device holds its share of every part.

    Part p of a step (gradient accumulation) is rows p * count / parts and on, whatever
    the number of devices: `optim.split_parts` is the inverse. parts=1: unchanged.
    """
    cells = np.arange(count).reshape(parts, devices, -1)
    return cells.swapaxes(0, 1).ravel()


def eval_batches(
    source: Source, rows: np.ndarray, config, mesh: Mesh
) -> Iterator[tuple[Batch, np.ndarray]]:
    """Whole sequences in order, in length buckets: (batch, row numbers [B]).

    A batch that is not full ends with row numbers -1, where nothing is valid, so every
    batch of a bucket has one shape. Batches are as large as config.evaluation says, up
    to a multiple of the devices; only the first max_frames frames are read (0: all).
    """
    modalities, settings = eval_modalities(config), config.evaluation
    check_modalities(source, modalities, rows=rows)
    devices = mesh.shape["data"]
    size = -(-settings.batch_size // devices) * devices
    own = sharding.own_rows(size, mesh)
    used, padded = sampling.length_bucket(
        source.index.num_frames,
        multiple=settings.frame_multiple,
        limit=settings.max_frames,
    )
    chunks = []
    for length in np.unique(padded[rows]):
        bucket = rows[padded[rows] == length]
        for chunk in np.split(bucket, range(size, len(bucket), size)):
            rest = size - len(chunk)
            chunks.append(np.pad(chunk, (0, rest), constant_values=-1))

    def load(number: int) -> Clip:
        first, clips = chunks[number][0], []
        for row in chunks[number][own]:
            frames = np.arange(used[row] if row >= 0 else 1)
            clip = load_clip(source, row if row >= 0 else first, frames, modalities)
            check_sizes(source.name, clip, config)
            clip["valid"] = np.full(len(frames), row >= 0)
            clips.append(pad(clip, padded[first]))
        return stack(clips) | {"labels": np.zeros(len(clips), np.int32)}

    batches = _prefetch(load, range(len(chunks)), config.data.workers)
    for chunk, batch in zip(chunks, batches, strict=True):
        yield to_global(batch, mesh, size), chunk


def eval_modalities(config) -> tuple[str, ...]:
    """What evaluation reads: config.evaluation.modalities, or those of training.

    Masks are read only if they are named: only losses need them.
    """
    trained = tuple(name for name in config.data.modalities if name != "masks")
    return tuple(config.evaluation.modalities) or trained


def to_global(batch: Clip, mesh: Mesh, count: int | None = None) -> Batch:
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


def _prefetch(load, numbers: range, workers: int) -> Iterator[Clip]:
    """`load(number)` of each, in order; `workers` threads (see settings) read ahead."""
    import cv2
    import grain

    cv2.setNumThreads(0)  # our threads are the parallelism
    if len(numbers) == 0:
        return
    workers = workers or min(len(os.sched_getaffinity(0)), 16)
    dataset = grain.MapDataset.range(numbers.start, numbers.stop).map(load)
    options = grain.ReadOptions(num_threads=workers, prefetch_buffer_size=2 * workers)
    yield from dataset.to_iter_dataset(options)
