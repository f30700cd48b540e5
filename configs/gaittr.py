"""GaitTR (Zhang et al., Expert Systems 2023): key points, attention between joints.

    ./run.sh train configs/gaittr.py                              # embedded data
    ./run.sh train configs/gaittr.py:grew --manual_dir=DIR        # see below

The embedded default is narrow and trains 1,000 steps on 20 frames: about 4 minutes on 2
CPU cores. The other variants follow OpenGait's recipe: 60 ordered frames, triplets with
margin 0.3, a one-cycle to 1e-3. We do not know its number of steps and P x K; ours are
those of DeepGaitV2, with a rise over 30 % of the steps. KinectGait and CCGR-mini have
no recipe and take CASIA-B's, CCGR-mini with the P x K that BigGait has on it.
AlphaPose's 18 joints, which published weights for CCPG and OU-MVLP read, need
--config.model.joint_format=alphapose and the data set ccpg/joints_18 or
oumvlp/joints_18.

Published Rank-1 (not measured by us): GREW 48.6; Gait3D 7.2; OU-MVLP 39.8 (COCO-17).
"""

from configs import common

# P, K, steps, embedding size
RECIPES = {
    "casia_b": (8, 16, 60_000, 128),
    "oumvlp": (32, 8, 120_000, 128),
    "gait3d": (32, 4, 60_000, 128),
    "grew": (32, 4, 180_000, 256),
    "ccpg": (8, 16, 60_000, 128),
    "sustech1k": (8, 8, 50_000, 128),
    "ccgr_mini": (8, 8, 60_000, 128),
}
RECIPES["kinect_gait"] = RECIPES["casia_b"]  # both have 74 training identities
SMALL = ("synthetic", "cmu_walk")


def get_config(dataset: str = "synthetic"):
    recipe = common.choose(dataset, RECIPES | dict.fromkeys(SMALL))
    config = common.base(common.run_name("gaittr", dataset), dataset)
    config.data.modalities = ("keypoints",)
    config.data.ordered, config.data.num_frames = True, 60
    config.model = dict(
        name="gaittr",
        channels=(64, 64, 128, 256),
        heads=8,
        dropout=0.1,
        embedding_size=128,
        joint_format="coco",
        dtype="float32",
    )
    config.loss = dict(triplet=dict(weight=1.0, margin=0.3))
    config.optimizer.update(
        name="adam", learning_rate=1e-3, weight_decay=0.0, schedule="onecycle"
    )
    if recipe is None:
        common.small(config, steps=1000)
        config.data.num_frames = 20
        config.model.update(channels=(16, 16, 32, 64), heads=2, embedding_size=64)
        return config
    ids, seqs, steps, config.model.embedding_size = recipe
    config.data.ids_per_batch, config.data.seqs_per_id = ids, seqs
    config.train.steps, config.optimizer.rise_steps = steps, 3 * steps // 10
    return config
