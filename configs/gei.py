"""Gait energy image (Han and Bhanu, TPAMI 2006): the mean silhouette, nothing trained.

./run.sh train configs/gei.py                         # embedded data, seconds
./run.sh train configs/gei.py:ccpg --manual_dir=DIR   # any set with silhouettes
"""

from configs import common


def get_config(dataset: str = "synthetic"):
    config = common.base("gei" if dataset == "synthetic" else f"gei_{dataset}", dataset)
    config.mode = "evaluate"
    config.train.steps = 0
    config.loss = {}
    config.model = dict(name="gei")
    return config
