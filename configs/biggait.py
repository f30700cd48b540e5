"""BigGait (Ye et al., CVPR 2024): RGB frames, a frozen DINOv2 and three small branches.

    ./run.sh train configs/biggait.py                          # embedded synthetic data
    ./run.sh train configs/biggait.py:ccpg --manual_dir=DIR    # published recipe

It is `configs/lmgait.py` without text and MTCM, with an unsupervised mask branch.
Published Rank-1 (not measured by us): CCPG gait protocol CL/UP/DN/BG
82.6/85.9/87.1/93.1 (LMGait paper, Table 1). The recipe is OpenGait's: SGD 0.1, 40k
steps of 8 x 8 sequences of 30 unordered frames, the mask branch frozen after 500 steps,
in which ours trains alone and theirs beside the rest; the smoothness of their scrambled
mask term is left out. `synthetic` is `configs/lmgait.py`'s embedded default without
text and MTCM: its encoder starts at random and would give an unsupervised mask branch
nothing to find, so it is trained on silhouettes.
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
    if dataset != "ccpg":  # there the first 250, as in `configs/lmgait.py`
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
