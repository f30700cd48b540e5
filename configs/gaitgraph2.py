"""GaitGraph2 (Teepe et al., CVPRW 2022): key points, a graph convolutional network.

    ./run.sh train configs/gaitgraph2.py                          # embedded data
    ./run.sh train configs/gaitgraph2.py:oumvlp --manual_dir=DIR  # see below

The embedded default is narrow and trains 1,000 steps on 20 frames: about 3 minutes on 2
CPU cores. The other variants follow OpenGait's recipe: 768 sequences of 60 ordered
frames, supervised contrastive loss at temperature 0.01, a one-cycle to 0.005. Two
things are ours. OpenGait draws sequences whatever their identity; we draw P identities
of K sequences, as a contrastive loss needs positives. We do not know its number of
steps and take 30,000, with a rise over 30 % of them. KinectGait and CCGR-mini have no
recipe and take CASIA-B's and CCPG's.

The published sizes reach from 0.35 M parameters (these) to 0.76 M. The following has
763,178; that it is the published one (depth of ResGCN-N51, bottlenecks of a quarter)
is our reading, which no source confirms:

    --config.model.branch_channels=64,64,32 --config.model.reduction=4 \\
    --config.model.channels=128,128,128,256,256,256

AlphaPose's 18 joints, which published weights for CCPG and OU-MVLP read, need
--config.model.joint_format=alphapose and the data set ccpg/joints_18 or
oumvlp/joints_18.

Published Rank-1 (not measured by us), cosine distance over three test-time copies:
OU-MVLP 70.8 (COCO-17); GREW 34.6; Gait3D 11.0.
"""

from configs import common

# P, K
RECIPES = {
    "casia_b": (64, 12),
    "oumvlp": (96, 8),
    "gait3d": (192, 4),
    "grew": (192, 4),
    "ccpg": (96, 8),
    "sustech1k": (96, 8),
    "ccgr_mini": (96, 8),
}
RECIPES["kinect_gait"] = RECIPES["casia_b"]  # both have 74 training identities
SMALL = ("synthetic", "cmu_walk")


def get_config(dataset: str = "synthetic"):
    recipe = common.choose(dataset, RECIPES | dict.fromkeys(SMALL))
    config = common.base(common.run_name("gaitgraph2", dataset), dataset)
    config.data.modalities = ("keypoints",)
    config.data.ordered, config.data.num_frames = True, 60
    config.evaluation.metric = "cosine"
    config.model = dict(
        name="gaitgraph2",
        branch_channels=(64, 32),
        channels=(128, 256),
        reduction=8,
        embedding_size=128,
        joint_format="coco",
        test_time_augmentation=True,
        dtype="float32",
    )
    config.loss = dict(supcon=dict(weight=1.0, temperature=0.01))
    config.optimizer.update(
        name="adam", learning_rate=5e-3, weight_decay=0.0, schedule="onecycle"
    )
    if recipe is None:
        common.small(config, steps=1000)
        config.data.num_frames = 20
        config.loss.supcon.temperature = 0.1
        config.model.update(
            branch_channels=(16, 16), channels=(32, 64), reduction=4, embedding_size=64
        )
        return config
    config.data.ids_per_batch, config.data.seqs_per_id = recipe
    config.train.steps, config.optimizer.rise_steps = 30_000, 9_000
    return config
