"""CarGait (Habib et al., "CarGait: Cross-Attention based Re-ranking for Gait
Recognition", ICCV 2025): re-ranks what any trained model of the zoo finds.

    ./run.sh train configs/gaitbase.py        # a base model, once
    ./run.sh train configs/cargait.py         # re-ranker on runs/gaitbase
    ./run.sh train configs/cargait.py --config.base_run=runs/lmgait \
        --workdir=runs/cargait_lmgait
    ./run.sh train configs/cargait.py:gait3d --config.base_run=runs/gaitbase_gait3d

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
            name=f"cargait{suffix}",  # stem of the run's folder
            mode="rerank",  # train if not finished, compare | "train": only train
            base_run=f"runs/gaitbase{suffix}",  # folder of the trained base model
            seed=0,  # of parameters, held-out identities, triplets, dropout
            data=dict(
                data_dir="",  # of the prepared data sets; "": the base run's
                train_dataset="",  # whose train split is learned from; "": the base's
                test_dataset="",  # whose test split is re-ranked; "": the base's
            ),
            lists=dict(
                size=30,  # v, nearest training sequences of each training sequence
                # a list of positives only: "skip" its anchor | "nearest": take the
                # nearest sequence of another identity
                without_negative="skip",
                # False: an identity's other sequences of the anchor's view are left out
                # as the protocols leave them out
                same_view=True,
            ),
            model=dict(
                name="cargait",
                num_heads=8,
                hidden_size=256,  # of queries, keys and values, all heads together
                num_blocks=1,  # cross-attention layers
                shared=True,  # one module for both directions
                cross_attention=True,  # False: the paper's MLP ablation
                feedforward_size=0,  # of an MLP after the attention; 0: none
                dropout=0.0,  # on every residual update
                classifier_size=512,  # hidden width of the identity classifier
                dtype="float32",  # of the attention's matmuls
            ),
            loss=dict(
                easy_weight=0.1,  # beta, of triplets already in order; 1: plain BPR
                classification_weight=0.01,  # alpha; 0: ranking loss alone
            ),
            optimizer=common.optimizer(
                name="adamw", learning_rate=1e-5, weight_decay=1e-2,
                schedule="constant", milestones=(),
            ),
            validation=dict(
                share=0.1,  # of the training identities, never trained on
                batches=32,  # of train.anchors triplets, the same each time
                every_steps=10_000,  # the lowest ranking loss is kept
            ),
            train=dict(
                steps=100_000,
                anchors=64,  # triplets a step
                log_every=100,
                checkpoint_every=1_000,
                keep=2,  # newest checkpoints kept
            ),
            evaluation=dict(
                # rows of the table beside the base model itself; "gcr_views": GCR with
                # its second graph, between different views
                rerankers=(
                    "kr", "lbr", "gcr", "gcr_views", "gnn", "qe", "cargait", "cascade",
                ),
                shortlist=10,  # K, of CarGait: how many are put in a new order
                wide_shortlist=50,  # cascade: of LBR, before CarGait's K
                protocols=(),  # names in retrieval.protocols; (): the base run's
                chunk=16,  # probes that CarGait scores at once
            ),
            mesh=dict(data=-1, model=1),  # devices per axis; -1: the rest
            # a name in sharding_rules ("data_parallel", "fsdp", "tensor_parallel")
            sharding="data_parallel",
            sharding_rules=common.SHARDING_RULES,
            pictures=True,  # ranked lists before and after, attention between strips
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
