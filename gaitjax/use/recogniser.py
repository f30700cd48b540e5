"""A trained model as a function: videos in, embeddings and distances out.

    recogniser = load("runs/gaitset")             # or weights: NAME.json, or a folder
    embeddings = recogniser.embed("anna.mp4")     # f32 [n S D], one per walk in it
    distances = recogniser.distance(embeddings, others)  # f32 [n m]

A recogniser never changes, so threads may share it.
"""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from gaitjax import models, restore, run_folder, settings, text_vectors
from gaitjax.data import clips, pipeline, transforms
from gaitjax.data.source import Index, Source
from gaitjax.engine.guards import Damaged, require
from gaitjax.rerank import compare
from gaitjax.rerank import train as rerank_train
from gaitjax.retrieval.distance import pairwise_distance
from gaitjax.state import example_batch, model_variables
from gaitjax.use import detector, person
from gaitjax.use.quality import LIMITS, Limits
from gaitjax.use.tracks import Walk, silhouette_walk, silhouettes_as_walk, walks
from gaitjax.use.video import Images, Video, shows_silhouettes
from gaitjax.weights import pocket_files

# lengths to which walks are padded, in multiples of config.evaluation.frame_multiple:
# few, because each is compiled
LENGTHS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)

# where walks are: a video file, a folder of frames or silhouettes, a camera's number;
# images uint8 [T H W 3] of a scene; silhouettes uint8 or bool [T H W] of one walk
Scene = str | Path | int | Video | np.ndarray
Record = Mapping[str, Any]  # of a walk, in the schema of the data sets


class Sample(NamedTuple):
    """One walk, and its embedding if it is fit for recognition.

    source: of the video. number: of the walk in it. start, end: seconds. heading: left,
    right, near, far or still. quality: of `quality.Quality`, as a dict. refused: why
    the walk is unfit, "" if it is fit. embedding: float32 [S D], None if refused.
    thumbnail: the middle frame (JPEG) or silhouette (PNG); b"" if refused.
    """

    source: str
    number: int
    start: float
    end: float
    heading: str
    quality: dict[str, float]
    refused: str
    embedding: np.ndarray | None
    thumbnail: bytes


@dataclasses.dataclass(frozen=True, eq=False)
class Recogniser:
    """A model with its weights.

    name: of the run or weights. config: of the run. metric: "euclidean" or "cosine".
    shape: (S, D) of an embedding. modalities: what the model reads of a record.
    fingerprint: of model and weights; equal for equal embeddings. person_model: a file,
    "" for the cached one. detector: an ONNX file, "" for moving regions.
    """

    name: str
    config: Any = dataclasses.field(repr=False)
    metric: str
    shape: tuple[int, int]
    modalities: tuple[str, ...]
    fingerprint: str
    model: Any = dataclasses.field(repr=False)
    variables: Any = dataclasses.field(repr=False)
    constants: dict[str, Any] = dataclasses.field(repr=False)
    reranker: compare.Method | None = dataclasses.field(default=None, repr=False)
    person_model: str = ""
    detector: str = ""

    def embed(self, what: Scene | Record | Sequence[Record]) -> np.ndarray:
        """Embeddings float32 [n S D] of the walks in `what`.

        Refused walks are left out, see `samples`; records are not refused.

        Raises ValueError or FileNotFoundError for what cannot be read.
        """
        if isinstance(what, Mapping):
            what = [what]
        if isinstance(what, Sequence) and not isinstance(what, str):
            found = [self.embed_record(record) for record in what]
        else:
            fit = [x.embedding for x in self.samples(what)]
            found = [x for x in fit if x is not None]
        return np.stack(found) if found else np.zeros((0, *self.shape), np.float32)

    def samples(
        self, what: Scene, *, limits: Limits = LIMITS, max_rate: float = 30.0
    ) -> Iterator[Sample]:
        """A Sample of each walk, fit or refused, as it ends; memory does not grow.

        max_rate: frames/s that are looked at.
        """
        source, found = self.walks(what, limits=limits, max_rate=max_rate)
        for walk in found:
            yield self.sample(source, walk)

    def walks(self, what: Scene, **options) -> tuple[str, Iterator[Walk]]:
        """(name of the source, its walks), not embedded. options: of `tracks.walks`."""
        limits = options.get("limits", LIMITS)
        if isinstance(what, np.ndarray) and what.ndim == 3:
            bright = what if what.max(initial=0) > 1 else 255 * what.astype(np.uint8)
            return "silhouettes", iter([silhouettes_as_walk(bright, limits)])
        if isinstance(what, np.ndarray):
            video, source = Images(what), "frames"
        else:
            video = what if isinstance(what, Video) else Video(str(what))
            source = video.source
            if video.files and shows_silhouettes(source):
                return source, iter([silhouette_walk(source, limits)])
        # both anew: they serve one thread each
        regions = detector.load(self.detector) if self.detector else None
        see = person.load(self.person_model)
        return source, walks(video, see, regions=regions, **options)

    def sample(self, source: str, walk: Walk) -> Sample:
        """The walk, embedded. Raises ValueError if it lacks what the model reads."""
        embedding, thumbnail = None, b""
        if not walk.refusal:
            embedding = self.embed_record(walk.record("", "", ""), source)
            thumbnail = walk.thumbnail()
        quality = {k: round(float(v), 3) for k, v in walk.quality._asdict().items()}
        return Sample(
            source, walk.number, walk.start, walk.end, walk.heading, quality,
            walk.refusal, embedding, thumbnail,
        )  # fmt: skip

    def embed_record(self, record: Mapping[str, Any], name: str = "") -> np.ndarray:
        """The embedding float32 [S D] of one record.

        Images and key points are scaled to the size that the model reads. At most
        config.evaluation.max_frames frames are read, those in the middle.
        """
        name = name or str(record.get("key", ""))
        for modality in self.modalities:
            stored = "keypoints" if modality == "heatmaps" else modality
            require(
                len(record.get(stored, ())),
                f"{self.name} reads {modality}, and {name} has none: a folder of "
                "silhouettes has silhouettes only. Give a video, or a model of "
                "silhouettes.",
            )
        record = _scaled(record, self.config.data, self.modalities)
        total = len(record["ratios"])
        settings = self.config.evaluation
        used = min(total, settings.max_frames or total)
        first = (total - used) // 2
        index = Index(*(np.array([x]) for x in ("", "", "", name, total)))
        clip = clips.load_clip(
            Source("video", [record], index, ""), 0, np.arange(first, first + used),
            self.modalities,
        )  # fmt: skip
        clip = clip | {"valid": np.ones(used, bool)}
        clip = clips.pad(clip, _length(used, settings.frame_multiple))
        batch = {key: value[None] for key, value in clip.items()}
        batch["labels"] = np.zeros(1, np.int32)
        found = _embed(self.model, self.variables, self.constants, batch)
        return np.asarray(found)[0]

    def distance(self, probe: np.ndarray, gallery: np.ndarray) -> np.ndarray:
        """Distances float32 [Q G] of embeddings [Q S D] and [G S D]; small is near."""
        return pairwise_distance(probe, gallery, metric=self.metric)

    def rerank(
        self, distance: np.ndarray, probe: np.ndarray, gallery: np.ndarray
    ) -> np.ndarray:
        """distance [Q G] with each probe's nearest in the order of the re-ranker.

        `distance` itself if the model has no re-ranker, or nothing is to be ordered.
        """
        if self.reranker is None or not np.size(distance):
            return distance
        return self.reranker(distance, probe, gallery)


def load(
    run_or_weights: str | Path = "", *, person_model: str = "", detector: str = ""
) -> Recogniser:
    """The recogniser of a trained run, of weights in a file, or of shipped weights.

    run_or_weights: the folder of a run of any model (of a re-ranker: its base run with
    it), a card NAME.json of weights or the folder that has it, or the name of weights
    that come with gaitjax ("": the first of them). person_model, detector: see
    Recogniser.

    Raises FileNotFoundError or ValueError if there is no such model, or it is damaged.
    """
    path = Path(run_or_weights)
    shipped = pocket_files.shipped()
    if str(run_or_weights) in ("", *shipped):
        require(
            shipped,
            "No weights come with this gaitjax; name a run's folder or a card of "
            "weights (--model).",
            FileNotFoundError,
        )
        path = shipped.get(str(run_or_weights), next(iter(shipped.values())))
    if pocket_files.is_pocket(path):
        made = _of_pocket(path)
    else:
        require(
            (path / "config.json").is_file(),
            f"{path} is neither a trained run (it has no config.json) nor weights "
            f"(NAME.json); shipped weights: {', '.join(shipped) or 'none'}.",
            FileNotFoundError,
        )
        made = _of_run(path)
    return dataclasses.replace(made, person_model=person_model, detector=detector)


def _of_pocket(path: Path) -> Recogniser:
    pocket = pocket_files.load_pocket(path)
    config = run_folder.from_plain(pocket.card["config"])
    _check(config, path)
    return _recogniser(
        pocket.card["name"], config, models.make(config), pocket.variables
    )


def _of_run(folder: Path) -> Recogniser:
    config: Any = run_folder.read_config(folder)
    if config.model.name == "cargait":
        return _of_reranker(folder, config)
    _check(config, folder)
    setup, state = restore.open_run(config, folder)
    return _recogniser(folder.name, config, setup.model, model_variables(state))


def _of_reranker(folder: Path, config) -> Recogniser:
    """The base run's recogniser, with the re-ranker of `folder`."""
    base = _of_run(Path(config.base_run))
    reranker = rerank_train.load(config, str(folder), base.shape, base.metric)
    method = compare.trained_method(reranker.model, reranker.params, config.evaluation)
    return dataclasses.replace(base, reranker=method, name=folder.name)


def _check(config, path: Path) -> None:
    """Raises Damaged for a config that this version cannot run; sets one device."""
    with config.unlocked(), config.ignore_type():
        config.mesh = {"data": -1, "model": 1}
        config.sharding, config.mode = "data_parallel", "evaluate"
    try:
        settings.check(config)
    except ValueError as error:
        fault = f"its config is not understood: {str(error).rstrip('.')}"
        raise Damaged(path, fault, "Name another model.") from error


def _recogniser(name: str, config, model, variables) -> Recogniser:
    modalities = pipeline.eval_modalities(config)
    variables = jax.device_put(variables, jax.devices()[0])
    constants = {}
    if getattr(model, "uses_text", False):
        constants["text"] = text_vectors.compute(model, variables)
    batch = {
        key: jax.ShapeDtypeStruct((1, *x.shape[1:]), x.dtype)
        for key, x in example_batch(config).items()
        if key in (*modalities, "ratios", "valid", "labels")
    }
    made = jax.eval_shape(functools.partial(_embed, model), variables, constants, batch)
    digest = _fingerprint(config, modalities, variables)
    metric = config.evaluation.metric
    shape = made.shape[1], made.shape[2]
    return Recogniser(
        name, config, metric, shape, modalities, digest, model, variables, constants
    )


def _fingerprint(config, modalities, variables) -> str:
    what = {
        "model": config.model.to_dict(),
        "modalities": modalities,
        "max_frames": config.evaluation.max_frames,
        "metric": config.evaluation.metric,
    }
    digest = hashlib.sha256(json.dumps(what, sort_keys=True).encode())
    for path, leaf in jax.tree.leaves_with_path(variables):
        digest.update(jax.tree_util.keystr(path).encode())
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()[:16]


@functools.partial(jax.jit, static_argnums=0)
def _embed(model, variables, constants, batch):
    return model.apply(variables, batch, train=False, **constants).embeddings


def _length(frames: int, multiple: int) -> int:
    """The padded length of a walk, at least `frames`."""
    fits = [n * multiple for n in LENGTHS if n * multiple >= frames]
    return fits[0] if fits else -(-frames // multiple) * multiple


def _scaled(record: Mapping[str, Any], data, modalities) -> dict[str, Any]:
    """The record with images and key points in the sizes of config.data."""
    import cv2

    record = dict(record)
    silhouettes = np.asarray(record.get("silhouettes", ()))
    side = data.silhouette_size[0]
    if "silhouettes" in modalities and silhouettes.shape[1] != side:
        resized = [cv2.resize(x, (side, side)) for x in silhouettes]
        record["silhouettes"] = np.stack(resized)
    height, width = data.image_size
    if not len(record.get("frames", ())):
        return record
    first = transforms.decode_frames(record["frames"][:1], "video")[0]
    if first.shape[:2] == (height, width):
        return record
    scale = np.array([width / first.shape[1], height / first.shape[0]], np.float32)
    points = np.array(record["keypoints"], np.float32)
    points[..., :2] = (points[..., :2] + 0.5) * scale - 0.5
    record["keypoints"] = points
    if "frames" in modalities:
        images = transforms.decode_frames(record["frames"], "video")
        resized = (cv2.resize(x[..., ::-1], (width, height)) for x in images)
        record["frames"] = [cv2.imencode(".png", x)[1].tobytes() for x in resized]
    if "masks" in modalities:
        masks = [
            cv2.resize(x, (width, height), interpolation=cv2.INTER_NEAREST)
            for x in record["masks"]
        ]
        record["masks"] = np.stack(masks)
    return record
