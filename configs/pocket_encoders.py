"""The pocket encoders: the image encoder and the text tower of `configs/lmgait.py`.

    python -m tfds_builders.prepare --config=configs/pocket_encoders.py
    python -m gaitjax.main --config=configs/pocket_encoders.py
    python -m benchmarks.pocket_encoders runs/pocket_encoders      # measures, stores

They learn from rendered walkers of another seed than any that is evaluated
(gaitjax/models/pocket_encoders.py says what).
"""

from configs import common, prompts, words

# the prompts of LMGait's Table 6 are not among the phrases; their words are
TESTED = {text for texts in prompts.PROMPTS.values() for text in texts}


def get_config(variant: str = "pocket"):
    common.choose(variant, dict.fromkeys(("pocket", "pocket_tiny")))
    config = common.base("pocket_encoders", "synthetic")
    dataset = f"synthetic_gait/{variant}"
    config.data.update(
        train_dataset=dataset, test_dataset=dataset,
        num_classes=200 if variant == "pocket" else 4,
        modalities=("frames", "regions", "captions", "keypoints"),
        ids_per_batch=16, seqs_per_id=2, num_frames=1, flip=0.5, colour=0.8,
    )  # fmt: skip
    config.evaluation.update(
        protocols=("ccpg_gait",), modalities=("frames",), batch_size=32,
        frame_multiple=4,
    )  # fmt: skip
    known = {0, words.START, words.END}
    known |= {number for ids in words.WORDS.values() for number in ids}
    texts = words.phrases(600, seed=0, without=TESTED)
    config.model = dict(  # gaitjax/models/pocket_encoders.py explains the fields
        name="pocket_encoders",
        image_size=(128, 64),
        visual_encoder=dict(
            kind="dinov2", hidden_size=128, num_layers=4, num_heads=4, patch_size=8,
            table_size=16, blocks=(2, 3), frozen=False, frames_per_chunk=0,
            remat=False,
        ),
        text=dict(
            width=96, num_layers=3, num_heads=3, context_length=77, tau_init=10.0
        ),
        words=tuple(sorted(known)),
        phrases=tuple(words.token_ids(text) for text, _ in texts),
        meanings=tuple(tuple(sorted(named)) for _, named in texts),
        phrases_per_step=16,
        cells=4,
        caption_size=64,
    )  # fmt: skip
    config.loss = dict(
        words=dict(weight=1.0),
        parts=dict(weight=2.0),
        joints=dict(weight=5.0),
        captions=dict(weight=0.1, temperature=0.1),
    )
    config.optimizer.update(
        name="muon", learning_rate=2e-3, weight_decay=1e-2, schedule="onecycle",
        rise_steps=200, clip_norm=1.0,
        adam_for=("patch_embeddings", "position_embeddings", "cls_token"),
    )  # fmt: skip
    config.train.update(steps=10_000, log_every=20, checkpoint_every=500)
    config.pictures = False
    return config
