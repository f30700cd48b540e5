"""The golden harness reads settings from the file: files with settings of our own.

Each file is written by a model that is made here field by field; the harness makes its
own from the file's reference config. So an option that the harness ignores, or a size
that it takes for granted, shows as a difference.
"""

import functools
import json

import golden_files
import golden_models
import jax
import numpy as np
import pytest

from gaitjax.models import MODELS
from gaitjax.weights import zoo_names

SEED = 71
IMAGE = "silhouettes('x', n=2, s={s}, h={h}, w={w}, c={c}, seed=SEED)"
JOINTS = "1.0 * u('x', {shape}, SEED) as float32"
NECK = {"SeparateBNNecks": {"class_num": 3}}
# class -> our name and fields, the reference's config, inputs, facts besides the config
CASES = {
    "DeepGaitV2": (
        "deepgaitv2",
        dict(
            kind="p3d", channels=(4, 6, 8, 10), layers=(1, 1, 1, 1), embedding_size=5,
            retrieve="after_neck",
        ),
        NECK | {
            "Backbone": {
                "in_channels": 2, "mode": "p3d", "layers": [1, 1, 1, 1],
                "channels": [4, 6, 8, 10],
            },
            "use_emb2": True,
        },
        {"x": IMAGE.format(s=3, h=64, w=44, c=2)},
        "",
    ),
    "Baseline": (
        "gaitbase",
        dict(
            channels=(4, 5), layers=(2, 1), strides=(1, 2),
            max_pool=True, num_strips=4, embedding_size=3,
        ),
        {
            "backbone_cfg": {
                "in_channel": 3, "channels": [4, 5], "layers": [2, 1],
                "strides": [1, 2],
            },
            "SeparateFCs": {"out_channels": 3},
            "SeparateBNNecks": {"class_num": 4},
            "bin_num": [4],
        },
        {"x": IMAGE.format(s=2, h=64, w=32, c=3)},
        "",
    ),
    "GaitTR": (
        "gaittr",
        dict(
            channels=(32, 64), dropout=0.0, embedding_size=7, joint_format="alphapose"
        ),
        {"in_channels": [10, 32, 64], "num_class": 7, "joint_format": "openpose"},
        {"x": JOINTS.format(shape=(2, 9, 10, 18, 1))},
        "",
    ),
    "GaitEdge": (
        "gaitedge",
        dict(channels=(3, 4, 5), halvings=3, edge=False, freeze_encoder=False),
        {
            "GaitGL": {"channels": [3, 4, 5], "class_num": 3},
            "Segmentation": {
                "type": "U_Net", "in_channels": 3, "freeze_half": False,
            },
            "edge": False,
            "align": True,
        },
        {
            "rgb": "u01('x', (2, 2, 3, 64, 48), SEED) as float32",
            "sils": "binary_sils('s', n=2, s=2, h=64, w=48, seed=SEED)",
            "ratios": "u01('r', (2, 2), SEED) as float32",
        },
        "",
    ),
    "BiggerGait__DINOv2": (
        "biggergait",
        dict(
            image_size=(66, 33), map_size=(32, 16), hidden_size=12, num_layers=6,
            num_heads=3, patch_size=7, table_size=9, layers_per_group=3,
            num_recognisers=1, map_channels=4, channels=(4, 5), layers=(1, 1),
            strides=(1, 2), num_strips=8, embedding_size=5,
        ),
        NECK | {
            "image_size": 33, "sils_size": 16, "source_dim": 12, "num_unknown": 4,
            "total_layer_num": 6, "group_layer_num": 3, "head_num": 1,
            "backbone_cfg": {
                "channels": [4, 5], "layers": [1, 1], "strides": [1, 2],
            },
            "SeparateFCs": {"out_channels": 5},
            "bin_num": [8],
        },
        {"rgb": IMAGE.format(s=2, h=70, w=40, c=3)},
        "num_attention_heads=3 patch_size=7 image_size=63",
    ),
}  # fmt: skip


def write(path, kind):
    """A golden file of the case `kind`: its listing of weights, its embeddings."""
    name, fields, config, inputs, note = CASES[kind]
    head = config.get("SeparateBNNecks", config.get("GaitGL", {}))
    classes = head.get("class_num", 0)
    meta = {"kind": "model", "class": kind, "model_cfg": config, "seed": SEED,
            "dataset": "CASIA-B", "note": note, "tol": {}, "losses": {}}  # fmt: skip
    meta["inputs"] = {"eval": {"inputs": inputs, "labels": [0, 1]}}
    formula = golden_files.load_formula(golden_files.OWN_FOLDER / "formula.py")
    golden = golden_files.GoldenFile(path, meta, {}, formula)
    model = MODELS[name](classes, **fields)
    size = ["FCs.fc_bin", [1, 1, fields.get("embedding_size", 0)], "param"]
    meta["state_dict"] = [size]  # all that the batch's reader asks of the listing
    _, _, entries = golden_models.build(golden)
    batch = golden_models.make_batch(golden, meta["inputs"]["eval"], entries)
    init = functools.partial(model.init, train=False)
    abstract = jax.eval_shape(init, jax.random.key(0), batch)
    meta["state_dict"] = [
        [torch_name, list(value.shape), "param"]
        for torch_name, value in golden_models.to_torch(
            name, zeros(abstract), abstract["params"]
        ).items()
    ]
    parameters = jax.tree.leaves(abstract["params"])
    meta["n_params"] = sum(leaf.size for leaf in parameters)
    abstract = {"batch_stats": {}, **abstract}
    variables, parity = zoo_names.fit(name, golden.weights(), abstract)
    assert not parity.faults()
    structure = jax.tree.structure(abstract)
    variables = jax.tree.unflatten(structure, list(variables.values()))
    output = jax.jit(functools.partial(model.apply, train=False))(variables, batch)
    embeddings = np.asarray(golden_models.torch_axes(output.embeddings))
    assert np.isfinite(embeddings).all() and np.ptp(embeddings) > 0
    np.savez(path, meta=json.dumps(meta), **{"eval/embeddings": embeddings})
    return embeddings


def zeros(tree):
    return jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), tree)


@pytest.mark.parametrize("kind", CASES)
def test_a_file_of_other_settings_passes(kind, tmp_path):
    path = tmp_path / "own.npz"
    embeddings = write(path, kind)
    golden_models.check_model(golden_files.read(path))
    if kind != "GaitTR":  # the quickest
        return
    with np.load(path) as archive:
        stored = dict(archive)
    changed = embeddings * (1 + 1e-3 * np.sign(embeddings))
    np.savez(path, **(stored | {"eval/embeddings": changed}))
    with pytest.raises(AssertionError, match="relative error"):
        golden_models.check_model(golden_files.read(path))
