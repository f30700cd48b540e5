"""SkeletonGait++ (Fan et al., AAAI 2024): silhouettes and skeleton heat maps, fused.

    ./run.sh train configs/skeletongaitpp.py                         # embedded data
    ./run.sh train configs/skeletongaitpp.py:ccpg --manual_dir=DIR   # published recipe

The embedded default is narrow, has 8 strips and trains 300 steps: about 9 minutes on 2
CPU cores. The other variants are OpenGait's recipes: SGD, 30 ordered frames out of a
window of 34, one augmentation for both modalities of a clip. KinectGait and CCGR-mini
have no recipe and take CCPG's, CCGR-mini with the P x K that BigGait has on it.

Published Rank-1 (not measured by us): CCPG gait protocol CL/UP/DN/BG
79.1/83.9/81.7/89.9 (LMGait paper, Table 1); CCPG 90.1/95.0/92.9/97.0, whose source
does not name the protocol (by their size re-identification); SUSTech1K all 85.6
(paper) or 81.3 (OpenGait); Gait3D 77.6; GREW 85.8.
"""

from configs import common

SHALLOW, DEEP = (1, 1, 1, 1), (1, 4, 4, 1)
# layers, P, K, frames, steps, milestones
RECIPES = {
    "gait3d": (DEEP, 32, 4, 30, 60_000, (20_000, 30_000, 40_000)),
    "grew": (DEEP, 32, 4, 30, 180_000, (80_000, 120_000, 150_000)),
    "ccpg": (SHALLOW, 8, 16, 30, 60_000, (20_000, 30_000, 40_000)),
    "ccgr_mini": (SHALLOW, 8, 8, 30, 60_000, (20_000, 30_000, 40_000)),
    "sustech1k": (SHALLOW, 8, 8, 10, 50_000, (20_000, 30_000, 40_000)),
}
RECIPES["kinect_gait"] = RECIPES["ccpg"]
SMALL = ("synthetic", "cmu_walk")


def get_config(dataset: str = "synthetic"):
    recipe = common.choose(dataset, RECIPES | dict.fromkeys(SMALL))
    config = common.base(common.run_name("skeletongaitpp", dataset), dataset)
    config.data.modalities = ("silhouettes", "heatmaps")
    config.data.ordered, config.data.skip = True, 4
    config.data.update(perspective=0.2, flip=0.2, rotate=0.2)
    config.model = dict(
        name="skeletongaitpp",
        channels=(64, 128, 256, 512),
        layers=SHALLOW,
        strides=(2, 2, 1),
        squeeze=16,
        num_strips=16,
        embedding_size=256,
        retrieve="before_neck",
        dtype="float32",
    )
    if recipe is None:
        common.small(config, steps=300, ids=6, frames=6)
        config.data.update(perspective=0.0, rotate=0.0)
        config.model.update(
            channels=(4, 16, 32, 64), strides=(2, 2, 2), squeeze=1, num_strips=8,
            embedding_size=64,
        )  # fmt: skip
        return config
    config.model.layers, ids, seqs, frames, config.train.steps, milestones = recipe
    config.data.update(ids_per_batch=ids, seqs_per_id=seqs, num_frames=frames)
    config.optimizer.milestones = milestones
    config.model.dtype = "bfloat16"
    return config
