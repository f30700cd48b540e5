"""GPGait++ (TPAMI 2025): GPGait with attention per frame and convolutions over time.

    ./run.sh train configs/gpgaitpp.py                            # embedded data
    ./run.sh train configs/gpgaitpp.py:gait3d --manual_dir=DIR    # published recipe

The recipes are FastPoseGait's: ordered frames, and no edges cut between parts except on
CASIA-B; `configs/gpgait.py` says what differs. The released code prints no numbers.
"""

from configs import gpgait
from configs.gpgait import ALL, DEEP, HARD, MIDDLE, SHALLOW

# columns as in configs/gpgait.py; three blocks are shared, whatever the released
# configs say
RECIPES = {
    "casia_b": (
        SHALLOW, 3, 4, 32, 30, 40_000, 0.475, 1e-3, HARD, 1.0, 0.0, "none", 0.1, 0.3
    ),
    "ccpg": (
        SHALLOW, 3, 8, 16, 30, 40_000, 0.475, 2e-3, HARD, 1.0, 0.0, "sheared", 0.0, 0.0
    ),
    "sustech1k": (
        SHALLOW, 3, 8, 8, 30, 40_000, 0.475, 1e-3, HARD, 1.0, 0.0, "sheared", 0.0, 0.0
    ),
    "gait3d": (
        MIDDLE, 3, 32, 4, 30, 60_000, 0.475, 1e-3, ALL, 1.0, 0.1, "sheared", 0.0, 0.0
    ),
    "grew": (
        DEEP, 3, 32, 8, 60, 200_000, 0.475, 1e-3, ALL, 0.1, 0.1, "sheared", 0.0, 0.0
    ),
    "oumvlp": (
        DEEP, 3, 32, 16, 15, 150_000, 0.475, 1e-3, ALL, 1.0, 0.1, "none", 0.0, 0.0
    ),
}  # fmt: skip


def get_config(dataset: str = "synthetic"):
    config = gpgait.get_config(dataset, "gpgaitpp", RECIPES)
    config.data.ordered = True
    config.data.skip = 2 if dataset == "gait3d" else 0
    config.model.part_masks = dataset == "casia_b"
    config.model.dropout = 0.1
    return config
