"""LMGait (Wu et al., "Language-Guided and Motion-Aware Gait Representation for
Generalizable Recognition", AAAI 2026): RGB frames, language prior, motion modules.

    ./run.sh                                              # embedded synthetic data
    ./run.sh train configs/lmgait.py:cmu_walk --manual_dir=DIR   # tested on real motion
    ./run.sh train configs/lmgait.py:ccpg --manual_dir=DIR       # the paper's setting

Every ablation of the paper is a switch, for instance
    --config.model.text.enabled=False --config.model.mtcm.enabled=False   # = BigGait

`synthetic` and `cmu_walk` are small enough for a laptop CPU: a small DINOv2-shaped
encoder that starts at random, learns from silhouettes in the decoder's warm-up and is
frozen then, a small frozen random text tower in place of CLIP, narrow branches, and
maps weighted by the foreground's probability; the data flow is the paper's. The others
are the paper's (sections 3 and 4.1): DINOv2 ViT-S/14 and the CLIP ViT-B/16 text tower,
both frozen; SGD 0.1, 40k steps, 6 x 8 sequences; a GPU or TPU is needed. Published
Rank-1 (not measured by us): CCPG gait protocol CL/UP/DN/BG 84.8/87.0/88.5/93.6;
SUSTech1K NM/CL/UF/NT/all 96.4/79.8/93.9/87.0/97.1; CASIA-B* NM/BG/CL 100/99.6/92.9.
"""

from configs import common, prompts

FRAMES = {"ccpg": 30, "sustech1k": 24, "casia_b_star": 24}  # of a training clip
SMALL = ("synthetic", "cmu_walk")


def get_config(dataset: str = "synthetic"):
    common.choose(dataset, FRAMES | dict.fromkeys(SMALL))
    name = "lmgait" if dataset == "synthetic" else f"lmgait_{dataset}"
    config = common.base(name, dataset)
    config.data.modalities = ("frames", "masks")
    config.data.ordered = True  # frame differences need consecutive frames
    config.data.flip = 0.5
    config.model = dict(
        name="lmgait",
        image_size=(448, 224),  # as the encoder sees a frame
        feature_grid=(64, 32),  # of every map
        dtype="bfloat16",
        black_augmentation=0.2,  # share of sequences that lose one of their two maps
        visual_encoder=dict(
            # | "dinov2_huggingface": its positional interpolation | "dinov2_registers"
            # | "dinov2_giant": SwiGLU | "clip_image" (paper, Table 7)
            kind="dinov2",
            hidden_size=384,
            num_layers=12,
            num_heads=6,
            patch_size=14,
            table_size=37,  # side of the positional table
            blocks=(2, 5, 8, 11),  # whose outputs are the middle features
            frozen=True,  # no gradient into it but in the decoder's warm-up
            frames_per_chunk=240,  # 0: all frames of a batch at once
            remat=False,
        ),
        text=dict(
            enabled=True,  # False: Table 4/6, w/o text branch
            mam=True,  # False: Table 6, w/o MAM
            prompts=prompts.PROMPTS["correct"],  # "wrong", "random": Table 6
            shipped=tuple(prompts.TOKEN_IDS.items()),  # need no vocabulary
            vocabulary="",  # CLIP vocabulary file or folder, for any other prompt
            fusion="mask",  # F (1 + a) | "gate": F a | "softmax"
            pooling="eot",  # | "mean" over the tokens
            positions="learned",  # CLIP's table | "sinusoidal" (eq. 3 to the letter)
            width=512,
            num_layers=12,
            num_heads=8,
            vocabulary_size=49_408,
            context_length=77,
            adapter_size=64,  # r of MAM
            tau_init=10.0,  # temperature of the text mask
        ),
        decoder=dict(
            supervision="silhouette",  # | "reconstruction" (BigGait's autoencoder)
            target="binary",  # | "coverage": the antialiased mask, for coarse grids
            dropout=0.5,
            support="binary",  # | "soft": besides, the maps are weighted by it
            dilation=3,  # of the foreground, in pixels of the feature grid
            frozen=False,  # after its warm-up (BigGait: True)
        ),
        representation=dict(channels=16, hidden=768, remat=False),
        mtcm=dict(
            enabled=True,  # False: Table 4, w/o MTM
            kind="mtcm",  # | "cnn3d": Table 4
            pte=True,  # False: Table 5, first row
            difference=True,  # False: Table 5, second row
            conv3d=True,  # False: Table 5, third row
            residual=False,
        ),
        gait=dict(
            stem=64,
            squeeze=16,  # attention fusion of the two maps: stem / squeeze channels
            channels=(128, 256, 512),
            strides=(2, 2, 1),
            num_strips=16,
            embedding_size=256,
        ),
    )
    config.loss = dict(
        triplet=dict(weight=1.0, margin=0.2),
        cross_entropy=dict(weight=1.0, scale=16.0, smoothing=0.1),
        silhouette=dict(weight=1.0),
        smoothness=dict(weight=0.01, reduce="channel"),
        diversity=dict(weight=5.0),
    )
    config.warmup = common.warm_up(losses=("silhouette",))
    config.pretrained = dict(  # a file, a folder or a hub id; "": the seed's values
        visual_encoder="facebook/dinov2-small",
        text_encoder="openai/clip-vit-base-patch16",
    )
    config.frozen = ("^visual_encoder/", "^text_encoder/")
    if dataset in SMALL:
        _shrink(config)
        return config
    config.data.ids_per_batch, config.data.seqs_per_id = 6, 8
    config.data.num_frames = FRAMES[dataset]
    if dataset == "ccpg":
        config.evaluation.max_frames = 250  # as BigGait (`ZOO` A.8, `METHODS` 1.6)
    config.optimizer.milestones = (15_000, 25_000, 30_000, 35_000)
    config.warmup.steps = 5_000
    config.train.steps = 40_000
    return config


def _shrink(config):
    """The embedded default: minutes on 2 CPU cores."""
    model = config.model
    model.image_size, model.feature_grid = (64, 32), (16, 8)
    model.dtype = "float32"
    model.visual_encoder.update(
        hidden_size=32, num_layers=2, num_heads=1, patch_size=4, table_size=8,
        blocks=(0, 1), frozen=True, frames_per_chunk=0,
    )  # fmt: skip
    model.decoder.update(target="coverage", support="soft", dropout=0.1)
    model.black_augmentation = 0.0  # the run is too short to gain from it
    model.text.update(width=64, num_layers=2, num_heads=2, adapter_size=16)
    config.pretrained = dict(visual_encoder="", text_encoder="")
    model.representation.hidden = 32
    model.gait.update(
        stem=16, squeeze=4, channels=(32, 64, 64), strides=(1, 2, 1), num_strips=8,
        embedding_size=64,
    )  # fmt: skip
    config.frozen = ("^text_encoder/",)
    config.data.ids_per_batch, config.data.seqs_per_id = 8, 4
    config.data.num_frames = 6
    config.data.colour = 0.6
    config.evaluation.frame_multiple = 24
    config.evaluation.batch_size = 16
    config.evaluation.every_steps = 400
    # the encoder learns from silhouettes during the warm-up, then it is frozen
    config.warmup.update(
        steps=1000, trainable="^(decoder|visual_encoder)/", ids_per_batch=4,
        num_frames=3, learning_rate=8e-3,
    )  # fmt: skip
    config.train.trainable = "^(?!visual_encoder/)"
    config.optimizer.update(
        name="adamw", learning_rate=3e-3, weight_decay=1e-2, schedule="onecycle",
        rise_steps=50,
    )  # fmt: skip
    config.train.update(steps=800, log_every=10, checkpoint_every=100)
