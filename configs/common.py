"""The base config, every field with its meaning, and the table of data sets.

Configs import ml_collections and each other only, never jax: they are data. A config
file has `get_config(variant)`; `configs/lmgait.py:ccpg` passes "ccpg".
"""

from ml_collections import ConfigDict

from configs.sharding_rules import SHARDING_RULES


def _benchmark(name: str, num_classes: int, *protocols: str) -> dict:
    # 720 frames of a walk are the field's limit in evaluation
    return dict(
        train_dataset=name, test_dataset=name, num_classes=num_classes,
        protocols=protocols, image_size=(256, 128), max_frames=720,
    )  # fmt: skip


_SMALL = dict(
    train_dataset="synthetic_gait", num_classes=60, image_size=(128, 64), max_frames=48,
    protocols=("ccpg_gait", "ccpg_reid"),
)  # fmt: skip
# One row per data set: what every config of the zoo takes from it. `num_classes` is
# the number of training identities of the official split.
DATASETS = {
    "synthetic": dict(_SMALL, test_dataset="synthetic_gait"),
    "cmu_walk": dict(_SMALL, test_dataset="cmu_walk"),
    "ccpg": _benchmark("ccpg", 100, "ccpg_gait", "ccpg_reid"),
    "sustech1k": _benchmark("sustech1k", 250, "sustech1k"),
    "casia_b_star": _benchmark(
        "casia_b_star", 74, "casia_b_star", "casia_b_star_cross_view"
    ),
    "casia_b": _benchmark("casia_b", 74, "casia_b", "casia_b_cross_view"),
    "oumvlp": _benchmark("oumvlp", 5153, "oumvlp"),
    "gait3d": _benchmark("gait3d", 3000, "gait3d"),
    "grew": _benchmark("grew", 20000, "grew"),
    "ccgr_mini": _benchmark("ccgr_mini", 571, "ccgr_mini"),
    "kinect_gait": dict(
        _benchmark("kinect_gait", 74, "kinect_gait"), image_size=(128, 64)
    ),
}


def choose(variant: str, table: dict):
    """table[variant], or a ValueError that lists the variants."""
    if variant not in table:
        raise ValueError(
            f"Unknown variant {variant!r} of this config; choose from "
            f"{', '.join(sorted(table))} (configs/NAME.py:VARIANT)."
        )
    return table[variant]


def base(name: str, dataset: str) -> ConfigDict:
    """All fields that the program reads except `model`; a config overrides them."""
    row = choose(dataset, DATASETS)
    return ConfigDict(
        dict(
            name=name,  # stem of the run's folder, and the title of its pictures
            # "train" (continues what exists) | "evaluate" (a run) | "import" (published
            # weights, docs/models.md)
            mode="train",
            base_run="",  # evaluate: folder of the run to evaluate; "": the workdir
            checkpoint="",  # import: the published file (.pt, .safetensors, .npz)
            # import: True keeps the seed's values where the file has none that fit, to
            # start a training from another model or other identities
            partial=False,
            seed=0,  # of parameters, sampling, augmentation, dropout
            data=dict(
                data_dir="data",  # prepared data sets live in data_dir/NAME/VERSION
                train_dataset=row["train_dataset"],
                train_split="train",
                test_dataset=row["test_dataset"],
                test_split="test",
                num_classes=row["num_classes"],  # identities of the train split
                image_size=row["image_size"],  # frames and masks as stored, (H, W)
                silhouette_size=(64, 44),  # after the cut
                modalities=("silhouettes",),  # what the model reads of a record
                ids_per_batch=8,  # P
                seqs_per_id=16,  # K
                num_frames=30,  # T of a training clip
                # clips of min_frames to num_frames frames at random, for models that
                # treat frames as a set; 0: all have num_frames
                min_frames=0,
                ordered=False,  # True: a window of consecutive frames
                skip=0,  # ordered: frames dropped at random from a longer window
                flip=0.0,  # probability of mirroring a whole sequence
                perspective=0.0,  # probability of shearing a whole sequence
                rotate=0.0,  # of turning it by up to 10 degrees
                shift=0.0,  # of moving it by up to 10/64 of its height
                erasing=0.0,  # of blackening one rectangle of it
                colour=0.0,  # RGB: strength of recolouring whole sequences, 0 to 1
                workers=2,  # reading threads
                # unreadable sequences that training replaces by others of the same
                # person; one more is an error
                max_damaged=10,
            ),
            evaluation=dict(
                protocols=row["protocols"],  # names in retrieval.protocols.PROTOCOLS
                metric="euclidean",  # | "cosine"
                modalities=(),  # (): data.modalities without the masks
                batch_size=8,  # sequences per forward pass
                frame_multiple=30,  # sequences are padded up to a multiple of this
                max_frames=row["max_frames"],  # frames beyond are not read
                # evaluate during training (not in a warm-up); 0: only at the end
                every_steps=0,
                checkpoint="newest",  # of a finished run | "best" (train.keep_best)
            ),
            loss=dict(
                triplet=dict(weight=1.0, margin=0.2),
                cross_entropy=dict(weight=1.0, scale=16.0, smoothing=0.1),
            ),
            optimizer=optimizer(),
            train=dict(
                steps=60_000,
                log_every=100,
                checkpoint_every=1_000,
                keep=2,  # newest checkpoints kept
                # also kept: the one where this result of the evaluations during
                # training is highest, for instance "ccpg_gait/mean/rank1"; "": none
                keep_best="",
                accumulate=1,  # parts of ids_per_batch / accumulate identities per step
                trainable="",  # regex of what moves after the warm-up; "": everything
            ),
            frozen=(),  # regexes of parameters that are never trained
            mesh=dict(data=-1, model=1),  # devices per axis; -1: the rest
            # a name in sharding_rules ("data_parallel", "fsdp", "tensor_parallel")
            sharding="data_parallel",
            sharding_rules=SHARDING_RULES,
            pictures=True,  # draw them at the end
        ),
        convert_dict=True,
    )


def optimizer(**changes) -> dict:
    """The fields of config.optimizer: OpenGait's SGD, but for `changes`."""
    return (
        dict(
            name="sgd",  # | "adam" | "adamw"
            learning_rate=0.1,
            momentum=0.9,  # sgd
            weight_decay=5e-4,
            no_decay=(),  # regexes of parameters without decay
            rates=(),  # (regex, factor): another learning rate; the first match counts
            clip_norm=0.0,  # global gradient norm; 0: no clipping
            schedule="milestones",  # | "constant" | "cosine" | "onecycle"
            milestones=(20_000, 40_000, 50_000),
            gamma=0.1,  # factor at each milestone
            rise_steps=0,  # onecycle
            decay_steps=0,  # cosine: constant after so many steps; 0: train.steps
            final_learning_rate=0.0,  # cosine, onecycle
        )
        | changes
    )


def warm_up(**changes) -> dict:
    """config.warmup, of models with a decoder: a phase before the training steps in
    which the model's `warm_up` runs in place of the whole model."""
    return (
        dict(
            steps=0,  # 0: no such phase
            losses=(),  # names in config.loss
            trainable="^decoder/",  # regex of the parameters that move
            ids_per_batch=0,  # smaller batches; 0: data.ids_per_batch
            num_frames=0,  # shorter clips; 0: data.num_frames
            learning_rate=0.0,  # 0: the optimizer's
        )
        | changes
    )


def run_name(name: str, dataset: str) -> str:
    """ "gaitset" for the embedded default, "gaitset_ccpg" for others."""
    return name if dataset == "synthetic" else f"{name}_{dataset}"


def small(
    config,
    *,
    steps: int = 400,
    learning_rate: float = 2e-3,
    ids: int = 8,
    frames: int = 8,
) -> None:
    """Batches, optimizer and evaluation of the `synthetic` variants: the embedded data
    (60 identities, walks of 24 frames) in minutes on 2 CPU cores."""
    config.data.ids_per_batch, config.data.seqs_per_id = ids, 4
    config.data.num_frames = frames
    config.data.skip = 0
    config.data.flip = 0.5
    config.evaluation.frame_multiple = 24
    config.evaluation.batch_size = 16
    config.optimizer.update(
        name="adamw", learning_rate=learning_rate, weight_decay=1e-2,
        schedule="onecycle", rise_steps=steps // 8,
    )  # fmt: skip
    config.train.update(steps=steps, log_every=10, checkpoint_every=100)
