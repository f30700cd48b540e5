"""GaitGL (Lin et al., ICCV 2021): silhouettes, global and local 3-D convolutions.

    ./run.sh train configs/gaitgl.py                              # embedded data
    ./run.sh train configs/gaitgl.py:casia_b --manual_dir=DIR     # published recipe
    ./run.sh train configs/gaitgl.py:grew --manual_dir=DIR --config.model.head=bnneck

The embedded default is narrow and trains 300 steps on 9 frames: about 6 minutes on 2
CPU cores. The other variants are OpenGait's recipes: Adam with weight decay 5e-4, 30
ordered frames, no augmentation. Gait3D's is Gait3D-Parsing's (cosine distance); CCPG,
CASIA-B* and KinectGait have no recipe and take CASIA-B's.

Published Rank-1 (not measured by us): CASIA-B NM/BG/CL 97.4/94.5/83.8 (OpenGait; the
paper has 97.4/94.5/83.6), identical views left out; CASIA-B* 94.2/90.0/81.4; OU-MVLP
89.9; GREW 41.5, with the BN neck 51.7; Gait3D 29.7.
"""

from configs import common

SMALL_NET = dict(channels=(32, 64, 128), halvings=3)
LARGE_NET = dict(channels=(32, 64, 128, 256), halvings=1)
# size, learning rate, milestones, steps, P, K, label smoothing
RECIPES = {
    "casia_b": (SMALL_NET, 1e-4, (70_000,), 80_000, 8, 8, 0.0),
    "casia_b_star": (SMALL_NET, 1e-4, (70_000,), 80_000, 8, 8, 0.0),
    "oumvlp": (LARGE_NET, 1e-4, (150_000, 200_000), 210_000, 32, 8, 0.1),
    "grew": (LARGE_NET, 1e-4, (150_000, 200_000), 250_000, 32, 4, 0.1),
    "gait3d": (SMALL_NET, 1e-3, (30_000, 90_000), 180_000, 32, 4, 0.0),
    "ccpg": (SMALL_NET, 1e-4, (70_000,), 80_000, 8, 8, 0.0),
}
RECIPES["kinect_gait"] = RECIPES["casia_b"]  # both have 74 training identities
SMALL = ("synthetic", "cmu_walk")


def get_config(dataset: str = "synthetic"):
    recipe = common.choose(dataset, RECIPES | dict.fromkeys(SMALL))
    config = common.base(common.run_name("gaitgl", dataset), dataset)
    config.data.modalities = ("silhouettes",)
    config.data.ordered = True
    config.model = dict(
        name="gaitgl",
        **SMALL_NET,
        head="original",
        retrieve="before_neck",
        dtype="float32",
    )
    config.loss.cross_entropy.update(scale=1.0, smoothing=0.0)
    if recipe is None:
        common.small(config, steps=300, ids=6, frames=9)  # every 3 frames become one
        config.model.update(channels=(8, 12, 16), halvings=2)
        return config
    size, rate, milestones, config.train.steps, ids, seqs, smoothing = recipe
    config.model.update(size)
    config.optimizer.update(name="adam", learning_rate=rate, milestones=milestones)
    config.data.ids_per_batch, config.data.seqs_per_id = ids, seqs
    config.loss.cross_entropy.smoothing = smoothing
    if dataset == "gait3d":
        config.evaluation.metric = "cosine"
    config.model.dtype = "bfloat16"
    return config
