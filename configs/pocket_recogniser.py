"""The pocket recogniser: PocketGait on rendered people seen by the person model.

    ./run.sh train configs/pocket_recogniser.py                     # makes the data
    ./run.sh evaluate configs/pocket_recogniser.py:kth_walking \
        --config.base_run=runs/pocket_recogniser                    # people 07 to 12

What gaitjax/weights/pocket/recogniser.safetensors was trained with. The data are
rendered (tfds_builders/seen_gait); making them takes the person model about an hour on
two cores, the training another on one. Each variant tests on another set; all train on
the same one.
"""

from configs import common

# variant -> test set, protocols, frames of a walk that are read
TESTS = {
    "synthetic": ("seen_gait", ("seen_gait",), 48),
    "cmu_walk": ("cmu_walk", ("ccpg_gait", "ccpg_reid"), 48),
    "kth_01_06": (
        "kth_walking/people_01_06", ("kth_walking", "kth_walking_directions"), 720,
    ),
    "kth_walking": (
        "kth_walking/people_07_12", ("kth_walking", "kth_walking_directions"), 720,
    ),
}  # fmt: skip
PEOPLE = 429  # rendered identities of the train split


def get_config(dataset: str = "synthetic"):
    test, protocols, frames = common.choose(dataset, TESTS)
    config = common.base(common.run_name("pocket_recogniser", dataset), "synthetic")
    common.small(config, steps=900, ids=16, frames=12)
    config.data.update(
        train_dataset="seen_gait", test_dataset=test, num_classes=PEOPLE,
        modalities=("silhouettes", "keypoints"), flip=0.0, perspective=0.05,
        rotate=0.1, shift=0.05,
        faults=dict(
            grow=0.2, coarse=0.2, stretch=0.15, shake=0.15, feet=0.2, holes=0.05,
            spurs=0.05, blob=0.03, jitter=0.4, jitter_size=1.5, confuse=0.2, miss=0.1,
        ),
    )  # fmt: skip
    config.evaluation.update(protocols=protocols, max_frames=frames, frame_multiple=24)
    config.model = dict(
        name="pocketgait", embedding_size=64, hidden_size=256, shape_strips=4,
        pose_strips=4, pose_size=128, shape_weight=0.3, pose_weight=1.0,
        steady=0.0125,
    )  # fmt: skip
    return config
