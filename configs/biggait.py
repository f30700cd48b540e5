"""BigGait (Ye et al., CVPR 2024): RGB, a frozen DINOv2 and three small branches.

    ./run.sh train configs/biggait.py                          # embedded data
    ./run.sh train configs/biggait.py:ccpg --manual_dir=DIR    # published recipe

It is `configs/lmgait.py` without text and MTCM, and with an unsupervised mask branch.
The recipe is OpenGait's: SGD 0.1, 40,000 steps of 8 x 8 sequences of 30 unordered
frames, the mask branch frozen after 500 steps. In these it trains alone here, together
with the rest there. The smoothness of OpenGait's mask term, which reads its array in
the wrong order, is left out.

The mask branch learns without labels, so either of its channels may be the person: the
one that covers less of the outermost rows is. Here only the person's columns count
(`decoder.edge_rule="valid"`). The published rule counts the padding beside a narrow
crop as well, so such a crop can turn inside out; choose "published" to compare with
published numbers.

The embedded default is that of `configs/lmgait.py` without text and MTCM. Its encoder
starts at random, in which an unsupervised mask branch would find nothing, so the branch
is trained on silhouettes.

Published Rank-1 (not measured by us): CCPG gait protocol CL/UP/DN/BG
82.6/85.9/87.1/93.1 (LMGait paper, Table 1).
"""

from configs import common, lmgait

DATASETS = ("ccpg", "sustech1k", "ccgr_mini", "casia_b_star")
SMALL = ("synthetic", "cmu_walk")


def get_config(dataset: str = "synthetic"):
    common.choose(dataset, dict.fromkeys(DATASETS + SMALL))
    config = lmgait.get_config(dataset if dataset in SMALL else "ccpg")
    row = common.base(common.run_name("biggait", dataset), dataset)
    config.name = row.name
    config.model.text.enabled = config.model.mtcm.enabled = False
    config.data.ordered = False  # nothing looks across frames
    if dataset in SMALL:
        return config
    for field in ("train_dataset", "test_dataset", "num_classes", "image_size"):
        config.data[field] = row.data[field]
    config.evaluation.protocols = row.evaluation.protocols
    if dataset != "ccpg":  # on CCPG the first 250, see `configs/lmgait.py`
        config.evaluation.max_frames = row.evaluation.max_frames
    config.data.modalities = ("frames",)
    config.data.ids_per_batch, config.data.seqs_per_id = 8, 8
    config.data.num_frames = 30
    config.model.decoder.update(supervision="reconstruction", frozen=True)
    config.loss = dict(
        triplet=dict(weight=1.0, margin=0.2),
        cross_entropy=dict(weight=1.0, scale=16.0, smoothing=0.1),
        reconstruction=dict(weight=1.0),  # of the mask branch, in the warm-up
        smoothness=dict(weight=0.01, reduce="sum"),
        diversity=dict(weight=5.0),
    )
    config.warmup.update(steps=500, losses=("reconstruction",))
    config.train.trainable = "^(?!decoder/)"
    config.pretrained = dict(visual_encoder="facebook/dinov2-small")
    config.frozen = ("^visual_encoder/",)
    return config
