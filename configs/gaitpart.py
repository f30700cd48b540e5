"""GaitPart (Fan et al., CVPR 2020): silhouettes, micro-motion of each part.

    ./run.sh train configs/gaitpart.py               # embedded synthetic data
    ./run.sh train configs/gaitpart.py:casia_b       # published recipe

Published Rank-1 (not measured by us): CASIA-B NM/BG/CL 96.1/90.7/78.7 (OpenGait; paper
96.2/91.5/78.7), without identical views; OU-MVLP 88.6; GREW 47.6; Gait3D 28.2. The
recipes are OpenGait's: Adam, 30 ordered frames of windows of 40. Where it states no
weight decay ours is 0; Gait3D's is that of Gait3D-Parsing (cosine distance); CCPG and
KinectGait have none, they get CASIA-B's. `synthetic` is reduced (narrow, 8 strips, 400
steps) so that it trains in minutes on 2 CPU cores.
"""

from configs import common

SLOW = dict(name="adam", learning_rate=1e-4, weight_decay=0.0)
FAST = dict(name="adam", learning_rate=1e-3, weight_decay=5e-4)
NARROW = dict(channels=(32, 64, 128), halvings=(0, 2, 3), embedding_size=128)
WIDE = dict(channels=(32, 64, 128, 256), halvings=(0, 0, 3, 3), embedding_size=256)
# size, optimizer, milestones, steps, P, K (`ZOO` B.2)
RECIPES = {
    "casia_b": (NARROW, SLOW, (100_000,), 120_000, 8, 16),
    "oumvlp": (WIDE, SLOW, (150_000,), 250_000, 32, 16),
    "grew": (WIDE, SLOW, (150_000,), 250_000, 32, 4),
    "gait3d": (NARROW, FAST, (30_000, 90_000), 180_000, 32, 4),
    "ccpg": (NARROW, SLOW, (100_000,), 120_000, 8, 16),
}
RECIPES["kinect_gait"] = RECIPES["casia_b"]  # as many identities
SMALL = ("synthetic", "cmu_walk")


def get_config(dataset: str = "synthetic"):
    recipe = common.choose(dataset, RECIPES | dict.fromkeys(SMALL))
    config = common.base(common.run_name("gaitpart", dataset), dataset)
    config.data.modalities = ("silhouettes",)
    config.data.ordered, config.data.skip = True, 10
    config.model = dict(
        name="gaitpart",
        **NARROW,  # halvings: how often each pair's maps are cut into strips
        num_strips=16,
        squeeze=4,  # of the attention over time
        dtype="float32",
    )
    config.loss = dict(triplet=dict(weight=1.0, margin=0.2))
    if recipe is None:
        common.small(config)
        config.model.update(channels=(8, 16, 32), num_strips=8, embedding_size=64)
        return config
    size, optimizer, milestones, config.train.steps, ids, seqs = recipe
    config.model.update(size)
    config.optimizer.update(optimizer, milestones=milestones)
    config.data.ids_per_batch, config.data.seqs_per_id = ids, seqs
    if dataset == "gait3d":
        config.evaluation.metric = "cosine"
    config.model.dtype = "bfloat16"
    return config
