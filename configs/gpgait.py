"""GPGait (Fu et al., ICCV 2023): key points, human-oriented, convolved by body part.

    ./run.sh train configs/gpgait.py                              # embedded data
    ./run.sh train configs/gpgait.py:gait3d --manual_dir=DIR      # published recipe

The embedded default is narrow. The other variants are FastPoseGait's recipes: 60 frames
in any order (OU-MVLP 30), Adam with a one-cycle, batch-hard or batch-all triplets with
margin 0.3. Its one-cycle rises from and falls to a hundredth by cosines, spends the
last 5 % of the steps near zero and cycles Adam's first beta; ours does not. Key points
are COCO's 17; for AlphaPose's 18 of OU-MVLP add --config.model.joint_format=alphapose.

Published Rank-1 (not measured by us): CASIA-B NM/BG/CL 93.6/80.2/69.3; OU-MVLP 59.1;
GREW 57.0; Gait3D 22.4; SUSTech1K all 47.4; CCPG re-identification CL/UP/DN
54.8/65.6/71.1.
"""

from configs import common

SHALLOW, MIDDLE = (64, 64, 128, 256), (64, 64, 128, 128, 256)
DEEP = (64, 128, 128, 128, 128, 256, 256)
HARD, ALL = "triplet_hard", "triplet"
# widths, shared blocks, P, K, frames, steps, rising share of them, learning rate,
# triplet loss, weight and smoothing of the cross-entropy, straightening, swap, noise
RECIPES = {
    "casia_b": (
        SHALLOW, 3, 4, 32, 60, 40_000, 0.5, 1e-3, HARD, 1.0, 0.0, "none", 0.1, 0.3
    ),
    "ccpg": (
        SHALLOW, 3, 4, 32, 60, 40_000, 0.5, 2e-3, HARD, 1.0, 0.0, "sheared", 0.0, 0.0
    ),
    "sustech1k": (
        SHALLOW, 3, 8, 8, 60, 40_000, 0.5, 1e-3, HARD, 1.0, 0.0, "none", 0.0, 0.0
    ),
    "gait3d": (
        MIDDLE, 3, 32, 4, 60, 60_000, 0.475, 1e-3, ALL, 0.01, 0.1, "sheared", 0.01, 0.0
    ),
    "grew": (
        DEEP, 3, 32, 8, 60, 200_000, 0.475, 1e-3, ALL, 0.1, 0.1, "sheared", 0.01, 0.3
    ),
    "oumvlp": (
        DEEP, 4, 32, 16, 30, 150_000, 0.475, 1e-3, HARD, 0.5, 0.0, "none", 0.01, 0.3
    ),
}  # fmt: skip
SMALL = ("synthetic", "cmu_walk")


def get_config(dataset: str = "synthetic", name: str = "gpgait", recipes=RECIPES):
    recipe = common.choose(dataset, recipes | dict.fromkeys(SMALL))
    config = common.base(common.run_name(name, dataset), dataset)
    config.data.modalities = ("keypoints",)
    config.evaluation.max_frames = 0
    config.model = dict(
        name=name,
        channels=SHALLOW,
        shared=3,
        part_masks=True,
        straighten="none",
        swap=0.0,
        noise=0.0,
        joint_format="coco",
        embedding_size=256,
        retrieve="after_neck",
        dtype="float32",
    )
    config.optimizer.update(
        name="adam", learning_rate=1e-3, weight_decay=2e-5, schedule="onecycle"
    )
    if recipe is None:
        common.small(config, steps=400)
        config.model.update(channels=(8, 16, 32), shared=2, embedding_size=32)
        return config
    (
        config.model.channels, config.model.shared, config.data.ids_per_batch,
        config.data.seqs_per_id, config.data.num_frames, steps, rising,
        config.optimizer.learning_rate, triplet, weight, smoothing,
        config.model.straighten, config.model.swap, config.model.noise,
    ) = recipe  # fmt: skip
    config.train.steps, config.optimizer.rise_steps = steps, int(rising * steps)
    cross_entropy = dict(weight=weight, scale=16.0, smoothing=smoothing)
    config.loss = {
        triplet: dict(weight=1.0, margin=0.3),
        "cross_entropy": cross_entropy,
    }
    return config
