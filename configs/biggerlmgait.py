"""LMGait's text mask and MTCM on BiggerGait's heads over all layers: our own model.

    ./run.sh train configs/biggerlmgait.py                           # embedded data
    ./run.sh train configs/biggerlmgait.py:ccpg_l --manual_dir=DIR   # to beat CCPG 95.3
    python -m gaitjax.main --config=configs/biggerlmgait.py:ccpg_l --dry_run

It is `configs/biggergait.py` (Ye et al., NeurIPS 2025) with two parts of LMGait (Wu et
al., AAAI 2026): a text mask weighs the features of every layer, and an MTCM follows the
map of every group of layers. Both can be switched off, and every field of LMGait's
`text` and `mtcm` works here too:

    --config.model.text.enabled=False      # MTCM alone
    --config.model.mtcm.enabled=False      # the text mask alone
    --config.model.text.adapter=lora       # a rival of MAM

MTCM needs consecutive frames, so clips are ordered, as LMGait's; BiggerGait draws its
frames unordered. Recipe, sizes and the variants with larger encoders are BiggerGait's:
`ccpg` is DINOv2 ViT-S, `ccpg_b` ViT-B, `ccpg_l` ViT-L, `ccpg_g` ViT-g.

The embedded default uses the pocket encoders of `configs/lmgait.py`, frozen; its
decoder is warmed up on silhouettes. To re-rank it: `configs/cargait.py` with
--config.base_run.

Not trained yet, at any size. Published to beat, CCPG gait protocol, mean of Rank-1 over
CL/UP/DN/BG: BiggerGait 93.3 (ViT-S) and 95.3 (ViT-L), LMGait 88.5.
"""

from configs import biggergait, common, lmgait


def get_config(dataset: str = "synthetic"):
    config = biggergait.get_config(dataset)
    config.name = common.run_name("biggerlmgait", dataset)
    config.data.ordered = True  # MTCM looks across frames
    parts = lmgait.get_config("synthetic" if dataset in biggergait.SMALL else "ccpg")
    config.model.text = parts.model.text
    config.model.mtcm = parts.model.mtcm
    config.evaluation.prompts = parts.evaluation.prompts
    config.pretrained.text_encoder = parts.pretrained.text_encoder
    config.pretrained.text_projection_last = ""
    config.frozen = ("^visual_encoder/", "^decoder/", "^text_encoder/")
    if dataset in biggergait.SMALL:
        _shrink(config, parts)
    return config


def _shrink(config, parts):
    """The sizes of the embedded default: the encoders of LMGait's."""
    encoder = parts.model.visual_encoder
    config.frozen = ("^visual_encoder/", "^text_encoder/")
    for part in ("visual_encoder", "text_projection_last"):
        config.pretrained[part] = parts.pretrained[part]
    config.model.update(
        image_size=parts.model.image_size, map_size=parts.model.feature_grid,
        hidden_size=encoder.hidden_size, num_layers=encoder.num_layers,
        num_heads=encoder.num_heads, patch_size=encoder.patch_size,
        table_size=encoder.table_size, num_recognisers=encoder.num_layers,
        channels=(16, 24, 32, 32), strides=(1, 1, 2, 1), num_strips=8,
    )  # fmt: skip
    config.warmup.update(
        steps=100, trainable="^decoder/", ids_per_batch=4, learning_rate=1e-2
    )
    config.train.trainable = ""
    config.optimizer.rates = parts.optimizer.rates
