"""GaitEdge (Liang et al., ECCV 2022): RGB, segmentation trained together with GaitGL.

    ./run.sh train configs/gaitedge.py                                # embedded data
    ./run.sh train configs/gaitedge.py:casia_b_star --manual_dir=DIR  # published recipe

It reads masks at test time too. The embedded default is narrow and trains 40 + 200
steps on 6 frames, minutes on 2 CPU cores. The other variants follow OpenGait's recipe:
25,000 steps of the U-Net alone (the warm-up; Adam here, SGD in OpenGait), 80,000 of
GaitGL alone (here: import the published GaitGL with --config.partial=True, or leave
this phase out), then 20,000 of both together with Adam 1e-4, the U-Net at 1e-5. P x K
are GaitGL's. The U-Net's encoder learns in the warm-up alone, as published; in both:

    --config.model.freeze_encoder=False --config.train.trainable=

--config.model.edge=False is the paper's comparison without synthesised edges.

Published Rank-1 (not measured by us): CASIA-B* NM/BG/CL 97.9/96.1/86.4, identical views
left out; CCPG gait protocol CL/UP/DN/BG 66.9/74.0/70.6/77.1 (LMGait paper, Table 1).
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
        channels=(32, 64, 128),
        halvings=3,
        unet_channels=(16, 32, 64, 128),
        kernel=3,
        edge=True,
        silhouette_size=(64, 44),
        freeze_encoder=True,
        dtype="float32",
    )
    config.loss = dict(
        triplet=dict(weight=1.0, margin=0.2),
        cross_entropy=dict(weight=1.0, scale=1.0, smoothing=0.0),
        binary_cross_entropy=dict(weight=10.0),
    )
    config.optimizer.rates = (("^unet/", 0.1),)  # also in the warm-up
    config.train.trainable = "^(?!unet/down)"  # so that weight decay does not shrink it
    config.warmup = common.warm_up(
        losses=("binary_cross_entropy",), trainable="^unet/", learning_rate=1e-2
    )
    if dataset in SMALL:
        common.small(config, steps=200, ids=4, frames=6)
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
