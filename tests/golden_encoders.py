"""Golden files of DINOv2 (transformers' and BigGait's) and CLIP text."""

import jax
import jax.numpy as jnp
import numpy as np
from golden_files import GoldenFile

from gaitjax.parts.clip_text import CLIPText
from gaitjax.parts.dinov2 import DINOv2
from gaitjax.weights import encoders as pretrained


def only_embeddings(module, method) -> bool:
    """Filter of capture_intermediates: hidden0 of transformers."""
    return module.name == "embeddings"


def embeddings(state) -> np.ndarray:
    flat = jax.tree_util.tree_flatten_with_path(state["intermediates"])[0]
    (value,) = [leaf for path, leaf in flat if "embeddings" in str(path)]
    return value


def run_dinov2(model: DINOv2, parameters, images):
    """(embedding output, final tokens, every block's output)."""

    def forward(parameters, images):
        (tokens, blocks), state = model.apply(
            {"params": parameters},
            images,
            tuple(range(model.num_layers)),
            capture_intermediates=only_embeddings,
        )
        return embeddings(state), tokens, blocks

    return jax.jit(forward)(parameters, images)


def positions(model, parameters, images) -> np.ndarray:
    """The resampled table: what the embeddings add to class token and patches."""
    zeroed = jax.tree.map(jnp.zeros_like, parameters)
    table = parameters["embeddings"]["position_embeddings"]
    zeroed["embeddings"]["position_embeddings"] = table
    return run_dinov2(model.clone(num_layers=0), zeroed, images[:1])[0]


def check_hf_dinov2(golden: GoldenFile) -> None:
    cfg = golden.meta["cfg"]
    registers = cfg.get("num_register_tokens", 0)
    model = DINOv2(
        hidden_size=cfg["hidden_size"],
        num_layers=cfg["num_hidden_layers"],
        num_heads=cfg["num_attention_heads"],
        patch_size=cfg["patch_size"],
        table_size=cfg["image_size"] // cfg["patch_size"],
        mlp_ratio=cfg["mlp_ratio"],
        swiglu=cfg["use_swiglu_ffn"],
        num_registers=registers,
        position_interpolation="registers" if registers else "huggingface_torch",
    )
    parameters = parameters_of(golden, model)
    for size, expression in golden.meta["inputs"].items():
        images = nhwc(golden.tensor(expression))
        hidden, tokens, blocks = run_dinov2(model, parameters, images)
        golden.check(f"{size}/hidden0", hidden)
        for index, block in enumerate(blocks):
            golden.check(f"{size}/hidden{index + 1}", block)
        golden.check(f"{size}/last", tokens)
        golden.check(f"{size}/pooled", tokens[:, 0])
        if f"{size}/pos" in golden.names():
            golden.check(f"{size}/pos", positions(model, parameters, images))
    assert not golden.unchecked()


def check_biggait_dinov2(golden: GoldenFile) -> None:
    cfg = golden.meta["cfg"]
    model = DINOv2(
        hidden_size=cfg["embed_dim"],
        num_layers=cfg["depth"],
        num_heads=cfg["num_heads"],
        patch_size=cfg["patch_size"],
        table_size=cfg["img_size"] // cfg["patch_size"],
        mlp_ratio=cfg["mlp_ratio"],
        position_interpolation="original",
    )
    parameters = parameters_of(golden, model)
    for size, expression in golden.meta["inputs"].items():
        images = nhwc(golden.tensor(expression))
        _, tokens, blocks = run_dinov2(model, parameters, images)
        golden.check(f"{size}/x_norm_patchtokens", tokens[:, 1:])
        quarters = cfg["depth"] // 4
        middle = np.concatenate(
            [
                np.asarray(block, np.float64)
                for block in blocks[quarters - 1 :: quarters]
            ],
            axis=-1,
        )
        middle = middle - middle.mean(-1, keepdims=True)
        middle /= np.sqrt(middle.var(-1, keepdims=True) + 1e-6)
        golden.check(f"{size}/x_norm_patchtokens_mid4", middle[:, 1:])
        golden.check(f"{size}/pos", positions(model, parameters, images))
    assert not golden.unchecked()


def check_hf_clip_text(golden: GoldenFile) -> None:
    cfg = golden.meta["cfg"]
    end = cfg["eos_token_id"]
    model = CLIPText(
        width=cfg["hidden_size"],
        num_layers=cfg["num_hidden_layers"],
        num_heads=cfg["num_attention_heads"],
        vocabulary_size=cfg["vocab_size"],
        context_length=cfg["max_position_embeddings"],
        projection_size=cfg["projection_dim"],
        end_token=None if end == 2 else end,
    )
    parameters = parameters_of(golden, model)

    @jax.jit
    def forward(parameters, ids, valid):
        hidden = []

        def keep(index, x):
            hidden.append(x)
            return x

        (tokens, projected), state = model.apply(
            {"params": parameters},
            ids,
            keep,
            valid,
            capture_intermediates=only_embeddings,
        )
        return [embeddings(state), *hidden], tokens, projected

    mask = golden.arrays["attention_mask"].astype(bool)
    modes = {key.partition("/")[0] for key in golden.names() if "/" in key}
    for mode in sorted(modes):
        ids = golden.arrays["input_ids_" + mode.removesuffix("_mask")]
        valid = mask if mode.endswith("_mask") else np.ones_like(mask)
        hidden, tokens, projected = forward(parameters, ids, valid)
        for index, states in enumerate(hidden):
            if f"{mode}/hidden{index}" in golden.names():
                golden.check(f"{mode}/hidden{index}", states)
        golden.check(f"{mode}/last", tokens)
        golden.check(f"{mode}/text_embeds", projected)
        bare = model.clone(projection_size=0)
        golden.check(
            f"{mode}/pooled", bare.apply({"params": parameters}, ids, None, valid)[1]
        )
    assert not [key for key in golden.unchecked() if "/" in key]


def parameters_of(golden: GoldenFile, model):
    if isinstance(model, CLIPText):
        inputs = jnp.zeros((1, 1), jnp.int32)
    else:
        inputs = jnp.zeros((1, model.patch_size, model.patch_size, 3))
    expected = pretrained.abstract_parameters(model, inputs)
    return pretrained.to_parameters(golden.weights(), expected, golden.path.name)


def nhwc(images: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(images.transpose(0, 2, 3, 1))  # [N H W C]


KINDS = {
    "hf_dinov2": check_hf_dinov2,
    "hf_clip_text": check_hf_clip_text,
    "biggait_dinov2": check_biggait_dinov2,
}
