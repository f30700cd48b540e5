"""MultiGait++ (Jin et al., AAAI 2025): what two modalities share and what is specific
to each: silhouettes and parsing (Gait3D, CCGR-mini), or silhouettes and skeleton maps.

    ./run.sh train configs/multigaitpp.py                         # embedded data
    ./run.sh train configs/multigaitpp.py:ccpg --manual_dir=DIR   # see below

The embedded default is narrow, has 8 strips and trains 300 steps: about 12 minutes on 2
CPU cores. The published configs do not run as they are, so the other variants take the
recipe of `configs/skeletongaitpp.py` (60,000 steps on CCPG; the published config says
600,000).

Published Rank-1 (not measured by us): CCPG gait protocol CL/UP/DN/BG
83.9/89.0/86.0/91.5 (LMGait paper, Table 1), with silhouettes + parsing and flow.

The published networks read silhouettes + parsing and optical flow (2 + 3 channels) on
CCPG and SUSTech1K, silhouettes and parsing (1 + 1) on Gait3D, silhouettes and flow
(1 + 3) on GREW. CCPG and SUSTech1K distribute no parsing, and nobody describes the
flow, GREW's files included; so only Gait3D's variant has the published inputs.
"""

from configs import common, skeletongaitpp

PARSING = ("gait3d", "ccgr_mini")  # data sets that distribute it
LAYERS = {"gait3d": (1, 2, 2, 1), "grew": (1, 2, 2, 1)}  # others: (1, 1, 1, 1)


def get_config(dataset: str = "synthetic"):
    config = skeletongaitpp.get_config(dataset)
    config.name = common.run_name("multigaitpp", dataset)
    config.model.name = "multigaitpp"
    if dataset in skeletongaitpp.SMALL:
        config.data.ids_per_batch = 5
        config.model.channels = (4, 16, 24, 48)
    if dataset in PARSING:
        config.data.modalities = ("silhouettes", "parsing")
    config.model.layers = LAYERS.get(dataset, (1, 1, 1, 1))
    return config
