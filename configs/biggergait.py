"""BiggerGait (Ye et al., NeurIPS 2025): RGB, every layer of a frozen DINOv2.

    ./run.sh train configs/biggergait.py                          # embedded data
    ./run.sh train configs/biggergait.py:ccpg --manual_dir=DIR    # published recipe

All variants but the embedded default are OpenGait's recipes: SGD 0.1, 30,000
steps of 8 x 4 sequences of 30 unordered frames, triplets and cross-entropy alone;
frames are resized to 448 x 224 whatever their aspect. DINOv2 and the mask branch are
frozen. config.pretrained.decoder names the branch's weights: mode "import" of a
published checkpoint writes both (docs/models.md). The variant with groups of layers
(42.8 M parameters) is

    --config.model.layers_per_group=2 --config.model.num_recognisers=2

`ccpg_b`, `ccpg_l` and `ccpg_g` are the recipe with DINOv2 ViT-B, ViT-L and ViT-g. We
know no published config of them. Our choice: the 24 layers of ViT-L share 12 maps, two
each, the 40 of ViT-g share 10, four each, with a recogniser for each map.

The embedded default has 3 narrow layers and trains 600 + 300 steps, minutes on 2 CPU
cores. There is no pretrained encoder of that size, so a warm-up trains encoder and mask
branch on silhouettes, as in `configs/lmgait.py`; then the encoder is frozen.

Published Rank-1 (not measured by us): CCPG gait protocol CL/UP/DN/BG
89.8/92.1/93.7/97.5, with groups of layers 89.0/91.9/94.0/97.2, with DINOv2-L
92.8/94.6/95.7/98.2; trained on CCPG, tested on SUSTech1K 79.6 and CASIA-B* NM/BG/CL
93.0/90.8/55.6.
"""

from configs import common

# variant -> the weights and sizes of its encoder, where it is not DINOv2 ViT-S
LARGER = {
    "ccpg_b": ("facebook/dinov2-base", dict(hidden_size=768, num_heads=12)),
    "ccpg_l": (
        "facebook/dinov2-large",
        dict(hidden_size=1024, num_layers=24, num_heads=16, layers_per_group=2),
    ),
    "ccpg_g": (
        "facebook/dinov2-giant",
        dict(
            hidden_size=1536, num_layers=40, num_heads=24, swiglu=True,
            layers_per_group=4, num_recognisers=10,
        ),
    ),
}  # fmt: skip
DATASETS = ("ccpg", "sustech1k", "ccgr_mini", *LARGER)
SMALL = ("synthetic", "cmu_walk")


def get_config(dataset: str = "synthetic"):
    common.choose(dataset, dict.fromkeys(DATASETS + SMALL))
    data = "ccpg" if dataset in LARGER else dataset
    config = common.base(common.run_name("biggergait", dataset), data)
    config.data.modalities = ("frames",)
    config.model = dict(
        name="biggergait",
        image_size=(448, 224),
        map_size=(64, 32),
        hidden_size=384,
        num_layers=12,
        num_heads=6,
        patch_size=14,
        table_size=37,
        swiglu=False,
        cut_to_patches=False,
        layers_per_group=1,
        num_recognisers=12,
        map_channels=16,
        channels=(64, 128, 256, 512),
        layers=(1, 1, 1, 1),
        strides=(1, 2, 1, 1),
        num_strips=32,
        embedding_size=256,
        retrieve="before_neck",
        frames_per_chunk=240,
        dtype="bfloat16",
    )
    config.frozen = ("^visual_encoder/", "^decoder/")
    config.pretrained = dict(visual_encoder="facebook/dinov2-small", decoder="")
    if dataset in SMALL:
        _shrink(config)
        return config
    if dataset in LARGER:
        config.pretrained.visual_encoder, sizes = LARGER[dataset]
        config.model.update(sizes)
    config.data.flip = 0.5
    config.data.ids_per_batch, config.data.seqs_per_id = 8, 4
    config.optimizer.milestones = (15_000, 25_000)
    config.train.steps = 30_000
    return config


def _shrink(config):
    """The sizes of the embedded default."""
    common.small(config, steps=300)
    config.data.num_frames = 4
    config.data.modalities = ("frames", "masks")  # the warm-up reads masks
    config.pretrained.visual_encoder = ""
    config.frozen = ()
    config.loss.silhouette = dict(weight=1.0)
    config.warmup = common.warm_up(
        steps=600, losses=("silhouette",), trainable="^(decoder|visual_encoder)/",
        ids_per_batch=4, num_frames=3, learning_rate=8e-3,
    )  # fmt: skip
    config.train.trainable = "^(?!visual_encoder/)"
    config.model.update(
        image_size=(64, 32), map_size=(32, 16), hidden_size=32, num_layers=3,
        num_heads=2, patch_size=4, table_size=8, num_recognisers=3, map_channels=8,
        channels=(8, 16, 24, 32), strides=(1, 2, 2, 1), num_strips=8, embedding_size=32,
        frames_per_chunk=0, dtype="float32",
    )  # fmt: skip
