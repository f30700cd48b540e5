"""Published OpenGait checkpoints -> our variables, by name.

The public checkpoints are PyTorch state dicts with OpenGait's parameter names. Each
model has rules that turn our paths into those names. Values are copied; only their
layout changes.
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from gaitjax.engine.guards import choose, require

STRIP_HEAD = [
    ("head/dense", "FCs"),
    ("head/neck/norm", "BNNecks.bn1d"),
    ("head/neck", "BNNecks"),
]


def stem(ours: str, theirs: str) -> list[tuple[str, str]]:
    """Rules of a Stem `ours`; theirs: what precedes "layer0"."""
    return [
        (f"{ours}/conv", f"{theirs}layer0.forward_block.0"),
        (f"{ours}/norm", f"{theirs}layer0.forward_block.1"),
    ]


def stages(ours: str, theirs: str) -> list[tuple[str, str]]:
    """Rules of the Stages named `ours` and a number; theirs: what precedes "layer"."""
    block, torch = rf"{ours}(\d)/block(\d+)", rf"{theirs}layer\1"
    return [
        (rf"{block}_2d/(.*)", rf"{torch}.forward_block.\2.\3"),
        (rf"{block}_3d/(.*)", rf"{torch}.\2.\3"),
        (rf"{block}_p3d/conv(\d)", rf"{torch}.\2.conv\3.forward_block.0"),
        (rf"{block}_p3d/norm(\d)", rf"{torch}.\2.conv\3.forward_block.1"),
        (rf"{block}_p3d/temporal_conv", rf"{torch}.\2.shortcut3d"),
        (rf"{block}_p3d/temporal_norm", rf"{torch}.\2.sbn"),
        (rf"{block}_p3d/(shortcut/.*)", rf"{torch}.\2.\3"),
    ]


FUSION = [
    (f"fusion/{ours}", f"fusion.conv.forward_block.{theirs}")
    for ours, theirs in (
        ("reduce", 0),
        ("reduce_norm", 1),
        ("mix", 3),
        ("mix_norm", 4),
        ("expand", 6),
    )
]
# block of GaitGraph2: (regex of our module within the block, torch name there)
GRAPH_BLOCK = [
    (r"spatial/conv/gcn", "scn.conv.gcn"),
    *(
        (f"{ours}/{part}{norm}", f"{theirs}.{torch}")
        for ours, theirs in (("spatial", "scn"), ("temporal", "tcn"))
        for part, norm, torch in (
            ("conv", "", "conv"),
            ("norm", "", "bn"),
            ("down", "", "conv_down"),
            ("down", "_norm", "bn_down"),
            ("up", "", "conv_up"),
            ("up", "_norm", "bn_up"),
            ("residual", "", "residual.0"),
            ("residual", "_norm", "residual.1"),
        )
    ),
]
UNET = [
    *(
        (rf"unet/{ours}(\d)/{part}", rf"Backbone.{theirs}.{index}")
        for ours, theirs, indices in (
            ("down", r"Conv\1.conv", (0, 1, 3, 4)),
            ("up", r"Up_conv\1.conv", (0, 1, 3, 4)),
            ("double", r"Up\1.up", (1, 2)),
        )
        for part, index in zip(("conv1", "norm1", "conv2", "norm2"), indices)
    ),
    ("unet/classify", "Backbone.Conv_1x1"),
]
MASK_BRANCH = [
    ("decoder/norm", "Mask_Branch.bn_s"),
    ("decoder/classify", "Mask_Branch.down_sampling"),
    ("decoder/reconstruct", "Mask_Branch.up_sampling"),
]
GAITGL = [
    ("stem0", "conv3d.0.conv3d"),
    ("stem1", "conv3d.2.conv3d"),
    ("aggregate", "LTA.0.conv3d"),
    (r"block([01])/(global|local)", r"GLConvA\1.\2_conv3d.conv3d"),
    (r"block2/(global|local)", r"GLConvB2.\1_conv3d.conv3d"),
    (r"block([01])_(\d)/(global|local)", r"GLConvA\1.\2.\3_conv3d.conv3d"),
    (r"block2_(\d)/(global|local)", r"GLConvB2.\1.\2_conv3d.conv3d"),
    ("gem", "HPP"),
    ("dense", "Head0"),
    ("norm", "Bn"),
    ("classifier", "Head1"),
    ("neck/norm", "BNNecks.bn1d"),
    ("neck", "BNNecks"),
]


def gpgait(blocks: Mapping[str, str]) -> list[tuple[str, str]]:
    """Rules of GPGait; blocks: module of a Block -> torch name, besides the graph."""
    stacks = {
        "shared": "layer_share",
        "halves": "part_2",
        "trunk": "part_2_2",
        "thirds": "part_3_1",
        "whole": "backbone",
    }
    graph = {
        "graph": "asg",
        r"graph/query(\d)": r"asg.conv_a.\3",
        r"graph/key(\d)": r"asg.conv_b.\3",
        r"graph/value(\d)": r"asg.conv_d.\3",
        "graph/norm": "asg.bn",
    }
    return [
        (r"(pose|bone|angle)_norm", r"\1.data_bn"),
        *(
            (rf"(\w+)_{ours}(\d)/{part}", rf"\1.{theirs}.\2.{torch}")
            for ours, theirs in stacks.items()
            for part, torch in (graph | dict(blocks)).items()
        ),
        ("dense", "head"),
        ("neck/norm", "BNNecks.bn1d"),
        ("neck", "BNNecks"),
    ]


# model -> ordered (regex, replacement): of our module path, the first full match wins.
# "{strip}" in a name: one torch tensor per strip, stacked.
RULES: dict[str, list[tuple[str, str]]] = {
    "gaitbase": [
        ("stem/conv", "Backbone.forward_block.conv1.conv"),
        ("stem/norm", "Backbone.forward_block.bn1"),
        (r"stage(\d)/block(\d+)_2d/(.*)", r"Backbone.forward_block.layer\1.\2.\3"),
        *STRIP_HEAD,
    ],
    "gaitset": [
        (r"frame(\d)/conv1", r"set_block\1.forward_block.0.conv"),
        (r"frame(\d)/conv2", r"set_block\1.forward_block.2.conv"),
        (r"set(\d)/conv1", r"gl_block\1.0.conv"),
        (r"set(\d)/conv2", r"gl_block\1.2.conv"),
        ("dense", "Head"),
    ],
    "gaitpart": [
        *(
            (
                f"pair{pair}_{i}/conv",
                f"Backbone.forward_block.feature.{start + 2 * i}.conv",
            )
            for pair, start in enumerate((0, 5, 10, 14))
            for i in range(2)
        ),
        ("motion/short_squeeze", "TFA.pooling_func.conv1d3x1.{strip}.0.conv"),
        ("motion/short_expand", "TFA.pooling_func.conv1d3x1.{strip}.2.conv"),
        ("motion/long_squeeze", "TFA.pooling_func.conv1d3x3.{strip}.0.conv"),
        ("motion/long_expand", "TFA.pooling_func.conv1d3x3.{strip}.2.conv"),
        ("dense", "Head"),
    ],
    "gaitgl": GAITGL,
    "gaitedge": [
        *UNET,
        *((f"recogniser/{ours}", theirs) for ours, theirs in GAITGL),
    ],
    "deepgaitv2": [*stem("stem", ""), *stages("stage", ""), *STRIP_HEAD],
    "skeletongaitpp": [
        *stem("silhouette_stem", "sil_"),
        *stem("map_stem", "map_"),
        *stages("silhouette_stage", "sil_"),
        *stages("map_stage", "map_"),
        *FUSION,
        *stages("stage", ""),
        *STRIP_HEAD,
    ],
    "gaitgraph2": [
        (r"branch(\d)_norm", r"ResGCN.head.\1.bn"),
        (r"branch(\d)_layer(\d)", r"ResGCN.head.\1.layers.\2"),
        (r"layer(\d)", r"ResGCN.backbone.\1"),
        *(
            (rf"branch(\d)_layer(\d)/{ours}", rf"ResGCN.head.\1.layers.\2.{theirs}")
            for ours, theirs in GRAPH_BLOCK
        ),
        *(
            (rf"layer(\d+)/{ours}", rf"ResGCN.backbone.\1.{theirs}")
            for ours, theirs in GRAPH_BLOCK
        ),
        ("project", "ResGCN.fcn"),
    ],
    "multigaitpp": [
        *stem("part1_stem", "part1_"),
        *stem("part2_stem", "part2_"),
        *stages("part1_stage", "part1_"),
        *stages("part2_stage", "part2_"),
        *stages("shared_stage", ""),
        *stages("stage", ""),
        *(
            (
                f"split/attention{part}/{ours.removeprefix('fusion/')}",
                theirs.replace("fusion.conv", f"csquare.conv{3 - part}"),
            )
            for part in (1, 2)  # its conv1 is of the second modality
            for ours, theirs in FUSION
        ),
        ("fusion", "fusion.conv.forward_block.0"),
        *STRIP_HEAD,
    ],
    # BigGait: LMGait without text and MTCM. The encoder under Hugging Face's names, to
    # which import_checkpoint brings DINOv2's own.
    "lmgait": [
        (r"visual_encoder/(.*)", r"backbone.\1"),
        *MASK_BRANCH,
        ("denoising/norm", "Denoising_Branch.bn_s"),
        ("denoising/expand", "Denoising_Branch.down_sampling.0"),
        ("denoising/hidden_norm", "Denoising_Branch.down_sampling.1"),
        ("denoising/project", "Denoising_Branch.down_sampling.3"),
        ("appearance/norm", "Appearance_Branch.bn_s"),
        ("appearance/project", "Appearance_Branch.down_sampling"),
        ("appearance/project_norm", "Appearance_Branch.bn_t"),
        *(
            (f"gait/{ours}", f"gait_net.{theirs}")
            for ours, theirs in (
                *(
                    (f"stem_{stem}/{part}", f"{pre}.forward_block.{torch}")
                    for stem, pre in (
                        ("denoised", "pre_part"),
                        ("appearance", "pre_rgb"),
                    )
                    for part, torch in (
                        ("conv", "conv1.conv"),
                        ("norm", "bn1"),
                        ("block/(.*)", r"layer1.0.\1"),
                    )
                ),
                *(
                    (
                        f"block{block}/(.*)",
                        rf"post_backbone.forward_block.layer{block + 1}.0.\1",
                    )
                    for block in (1, 2, 3)
                ),
                *FUSION,
                *STRIP_HEAD,
            )
        ),
    ],
    "biggergait": [
        (r"visual_encoder/(.*)", r"Backbone.\1"),
        *MASK_BRANCH,
        *(
            (rf"layer(\d+)/{ours}", rf"HumanSpace_Conv.\1.{theirs}")
            for ours, theirs in (
                ("norm", 0),
                ("reduce", 1),
                ("reduce_norm", 2),
                ("project", 4),
                ("project_norm", 6),
            )
        ),
        *(
            (rf"gait(\d+)/{ours}", rf"Gait_Net.real_gait.\1.{theirs}")
            for ours, theirs in (
                ("stem/conv", "pre_rgb.forward_block.conv1.conv"),
                ("stem/norm", "pre_rgb.forward_block.bn1"),
                (r"stage1/block(\d+)_2d/(.*)", r"pre_rgb.forward_block.layer1.\2.\3"),
                (
                    r"stage(\d)/block(\d+)_2d/(.*)",
                    r"post_backbone.forward_block.layer\2.\3.\4",
                ),
                *STRIP_HEAD,
            )
        ),
    ],
    "swingait": [
        *stem("stem", ""),
        *stages("stage", ""),
        ("patches", "transformer.patch_embed.proj"),
        ("patches_norm", "transformer.patch_embed.norm"),
        ("widen1_norm", "transformer.layers.0.downsample.0"),
        ("widen1", "transformer.layers.0.downsample.1"),
        *(
            (
                rf"swin(\d)_block(\d+)/{ours}",
                rf"transformer.layers.\1.blocks.\2.{theirs}",
            )
            for ours, theirs in (
                (r"(norm\d)", r"\3"),
                ("attn", "attn"),
                (r"attn/(\w+)", r"attn.\3"),
                (r"(fc\d)", r"mlp.\3"),
            )
        ),
        ("norm", "transformer.norm"),
        ("dense", "FCs"),
        ("neck/norm", "BNNecks.bn1d"),
        ("neck", "BNNecks"),
    ],
    "gaittr": [
        ("input/norm", "data_bn"),
        *(
            (rf"block(\d)/{ours}", rf"backbone.\1.{theirs}")
            for ours, theirs in (
                ("temporal", "tcn.conv"),
                ("temporal_norm", "tcn.bn"),
                ("spatial_input/norm", "st.data_bn"),
                ("attention/qkv", "st.attention_conv.qkv_conv"),
                ("attention/out", "st.attention_conv.attn_out"),
                ("spatial_norm", "st.bn"),
                ("residual", "residual_s.0"),
                ("residual_norm", "residual_s.1"),
                ("shortcut", "down.conv"),
                ("shortcut_norm", "down.bn"),
            )
        ),
        ("project", "fcn"),
    ],
}
RULES["gpgait"] = gpgait({"shortcut": "residual_s.0", "shortcut_norm": "residual_s.1"})
RULES["gpgaitpp"] = gpgait(
    {
        "shortcut": "residual.0",
        "shortcut_norm": "residual.1",
        "temporal": "tcn.conv",
        "temporal_norm": "tcn.bn",
        "middle": "residual_s.0",
        "middle_norm": "residual_s.1",
        "down": "down.conv",
        "down_norm": "down.bn",
    }
)
RULES["skeletongait"] = RULES["deepgaitv2"]  # the same network on heat maps
RESIDUAL_BLOCK = re.compile(r"(^|/)block\d*(_(2d|p3d|3d))?/")  # its modules:
BLOCK_NAMES = {
    "norm1": "bn1",
    "norm2": "bn2",
    "shortcut/conv": "downsample.0",
    "shortcut/norm": "downsample.1",
}
LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
    "adaptive": "PA",
}
STRIP_MODULES = ("FCs", "BNNecks", "Head", "Head0", "Head1", "head")
# counters, constants that we compute, what BiggerGait lists a second time, and norms
# that BigGait and BiggerGait do not use
IGNORED = re.compile(
    r"(.*\.)?(num_batches_tracked|A|relative_position_index)$"
    r"|Gait_Net\.Gait_List\.|(Mask|Denoising)_Branch\.bn_t\."
)


def torch_name(model_name: str, path: str) -> str:
    """PyTorch name of our parameter or statistic: "stem/conv/kernel" -> "...weight".

    path: module path and leaf, without the collection.
    """
    rules = choose(model_name, RULES, "model with published weights:")
    module, _, leaf = path.rpartition("/")
    names = (
        match.expand(replacement)
        for pattern, replacement in rules
        if (match := re.fullmatch(pattern, module))
    )
    name = next(names, "")
    require(name, f"The published weights of {model_name} have no {path!r}.")
    if RESIDUAL_BLOCK.search(module):
        for ours, theirs in BLOCK_NAMES.items():
            name = re.sub(rf"(^|\.){ours}$", rf"\g<1>{theirs}", name)
    if leaf == "kernel" and name.rpartition(".")[2] in STRIP_MODULES:
        return f"{name}.fc_bin"
    return f"{name}.{LEAVES.get(leaf, leaf)}".lstrip(".").replace("/", ".")


def to_our_layout(value: np.ndarray, path: str, leaf, strips: int) -> np.ndarray:
    """A torch tensor in the layout of `leaf` (anything with a shape) at our `path`.

    Convolutions and dense layers: [O I *window] -> [*window I O], where a window of
    (k, 1, 1) may be (k, 1) here. The BN neck: [D*S] -> [S*D], `strips` = S. Others,
    matrices per strip among them, stay.
    """
    module, _, name = path.rpartition("/")
    if re.search("neck/norm$", module) and value.size % strips == 0:
        return value.reshape(-1, strips).T.reshape(-1)  # [S*D]
    per_strip = value.ndim == 3 and re.search("(dense|neck|classifier)$", module)
    if name == "kernel" and not per_strip:
        value = np.moveaxis(value, (0, 1), (-1, -2))  # [*window I O]
        if value.size == np.prod(leaf.shape) and value.shape[-2:] == leaf.shape[-2:]:
            value = value.reshape(leaf.shape)
    return value


class Parity(NamedTuple):
    """Torch names, sorted by whether they fit; `wrong_shape` gives both shapes."""

    matched: list[str]
    missing: list[str]
    extra: list[str]
    wrong_shape: list[str]

    def faults(self) -> str:
        """What does not fit, in one line; "" if everything does."""
        found = {
            "missing": self.missing,
            "extra": self.extra,
            "wrong shape": self.wrong_shape,
        }
        return "; ".join(
            f"{kind}: {', '.join(sorted(names))}"
            for kind, names in found.items()
            if names
        )


def fit(
    model_name: str, state_dict: Mapping[str, Any], abstract_variables: Mapping
) -> tuple[dict[str, np.ndarray], Parity]:
    """Our variables, as far as a PyTorch state dict has them, by name.

    Args:
      model_name: a key of RULES.
      state_dict: name -> array; a "module." prefix (of DataParallel) is dropped.
      abstract_variables: {"params": ..., "batch_stats": ...} of `jax.eval_shape` of
        the model's init.

    Returns ({"params/stem/conv/kernel": float32 array}, Parity).
    """
    state = {
        name.removeprefix("module."): np.asarray(value)
        for name, value in state_dict.items()
    }
    values, parity = {}, Parity([], [], [], [])
    expected = set()
    for key_path, leaf in jax.tree_util.tree_leaves_with_path(abstract_variables):
        path = leaf_path(key_path)
        names = torch_names_of(model_name, path, leaf)
        expected.update(names)
        absent = [name for name in names if name not in state]
        if absent:
            parity.missing.extend(absent)
            continue
        strips = neck_strips(abstract_variables, path)
        part = leaf
        if len(names) > 1:
            part = jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype)
        pieces = [to_our_layout(state[name], path, part, strips) for name in names]
        if any(piece.shape != part.shape for piece in pieces):
            parity.wrong_shape.append(
                f"{names[0]} {state[names[0]].shape} for {path} {leaf.shape}"
            )
            continue
        value = np.stack(pieces) if len(names) > 1 else pieces[0]
        key = jax.tree_util.keystr(key_path, simple=True, separator="/")
        values[key] = np.asarray(value, np.float32, order="C")
        parity.matched.extend(names)
    unknown = (n for n in state if n not in expected and not IGNORED.match(n))
    parity.extra.extend(unknown)
    return values, parity


def leaf_path(key_path) -> str:
    """ "module/leaf" of a key path in {"params": ..., "batch_stats": ...}."""
    path = jax.tree_util.keystr(key_path, simple=True, separator="/")
    return path.partition("/")[2]


def torch_names_of(model_name: str, path: str, leaf) -> list[str]:
    """The torch tensors that make up one leaf: one, or one per strip."""
    name = torch_name(model_name, path)
    if "{strip}" in name:
        return [name.replace("{strip}", str(i)) for i in range(leaf.shape[0])]
    return [name]


def neck_strips(variables: Mapping, path: str) -> int:
    """Strips of the BN neck whose norm has this path; 1 for other paths."""
    if not re.search("neck/norm/", path):
        return 1
    node = variables["params"]
    for name in path.split("/")[:-2]:
        node = node[name]
    return node["kernel"].shape[0]
