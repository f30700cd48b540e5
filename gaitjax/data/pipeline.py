"""Batches: records -> sampled, decoded, augmented, stacked, one global array each.

Everything about step s is a function of (seed, s), so Grain only supplies threads and
read-ahead, and a resumed run continues the stream exactly.
"""

from collections.abc import Iterator

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from gaitjax.data import sampling, transforms
from gaitjax.data.source import Source

Batch = dict[str, jax.Array]
AXES = PartitionSpec("data")  # every batch array is split along its first axis


def train_rows(source: Source, data, seed: int, step: int) -> np.ndarray:
    """Rows of the global batch of `step`, also to name them when a step goes wrong."""
    return sampling.identity_batch(
        source.index.subject,
        ids_per_batch=data.ids_per_batch,
        seqs_per_id=data.seqs_per_id,
        seed=seed,
        step=step,
    )


def train_batches(
    source: Source, config, mesh: Mesh, *, start_step: int, stop_step: int
) -> Iterator[Batch]:
    """Batches of steps start_step .. stop_step - 1; P x K sequences, T frames each."""
    for batch in host_batches(
        source, config, start_step=start_step, stop_step=stop_step
    ):
        yield to_global(batch, mesh)


def host_batches(
    source: Source, config, *, start_step: int, stop_step: int
) -> Iterator[dict[str, np.ndarray]]:
    """What this host reads of each training batch: its contiguous share of the rows.

    `labels` number the split's identities in sorted order.
    """
    data = config.data
    labels = np.unique(source.index.subject, return_inverse=True)[1].astype(np.int32)

    def load(step: int) -> dict[str, np.ndarray]:
        rows = train_rows(source, data, config.seed, step)
        own = _host_share(len(rows))
        clips = []
        for position in range(len(rows))[own]:
            rng = np.random.default_rng([config.seed, step, position])
            row = rows[position]
            frames = sampling.clip_indices(
                int(source.index.num_frames[row]),
                data.num_frames,
                ordered=data.ordered,
                skip=data.skip,
                rng=rng,
            )
            clip = load_clip(source, row, frames, data.modalities)
            clips.append(
                transforms.augment(
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
            )
        batch = {name: np.stack([clip[name] for clip in clips]) for name in clips[0]}
        batch["valid"] = np.ones((len(clips), data.num_frames), bool)
        batch["labels"] = labels[rows[own]]
        return batch

    yield from _prefetch(load, range(start_step, stop_step), data)


def eval_batches(
    source: Source, rows: np.ndarray, config, mesh: Mesh
) -> Iterator[tuple[Batch, np.ndarray]]:
    """Whole sequences in order, in length buckets: (batch, row numbers [B]).

    A batch is filled up with row number -1 (its arrays are zero, nothing valid), so
    every batch has one shape per bucket. Only `limit` first frames are read.
    """
    settings = config.evaluation
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
        size = settings.batch_size
        chunks += [bucket[i : i + size] for i in range(0, len(bucket), size)]

    def load(number: int) -> dict[str, np.ndarray]:
        chunk = chunks[number] + [(chunks[number][0][0], 0, -1)] * (
            settings.batch_size - len(chunks[number])
        )
        chunk = chunk[_host_share(len(chunk))]
        clips = []
        for padded, used, row in chunk:
            source_row = row if row >= 0 else chunks[number][0][2]
            frames = np.arange(used if row >= 0 else 1)
            modalities = [m for m in config.data.modalities if m != "masks"]
            clip = load_clip(source, source_row, frames, modalities)
            clip["valid"] = np.ones(len(frames), bool) & (row >= 0)
            clips.append({k: _pad_frames(v, padded) for k, v in clip.items()})
        batch = {name: np.stack([clip[name] for clip in clips]) for name in clips[0]}
        batch["labels"] = np.zeros(len(clips), np.int32)
        return batch

    for number, batch in enumerate(_prefetch(load, range(len(chunks)), config.data)):
        chunk_rows = [item[2] for item in chunks[number]]
        chunk_rows += [-1] * (settings.batch_size - len(chunk_rows))
        yield to_global(batch, mesh), np.array(chunk_rows)


def load_clip(
    source: Source, row: int, frames: np.ndarray, modalities
) -> dict[str, np.ndarray]:
    """The chosen frames of one sequence: {modality: [T ...]}; only these are decoded.

    Raises ValueError naming the sequence where a modality is absent or damaged.
    """
    record = source.records[int(row)]
    key = str(source.index.key[row])
    clip = {"ratios": np.asarray(record["ratios"], np.float32)[frames]}
    for name in modalities:
        if name not in transforms.MODALITIES or len(record.get(name, ())) == 0:
            raise ValueError(
                f"{source.name}: sequence {key} has no {name!r}. The data set may not "
                "distribute this modality; choose another model or data set."
            )
        if len(record[name]) != source.index.num_frames[row]:
            raise ValueError(
                f"{source.name}: sequence {key} has {len(record[name])} {name} but "
                f"{source.index.num_frames[row]} ratios; modalities must match in time."
            )
        if name == "frames":
            chosen = [record["frames"][i] for i in frames]
            clip[name] = transforms.decode_frames(chosen, key)
        elif name == "silhouettes":
            chosen = np.asarray(record[name])[frames]
            clip[name] = transforms.cut_silhouettes(chosen, key)
        elif name == "masks":
            clip[name] = (np.asarray(record[name])[frames] > 127).astype(np.uint8)
        else:
            clip[name] = np.asarray(record[name])[frames]
    return clip


def to_global(batch: dict[str, np.ndarray], mesh: Mesh) -> Batch:
    """Host arrays -> global arrays split over the mesh's data axis."""
    sharding = NamedSharding(mesh, AXES)
    return {
        name: jax.make_array_from_process_local_data(sharding, value)
        for name, value in batch.items()
    }


def _host_share(count: int) -> slice:
    hosts = jax.process_count()
    if count % hosts:
        raise ValueError(
            f"A batch of {count} sequences does not divide over {hosts} processes."
        )
    share = count // hosts
    return slice(jax.process_index() * share, (jax.process_index() + 1) * share)


def _pad_frames(value: np.ndarray, length: int) -> np.ndarray:
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
