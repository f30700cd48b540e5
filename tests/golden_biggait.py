"""Golden files of BigGait: LMGait with text and MTCM off and BigGait's decoder.

What is compared: tokens, mask branch, both maps, fusion, trunk, embeddings and logits
in evaluation and in training, each loss, every gradient and batch-norm buffer.

BigGait's scrambled mask smoothness (a pixel-major [pixels, 2] array read as
[2, pixels]) is not in gaitjax; it is computed here, to reproduce its total and the
gradient that it sends into the mask branch.
"""

import functools
import re
from math import isqrt
from unittest import mock

import flax
import jax
import jax.numpy as jnp
import numpy as np
from golden_files import GoldenFile
from golden_models import from_torch, retrieve, to_torch

from gaitjax import losses
from gaitjax.import_checkpoint import plain_names
from gaitjax.models import lmgait
from gaitjax.parts import representation
from gaitjax.weights import zoo_names as torch_names


def model_of(golden: GoldenFile, *, frozen_decoder: bool, black: float):
    cfg = golden.meta["model_cfg"]
    weights = {name: shape for name, shape, _ in golden.meta["state_dict"]}
    width, _, patch, _ = weights["backbone.patch_embed.proj.weight"]
    layers = sum(name.endswith("attn.qkv.weight") for name in weights)
    (heads,) = re.findall(r"heads=(\d+)", golden.meta["note"])  # no shape tells
    stem, *channels = cfg["backbone_cfg"]["channels"]
    return lmgait.LMGait(
        num_classes=cfg["SeparateBNNecks"]["class_num"],
        image_size=(2 * cfg["image_size"], cfg["image_size"]),
        feature_grid=(2 * cfg["sils_size"], cfg["sils_size"]),
        visual_encoder=lmgait.VisualEncoder(
            hidden_size=width,
            num_layers=layers,
            num_heads=int(heads),
            patch_size=patch,
            table_size=isqrt(weights["backbone.pos_embed"][1] - 1),
            blocks=tuple(range(layers // 4 - 1, layers, layers // 4)),
        ),
        text=lmgait.Text(enabled=False),
        decoder=lmgait.DecoderOptions(
            supervision="reconstruction",
            dropout=0.0,
            frozen=frozen_decoder,
            edge_rule="published",
        ),
        representation=lmgait.Representation(
            channels=cfg["Denoising_Branch"]["target_dim"],
            appearance_channels=cfg["Appearance_Branch"]["target_dim"],
            hidden=weights["Denoising_Branch.down_sampling.0.weight"][0],
        ),
        mtcm=lmgait.Motion(enabled=False),
        gait=lmgait.Gait(
            stem=stem,
            squeeze=cfg["AttentionFusion"]["squeeze_ratio"],
            channels=tuple(channels),
            strides=tuple(cfg["backbone_cfg"]["strides"][1:]),
            num_strips=cfg["bin_num"][0],
            embedding_size=cfg["SeparateFCs"]["out_channels"],
        ),
        black_augmentation=black,
        retrieve=retrieve(cfg),
    )


def batch_of(golden: GoldenFile, mode: str) -> dict[str, jax.Array]:
    entry = golden.meta["inputs"][mode]
    frames = golden.tensor(entry["inputs"]["rgb"])
    if frames.shape[2] == 3:  # [n s c h w]
        frames = np.moveaxis(frames, 2, -1)  # [B T H W 3]
    return {
        "frames": jnp.asarray(frames),  # float: normalised already
        "ratios": jnp.asarray(golden.tensor(entry["inputs"]["ratios"])),
        "valid": jnp.ones(frames.shape[:2], bool),
        "labels": jnp.asarray(entry["labels"], jnp.int32),
    }


def run(model, variables, batch, *, train, augment=0):
    """(output, batch stats after, {module path: (arguments, result)}) of one call."""
    calls = {}

    def record(call, arguments, keywords, context):
        result = call(*arguments, **keywords)
        if context.method_name == "__call__":
            calls["/".join(context.module.path)] = (arguments, result)
        return result

    # what `remat` computes cannot be recorded from outside
    plain = mock.patch.object(flax.linen, "remat", lambda function, **_: function)
    with plain, flax.linen.intercept_methods(record):
        out, state = model.apply(
            variables, batch, train=train, mutable=["batch_stats"],
            rngs={"augment": jax.random.key(augment)},
        )  # fmt: skip
    calls = {k: v for k, v in calls.items() if k in NEEDED}
    return out, state["batch_stats"], calls


QUICK = {"xla_backend_optimization_level": 0}  # compiles twice as fast
NEEDED = (
    "visual_encoder",
    "gait",
    "gait/fusion",
    "gait/block3",
    "gait/head/dense",
    "gait/head/neck",
)


def both_probabilities(out):
    """Foreground and background [B T h w 2], zero outside the valid columns."""
    first = out.aux["foreground_probability"]
    return jnp.stack([first, out.aux["token_valid"] - first], axis=-1)


def pooled(mask, size):
    """Maximum of [N h w] over size x size windows, by shifts; zeros beyond the edge."""
    margin = size // 2
    height, width = mask.shape[1:]
    padded = np.pad(mask, ((0, 0), (margin, margin), (margin, margin)))
    shifts = [
        padded[:, i : i + height, j : j + width]
        for i in range(size)
        for j in range(size)
    ]
    return np.max(shifts, axis=0)


def body_and_edge(both):
    """BigGait's soft foreground [N h w] and its closed form, from [N h w 2]."""
    first = both[..., 0].round()
    count = np.concatenate([first[:, :5], first[:, -5:]], axis=1).sum((1, 2))
    other = count > 5 * both.shape[2]
    body = np.where(other[:, None, None], both[..., 1], both[..., 0])
    dilated = pooled(body.round(), 3)
    eroded = 1 - pooled(1 - dilated, 5)
    return count, body, np.where(eroded > 0, 1.0, dilated * body)


def check_forward(golden: GoldenFile, mode: str, batch, out, calls) -> None:
    """Everything stored of a forward pass, in torch layout."""

    def check(name, value):
        golden.check(f"{mode}/mid/{name}", value)

    def folded(maps):
        return np.asarray(maps).reshape((-1,) + maps.shape[2:])

    final, middle = calls["visual_encoder"][1]
    check("backbone.x_norm_patchtokens", final[:, 1:])
    normed = representation.layer_norm(jnp.concatenate(middle, -1))
    check("backbone.x_norm_patchtokens_mid4", normed[:, 1:])
    both = folded(both_probabilities(out))  # [N h w 2]
    check("Mask_Branch.0", both[folded(out.aux["token_valid"])])
    check("Mask_Branch.1", losses.LOSSES["reconstruction"](out, batch, {}))
    count, body, edge = body_and_edge(both)
    check("get_body.edge_count", count)
    check("get_body", body)
    check("get_edge", edge[:, None])
    support = edge > 0  # [N h w]
    denoised, appearance = folded(out.aux["denoised"]), folded(out.aux["appearance"])
    assert (support == denoised.any(-1)).all()
    check("Denoising_Branch.0", denoised[support])
    check("Appearance_Branch.0", appearance[support])
    maps = calls["gait"][0]  # [B T h w C] each
    check("gait_net_in.denoising", np.moveaxis(maps[0], -1, 1))
    check("gait_net_in.appearance", np.moveaxis(maps[1], -1, 1))
    for name, path in (("fusion", "gait/fusion"), ("post_backbone", "gait/block3")):
        if f"{mode}/mid/gait_net.{name}" in golden.names():
            value = calls[path][1]  # [N h w C]
            value = value.reshape(*batch["valid"].shape, *value.shape[1:])
            check(f"gait_net.{name}", np.moveaxis(value, -1, 1))
    check("HPP", np.moveaxis(calls["gait/head/dense"][0][0], 1, 2))
    check("gait_net.0", np.moveaxis(out.embeddings, 1, 2))
    check("gait_net.1", np.moveaxis(out.logits, 1, 2))


def scrambled_smoothness(both):
    """BigGait's mask smoothness: [N h w 2] read as [N 2 h w], channels summed."""
    frames, height, width, channels = both.shape
    total = both.reshape(frames, channels, height, width).sum(1)  # [N h w]
    magnitude = losses.maps.sobel_magnitude(total[..., None])
    return jnp.sum(magnitude) / both.size


def loss_terms(out, batch):
    """BigGait's losses with their factors: scalars, the triplet per strip."""
    both = both_probabilities(out)
    options = {"reduce": "sum"}
    per_strip, _ = losses.batch_all_triplet_by_label(
        out.embeddings, batch["labels"], margin=0.2
    )
    entropy = losses.strip_cross_entropy(
        out.logits, batch["labels"], scale=16, smoothing=0.1
    )
    named = losses.LOSSES
    return {
        "shape_connect": 0.02 * scrambled_smoothness(both.reshape(-1, *both.shape[2:])),
        "shape_mse": named["reconstruction"](out, batch, {}),
        "part_connect": 0.01 * named["smoothness"](out, batch, options),
        "part_diversity": 5 * named["diversity"](out, batch, {}),
        "triplet": per_strip,
        "softmax": jnp.mean(entropy),
    }


def check_rows(golden: GoldenFile, mode, kind, rows, tree, tolerances, params):
    """Digest rows of parameters' gradients ("grad") or of buffers ("bn")."""
    null = golden.meta.get(f"{mode}_grad_null", [])
    stored = golden.arrays[f"{mode}/{kind}_digest"]
    theirs = to_torch("lmgait", {kind: tree}, params)
    for name, row, tolerance in zip(rows, stored, tolerances, strict=True):
        if torch_names.IGNORED.match(name):
            continue  # moved or kept, no output depends on it
        value = theirs[name]
        if name in null:
            assert np.abs(value).max() < 1e-5, name
            continue
        ours = golden.formula.digest(value, f"{kind}/{name}", golden.seed)
        tolerance = 10 * tolerance + 1e-5
        if kind == "grad":  # what the goldens' README calls fair for any parameter
            tolerance = max(tolerance, 1e-3)
        golden.check_digest(f"{mode} {kind}/{name}", ours, row, tolerance)
    golden.checked.add(f"{mode}/{kind}_digest")


def augment_seed(model, sequences: int) -> int:
    """A seed whose black augmentation takes the appearance of sequence 1."""
    maps = jnp.ones((sequences, 1, 1, 1, 1))
    for seed in range(1000):
        rng = model.apply(
            {},
            rngs={"augment": jax.random.key(seed)},
            method=lambda module: module.make_rng("augment"),
        )
        kept = representation.blacken(maps, maps, model.black_augmentation, rng)
        kept = np.asarray(kept).reshape(2, sequences)
        if kept[0].all() and not kept[1, 1]:
            return seed
    raise AssertionError("no seed blackens sequence 1 alone")


def check_train(golden: GoldenFile, mode: str, variables) -> None:
    late = mode == "train_it600"
    model = model_of(golden, frozen_decoder=late, black=0.2 if late else 0.0)
    batch = batch_of(golden, mode)
    augment = augment_seed(model, len(batch["labels"])) if late else 0

    @functools.partial(jax.jit, compiler_options=QUICK)
    def step(variables, batch):
        def loss(params):
            out, stats, calls = run(
                model, variables | {"params": params}, batch, train=True,
                augment=augment,
            )  # fmt: skip
            terms = loss_terms(out, batch)
            total = sum(jnp.mean(term) for term in terms.values())
            return total, (out, stats, calls, terms)

        return jax.value_and_grad(loss, has_aux=True)(variables["params"])

    (total, (out, stats, calls, terms)), gradients = step(variables, batch)
    check_forward(golden, mode, batch, out, calls)
    for name, value in terms.items():
        golden.check(f"{mode}/loss.{name}", value)
    golden.check(f"{mode}/loss.total", total)
    golden.check(f"{mode}/triplet.embeddings", np.moveaxis(out.embeddings, 1, 2))
    golden.check(f"{mode}/softmax.logits", np.moveaxis(out.logits, 1, 2))
    params, meta = variables["params"], golden.meta
    check_rows(
        golden, mode, "grad", meta[f"{mode}_grad_names"], gradients,
        meta[f"{mode}_grad_tol"], params,
    )  # fmt: skip
    names = meta[f"{mode}_bn_names"]
    tolerance = meta["tol"][f"{mode}/bn(max)"]
    check_rows(golden, mode, "bn", names, stats, [tolerance] * len(names), params)
    theirs = to_torch("lmgait", {"grad": gradients}, params)
    for name in meta[f"{mode}_grad_none"]:
        if not name.startswith("backbone."):
            assert not theirs[name].any(), name
    encoder = jax.tree.leaves(gradients["visual_encoder"])
    assert not any(leaf.any() for leaf in encoder)


def check_biggait(golden: GoldenFile) -> None:
    """Evaluation mode, then every training mode that the file holds."""
    model = model_of(golden, frozen_decoder=False, black=0.0)
    batch = batch_of(golden, "eval")
    init = functools.partial(model.init, train=False)
    shapes = jax.eval_shape(init, jax.random.key(0), batch)
    variables = from_torch("lmgait", plain_names(golden.weights()), shapes)
    variables = jax.tree.map(jnp.asarray, variables)
    forward = jax.jit(functools.partial(run, model, train=False))
    out, _, calls = forward(variables, batch)
    check_forward(golden, "eval", batch, out, calls)
    golden.check("eval/embeddings", np.moveaxis(out.embeddings, 1, 2))
    for mode in ("train", "train_it600"):
        if mode in golden.meta["inputs"]:
            check_train(golden, mode, variables)
    assert not golden.unchecked()


CLASSES = {"BigGait__Dinov2_Gaitbase": check_biggait}
