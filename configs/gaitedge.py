"""GaitEdge (Liang et al., ECCV 2022): RGB, segmentation trained with GaitGL.

    ./run.sh train configs/gaitedge.py                   # embedded synthetic data
    ./run.sh train configs/gaitedge.py:casia_b_star      # published recipe

Published Rank-1 (not measured by us): CASIA-B* NM/BG/CL 97.9/96.1/86.4, without
identical views; CCPG gait protocol CL/UP/DN/BG 66.9/74.0/70.6/77.1 (LMGait paper,
Table 1). Masks are read at test time too. OpenGait's recipe: 25k steps of the U-Net
alone (the warm-up; SGD there, Adam here), 80k of GaitGL alone (here: the published
GaitGL, imported with --config.partial=True, or none), then 20k of both together, Adam
1e-4, the U-Net at 1e-5; P x K as GaitGL. `synthetic` is reduced (narrow, 6 frames, 40 +
200 steps) so that it trains in minutes on 2 CPU cores.
"""

from configs import common

DATASETS = ("casia_b_star", "ccpg")
SMALL = ("synthetic", "cmu_walk")


def get_config(dataset: str = "synthetic"):
    common.choose(dataset, dict.fromkeys(DATASETS + SMALL))
    config = common.base(common.run_name("gaitedge", dataset), dataset)
    config.data.modalities = ("frames", "masks")
    config.evaluation.modalities = ("frames", "masks")
    config.data.ordered = True
    config.model = dict(
        name="gaitedge",
        channels=(32, 64, 128),  # of GaitGL
        halvings=3,  # how often its maps are cut for the local convolutions
        unet_channels=(16, 32, 64, 128),
        kernel=3,  # of the dilation and the erosion that make the edge
        silhouette_size=(64, 44),
        freeze_encoder=True,  # no gradient to the U-Net's, after the warm-up ...
        dtype="float32",
    )
    config.loss = dict(
        triplet=dict(weight=1.0, margin=0.2),
        cross_entropy=dict(weight=1.0, scale=1.0, smoothing=0.0),
        binary_cross_entropy=dict(weight=10.0),
    )
    config.optimizer.rates = (("^unet/", 0.1),)  # in the warm-up too
    config.train.trainable = "^(?!unet/down)"  # ... and no weight decay; "": both free
    config.warmup = common.warm_up(
        losses=("binary_cross_entropy",), trainable="^unet/", learning_rate=1e-2
    )
    if dataset in SMALL:
        common.small(config, steps=200, ids=4, frames=6)  # every 3 become one
        config.warmup.update(steps=40)
        config.model.update(
            channels=(8, 12, 16), halvings=2, unet_channels=(4, 8, 16, 32)
        )
        return config
    config.data.ids_per_batch, config.data.seqs_per_id = 8, 8
    config.optimizer.update(name="adam", learning_rate=1e-4, schedule="constant")
    config.warmup.steps, config.train.steps = 25_000, 20_000
    config.model.dtype = "bfloat16"
    return config
