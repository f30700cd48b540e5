"""GaitBase (Fan et al., "OpenGait", CVPR 2023): silhouettes, a ResNet per frame.

    ./run.sh train configs/gaitbase.py                            # embedded data
    ./run.sh train configs/gaitbase.py:ccpg --manual_dir=DIR      # published recipe

The embedded default (`synthetic`, tested on `cmu_walk` with that variant) is narrow,
has 8 strips and trains 400 steps: about 7 minutes on 2 CPU cores. The other variants
are OpenGait's recipes: SGD 0.1 with momentum 0.9 and weight decay 5e-4, x0.1 at the
milestones, its augmentation. KinectGait has no recipe and takes CASIA-B's.

Published Rank-1 (not measured by us): CASIA-B NM/BG/CL 97.6/94.0/77.4, identical views
left out; OU-MVLP 90.8; Gait3D 64.6; GREW 60.1; CCPG gait protocol CL/UP/DN/BG
71.6/75.0/76.8/78.6 (LMGait paper, Table 1).
"""

from configs import common

WILD = dict(perspective=0.2, flip=0.2, rotate=0.2)
# P, K, steps, milestones, range of unordered frames, augmentation. Where clips have
# several lengths, OpenGait augments all clips of a device alike; here each clip is
# augmented by itself.
RECIPES = {
    "casia_b": (
        8, 16, 60_000, (20_000, 40_000, 50_000), (30, 30),
        dict(rotate=0.3, erasing=0.3),
    ),
    "oumvlp": (32, 8, 120_000, (60_000, 80_000, 100_000), (30, 30), {}),
    "gait3d": (32, 4, 60_000, (20_000, 40_000, 50_000), (10, 50), WILD),
    "grew": (32, 4, 180_000, (80_000, 120_000, 150_000), (20, 40), WILD),
    "ccpg": (8, 16, 60_000, (20_000, 40_000, 50_000), (30, 30), {}),
}  # fmt: skip
RECIPES["kinect_gait"] = RECIPES["casia_b"]  # both have 74 training identities
SMALL = ("synthetic", "cmu_walk")


def get_config(dataset: str = "synthetic"):
    recipe = common.choose(dataset, RECIPES | dict.fromkeys(SMALL))
    config = common.base(common.run_name("gaitbase", dataset), dataset)
    config.data.modalities = ("silhouettes",)
    config.model = dict(
        name="gaitbase",
        channels=(64, 128, 256, 512),
        layers=(1, 1, 1, 1),
        strides=(1, 2, 2, 1),
        max_pool=False,
        num_strips=16,
        embedding_size=256,
        retrieve="before_neck",
        dtype="float32",
    )
    if recipe is None:
        common.small(config)
        config.model.update(
            channels=(16, 32, 48, 64), strides=(2, 2, 2, 1), num_strips=8,
            embedding_size=64,
        )  # fmt: skip
        return config
    ids, seqs, config.train.steps, milestones, frames, augmentation = recipe
    config.optimizer.milestones = milestones
    config.data.update(augmentation, ids_per_batch=ids, seqs_per_id=seqs)
    config.data.min_frames, config.data.num_frames = frames
    config.model.dtype = "bfloat16"
    return config
