"""DeepGaitV2 (Fan et al., "Exploring Deep Models for Practical Gait Recognition",
2023): silhouettes, a deep residual network with temporal convolutions.

    ./run.sh train configs/deepgaitv2.py                          # embedded data
    ./run.sh train configs/deepgaitv2.py:gait3d --manual_dir=DIR  # published recipe
    ./run.sh train configs/deepgaitv2.py:grew --manual_dir=DIR --config.model.kind=3d

The embedded default is narrow, has 8 strips and trains 300 steps: about 4 minutes on 2
CPU cores. The other variants are OpenGait's recipes: GaitBase's schedules, 30 ordered
frames out of a window of 34. KinectGait has no recipe and takes CASIA-B's.

Published Rank-1 (not measured by us): Gait3D 74.4 (P3D); GREW 79.4 and OU-MVLP 92.0
(3D); SUSTech1K NM/BG/CL/CR/UB/UF/OC/NT/all
87.5/84.1/53.4/81.3/86.2/84.8/88.5/28.8/82.4; CCPG gait protocol CL/UP/DN/BG
78.6/84.8/80.7/89.2 (LMGait paper, Table 1).
"""

from configs import common

SHALLOW, DEEP = (1, 1, 1, 1), (1, 4, 4, 1)
# layers, P, K, frames, steps, milestones
RECIPES = {
    "casia_b": (SHALLOW, 8, 16, 30, 60_000, (20_000, 40_000, 50_000)),
    "oumvlp": (SHALLOW, 32, 8, 30, 120_000, (60_000, 80_000, 100_000)),
    "gait3d": (DEEP, 32, 4, 30, 60_000, (20_000, 40_000, 50_000)),
    "grew": (DEEP, 32, 4, 30, 180_000, (80_000, 120_000, 150_000)),
    "ccpg": (SHALLOW, 8, 16, 30, 60_000, (20_000, 40_000, 50_000)),
    "sustech1k": (SHALLOW, 8, 8, 10, 50_000, (20_000, 30_000, 40_000)),
}
RECIPES["kinect_gait"] = RECIPES["casia_b"]  # both have 74 training identities
SMALL = ("synthetic", "cmu_walk")


def get_config(dataset: str = "synthetic"):
    recipe = common.choose(dataset, RECIPES | dict.fromkeys(SMALL))
    config = common.base(common.run_name("deepgaitv2", dataset), dataset)
    config.data.modalities = ("silhouettes",)
    config.data.ordered, config.data.skip = True, 4
    config.data.update(perspective=0.2, flip=0.2, rotate=0.2)
    config.model = dict(
        name="deepgaitv2",
        kind="p3d",
        channels=(64, 128, 256, 512),
        layers=SHALLOW,
        strides=(2, 2, 1),
        num_strips=16,
        embedding_size=256,
        retrieve="before_neck",
        dtype="float32",
    )
    if recipe is None:
        common.small(config, steps=300, ids=6, frames=6)
        config.data.update(perspective=0.0, rotate=0.0)
        config.model.update(
            channels=(8, 16, 32, 64), strides=(2, 2, 2), num_strips=8, embedding_size=64
        )
        return config
    config.model.layers, ids, seqs, frames, config.train.steps, milestones = recipe
    config.data.ids_per_batch, config.data.seqs_per_id = ids, seqs
    config.data.num_frames = frames
    config.optimizer.milestones = milestones
    config.model.dtype = "bfloat16"
    return config
