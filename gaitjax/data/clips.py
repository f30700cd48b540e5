"""One sequence -> one clip: the chosen frames, decoded, checked, augmented, padded."""

import threading

import numpy as np
from absl import logging

from gaitjax.data import faults, heatmaps, sampling, transforms
from gaitjax.data.source import Source, check_shards
from gaitjax.engine.guards import require

Clip = dict[str, np.ndarray]  # modality -> [T ...]
IMAGES = {  # modality -> the field of config.data with its (height, width)
    "frames": "image_size",
    "masks": "image_size",
    "silhouettes": "silhouette_size",
    "heatmaps": "silhouette_size",
    "regions": "image_size",
    "parsing": "silhouette_size",
}


class DamagedRecord(ValueError):
    """A sequence that cannot be read or decoded, or lacks what the model reads."""


def load_clip(
    source: Source, row: int, frames: np.ndarray, modalities, place: Clip | None = None
) -> Clip:
    """The chosen frames of one sequence and their ratios; only these are decoded.

    place: arrays into which images are decoded if they fit, for the speed.
    Raises DamagedRecord, naming the sequence, if a modality is absent, cannot be read
    or decoded, or differs in length from the others.
    """
    key = str(source.index.key[row])
    record = _read(source, row, key)
    clip = {"ratios": np.asarray(record["ratios"], np.float32)[frames]}
    for name in modalities:
        stored = name  # heat maps are drawn from key points if none are stored
        if name == "heatmaps" and len(record.get(name, ())) == 0:
            stored = "keypoints"
        found, expected = len(record.get(stored, ())), source.index.num_frames[row]
        require(  # single sequences may lack what is optional
            name in transforms.MODALITIES and found,
            f"{source.name}: sequence {key} has no {name!r}. The data set may not "
            "distribute this modality; choose another model or data set.",
            DamagedRecord,
        )
        require(
            found == expected,
            f"{source.name}: sequence {key} has {found} {stored} but {expected} "
            "ratios; modalities must match in time.",
            DamagedRecord,
        )
        into = place[name][: len(frames)] if place else None
        clip[name] = _decode(source, key, name, stored, record[stored], frames, into)
    return clip


def _read(source: Source, row: int, key: str):
    try:
        return source.records[int(row)]
    except Exception as error:  # array_record and zlib have their own
        check_shards(source.name, source.shards)
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DamagedRecord(
            f"{source.name}: sequence {key} cannot be read ({text})."
        ) from error


def _decode(source, key, name: str, stored: str, values, frames, place) -> np.ndarray:
    """The chosen frames of a modality as models read them. values: all, as stored."""
    files = {"frames": transforms.decode_frames}
    if source.packed_masks:
        files["masks"] = transforms.decode_masks
    if name in files:
        try:
            return files[name]([values[i] for i in frames], key, place)
        except ValueError as error:
            raise DamagedRecord(f"{source.name}: {error}") from error
    values = np.asarray(values)
    if name != stored:  # heat maps, drawn from key points
        if values.shape[1] == len(transforms.MIRRORED_18):
            values = values[:, list(transforms.COCO_OF_18)]
        values = heatmaps.impute(values)[frames]
        return transforms.cut_silhouettes(heatmaps.skeleton_maps(values), key)
    if name in ("silhouettes", "parsing"):
        return transforms.cut_silhouettes(values[frames], key)
    if name == "masks":
        return (values[frames] > 127).astype(np.uint8)
    return values[frames]


class TrainingClips:
    """Loads training clips, from several threads; replaces sequences that are damaged.

    The replacement is the next readable sequence of the same person, so it depends on
    the data alone. damaged: filled with the rows that cannot be read, and why.
    """

    def __init__(self, source: Source, config, damaged: dict[int, str]):
        self.source, self.config, self.damaged = source, config, damaged
        self.identity = np.unique(source.index.subject, return_inverse=True)[1]
        self.lock = threading.Lock()

    def batch(self, step: int, positions: np.ndarray, rows: np.ndarray) -> Clip:
        """Clips of `rows`, at `positions` of the batch of `step`: arrays [B T ...].

        All but the first are decoded in their place: fresh memory for every clip, and
        its copy, would take a quarter of the time.
        """
        first = self.load(step, int(positions[0]), int(rows[0]))
        count = len(rows)
        batch = {k: np.empty((count, *x.shape), x.dtype) for k, x in first.items()}
        for number in range(count):
            place = {name: array[number] for name, array in batch.items()}
            position, row = int(positions[number]), int(rows[number])
            clip = self.load(step, position, row, place) if number else first
            for name, value in clip.items():
                if not np.may_share_memory(value, place[name]):
                    place[name][:] = value
        return batch

    def load(
        self, step: int, position: int, wanted: int, place: Clip | None = None
    ) -> Clip:
        """The clip of row `wanted`, at `position` of the batch of `step`."""
        same = np.flatnonzero(self.identity == self.identity[wanted])
        for row in np.roll(same, -int(np.searchsorted(same, wanted))).tolist():
            if row in self.damaged:
                continue
            rng = np.random.default_rng([self.config.seed, step, position])
            try:
                return training_clip(self.source, row, self.config, rng, place)
            except DamagedRecord as error:
                with self.lock:
                    self.damaged[row] = str(error)
                    self._report(str(error))
        raise ValueError(
            f"{self.source.name}: no sequence of identity "
            f"{self.source.index.subject[wanted]} can be read: {self.damaged[wanted]} "
            "Build the data set again."
        )

    def _report(self, reason: str) -> None:
        limit, keys = self.config.data.max_damaged, self.source.index.key
        others = ", ".join(str(keys[row]) for row in list(self.damaged)[:-1])
        require(
            len(self.damaged) <= limit,
            f"{self.source.name}: {len(self.damaged)} sequences cannot be read, more "
            f"than config.data.max_damaged={limit}; the last: {reason} The others: "
            f"{others}. Build the data set again, or raise the limit.",
        )
        logging.warning(
            "%s Another sequence of the same person is taken (%d of at most %d).",
            reason, len(self.damaged), limit,
        )  # fmt: skip


def training_clip(
    source: Source,
    row: int,
    config,
    rng: np.random.Generator,
    place: Clip | None = None,
) -> Clip:
    """config.data.num_frames frames of a sequence, drawn and augmented with `rng`.

    `valid` marks those that are not padding; min_frames lets clips differ in length.
    """
    data, length = config.data, config.data.num_frames
    if data.min_frames:
        least = min(data.min_frames, length)
        length = int(rng.integers(least, data.num_frames + 1))
    stored = int(source.index.num_frames[row])
    where = f"{source.name}: sequence {source.index.key[row]}"
    require(stored, f"{where} has no frames.", DamagedRecord)
    frames = sampling.clip_indices(
        stored, length, ordered=data.ordered, skip=data.skip, rng=rng
    )
    clip = load_clip(source, row, frames, data.modalities, place)
    check_sizes(source.name, clip, config)
    if data.get("faults"):
        clip = faults.disturb(clip, faults.Faults(**data.faults), rng)
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
    return pad(clip | {"valid": np.ones(length, bool)}, data.num_frames)


def check_sizes(name: str, clip: Clip, config) -> None:
    """Raises ValueError for images or skeletons of another size than the config's."""
    data = config.data
    if "keypoints" in clip:
        form = config.model.get("joint_format", "coco")
        found, wanted = clip["keypoints"].shape[1], 18 if form == "alphapose" else 17
        require(
            found == wanted,
            f"{name} has skeletons of {found} joints, the config's model reads {wanted}"
            f" (joint_format {form!r}). 18 joints are in the data sets NAME/joints_18 "
            "and --config.model.joint_format=alphapose reads them.",
        )
    for modality in clip.keys() & IMAGES.keys():
        field = IMAGES[modality]
        height, width = clip[modality].shape[1:3]
        cut = " after the cut" if field == "silhouette_size" else ""
        require(
            (height, width) == tuple(data[field]),
            f"{name}: {modality} are {height}x{width}{cut}, the config says "
            f"{tuple(data[field])}. Use the data set's config of that size, or set "
            f"--config.data.{field}={height},{width}.",
        )


def pad(clip: Clip, length: int) -> Clip:
    """Pads every array [T ...] with zeros (False) at the end, to `length` frames."""
    rest = length - len(clip["valid"])
    if rest == 0:
        return clip
    behind = {name: [(0, rest)] + [(0, 0)] * (x.ndim - 1) for name, x in clip.items()}
    return {name: np.pad(value, behind[name]) for name, value in clip.items()}


def stack(clips: list[Clip]) -> Clip:
    """Clips of equal shapes -> arrays [B T ...]."""
    return {name: np.stack([clip[name] for clip in clips]) for name in clips[0]}
