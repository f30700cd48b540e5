"""Golden files of the zoo: embeddings, logits, losses, gradients, batch statistics."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from golden_files import GoldenFile

from gaitjax import losses
from gaitjax.models import MODELS
from gaitjax.models.gpgait import PartPool
from gaitjax.parts.heads import StripHead
from gaitjax.parts.output import GaitOutput
from gaitjax.parts.unet import UNet
from gaitjax.weights import zoo_names as torch_names

NO_CLASSES = 0  # these models have no classifier


def build(golden: GoldenFile):
    """(our name, model, function torch input -> batch entries)."""
    return BUILDERS[golden.meta["class"]](golden.meta["model_cfg"], golden)


def images(x: np.ndarray) -> jax.Array:
    """[n s h w] as it is, [n s c h w] -> [B T H W C]."""
    return jnp.asarray(x if x.ndim == 4 else np.moveaxis(x, 2, 4))


def gaitbase(cfg, golden):
    backbone = cfg["backbone_cfg"]
    modality = "frames" if backbone.get("in_channel", 1) == 3 else "silhouettes"
    model = MODELS["gaitbase"](
        cfg["SeparateBNNecks"]["class_num"],
        channels=tuple(backbone["channels"]),
        layers=tuple(backbone["layers"]),
        strides=tuple(backbone["strides"]),
        max_pool=backbone.get("maxpool", True),  # the reference's default
        num_strips=cfg["bin_num"][0],
        embedding_size=cfg["SeparateFCs"]["out_channels"],
    )
    return "gaitbase", model, lambda x: {modality: images(x)}


def gaitset(cfg, golden):
    model = MODELS["gaitset"](
        NO_CLASSES,
        channels=tuple(cfg["in_channels"][1:]),
        bins=tuple(cfg["bin_num"]),
        embedding_size=cfg["SeparateFCs"]["out_channels"],
    )
    return "gaitset", model, lambda x: {"silhouettes": images(x)}


def gaitpart(cfg, golden):
    layers = [layer.split("-") for layer in cfg["backbone_cfg"]["layers_cfg"]]
    convs = [layer for layer in layers if len(layer) > 1][::2]
    model = MODELS["gaitpart"](
        NO_CLASSES,
        channels=tuple(int(layer[1]) for layer in convs),
        halvings=tuple(int(layer[2]) if len(layer) > 2 else 0 for layer in convs),
        num_strips=cfg["bin_num"][0],
        embedding_size=cfg["SeparateFCs"]["out_channels"],
    )
    return "gaitpart", model, lambda x: {"silhouettes": images(x)}


def gaitgl(cfg, golden):
    large = golden.meta["dataset"] in ("OUMVLP", "GREW")
    model = MODELS["gaitgl"](
        cfg["class_num"],
        channels=tuple(cfg["channels"]),
        halvings=1 if large else 3,
        head="bnneck" if "SeparateBNNecks" in cfg else "original",
    )
    return "gaitgl", model, lambda x: {"silhouettes": images(x)}


def embedding_size(golden):
    (shape,) = [
        shape for name, shape, _ in golden.meta["state_dict"] if name == "FCs.fc_bin"
    ]
    return shape[2]


def retrieve(cfg):
    return "after_neck" if cfg.get("use_emb2") else "before_neck"


def deepgaitv2(cfg, golden):
    backbone = cfg["Backbone"]
    modality = "heatmaps" if backbone["in_channels"] == 2 else "silhouettes"
    model = MODELS["deepgaitv2"](
        cfg["SeparateBNNecks"]["class_num"],
        kind=backbone["mode"],
        channels=tuple(backbone["channels"]),
        layers=tuple(backbone["layers"]),
        embedding_size=embedding_size(golden),
        retrieve=retrieve(cfg),
    )
    return "deepgaitv2", model, lambda x: {modality: images(x)}


def widths(backbone):
    return tuple(32 * backbone["C"] * factor for factor in (1, 2, 4, 8))


def skeletongaitpp(cfg, golden):
    model = MODELS["skeletongaitpp"](
        cfg["SeparateBNNecks"]["class_num"],
        channels=widths(cfg["Backbone"]),
        layers=tuple(cfg["Backbone"]["blocks"]),
        embedding_size=embedding_size(golden),
        retrieve=retrieve(cfg),
    )

    def entries(x):
        x = images(x)  # [B T H W 3]
        return {"heatmaps": x[..., :2], "silhouettes": x[..., 2]}

    return "skeletongaitpp", model, entries


def joint_format(cfg):
    """OpenPose's joints are AlphaPose's 18."""
    return "coco" if cfg["joint_format"] == "coco" else "alphapose"


def gaitgraph2(cfg, golden):
    model = MODELS["gaitgraph2"](
        NO_CLASSES,
        branch_channels=tuple(cfg["input_branch"][1:]),
        channels=tuple(cfg["main_stream"][1:]),
        reduction=cfg["reduction"],
        embedding_size=cfg["num_class"],
        joint_format=joint_format(cfg),
        test_time_augmentation=cfg["tta"],
    )
    return "gaitgraph2", model, lambda x: {"keypoints": jnp.asarray(x)}


def multigaitpp(cfg, golden):
    backbone = cfg["Backbone"]
    model = MODELS["multigaitpp"](
        cfg["SeparateBNNecks"]["class_num"],
        channels=widths(backbone),
        layers=tuple(backbone["blocks"]),
        embedding_size=embedding_size(golden),
    )
    first = backbone["part1_channel"]

    def entries(x):
        x = images(x)  # [B T H W C]
        return {"silhouettes": x[..., :first], "heatmaps": x[..., first:]}

    return "multigaitpp", model, entries


def rgb_batch(rgb, sils=None, ratios=None):
    """Batch entries of frames [n s c h w], masks [n s h w] and ratios [n s]."""
    entries = {"frames": images(rgb)}
    if sils is not None:
        entries["masks"] = jnp.asarray(sils)
    if ratios is not None:
        entries["ratios"] = jnp.asarray(ratios)
    return entries


def gaitedge(cfg, golden):
    model = MODELS["gaitedge"](
        cfg["GaitGL"]["class_num"],
        channels=tuple(cfg["GaitGL"]["channels"]),
        kernel=cfg.get("kernel_size", 3),  # no edge, no kernel size
        edge=cfg["edge"],
        freeze_encoder=cfg["Segmentation"]["freeze_half"],
    )
    return "gaitedge", model, rgb_batch


class Segmentation(nn.Module):
    """GaitEdge's segmentation alone."""

    freeze_encoder: bool

    @nn.compact
    def __call__(self, batch, *, train):
        frames, valid = batch["frames"], batch["valid"]
        probability = UNet(name="unet")(
            frames.reshape((-1,) + frames.shape[2:]),
            train=train,
            valid=valid.reshape(-1),
            freeze_encoder=self.freeze_encoder,
        )
        aux = {
            "mask_probability": probability.reshape(frames.shape[:4]),
            "mask_target": batch["masks"],
        }
        return GaitOutput(jnp.zeros((len(frames), 0, 0)), None, aux)


def segmentation(cfg, golden):
    freeze = cfg["backbone_cfg"].get("freeze_half", True)  # the reference's default
    return "gaitedge", Segmentation(freeze), rgb_batch


def biggergait(cfg, golden):
    backbone, side = cfg["backbone_cfg"], cfg["image_size"]
    encoder = {
        name: int(value)
        for name, value in re.findall(r"(\w+)=(\d+)", golden.meta["note"])
    }  # the config does not describe it
    model = MODELS["biggergait"](
        cfg["SeparateBNNecks"]["class_num"],
        image_size=(2 * side, side),
        map_size=(2 * cfg["sils_size"], cfg["sils_size"]),
        hidden_size=cfg["source_dim"],
        num_layers=cfg["total_layer_num"],
        num_heads=encoder["num_attention_heads"],
        patch_size=encoder["patch_size"],
        table_size=encoder["image_size"] // encoder["patch_size"],
        layers_per_group=cfg["group_layer_num"],
        num_recognisers=cfg["head_num"],
        map_channels=cfg["num_unknown"],
        channels=tuple(backbone["channels"]),
        layers=tuple(backbone["layers"]),
        strides=tuple(backbone["strides"]),
        num_strips=cfg["bin_num"][0],
        embedding_size=cfg["SeparateFCs"]["out_channels"],
    )
    return "biggergait", model, rgb_batch


def swingait(cfg, golden):
    model = MODELS["swingait"](
        cfg["SeparateBNNecks"]["class_num"],
        channels=tuple(cfg["Backbone"]["channels"]),
        layers=tuple(cfg["Backbone"]["layers"]),
        token_grid=(cfg["bin_num"][0], 10),
        drop_path=0.0,
        embedding_size=embedding_size(golden),
    )
    return "swingait", model, lambda x: {"silhouettes": images(x)}


def gaittr(cfg, golden):
    model = MODELS["gaittr"](
        NO_CLASSES,
        channels=tuple(cfg["in_channels"][1:]),
        dropout=0.0,
        embedding_size=cfg["num_class"],
        joint_format=joint_format(cfg),
    )
    return "gaittr", model, lambda x: {"keypoints": jnp.asarray(x)[..., 0]}


def gpgait(cfg, golden, name="gpgait"):
    model = MODELS[name](
        cfg["num_class"],
        channels=tuple(cfg["in_channels"][1:]),
        shared=cfg["share_num"] if name == "gpgait" else 3,  # ++ ignores it
        part_masks=cfg.get("mask", True),
        dropout=0.0,
        embedding_size=cfg["in_channels"][-1],
        retrieve="after_neck",
    )

    def entries(x):  # [n 6 t v 1]
        return {"keypoints": jnp.moveaxis(jnp.asarray(x)[..., 0], 1, 3)[..., :5]}

    return name, model, entries


BUILDERS = {
    "Baseline": gaitbase,
    "GaitSet": gaitset,
    "GaitPart": gaitpart,
    "GaitGL": gaitgl,
    "DeepGaitV2": deepgaitv2,
    "SkeletonGaitPP": skeletongaitpp,
    "GaitGraph2": gaitgraph2,
    "BiggerGait__DINOv2": biggergait,
    "GPGait_PlusPlus": functools.partial(gpgait, name="gpgaitpp"),
    "GaitEdge": gaitedge,
    "GaitTR": gaittr,
    "gpgait": gpgait,
    "Segmentation": segmentation,
    "MultiGaitpp": multigaitpp,
    "SwinGait": swingait,
}

# ---------------------------------------------------------------- the check


def check_model(golden: GoldenFile) -> None:
    name, model, entries = build(golden)
    inputs = golden.meta["inputs"]
    batches = {mode: make_batch(golden, inputs[mode], entries) for mode in inputs}
    abstract = jax.eval_shape(
        lambda: model.init(jax.random.key(0), batches["eval"], train=False)
    )
    abstract = {"batch_stats": {}, **abstract}
    variables = from_torch(name, golden.weights(), abstract)
    count = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    assert count == golden.meta["n_params"], (count, golden.meta["n_params"])
    for mode in ("eval", "eval_packed"):
        if mode in inputs:
            packed = inputs[mode].get("seqL")
            output = evaluate(model, variables, batches[mode], packed)
            before = output
            if getattr(model, "retrieve", "before_neck") == "after_neck":
                other = model.clone(retrieve="before_neck")
                before = evaluate(other, variables, batches[mode], packed)
            check_output(golden, mode, output, before.embeddings)
    if "train" in inputs:
        check_train(golden, name, model, variables, inputs["train"], entries)
    seen = (
        "/embeddings",
        "/logits",
        ".embeddings",
        ".features",
        ".logits",
        "/loss.",
        "/xgrad/",
    )
    assert not [
        key for key in golden.unchecked() if any(part in key for part in seen)
    ], golden.unchecked()


def make_batch(golden, mode, entries):
    """Sequences packed in one row are unpacked into rows, padded with garbage."""
    batch = entries(**read_inputs(golden, mode))
    valid = np.ones(next(iter(batch.values())).shape[:2], bool)
    if lengths := mode.get("seqL"):
        unpacked = {name: unpack(x[0], lengths) for name, x in batch.items()}
        batch = {name: rows for name, (rows, _) in unpacked.items()}
        ((_, valid), *_) = unpacked.values()
    return {**batch, "valid": jnp.asarray(valid)}


def read_inputs(golden, mode) -> dict[str, np.ndarray]:
    return {name: golden.tensor(value) for name, value in mode["inputs"].items()}


def unpack(frames, lengths):
    """[sum(lengths) ...] -> ([B T ...], valid [B T])."""
    longest = max(lengths)
    ends = np.cumsum(lengths)
    rows = [
        jnp.pad(
            frames[end - length : end],
            ((0, longest - length),) + ((0, 0),) * (frames.ndim - 1),
            constant_values=0.7,  # garbage
        )
        for end, length in zip(ends, lengths)
    ]
    return jnp.stack(rows), np.arange(longest) < np.asarray(lengths)[:, None]


def evaluate(model, variables, batch, packed):
    """The model's output; packed as in the reference where frames see their neighbours.

    The reference convolves over time across the borders of packed sequences. There the
    trunk sees them as one long sequence and the head gets them one by one.
    """
    joined_models = ("SkeletonGaitPP", "MultiGaitPP", "GPGait", "GPGaitPlusPlus")
    over_time = type(model).__name__ in joined_models or (
        getattr(model, "kind", "2d") != "2d"
    )
    if not packed or not over_time:
        return jax.jit(lambda v, b: model.apply(v, b, train=False))(variables, batch)

    def split(call, arguments, keywords, context):
        if isinstance(context.module, StripHead | PartPool):
            x, _ = arguments
            arguments = unpack(x[0], packed)
        return call(*arguments, **keywords)

    valid = np.asarray(batch["valid"])
    joined = {
        key: jnp.asarray(np.asarray(value)[valid][None]) for key, value in batch.items()
    }
    with nn.intercept_methods(split):
        return jax.jit(lambda v, b: model.apply(v, b, train=False))(variables, joined)


def torch_axes(x):
    """[B S D] -> [n c p]."""
    return np.swapaxes(np.asarray(x), 1, 2)


def check_output(golden, mode, output, before) -> None:
    """before: the embeddings before the BN neck, which losses see."""
    names = golden.names()
    values = {
        "embeddings": output.embeddings,
        "triplet.embeddings": before,
        "softmax.logits": output.logits,
        "mid/FCs": before,
    }
    for key, value in values.items():
        if golden.meta["class"] == "SwinGait" and key == "mid/FCs":
            continue  # holds the last strip twice
        if f"{mode}/{key}" in names:
            golden.check(f"{mode}/{key}", torch_axes(value))
    if f"{mode}/SupConLoss.features" in names:
        golden.check(f"{mode}/SupConLoss.features", output.embeddings[:, 0])
    if "mask_probability" in output.aux:
        probability = output.aux["mask_probability"]  # [B T H W]
        values = {
            "bce.logits": probability,
            "pred": probability > 0.5,
            "mask": output.aux["mask_target"],
        }
        for key, value in values.items():
            if f"{mode}/{key}" in names:
                golden.check(f"{mode}/{key}", value.reshape(-1, 1, *value.shape[2:]))


def reference_losses(golden, output, labels):
    """{name: value as the reference returns it}."""
    values = {}
    for name, settings in golden.meta["losses"].items():
        if settings["type"] == "triplet":
            values[name], _ = losses.batch_all_triplet_by_label(
                output.embeddings, labels, margin=settings["margin"]
            )
        elif settings["type"] == "triplet_hard":
            values[name] = losses.batch_hard_triplet(
                output.embeddings, labels, margin=settings["margin"]
            )
        elif settings["type"] == "ce":
            smoothing = settings.get("eps", 0.1) if settings["label_smooth"] else 0.0
            per_strip = losses.strip_cross_entropy(
                output.logits, labels, scale=settings["scale"], smoothing=smoothing
            )  # [B S]
            stored = golden.meta["shapes"][f"train/loss.{name}"]
            values[name] = per_strip.mean(0 if stored else None)
        elif settings["type"] == "supcon_lp":
            flat = output.embeddings[:, 0]
            values[name] = losses.supcon_loss(
                flat, labels, temperature=settings["temperature"]
            )
        elif settings["type"] == "bce":
            values[name] = losses.binary_cross_entropy(
                output.aux["mask_probability"], output.aux["mask_target"]
            ).mean()
        else:
            raise AssertionError(f"unknown loss {settings}")
    return values


def check_train(golden, name, model, variables, mode, entries) -> None:
    """Losses, statistics and gradients of one training step.

    Where a pre-activation lies within rounding of zero, float32 decides a ReLU or a
    maximum one way or the other by chance, and gradients jump. The stored ones must
    be met in full, at the README's tolerance, by the input as it is or by one of three
    that differ from it in the last bit.
    """
    inputs = read_inputs(golden, mode)
    valid = make_batch(golden, mode, entries)["valid"]
    labels = jnp.asarray(mode["labels"])

    def sum_of(values):
        weights = golden.meta["losses"]
        return sum(
            weights[loss].get("loss_term_weight", 1) * value.mean()
            for loss, value in values.items()
        )

    @jax.jit
    @functools.partial(jax.grad, argnums=(0, 1), has_aux=True)
    def step(params, inputs):
        output, updated = model.apply(
            {"params": params, "batch_stats": variables["batch_stats"]},
            {**entries(**inputs), "valid": valid},
            train=True,
            mutable=["batch_stats"],
        )
        values = reference_losses(golden, output, labels)
        return sum_of(values), (output, updated, values)

    first = next(iter(inputs))
    for attempt in range(4):
        shifted = dict(inputs)
        if attempt:
            x = inputs[first]
            sign = np.sign(golden.formula.u(f"rounding{attempt}", x.shape))
            shifted[first] = np.nextafter(x, x * (1 + sign), dtype=np.float32)
        gradients, (output, updated, values) = step(variables["params"], shifted)
        if attempt == 0:
            check_output(golden, "train", output, output.embeddings)
            for loss, value in values.items():
                golden.check(f"train/loss.{loss}", value, 1e-3)
            golden.check("train/loss.total", sum_of(values), 1e-3)
            stats = {"batch_stats": updated.get("batch_stats", {})}
            check_rows(golden, name, "bn", stats, variables["params"])
        try:
            for key, gradient in gradients[1].items():
                if f"train/xgrad/{key}" in golden.names():
                    tolerance = 10 * golden.meta["tol"][f"train/xgrad/{key}"] + 1e-3
                    golden.check(f"train/xgrad/{key}", gradient, tolerance)
            check_rows(
                golden, name, "grad", {"params": gradients[0]}, variables["params"]
            )
            return
        except AssertionError:
            if attempt == 3:
                raise


def from_torch(name, state_dict, abstract_variables) -> dict:
    """Our variables, a tree like abstract_variables, from a PyTorch state dict.

    Both must have the same entries.
    """
    values, parity = torch_names.fit(name, state_dict, abstract_variables)
    assert not parity.faults()
    structure = jax.tree.structure(abstract_variables)
    return jax.tree.unflatten(structure, list(values.values()))


def to_torch(name, tree, params) -> dict[str, np.ndarray]:
    """{torch name: array in torch's order of elements}, the inverse of from_torch."""
    out = {}
    for key_path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        path = torch_names.leaf_path(key_path)
        names = torch_names.torch_names_of(name, path, leaf)
        strips = torch_names.neck_strips({"params": params}, path)
        for torch_name, value in zip(names, leaf if len(names) > 1 else [leaf]):
            # the layout of positions tells where each element comes from
            shape = torch_shape(value.shape, torch_name)
            positions = np.arange(value.size).reshape(shape)
            ours = torch_names.to_our_layout(positions, path, value, strips)
            flat = np.empty(value.size, np.float64)
            flat[ours.reshape(-1)] = np.asarray(value).reshape(-1)
            out[torch_name] = flat.reshape(shape)
    return out


def torch_shape(shape, torch_name):
    """[*window I O] -> [O I *window] for weights of convolutions and dense layers."""
    if len(shape) > 1 and torch_name.endswith(".weight"):
        return (shape[-1], shape[-2], *shape[:-2])
    return shape


def check_rows(golden, name, what, tree, params) -> None:
    """One digest per parameter or statistic, in the reference's layout and names."""
    ours = to_torch(name, tree, params)
    names = golden.meta[f"train_{what}_names"]
    if not names:
        return
    rows = golden.arrays[f"train/{what}_digest"]
    null = set(golden.meta.get("train_grad_null", [])) if what == "grad" else set()
    none = set(golden.meta.get("train_grad_none", [])) if what == "grad" else set()
    typical = np.median(rows[:, 2])
    for index, torch_name in enumerate(names):
        if torch_name in none or torch_names.IGNORED.match(torch_name):
            continue
        value = ours[torch_name]
        if torch_name in null:
            assert np.abs(value).max() <= 1e-3 * typical, torch_name
            continue
        tolerance = 1e-4
        if what == "grad":
            tolerance = 10 * golden.meta["train_grad_tol"][index] + 1e-3
        digest = golden.formula.digest(value, f"{what}/{torch_name}", golden.seed)
        golden.check_digest(f"{what}/{torch_name}", digest, rows[index], tolerance)
    golden.checked.add(f"train/{what}_digest")


KINDS = {"model": check_model}
