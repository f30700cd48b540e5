"""GaitSet (Chao et al., AAAI 2019; TPAMI 2021): a set of silhouettes.

    ./run.sh train configs/gaitset.py                             # embedded data
    ./run.sh train configs/gaitset.py:casia_b --manual_dir=DIR    # published recipe

The embedded default is narrow, has half the pyramid and trains 400 steps: about 5
minutes on 2 CPU cores. The other variants are OpenGait's recipes, with these
exceptions: SUSTech1K's is one that a maintainer gave, with the P x K of that data
set's other recipes; Gait3D's is Gait3D-Parsing's (cosine distance); CCPG and
KinectGait have no recipe and take CASIA-B's.

Published Rank-1 (not measured by us): CASIA-B NM/BG/CL 95.8/90.0/75.4 (OpenGait; the
paper has 95.0/87.2/70.4), identical views left out; OU-MVLP 87.2; GREW 48.4; Gait3D
36.7; CCPG gait protocol CL/UP/DN/BG 60.2/65.2/65.1/68.5 (LMGait paper, Table 1).
"""

from configs import common

SGD = dict(name="sgd", learning_rate=0.1, weight_decay=5e-4)
SLOW = dict(name="adam", learning_rate=1e-4, weight_decay=0.0)
FAST = dict(name="adam", learning_rate=1e-3, weight_decay=5e-4)
NARROW, WIDE = (32, 64, 128), (64, 128, 256)
# channels, optimizer, milestones, steps, P, K
RECIPES = {
    "casia_b": (NARROW, SGD, (10_000, 20_000, 30_000), 40_000, 8, 16),
    "oumvlp": (WIDE, SLOW, (150_000,), 250_000, 32, 16),
    "grew": (WIDE, SLOW, (150_000,), 250_000, 32, 4),
    "gait3d": (NARROW, FAST, (30_000, 90_000), 180_000, 32, 4),
    "sustech1k": (WIDE, FAST, (20_000, 30_000), 40_000, 8, 8),
    "ccpg": (NARROW, SGD, (10_000, 20_000, 30_000), 40_000, 8, 16),
}
RECIPES["kinect_gait"] = RECIPES["casia_b"]  # both have 74 training identities
SMALL = ("synthetic", "cmu_walk")


def get_config(dataset: str = "synthetic"):
    recipe = common.choose(dataset, RECIPES | dict.fromkeys(SMALL))
    config = common.base(common.run_name("gaitset", dataset), dataset)
    config.data.modalities = ("silhouettes",)
    config.model = dict(
        name="gaitset",
        channels=NARROW,
        bins=(16, 8, 4, 2, 1),
        embedding_size=256,
        dtype="float32",
    )
    config.loss = dict(triplet=dict(weight=1.0, margin=0.2))
    if recipe is None:
        common.small(config)
        config.model.update(channels=(8, 16, 32), bins=(8, 4, 1), embedding_size=64)
        return config
    config.model.channels, optimizer, milestones, steps, ids, seqs = recipe
    config.optimizer.update(optimizer, milestones=milestones)
    config.train.steps = steps
    config.data.ids_per_batch, config.data.seqs_per_id = ids, seqs
    if dataset == "gait3d":
        config.evaluation.metric = "cosine"
    config.model.dtype = "bfloat16"
    return config
