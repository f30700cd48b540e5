"""Gait energy image: the baseline without learning (nothing is trained).

./run.sh train configs/gei.py            # embedded synthetic data, seconds
./run.sh train configs/gei.py:ccpg       # any data set with silhouettes
"""

from configs import common


def get_config(dataset: str = "synthetic"):
    config = common.base("gei" if dataset == "synthetic" else f"gei_{dataset}", dataset)
    config.mode = "evaluate"
    config.train.steps = 0
    config.loss = {}
    config.model = dict(name="gei")
    return config
