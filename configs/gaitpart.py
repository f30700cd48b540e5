"""GaitPart (Fan et al., CVPR 2020): silhouettes, the short-term motion of each part.

    ./run.sh train configs/gaitpart.py                            # embedded data
    ./run.sh train configs/gaitpart.py:casia_b --manual_dir=DIR   # published recipe

The embedded default is narrow, has 8 strips and trains 400 steps: about 5 minutes on 2
CPU cores. The other variants are OpenGait's recipes: Adam, 30 ordered frames out of a
window of 40. Weight decay is 0 if OpenGait states none. Gait3D's recipe is
Gait3D-Parsing's (cosine distance); CCPG and KinectGait have none and take CASIA-B's.

Published Rank-1 (not measured by us): CASIA-B NM/BG/CL 96.1/90.7/78.7 (OpenGait; the
paper has 96.2/91.5/78.7), identical views left out; OU-MVLP 88.6; GREW 47.6; Gait3D
28.2.
"""

from configs import common

SLOW = dict(name="adam", learning_rate=1e-4, weight_decay=0.0)
FAST = dict(name="adam", learning_rate=1e-3, weight_decay=5e-4)
NARROW = dict(channels=(32, 64, 128), halvings=(0, 2, 3), embedding_size=128)
WIDE = dict(channels=(32, 64, 128, 256), halvings=(0, 0, 3, 3), embedding_size=256)
# size, optimizer, milestones, steps, P, K
RECIPES = {
    "casia_b": (NARROW, SLOW, (100_000,), 120_000, 8, 16),
    "oumvlp": (WIDE, SLOW, (150_000,), 250_000, 32, 16),
    "grew": (WIDE, SLOW, (150_000,), 250_000, 32, 4),
    "gait3d": (NARROW, FAST, (30_000, 90_000), 180_000, 32, 4),
    "ccpg": (NARROW, SLOW, (100_000,), 120_000, 8, 16),
}
RECIPES["kinect_gait"] = RECIPES["casia_b"]  # both have 74 training identities
SMALL = ("synthetic", "cmu_walk")


def get_config(dataset: str = "synthetic"):
    recipe = common.choose(dataset, RECIPES | dict.fromkeys(SMALL))
    config = common.base(common.run_name("gaitpart", dataset), dataset)
    config.data.modalities = ("silhouettes",)
    config.data.ordered, config.data.skip = True, 10
    config.model = dict(
        name="gaitpart",
        **NARROW,
        num_strips=16,
        squeeze=4,
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
