"""Every field of a config: its type, its domain (allowed values) and what it means.

`check` compares a whole config with these classes before any data is opened. The fields
of config.model are those of the model's class (gaitjax/models, rerank/cargait.py).
Values are in configs/.
"""

from typing import Annotated, Any, Literal, NamedTuple

from ml_collections import ConfigDict

from gaitjax import models
from gaitjax.data.faults import Faults
from gaitjax.engine import fields, sharding
from gaitjax.engine.fields import (
    Above,
    AtLeast,
    Between,
    Natural,
    Positive,
    Share,
    Some,
)
from gaitjax.engine.guards import choose, require, require_regex
from gaitjax.engine.optim import OPTIMIZERS, SCHEDULES
from gaitjax.losses import LOSSES
from gaitjax.losses.maps import REDUCTIONS
from gaitjax.parts.model import NOT_IN_CONFIG, Size
from gaitjax.phases import phases_of
from gaitjax.rerank.cargait import CarGait
from gaitjax.rerank.compare import CHOICES
from gaitjax.rerank.lists import WITHOUT_NEGATIVE
from gaitjax.retrieval.definitions import (
    OWN_FORM,
    PROTOCOLS,
    is_protocol,
    protocol_of,
)
from gaitjax.retrieval.distance import METRICS

Text = Annotated[str, fields.Where(len, "not empty")]
Name = Annotated[
    str,
    fields.Where(
        lambda name: name.isprintable() and {*name.split("/")}.isdisjoint(("", "..")),
        "printable, no path out of runs/",
    ),
]
Pattern = Annotated[str, fields.Where(len, "a regular expression, not empty")]
Rules = tuple[tuple[Pattern, Any], ...]  # (regex, spec): see engine.sharding
Weight = Annotated[float, AtLeast(0)]
Seed = Annotated[int, Between(0, 2**31 - 1)]
Devices = Annotated[
    int, fields.Where(lambda n: n == -1 or n > 0, "-1 (the rest) or 1 or more")
]
Modality = Literal[
    "frames",
    "masks",
    "silhouettes",
    "heatmaps",
    "keypoints",
    "regions",
    "captions",
    "parsing",
]
Protocol = Annotated[
    str,
    fields.Where(is_protocol, f"one of {', '.join(PROTOCOLS)}, or {OWN_FORM}"),
]


class Data(NamedTuple):
    data_dir: str  # prepared data sets live in data_dir/NAME/VERSION
    train_dataset: Text
    train_split: Text
    test_dataset: Text
    test_split: Text
    num_classes: Positive  # identities of the train split
    image_size: Size  # of frames and masks as stored
    silhouette_size: Size  # after the cut to the person's columns
    modalities: Some[Modality]  # what the model reads of a record
    ids_per_batch: Positive  # P
    seqs_per_id: Positive  # K
    num_frames: Positive  # T of a training clip
    # clips of min_frames to num_frames frames at random, for models that treat frames
    # as a set; 0: all have num_frames
    min_frames: Natural
    ordered: bool  # a window of consecutive frames
    skip: Natural  # ordered: frames dropped at random from a longer window
    flip: Share  # probability of mirroring a whole sequence
    perspective: Share  # probability of shearing a whole sequence
    rotate: Share  # probability of turning it by up to 10 degrees
    shift: Share  # probability of moving it by up to 10/64 of its height
    erasing: Share  # probability of blackening one rectangle of it
    colour: Share  # RGB: strength of recolouring whole sequences
    workers: Annotated[int, Between(0, 1024)]  # reading threads; 0: cores, at most 16
    # unreadable sequences that training replaces by others of the same person; one more
    # is an error
    max_damaged: Natural
    faults: Faults = None  # of real perception, drawn into clean training clips


class Evaluation(NamedTuple):
    protocols: Some[Protocol]
    metric: Literal[tuple(METRICS)]
    modalities: tuple[Modality, ...]  # (): data.modalities without the masks
    batch_size: Positive  # sequences per forward pass
    frame_multiple: Positive  # sequences are padded up to a multiple of this
    max_frames: Natural  # frames beyond are not read; 0: all are
    every_steps: Natural  # during training, not in a warm-up; 0: only at the end
    checkpoint: Literal["newest", "best"]  # of a finished run; best: by train.keep_best
    # name -> prompts: texts whose masks are compared, of a model with a text branch
    prompts: dict[str, tuple[str, ...]] = None


class Optimizer(NamedTuple):
    name: Literal[tuple(OPTIMIZERS)]
    learning_rate: Annotated[float, Above(0)]
    momentum: Share  # sgd
    weight_decay: Weight
    no_decay: tuple[Pattern, ...]  # parameters without decay
    rates: tuple[tuple[Pattern, Weight], ...]  # (regex, factor); the first match counts
    adam_for: tuple[Pattern, ...]  # muon: parameters that it leaves to Adam
    clip_norm: Weight  # global gradient norm; 0: no clipping
    schedule: Literal[tuple(SCHEDULES)]
    milestones: Annotated[
        tuple[Positive, ...],
        fields.Where(lambda x: list(x) == sorted({*x}), "each above the one before"),
    ]
    gamma: Annotated[float, Above(0)]  # factor at each milestone
    rise_steps: Natural  # onecycle
    decay_steps: Natural  # cosine: length of the fall, then constant; 0: train.steps
    final_learning_rate: Weight  # cosine, onecycle


class WarmUp(NamedTuple):
    """A phase before the training, in which the model's method `warm_up` runs."""

    steps: Natural  # 0: no such phase
    losses: tuple[Literal[tuple(LOSSES)], ...]  # names in config.loss
    trainable: str  # regex of the parameters that move; "": all
    ids_per_batch: Natural  # smaller batches; 0: data.ids_per_batch
    num_frames: Natural  # shorter clips; 0: data.num_frames
    learning_rate: Weight  # 0: the optimizer's


class Train(NamedTuple):
    steps: Natural
    log_every: Positive
    checkpoint_every: Positive
    keep: Positive  # newest checkpoints kept
    # also kept: the one where this result of the evaluations during training is
    # highest, for instance "ccpg_gait/mean/rank1"; "": none
    keep_best: str
    accumulate: (
        Positive  # parts in which a step computes its batch, of whole identities
    )
    trainable: str  # regex of what moves after the warm-up; "": everything


class Mesh(NamedTuple):
    """Devices per axis."""

    data: Devices  # the batch is split over them
    model: Devices  # heads and hidden units are, with config.sharding="tensor_parallel"


class Run(NamedTuple):
    """The config of a gait model."""

    name: Name  # stem of the run's folder, and the title of its pictures
    # train (continues what exists) | evaluate (a run) | import (published weights)
    mode: Literal["train", "evaluate", "import"]
    base_run: str  # evaluate: folder of the run to evaluate; "": the workdir
    checkpoint: str  # import: the published file (.pt, .safetensors, .npz)
    # import: True keeps the seed's values if the file has none that fit, to start a
    # training from another model or other identities
    partial: bool
    seed: Seed  # of parameters, sampling, augmentation, dropout
    data: Data
    evaluation: Evaluation
    loss: dict[str, Any]  # name in LOSSES -> fields of that loss
    optimizer: Optimizer
    train: Train
    frozen: tuple[Pattern, ...]  # regexes of parameters that are never trained
    mesh: Mesh
    sharding: Any  # a name in sharding_rules ("data_parallel", "fsdp", ...)
    sharding_rules: dict[str, Rules]  # configs/sharding_rules.py
    pictures: bool  # draw them at the end
    model: Any
    # train at full size (model.dtype="bfloat16") where JAX has no accelerator
    allow_cpu: bool = False
    warmup: WarmUp = None  # of models with a decoder
    # frozen encoder -> a file, a folder or a hub id; "": the seed's values
    pretrained: dict[str, str] = None


class TripletLoss(NamedTuple):
    weight: Weight
    margin: Weight


class CrossEntropy(NamedTuple):
    weight: Weight
    scale: Annotated[float, Above(0)]  # factor of the logits
    smoothing: Share  # label smoothing


class SupCon(NamedTuple):
    weight: Weight
    temperature: Annotated[float, Above(0)]


class Smoothness(NamedTuple):
    weight: Weight
    reduce: Literal[tuple(REDUCTIONS)]


class PlainLoss(NamedTuple):
    weight: Weight


LOSS_FIELDS = {
    "triplet": TripletLoss,
    "triplet_hard": TripletLoss,
    "cross_entropy": CrossEntropy,
    "supcon": SupCon,
    "smoothness": Smoothness,
    "captions": SupCon,
}


class RerankData(NamedTuple):
    data_dir: str  # of the prepared data sets; "": the base run's
    train_dataset: str  # whose train split is learned from; "": the base run's
    test_dataset: str  # whose test split is re-ranked; "": the base run's


class Lists(NamedTuple):
    size: Positive  # v, nearest training sequences of each training sequence
    # a list of positives only: "skip" its anchor | "nearest": take the nearest sequence
    # of another identity
    without_negative: Literal[WITHOUT_NEGATIVE]
    # False: an identity's other sequences of the anchor's view are left out, as the
    # protocols leave them out
    same_view: bool


class RerankLoss(NamedTuple):
    easy_weight: Weight  # beta, of triplets already in order; 1: plain BPR
    classification_weight: Weight  # alpha; 0: ranking loss alone


class Validation(NamedTuple):
    share: Annotated[float, Above(0), Between(0, 0.9)]  # held-out training identities
    batches: Positive  # batches of train.anchors triplets, always the same
    every_steps: Positive  # the lowest ranking loss is kept


class RerankTrain(NamedTuple):
    steps: Natural
    anchors: Positive  # triplets a step
    log_every: Positive
    checkpoint_every: Positive
    keep: Positive  # newest checkpoints kept
    accumulate: Positive  # parts in which a step computes its triplets


class RerankEvaluation(NamedTuple):
    # rows of the table besides the base model; gcr_views: GCR with its second graph,
    # between different views
    rerankers: Some[Literal[CHOICES]]
    shortlist: Positive  # K, of CarGait: how many are put in a new order
    wide_shortlist: Positive  # cascade: of LBR, before CarGait's K
    protocols: tuple[Protocol, ...]  # (): the base run's
    chunk: Positive  # probes that CarGait scores at once
    # nearest that LBR mixes; 0: chosen on the held-out training identities, for
    # galleries that are not much larger than the published 100
    lbr_neighbours: Natural = 100


class RerankRun(NamedTuple):
    """The config of a re-ranker."""

    name: Name  # stem of the run's folder
    # rerank (trains if not finished, then compares) | train (only trains)
    mode: Literal["rerank", "train", "evaluate"]
    base_run: str  # folder of the trained base model
    seed: Seed  # of parameters, held-out identities, triplets, dropout
    data: RerankData
    lists: Lists
    model: Any
    loss: RerankLoss
    optimizer: Optimizer
    validation: Validation
    train: RerankTrain
    evaluation: RerankEvaluation
    mesh: Mesh
    sharding: Any
    sharding_rules: dict[str, Rules]
    pictures: bool  # ranked lists before and after, attention between strips
    # folder of a trained re-ranker to be used on this base run as it is; "": train one
    reranker: str = ""


def check(config) -> None:
    """Raises ValueError, naming field, value and domain, for a config that cannot run.

    Reads the config alone, so that it runs before data is opened, in every mode.
    """
    model = config.get("model") if isinstance(config, ConfigDict) else None
    require(
        isinstance(model, ConfigDict) and "name" in model,
        "A config file's get_config must return an ml_collections.ConfigDict with the "
        f"field model.name, as those in configs/ do; got {type(config).__name__}.",
    )
    reranker = config.model.name == "cargait"
    choose(config.model.name, [*sorted(models.MODELS), "cargait"], "config.model.name")
    fields.check(config, RerankRun if reranker else Run, "config")
    if not isinstance(config.sharding, str):
        fields.check_value(config.sharding, Rules, "config.sharding")
    sharding.check_rules(sharding.rules_of(config))
    optimizer = config.optimizer
    for field in ("no_decay", "rates", "adam_for"):
        for pattern in optimizer[field]:
            pattern = pattern if isinstance(pattern, str) else pattern[0]
            require_regex(pattern, f"config.optimizer.{field}")
    require(
        optimizer.schedule != "cosine" or optimizer.decay_steps or config.train.steps,
        "config.optimizer.schedule='cosine' needs config.train.steps or "
        "config.optimizer.decay_steps above 0.",
    )
    require(
        optimizer.schedule != "onecycle" or optimizer.rise_steps < config.train.steps,
        f"config.optimizer.rise_steps={optimizer.rise_steps} must be below "
        f"config.train.steps={config.train.steps}.",
    )
    if reranker:
        given = {k: v for k, v in config.model.items() if k != "name"}
        fields.check(given, CarGait, "config.model", skip=("metric", *NOT_IN_CONFIG))
        require(
            config.model.hidden_size % config.model.num_heads == 0,
            f"config.model.hidden_size={config.model.hidden_size} is no multiple of "
            f"config.model.num_heads={config.model.num_heads}; choose one that is.",
        )
        return
    data = config.data
    require(
        data.min_frames <= data.num_frames,
        f"config.data.min_frames={data.min_frames} is above config.data.num_frames="
        f"{data.num_frames}.",
    )
    require_regex(config.train.trainable, "config.train.trainable")
    models.check(config)
    for name in config.loss:
        choose(name, LOSSES, "config.loss")
        options = LOSS_FIELDS.get(name, PlainLoss)
        fields.check(config.loss[name], options, f"config.loss.{name}")
    for pattern in config.frozen:
        require_regex(pattern, "config.frozen")
    phases = phases_of(config)
    require(
        len(phases) == 1 or hasattr(models.MODELS[config.model.name], "warm_up"),
        f"config.warmup.steps={config.get('warmup', {}).get('steps')}, but "
        f"{config.model.name} has no warm-up; set 0.",
    )
    for phase in phases if config.mode == "train" else ():
        _check_losses(phase)
    _check_best(config)


def _check_losses(phase) -> None:
    """Raises ValueError where a phase's losses could not train anything."""
    field = "config.warmup.losses" if phase.method else "config.loss"
    used = [name for name, loss in phase.config.loss.items() if loss.weight > 0]
    require(used, f"{field} has no loss of weight above 0: nothing would be trained.")
    identities, parts = phase.config.data.ids_per_batch, phase.config.train.accumulate
    require(
        "triplet" not in used or identities > 1,
        "config.loss.triplet compares identities, but config.data.ids_per_batch (or "
        "config.warmup's) is 1.",
    )
    require(
        identities % parts == 0,
        f"config.train.accumulate={parts} does not divide config.data.ids_per_batch="
        f"{identities} (or config.warmup's); a part holds whole identities, choose a "
        "divisor.",
    )


def _check_best(config) -> None:
    best, protocols = config.train.keep_best, config.evaluation.protocols
    if best and config.mode == "train":
        require(
            config.evaluation.every_steps,
            f"config.train.keep_best={best!r} needs evaluations during training: set "
            "config.evaluation.every_steps.",
        )
        require(
            best.partition("/")[0] in protocols,
            f"config.train.keep_best={best!r} is no protocol/task/metric of "
            f"config.evaluation.protocols: {', '.join(protocols)}.",
        )
        protocol, _, rest = best.partition("/")
        task, _, metric = rest.partition("/")
        definition = protocol_of(protocol)
        choose(
            task,
            [*definition.tasks, *(["mean"] if definition.mean else [])],
            f"task in config.train.keep_best={best!r}:",
        )
        ranks = [f"rank{k}" for k in definition.ranks]
        if definition.both:
            ranks += [f"{name}_matched" for name in ranks]
        pairs = definition.average == "view_pairs"
        others = ["rank1_same_view"] if pairs else ["mAP", "mINP"]
        choose(metric, ranks + others, f"metric in config.train.keep_best={best!r}:")
