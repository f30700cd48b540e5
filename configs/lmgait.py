"""LMGait (Wu et al., "Language-Guided and Motion-Aware Gait Representation for
Generalizable Recognition", AAAI 2026): RGB frames, a language prior, motion modules.

    ./run.sh                                                     # embedded data
    ./run.sh train configs/lmgait.py:cmu_walk --manual_dir=DIR   # test on real motion
    ./run.sh train configs/lmgait.py:ccpg --manual_dir=DIR       # the paper's setting

Every ablation of the paper is a switch, for instance

    --config.model.text.enabled=False --config.model.mtcm.enabled=False   # = BigGait

and the fine-tuned visual encoder, which starts at the same published weights (the rate
of 0.01 x 0.1 is ours):

    --config.frozen="('^text_encoder/',)" --config.model.visual_encoder.frozen=False
    --config.optimizer.rates="(('^visual_encoder/',0.01),)"

`ccpg`, `sustech1k` and `casia_b_star` are the paper's settings (sections 3 and 4.1):
DINOv2 ViT-S/14 and the CLIP ViT-B/16 text tower, both frozen; SGD 0.1, 40,000 steps of
6 x 8 sequences. They need a GPU or TPU.

`synthetic` and `cmu_walk` train in about 13 minutes on 2 CPU cores. The data
flow is the paper's, the parts are small: the pocket encoders
(configs/pocket_encoders.py), frozen and pretrained, take the places of DINOv2 and CLIP;
branches are narrow, and the maps are weighted by the foreground's probability.

Published Rank-1 (not measured by us): CCPG gait protocol CL/UP/DN/BG
84.8/87.0/88.5/93.6; SUSTech1K NM/CL/UF/NT/all 96.4/79.8/93.9/87.0/97.1; CASIA-B*
NM/BG/CL 100/99.6/92.9.
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
    config.model = dict(  # gaitjax/models/lmgait.py explains the fields
        name="lmgait",
        image_size=(448, 224),
        feature_grid=(64, 32),
        dtype="bfloat16",
        black_augmentation=0.2,
        retrieve="before_neck",
        visual_encoder=dict(
            kind="dinov2",
            hidden_size=384,
            num_layers=12,
            num_heads=6,
            patch_size=14,
            table_size=37,
            cut_to_patches=False,
            blocks=(2, 5, 8, 11),
            frozen=True,
            frames_per_chunk=240,
            remat=False,
        ),
        visual_prompts=0,
        text=dict(
            enabled=True,
            adapter="mam",  # its rivals: "lora", "adalora", "prompt"; "none"
            prompts=prompts.PROMPTS["correct"],  # "wrong", "random": Table 6
            shipped=tuple(prompts.TOKEN_IDS.items()),
            vocabulary="",
            fusion="mask",
            place="before_extractor",
            pooling="eot",
            positions="learned",
            width=512,
            num_layers=12,
            num_heads=8,
            vocabulary_size=49_408,
            context_length=77,
            adapter_size=64,
            rank=8,
            alpha=8.0,
            initial_rank=12,
            budget=(0.1, 0.5),
            orthogonality=0.1,
            prompt_length=16,
            tau_init=10.0,
            temperature="log",
        ),
        decoder=dict(
            supervision="silhouette",
            target="binary",
            dropout=0.5,
            support="binary",
            dilation=3,
            frozen=False,
            edge_rule="valid",
        ),
        representation=dict(
            channels=16, appearance_channels=0, hidden=768, remat=False, direct=False
        ),
        mtcm=dict(
            enabled=True,
            kind="mtcm",
            pte=True,
            difference=True,
            conv3d=True,
            residual=False,
        ),
        gait=dict(
            stem=64,
            squeeze=16,
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
    # results.json and maps.png compare the masks of these prompts
    config.evaluation.prompts = {
        name: prompts.PROMPTS[name] for name in ("correct", "wrong")
    }
    if dataset in SMALL:
        _shrink(config)
        return config
    config.data.ids_per_batch, config.data.seqs_per_id = 6, 8
    config.data.num_frames = FRAMES[dataset]
    if dataset == "ccpg":
        config.evaluation.max_frames = 250  # as BigGait's published evaluation
    config.optimizer.milestones = (15_000, 25_000, 30_000, 35_000)
    config.warmup.steps = 5_000
    config.train.steps = 40_000
    return config


def _shrink(config):
    """The sizes of the embedded default."""
    model = config.model
    model.image_size, model.feature_grid = (128, 64), (16, 8)
    model.dtype = "float32"
    model.visual_encoder.update(
        hidden_size=128, num_layers=4, num_heads=4, patch_size=8, table_size=16,
        blocks=(2, 3), frames_per_chunk=0,
    )  # fmt: skip
    model.decoder.update(target="coverage", support="soft", dropout=0.1)
    model.black_augmentation = 0.0  # the run is too short to gain from it
    model.text.update(width=96, num_layers=3, num_heads=3, adapter_size=16)
    config.pretrained = dict(  # configs/pocket_encoders.py trains them
        visual_encoder="pocket/visual_encoder",
        text_encoder="pocket/text_encoder",
        text_projection_last="pocket/text_projection_last",
        text_projection_mid="pocket/text_projection_mid",
    )
    model.representation.update(channels=32, hidden=64)
    model.gait.update(
        stem=32, squeeze=4, channels=(48, 64, 64), strides=(1, 2, 1), num_strips=8,
        embedding_size=64,
    )  # fmt: skip
    config.data.ids_per_batch, config.data.seqs_per_id = 8, 4
    config.data.num_frames = 6
    config.data.colour = 0.7
    config.evaluation.frame_multiple = 24
    config.evaluation.batch_size = 16
    config.warmup.update(steps=100, ids_per_batch=4, num_frames=3, learning_rate=1e-2)
    config.optimizer.update(
        name="muon", learning_rate=3e-3, weight_decay=1e-2, schedule="onecycle",
        rise_steps=50, rates=(("^text_", 0.02),),  # pretrained: they need little
    )  # fmt: skip
    config.train.update(steps=650, log_every=10, checkpoint_every=100)
