"""The base config and the table of data sets; gaitjax/settings.py explains the fields.

Configs import ml_collections and each other only, never jax: they are data. A config
file has `get_config(variant)`; `configs/lmgait.py:ccpg` passes "ccpg".
"""

from ml_collections import ConfigDict

from configs.sharding_rules import SHARDING_RULES


def _benchmark(name: str, num_classes: int, *protocols: str) -> dict:
    # max_frames: the field's limit in evaluation; workers=0: a thread for each core
    return dict(
        train_dataset=name, test_dataset=name, num_classes=num_classes,
        protocols=protocols, image_size=(256, 128), max_frames=720,
        workers=0,
    )  # fmt: skip


_SMALL = dict(
    train_dataset="synthetic_gait", num_classes=60, image_size=(128, 64), max_frames=48,
    workers=2, protocols=("ccpg_gait", "ccpg_reid"),
)  # fmt: skip
# One row per data set: what every config of the zoo takes from it. `num_classes` is
# the number of training identities of the official split.
DATASETS = {
    "synthetic": dict(_SMALL, test_dataset="synthetic_gait"),
    "cmu_walk": dict(_SMALL, test_dataset="cmu_walk"),
    "kth_walking": _SMALL
    | dict(test_dataset="kth_walking", protocols=("kth_walking",)),
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
            name=name, mode="train", base_run="", checkpoint="", partial=False, seed=0,
            data=dict(
                data_dir="data",
                train_dataset=row["train_dataset"], train_split="train",
                test_dataset=row["test_dataset"], test_split="test",
                num_classes=row["num_classes"],
                image_size=row["image_size"], silhouette_size=(64, 44),
                modalities=("silhouettes",),
                ids_per_batch=8, seqs_per_id=16, num_frames=30, min_frames=0,
                ordered=False, skip=0,
                flip=0.0, perspective=0.0, rotate=0.0, shift=0.0, erasing=0.0,
                colour=0.0,
                workers=row["workers"], max_damaged=10,
            ),
            evaluation=dict(
                protocols=row["protocols"], metric="euclidean", modalities=(),
                batch_size=8, frame_multiple=30, max_frames=row["max_frames"],
                every_steps=0, checkpoint="newest",
            ),
            loss=dict(
                triplet=dict(weight=1.0, margin=0.2),
                cross_entropy=dict(weight=1.0, scale=16.0, smoothing=0.1),
            ),
            optimizer=optimizer(),
            train=dict(
                steps=60_000, log_every=100, checkpoint_every=1_000, keep=2,
                keep_best="", accumulate=1, trainable="",
            ),
            frozen=(),
            mesh=dict(data=-1, model=1),
            sharding="data_parallel", sharding_rules=SHARDING_RULES,
            pictures=True, allow_cpu=False,
        ),
        convert_dict=True,
    )  # fmt: skip


def optimizer(**changes) -> dict:
    """config.optimizer: the SGD of OpenGait's recipes, but for `changes`."""
    fields = dict(
        name="sgd", learning_rate=0.1, momentum=0.9, weight_decay=5e-4, no_decay=(),
        rates=(), adam_for=(), clip_norm=0.0, schedule="milestones",
        milestones=(20_000, 40_000, 50_000), gamma=0.1, rise_steps=0, decay_steps=0,
        final_learning_rate=0.0,
    )  # fmt: skip
    return fields | changes


def warm_up(**changes) -> dict:
    """config.warmup, of models with a decoder."""
    fields = dict(
        steps=0, losses=(), trainable="^decoder/", ids_per_batch=0, num_frames=0,
        learning_rate=0.0,
    )  # fmt: skip
    return fields | changes


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
