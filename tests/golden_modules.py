"""Golden values and gradients of the layers and blocks that models share.

The file's cases of models that gaitjax builds otherwise (or not at all) have no entry
in MODULES and are not checked here (our FocalConv includes GaitPart's activation: the
GaitPart files check it).
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from golden_files import GoldenFile
from golden_models import from_torch, to_torch, unpack

from gaitjax.models.gaitgl import GeM, GLConv
from gaitjax.models.gaitgraph2 import branch_features
from gaitjax.models.gaitpart import MicroMotion
from gaitjax.models.multigaitpp import CommonAndSpecific
from gaitjax.models.swingait import SwinBlock
from gaitjax.parts import heads, layers, resnet, skeleton
from gaitjax.weights import zoo_names as torch_names

FUSION = [(ours.removeprefix("fusion/"), theirs.removeprefix("fusion."))
          for ours, theirs in torch_names.FUSION]  # fmt: skip
BLOCK = [(r"block0_(?:2|3)d/(.*)", r"\1")]
P3D = [
    (r"block0_p3d/conv(\d)", r"conv\1.forward_block.0"),
    (r"block0_p3d/norm(\d)", r"conv\1.forward_block.1"),
    ("block0_p3d/temporal_conv", "shortcut3d"),
    ("block0_p3d/temporal_norm", "sbn"),
]
MOTION = [
    (f"module/{ours}_{end}", f"conv1d3x{kernel}.{{strip}}.{index}.conv")
    for ours, kernel in (("short", 1), ("long", 3))
    for end, index in (("squeeze", 0), ("expand", 2))
]


class Around(nn.Module):
    """Calls `function(train, *inputs)`, which may create modules."""

    function: callable

    @nn.compact
    def __call__(self, *inputs, train: bool):
        return self.function(train, *inputs)


def everywhere(x):
    return jnp.ones(x.shape[:2], bool)


def block(kind):
    def call(train, x):
        frames = x[:, None] if kind == "2d" else x
        y = resnet.Stage(kind, x.shape[-1], 1, name="stage")(
            frames, train=train, valid=everywhere(frames)
        )
        return y[:, 0] if kind == "2d" else y

    return call


def fusion(module):
    def call(train, first, second):
        valid = jnp.ones(first.shape[0] * first.shape[1], bool)
        y = module(
            layers.fold_frames(first),
            layers.fold_frames(second),
            train=train,
            valid=valid,
        )
        return y.reshape(first.shape)

    return call


def glconv(halvings, concatenate):
    return lambda train, x: GLConv(4, halvings, concatenate, name="module")(
        x, everywhere(x)
    )


def pooled_packs(train, x):
    frames, valid = unpack(x[0], [3, 5])
    return layers.set_pool(frames, jnp.asarray(valid))


def gem(train, x):  # eight bands of two rows, as rows of one band each
    count, height, width, channels = x.shape
    rows = x.reshape(count, 8, height // 8 * width, channels)
    return GeM(name="HPP")(rows)


def common_and_specific(train, first, second):
    maps = CommonAndSpecific(4, name="module")(
        layers.fold_frames(first),
        layers.fold_frames(second),
        train=train,
        valid=jnp.ones(first.shape[0] * first.shape[1], bool),
    )
    common = 1 - maps[1] - maps[2]  # the reference returns it too
    return *(x.reshape(first.shape) for x in maps), common


def swin_block(train, x):
    x = jnp.moveaxis(x, -1, 1)  # stored channels-last
    y = SwinBlock((2, 3, 2), (1, 1, 1), 3, name="module")(
        x, train=train, valid=everywhere(x)
    )
    return jnp.moveaxis(y, 1, -1)


SWIN = [
    (r"module/(norm\d)", r"\1"),
    ("module/attn", "attn"),
    (r"module/attn/(\w+)", r"attn.\1"),
    (r"module/(fc\d)", r"mlp.\1"),
]
COMMON = [
    (f"module/attention{part}/{ours}", theirs.replace("conv.", f"conv{part}."))
    for part in (1, 2)
    for ours, theirs in FUSION
]
GLOBAL_LOCAL = [(r"module/(.*)", r"\1_conv3d.conv3d")]
# case -> (function of train and channels-last inputs, torch names)
MODULES = {
    "hpp_pyramid": (lambda t, x: heads.horizontal_pyramid(x, (16, 8, 4, 2, 1)), []),
    "hpp_16": (lambda t, x: heads.horizontal_pool(x, 16), []),
    "pack_max": (pooled_packs, []),
    "separate_fcs_norm0": (
        lambda t, x: heads.SeparateDense(5, name="dense")(x),
        [("dense", "Head")],
    ),
    "bnnecks_norm1_par1": (
        lambda t, x: heads.SeparateBNNeck(8, name="neck")(x, train=t),
        [("neck/norm", "bn1d"), ("neck", "BNNecks")],
    ),
    "gem_hpp": (gem, [("HPP", "HPP")]),
    "temporal_feature_aggregator": (
        lambda t, x: MicroMotion(name="module")(x, everywhere(x)),
        MOTION,
    ),
    "glconv_h0_fm0": (glconv(0, False), GLOBAL_LOCAL),
    "glconv_h2_fm0": (glconv(2, False), GLOBAL_LOCAL),
    "glconv_h2_fm1": (glconv(2, True), GLOBAL_LOCAL),
    "block2d": (block("2d"), [(f"stage/{a}", b) for a, b in BLOCK]),
    "block3d": (block("3d"), [(f"stage/{a}", b) for a, b in BLOCK]),
    "blockp3d": (block("p3d"), [(f"stage/{a}", b) for a, b in P3D]),
    "attention_fusion": (
        lambda *a: fusion(resnet.AttentionFusion(16, name="module"))(*a),
        [(f"module/{a}", b) for a, b in FUSION],
    ),
    "csquare": (common_and_specific, COMMON),
    "swin_block_shift": (swin_block, SWIN),
    "biggait_attention_fusion": (
        lambda *a: fusion(resnet.AttentionFusion(4, True, name="module"))(*a),
        [(f"module/{a}", b) for a, b in FUSION],
    ),
}


def check_modules(golden: GoldenFile) -> None:
    for case, (function, rules) in MODULES.items():
        check_case(golden, case, Around(function), rules)
    check_skeleton(golden)
    left = {key.partition("/")[0] for key in golden.unchecked() if "/in/" not in key}
    assert not left & set(MODULES), golden.unchecked()


def check_skeleton(golden) -> None:
    for theirs, ours in (("coco", "coco"), ("openpose", "alphapose")):
        body = skeleton.SKELETONS[ours]
        for hops in (2, 3):
            graph = f"graph_{theirs}_{hops}"
            adjacency = skeleton.adjacency(hops, body.links, body.joints)
            golden.check(f"{graph}/A", adjacency)
            golden.check(f"{graph}/connect_joint", body.parents)
            golden.check(f"{graph}/flip_idx", body.mirror)
    keypoints = golden.arrays["multi_input/in/x"][None]  # [1 T V 3]
    features = branch_features(keypoints, jnp.ones(keypoints.shape[:2], bool))
    golden.check("multi_input/eval/out0", features[0])


def check_case(golden, case, module, rules) -> None:
    names = [key for key in golden.names() if key.startswith(f"{case}/")]
    inputs = {
        key.rpartition("/")[2]: jnp.asarray(golden.arrays[key])
        for key in golden.arrays  # in the reference's order of arguments
        if key.startswith(f"{case}/in/")
    }
    listing = golden.meta["state_dicts"].get(case, [])
    if case == "gem_hpp":
        weights = {"HPP.p": golden.formula.weight(f"{case}/HPP.p", (1,), golden.seed)}
    else:
        weights = golden.weights(listing, prefix=f"{case}/") if listing else {}
    # our rules call a matrix per strip by the name of the module that holds it
    holder = rules[-1][1] if rules else ""
    weights = {
        f"{holder}.fc_bin" if name == "fc_bin" else name: value
        for name, value in weights.items()
    }
    ours = [jnp.moveaxis(x, 1, -1) for x in inputs.values()]
    abstract = jax.eval_shape(
        lambda: module.init(jax.random.key(0), *ours, train=False)
    )
    torch_names.RULES[case] = rules
    abstract = {"params": {}, "batch_stats": {}, **abstract}
    variables = from_torch(case, weights, abstract)
    for mode in ("eval", "train"):
        if f"{mode}/" in "".join(name.partition("/")[2] + "|" for name in names):
            check_mode(golden, case, mode, module, variables, inputs, names)


def check_mode(golden, case, mode, module, variables, inputs, names) -> None:
    train = mode == "train"

    def total(params, inputs):
        arrays = [jnp.moveaxis(x, 1, -1) for x in inputs]
        outputs, updated = module.apply(
            {**variables, "params": params}, *arrays, train=train, mutable="batch_stats"
        )
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        outputs = [jnp.moveaxis(y, -1, 1) for y in outputs]
        value = 0.0
        for index, y in enumerate(outputs):
            cotangent = golden.formula.u(f"{case}/cot{index}", y.shape, golden.seed)
            value += jnp.sum(y * jnp.asarray(cotangent, jnp.float32))
        return value, (outputs, updated)

    gradients, (outputs, updated) = jax.jit(
        jax.grad(total, argnums=(0, 1), has_aux=True)
    )(variables["params"], tuple(inputs.values()))
    for index, y in enumerate(outputs):
        golden.check(f"{case}/{mode}/out{index}", y)
    for name, gradient in zip(inputs, gradients[1]):
        if f"{case}/{mode}/xgrad/{name}" in names:
            golden.check(f"{case}/{mode}/xgrad/{name}", gradient)
    for what, tree in (("pgrad", {"params": gradients[0]}), ("buf", updated)):
        if what == "buf" and not train:
            continue
        for name, value in to_torch(case, tree, variables["params"]).items():
            name = "fc_bin" if name.endswith("fc_bin") else name
            key = f"{case}/{mode}/{what}/{name}"
            shape = golden.meta["shapes"][key]  # windows of (3, 1, 1) are (3, 1) here
            golden.check(key, np.asarray(value, np.float32).reshape(shape))


KINDS = {"modules": check_modules}
