"""SwinGait-3D (Fan et al., "Exploring Deep Models for Practical Gait Recognition",
2023): silhouettes, residual stages, then a video Swin transformer.

    ./run.sh train configs/swingait.py                            # embedded data
    ./run.sh train configs/swingait.py:gait3d --manual_dir=DIR    # published recipe

The published recipe starts from a trained DeepGaitV2-P3D. Import it first, then train
with the same --workdir:

    python -m gaitjax.main --config=configs/swingait.py:gait3d --config.mode=import \\
        --config.checkpoint=DEEPGAITV2.pt --config.partial=True

The embedded default is narrow and trains 300 steps from the seed: about 5 minutes on 2
CPU cores. The other variants are OpenGait's recipes: AdamW 3e-4 with a cosine to 1e-6
(here it falls every step, in OpenGait every 1,000 steps); convolutions, strip matrices
and neck at a tenth of that rate; P x K and frames as DeepGaitV2. KinectGait has no
recipe and takes CCPG's.

Published Rank-1 (not measured by us): Gait3D 75.0; GREW 79.3; SUSTech1K
NM/BG/CL/CR/UB/UF/OC/NT/all 86.2/81.3/47.4/79.3/81.6/83.1/85.6/28.5/79.7.
"""

from configs import common

SHALLOW, DEEP = (1, 1, 2, 2), (1, 4, 4, 2)
# layers, P, K, frames, steps, steps of the cosine
RECIPES = {
    "gait3d": (DEEP, 32, 4, 30, 80_000, 60_000),
    "grew": (DEEP, 32, 4, 30, 200_000, 150_000),
    "ccpg": (SHALLOW, 8, 16, 30, 80_000, 60_000),
    "sustech1k": (SHALLOW, 8, 8, 10, 60_000, 50_000),
}
RECIPES["kinect_gait"] = RECIPES["ccpg"]
SMALL = ("synthetic", "cmu_walk")


def get_config(dataset: str = "synthetic"):
    recipe = common.choose(dataset, RECIPES | dict.fromkeys(SMALL))
    config = common.base(common.run_name("swingait", dataset), dataset)
    config.data.modalities = ("silhouettes",)
    config.data.ordered, config.data.skip = True, 4
    config.data.update(perspective=0.2, flip=0.2, rotate=0.2)
    config.model = dict(
        name="swingait",
        channels=(64, 128),
        layers=SHALLOW,
        widths=(256, 512),
        heads=(16, 32),
        window=(3, 3, 5),
        token_grid=(15, 10),
        drop_path=0.1,
        embedding_size=256,
        retrieve="before_neck",
        dtype="float32",
    )
    config.optimizer.update(
        name="adamw", learning_rate=3e-4, weight_decay=0.02, schedule="cosine",
        final_learning_rate=1e-6,
        no_decay=("^patches", "norm", "bias_table"),
        rates=(("^(stem|stage|dense|neck)", 0.1),),
    )  # fmt: skip
    if recipe is None:
        common.small(config, steps=300, learning_rate=1e-3, ids=6, frames=6)
        config.data.update(perspective=0.0, rotate=0.0)
        config.optimizer.rates = ()
        config.model.update(
            channels=(8, 16), widths=(16, 32), heads=(2, 4), embedding_size=64
        )
        return config
    config.model.layers, ids, seqs, frames, steps, decay_steps = recipe
    config.data.update(ids_per_batch=ids, seqs_per_id=seqs, num_frames=frames)
    config.train.steps, config.optimizer.decay_steps = steps, decay_steps
    config.model.dtype = "bfloat16"
    return config
