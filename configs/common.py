"""The base config, every field with its meaning, and the table of data sets.

Configs import ml_collections and each other only, never jax: they are data. A config
file has `get_config(variant)`; `configs/lmgait.py:ccpg` passes "ccpg".
"""

from ml_collections import ConfigDict

# One row per data set: what every config of the zoo takes from it. `num_classes` is
# the number of training identities (`DATA` D.8).
DATASETS = {
    "synthetic": dict(
        train_dataset="synthetic_gait", test_dataset="synthetic_gait", num_classes=60,
        protocols=("ccpg_gait", "ccpg_reid"), image_size=(128, 64), max_frames=48,
    ),
    "cmu_walk": dict(
        train_dataset="synthetic_gait", test_dataset="cmu_walk", num_classes=60,
        protocols=("ccpg_gait", "ccpg_reid"), image_size=(128, 64), max_frames=48,
    ),
    "ccpg": dict(
        train_dataset="ccpg", test_dataset="ccpg", num_classes=100,
        protocols=("ccpg_gait", "ccpg_reid"), image_size=(256, 128), max_frames=250,
    ),
    "sustech1k": dict(
        train_dataset="sustech1k", test_dataset="sustech1k", num_classes=250,
        protocols=("sustech1k",), image_size=(256, 128), max_frames=720,
    ),
    "casia_b_star": dict(
        train_dataset="casia_b_star", test_dataset="casia_b_star", num_classes=74,
        protocols=("casia_b_star",), image_size=(256, 128), max_frames=720,
    ),
    "casia_b": dict(
        train_dataset="casia_b", test_dataset="casia_b", num_classes=74,
        protocols=("casia_b",), image_size=(256, 128), max_frames=720,
    ),
    "oumvlp": dict(
        train_dataset="oumvlp", test_dataset="oumvlp", num_classes=5153,
        protocols=("oumvlp",), image_size=(256, 128), max_frames=720,
    ),
    "gait3d": dict(
        train_dataset="gait3d", test_dataset="gait3d", num_classes=3000,
        protocols=("gait3d",), image_size=(256, 128), max_frames=720,
    ),
    "grew": dict(
        train_dataset="grew", test_dataset="grew", num_classes=20000,
        protocols=("grew",), image_size=(256, 128), max_frames=720,
    ),
    "ccgr_mini": dict(
        train_dataset="ccgr_mini", test_dataset="ccgr_mini", num_classes=571,
        protocols=("ccgr_mini",), image_size=(256, 128), max_frames=720,
    ),
    "kinect_gait": dict(
        train_dataset="kinect_gait", test_dataset="kinect_gait", num_classes=74,
        protocols=("kinect_gait",), image_size=(128, 64), max_frames=720,
    ),
}  # fmt: skip


def choose(variant: str, table: dict) -> dict:
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
            mode="train",  # "train" (continues what exists) | "evaluate" (a run)
            base_run="",  # evaluate: folder of the run to evaluate; "": the workdir
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
                ordered=False,  # True: a window of consecutive frames
                skip=0,  # ordered: frames dropped at random from a longer window
                flip=0.0,  # probability of mirroring a whole sequence
                perspective=0.0,  # probability of shearing a whole sequence
                rotate=0.0,  # of turning it by up to 10 degrees
                shift=0.0,  # of moving it by up to 10/64 of its height
                erasing=0.0,  # of blackening one rectangle of it
                colour=0.0,  # RGB: strength of recolouring whole sequences, 0 to 1
                workers=2,  # reading threads
            ),
            evaluation=dict(
                protocols=row["protocols"],  # names in retrieval.protocols.PROTOCOLS
                metric="euclidean",  # | "cosine"
                batch_size=8,  # sequences per forward pass
                frame_multiple=30,  # sequences are padded up to a multiple of this
                max_frames=row["max_frames"],  # frames beyond are not read
                every_steps=0,  # evaluate during training; 0: only at the end
            ),
            loss=dict(
                triplet=dict(weight=1.0, margin=0.2),
                cross_entropy=dict(weight=1.0, scale=16.0, smoothing=0.1),
            ),
            optimizer=dict(
                name="sgd",  # | "adam" | "adamw"
                learning_rate=0.1,
                momentum=0.9,  # sgd
                weight_decay=5e-4,
                no_decay=(),  # regexes of parameters without decay
                clip_norm=0.0,  # global gradient norm; 0: no clipping
                schedule="milestones",  # | "constant" | "cosine" | "onecycle"
                milestones=(20_000, 40_000, 50_000),
                gamma=0.1,  # factor at each milestone
                rise_steps=0,  # onecycle
                final_learning_rate=0.0,  # cosine, onecycle
            ),
            # Decoder warm-up before the train steps (METHODS 1.3): only these loss
            # terms, only parameters that match `trainable`. steps=0: none.
            warmup=dict(steps=0, losses=(), trainable="^decoder/"),
            train=dict(
                steps=60_000,
                log_every=100,
                checkpoint_every=1_000,
                keep=2,  # newest checkpoints kept
                trainable="",  # regex of what moves after the warm-up; "": everything
            ),
            frozen=(),  # regexes of parameters that are never trained
            mesh=dict(data=-1, model=1),  # devices per axis; -1: the rest
            # ordered (regex, PartitionSpec entries | "fsdp"); the first match wins
            sharding=((".*", ()),),
            pictures=True,  # draw them at the end
        ),
        convert_dict=True,
    )
