"""SkeletonGait (Fan et al., AAAI 2024): DeepGaitV2-P3D on skeleton heat maps.

    ./run.sh train configs/skeletongait.py                           # embedded data
    ./run.sh train configs/skeletongait.py:gait3d --manual_dir=DIR   # published recipe

Heat maps are drawn from key points if a data set has none. The embedded default is
narrow, has 8 strips and trains 300 steps: about 6 minutes on 2 CPU cores. The other
variants are OpenGait's recipes: GaitBase's SGD, 30 ordered frames out of a window of
34. KinectGait and CCGR-mini have no recipe and take CCPG's, CCGR-mini with the P x K
that BigGait has on it.

Published Rank-1 (not measured by us): Gait3D 38.1; GREW 77.4; OU-MVLP 67.4; SUSTech1K
all 51.5; CCPG CL/UP/DN/BG 52.4/65.4/72.8/80.9. The source of the CCPG numbers does not
name their protocol; their size points to re-identification. On CCPG alone the published
model retrieves by the embedding after the BN neck (OpenGait's `use_emb2`), as here.
"""

from configs import common

SHALLOW, DEEP = (1, 1, 1, 1), (1, 4, 4, 1)
TILT = dict(perspective=0.2, flip=0.2, rotate=0.2)
# layers, P, K, frames, steps, milestones, augmentation
RECIPES = {
    "oumvlp": (
        SHALLOW, 32, 8, 30, 120_000, (60_000, 80_000, 100_000), dict(flip=0.5)
    ),
    "gait3d": (DEEP, 32, 4, 30, 60_000, (20_000, 30_000, 40_000), TILT),
    "grew": (DEEP, 32, 4, 30, 180_000, (80_000, 120_000, 150_000), TILT),
    "ccpg": (SHALLOW, 8, 16, 30, 60_000, (20_000, 30_000, 40_000), TILT),
    "ccgr_mini": (SHALLOW, 8, 8, 30, 60_000, (20_000, 30_000, 40_000), TILT),
    "sustech1k": (SHALLOW, 8, 8, 10, 50_000, (20_000, 30_000, 40_000), TILT),
}  # fmt: skip
RECIPES["kinect_gait"] = RECIPES["ccpg"]
SMALL = ("synthetic", "cmu_walk")


def get_config(dataset: str = "synthetic"):
    recipe = common.choose(dataset, RECIPES | dict.fromkeys(SMALL))
    config = common.base(common.run_name("skeletongait", dataset), dataset)
    config.data.modalities = ("heatmaps",)
    config.data.ordered, config.data.skip = True, 4
    config.model = dict(
        name="skeletongait",
        kind="p3d",
        channels=(64, 128, 256, 512),
        layers=SHALLOW,
        strides=(2, 2, 1),
        num_strips=16,
        embedding_size=256,
        retrieve="after_neck" if dataset == "ccpg" else "before_neck",
        dtype="float32",
    )
    if recipe is None:
        common.small(config, steps=300, ids=6, frames=6)
        config.model.update(
            channels=(8, 16, 32, 64), strides=(2, 2, 2), num_strips=8, embedding_size=64
        )
        return config
    layers, ids, seqs, frames, steps, milestones, augmentation = recipe
    config.model.layers, config.train.steps = layers, steps
    config.data.update(
        augmentation, ids_per_batch=ids, seqs_per_id=seqs, num_frames=frames
    )
    config.optimizer.milestones = milestones
    config.model.dtype = "bfloat16"
    return config
