"""CarGait (Habib et al., "CarGait: Cross-Attention based Re-ranking for Gait
Recognition", ICCV 2025): re-ranks what any trained model of the zoo finds.

    ./run.sh train configs/gaitbase.py        # a base model, once
    ./run.sh train configs/cargait.py         # re-ranker on runs/gaitbase
    ./run.sh train configs/cargait.py --config.base_run=runs/lmgait \
        --workdir=runs/cargait_lmgait
    ./run.sh train configs/cargait.py:gait3d --config.base_run=runs/gaitbase_gait3d

gaitjax/settings.py and gaitjax/rerank/cargait.py explain the fields.

The base run's folder says everything about the base model: architecture, data set,
protocols, number and width of strips. Training ends with one table of the base model
and every re-ranker, before and after (rerank.json, pictures/).

`synthetic` and `cmu_walk` are short enough for a laptop CPU; the others are the
paper's setting. Published Rank-1 before -> after (not measured by us): Gait3D GaitSet
36.7 -> 41.5, GaitBase 64.6 -> 66.1, DeepGaitV2-P3D 74.4 -> 75.1, SwinGait-3D 75.0 ->
76.3, SkeletonGait++ 77.6 -> 78.1; GREW GaitSet 48.4 -> 52.0, GaitBase 60.1 -> 67.2,
DeepGaitV2-P3D 77.7 -> 79.2; OU-MVLP GaitSet 87.1 -> 87.5, GaitBase 90.8 -> 91.1.
"""

from ml_collections import ConfigDict

from configs import common

SMALL = ("synthetic", "cmu_walk")


def get_config(dataset: str = "synthetic"):
    common.choose(dataset, common.DATASETS)
    suffix = "" if dataset == "synthetic" else f"_{dataset}"
    config = ConfigDict(
        dict(
            name=f"cargait{suffix}", mode="rerank", base_run=f"runs/gaitbase{suffix}",
            reranker="", seed=0,
            data=dict(data_dir="", train_dataset="", test_dataset=""),
            lists=dict(size=30, without_negative="skip", same_view=True),
            model=dict(
                name="cargait", num_heads=8, hidden_size=256, num_blocks=1, shared=True,
                cross_attention=True, feedforward_size=0, dropout=0.0,
                classifier_size=512, dtype="float32",
            ),
            loss=dict(easy_weight=0.1, classification_weight=0.01),
            optimizer=common.optimizer(
                name="adamw", learning_rate=1e-5, weight_decay=1e-2,
                schedule="constant", milestones=(),
            ),
            validation=dict(share=0.1, batches=32, every_steps=10_000),
            train=dict(
                steps=100_000, anchors=64, log_every=100, checkpoint_every=1_000,
                keep=2, accumulate=1,
            ),
            evaluation=dict(
                rerankers=(
                    "kr", "lbr", "gcr", "gcr_views", "gnn", "qe", "cargait", "cascade",
                ),
                shortlist=10, wide_shortlist=50, protocols=(), chunk=16,
                lbr_neighbours=100,
            ),
            mesh=dict(data=-1, model=1),
            sharding="data_parallel", sharding_rules=common.SHARDING_RULES,
            pictures=True,
        ),
        convert_dict=True,
    )  # fmt: skip
    if dataset in SMALL:
        _shrink(config)
    return config


def _shrink(config):
    """A minute on one CPU core, on some 50 identities: larger steps, and few of them.

    Chosen on held-out identities of the training split alone. After some 400 such steps
    the re-ranker has memorised its 48 identities and harms all others; the frequent
    validation picks the parameters from before that (docs/reranking.md).
    """
    config.model.update(num_heads=4, hidden_size=64, classifier_size=64)
    config.lists.update(without_negative="nearest", same_view=False)
    config.optimizer.learning_rate = 1e-4
    config.validation.update(share=0.2, every_steps=50)
    config.train.update(steps=600, log_every=20, checkpoint_every=200)
