"""Names and layouts of encoder weights: every published form <-> our parameter tree.

Four namings exist; all are translated by way of the second one.

| naming | example | where |
|---|---|---|
| Flax (= ours) | `encoder/layer/0/attention/attention/query/kernel` | `flax_model.msgpack`, our own files |
| Hugging Face PyTorch | `encoder.layer.0.attention.attention.query.weight` | `model.safetensors`, `pytorch_model.bin` |
| DINOv2's own | `blocks.0.attn.qkv.weight` (query, key, value fused) | `dinov2_vits14_pretrain.pth` |
| OpenAI's CLIP | `visual.transformer.resblocks.0.attn.in_proj_weight` | `ViT-B-16.pt`, open_clip |

PyTorch keeps a Dense kernel as [out in] and a convolution as [out in h w]; Flax as
[in out] and [h w in out].
"""  # noqa: E501

import re
from collections.abc import Mapping

import numpy as np

Tensors = Mapping[str, np.ndarray]

# buffers and scalars, which are no weights of a tower
IGNORED = re.compile(
    r"(^|[./])(position_ids|logit_scale|logit_bias|input_resolution|context_length"
    r"|vocab_size|attn_mask)$"
)
TEXT = re.compile(r"^(text_model|text_projection)[./]")
IMAGE = re.compile(r"^(vision_model|visual_projection)[./]")

# ordered (pattern, replacement); every pattern that matches is applied
DINOV2_RENAMES = (
    (r"^(cls_token|mask_token|register_tokens)$", r"embeddings.\1"),
    (r"^pos_embed$", "embeddings.position_embeddings"),
    (r"^patch_embed\.proj\.", "embeddings.patch_embeddings.projection."),
    (r"^blocks\.", "encoder.layer."),
    (r"\.attn\.proj\.", ".attention.output.dense."),
    (r"\.ls(\d)\.gamma$", r".layer_scale\1.lambda1"),
    (r"\.mlp\.w12\.", ".mlp.weights_in."),
    (r"\.mlp\.w3\.", ".mlp.weights_out."),
    (r"^norm\.", "layernorm."),
)
OPENAI_RENAMES = (
    (r"^visual\.class_embedding$", "vision_model.embeddings.class_embedding"),
    (r"^visual\.conv1\.", "vision_model.embeddings.patch_embedding."),
    (
        r"^visual\.positional_embedding$",
        "vision_model.embeddings.position_embedding.weight",
    ),
    (r"^visual\.ln_pre\.", "vision_model.pre_layrnorm."),
    (r"^visual\.ln_post\.", "vision_model.post_layernorm."),
    (r"^visual\.transformer\.resblocks\.", "vision_model.encoder.layers."),
    (r"^transformer\.resblocks\.", "text_model.encoder.layers."),
    (r"^token_embedding\.", "text_model.embeddings.token_embedding."),
    (r"^positional_embedding$", "text_model.embeddings.position_embedding.weight"),
    (r"^ln_final\.", "text_model.final_layer_norm."),
    (r"\.attn\.out_proj\.", ".self_attn.out_proj."),
    (r"\.ln_(\d)\.", r".layer_norm\1."),
    (r"\.mlp\.c_fc\.", ".mlp.fc1."),
    (r"\.mlp\.c_proj\.", ".mlp.fc2."),
)
# OpenAI multiplies by these from the right: [in out]
OPENAI_PROJECTIONS = {
    "text_projection": "text_projection.weight",
    "visual.proj": "visual_projection.weight",
}


def rename(name: str, renames) -> str:
    for pattern, replacement in renames:
        name = re.sub(pattern, replacement, name)
    return name


def _in_three(value: np.ndarray) -> bool:
    return value.ndim > 0 and len(value) % 3 == 0


def from_dinov2_repository(tensors: Tensors) -> dict[str, np.ndarray]:
    """DINOv2's own names -> Hugging Face's, the fused `attn.qkv` split in three."""
    out = {}
    for name, value in tensors.items():
        target = rename(name, DINOV2_RENAMES)
        if ".attn.qkv." in target and _in_three(value):
            parts = ("query", "key", "value")
            for part, piece in zip(parts, np.split(value, 3), strict=True):
                out[target.replace(".attn.qkv.", f".attention.attention.{part}.")] = (
                    piece
                )
        else:
            out[target] = value
    return out


def from_openai_clip(tensors: Tensors) -> dict[str, np.ndarray]:
    """OpenAI's CLIP names -> Hugging Face's, fused `attn.in_proj` split in three."""
    out = {}
    for name, value in tensors.items():
        if name in OPENAI_PROJECTIONS and value.ndim == 2:
            out[OPENAI_PROJECTIONS[name]] = value.T
            continue
        target = rename(name, OPENAI_RENAMES)
        match = re.search(r"\.attn\.in_proj_(weight|bias)$", target)
        if match and _in_three(value):
            for part, piece in zip("qkv", np.split(value, 3), strict=True):
                ending = f".self_attn.{part}_proj.{match[1]}"
                out[target[: match.start()] + ending] = piece
        else:
            out[target] = value
    return out


def from_huggingface(tensors: Tensors) -> dict[str, np.ndarray]:
    """Hugging Face's PyTorch names and layouts -> our "a/b/c" paths and layouts."""
    out = {}
    for name, value in tensors.items():
        path = name.replace(".", "/")
        parent, _, leaf = path.rpartition("/")
        if leaf == "weight" and parent.endswith(
            ("token_embedding", "position_embedding")
        ):
            path = f"{parent}/embedding"
        elif leaf == "weight" and value.ndim == 1:
            path = f"{parent}/scale"
        elif leaf == "weight" and value.ndim == 2:
            path, value = f"{parent}/kernel", value.T
        elif leaf == "weight" and value.ndim == 4:
            path, value = f"{parent}/kernel", value.transpose(2, 3, 1, 0)
        out[path] = value
    return out


def to_huggingface(parameters: Tensors) -> dict[str, np.ndarray]:
    """Our flat {"a/b/c": array} -> Hugging Face's PyTorch names and layouts."""
    out = {}
    for path, value in parameters.items():
        parent, _, leaf = path.replace("/", ".").rpartition(".")
        value = np.asarray(value)
        if leaf == "kernel":
            value = value.T if value.ndim == 2 else value.transpose(3, 2, 0, 1)
        if leaf in ("kernel", "scale", "embedding"):
            leaf = "weight"
        out[f"{parent}.{leaf}" if parent else leaf] = np.asarray(value, order="C")
    return out


def to_paths(tensors: Tensors) -> dict[str, np.ndarray]:
    """Flat tensors in any of the four namings -> our paths; see the module docstring.

    A CLIP tower that was saved without its `text_model` / `vision_model` prefix
    (transformers 5) gets it.
    """
    names = set(tensors)
    if not any("/" in name for name in names):
        if any(name.startswith("blocks.") for name in names):
            tensors = from_dinov2_repository(tensors)
        elif any("resblocks." in name for name in names):
            tensors = from_openai_clip(tensors)
        tensors = from_huggingface(tensors)
    tensors = {k: v for k, v in tensors.items() if not IGNORED.search(k)}
    for mark, prefix in (
        ("embeddings/token_embedding/embedding", "text_model/"),
        ("embeddings/class_embedding", "vision_model/"),
    ):
        if mark in tensors:
            own = ("embeddings/", "encoder/", "final_layer_norm/", "pre_layrnorm/")
            own += ("post_layernorm/",)
            tensors = {
                (prefix + name if name.startswith(own) else name): value
                for name, value in tensors.items()
            }
    return tensors
