"""Training losses, and the dict that configs choose them from.

To add a loss: write a pure function in a module of this folder, then an adapter and an
entry of `LOSSES` here, and describe its fields besides `weight` in `LOSS_FIELDS` of
gaitjax/settings.py. An adapter takes (output, batch, the loss's fields in config.loss)
and returns a float32 scalar. Sequences and frames outside batch["valid"] change no
value and no gradient.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from gaitjax.engine.guards import require
from gaitjax.losses.contrastive import (
    batch_hard_triplet,
    ranking_loss,
    supcon_loss,
)
from gaitjax.losses.maps import (
    binary_cross_entropy,
    diversity_loss,
    smoothness_loss,
)
from gaitjax.losses.metric import (
    batch_all_triplet,
    batch_all_triplet_by_label,
    strip_cross_entropy,
)
from gaitjax.losses.numerics import mean_where
from gaitjax.losses.words import (
    balanced_cross_entropy,
    caption_loss,
    joint_loss,
    soft_cross_entropy,
)
from gaitjax.parts.output import GaitOutput

__all__ = ["LOSSES", "ranking_loss", "total_loss"]


def _rows(batch):
    """bool [B]: sequences with at least one valid frame."""
    return jnp.any(batch["valid"], axis=1)


def _aux(output, name, loss):
    require(
        name in output.aux,
        f"Loss {loss!r} reads aux[{name!r}], which this model does not give (it gives "
        f"{', '.join(sorted(output.aux)) or 'nothing'}); remove config.loss.{loss} or "
        "switch on the branch that makes it.",
    )
    return output.aux[name]


def _triplet(output, batch, config):
    """seqs_per_id: set where the rows in config["order"] are grouped by identity, all
    of one size; it saves memory."""
    x, margin, rows = output.embeddings, config["margin"], _rows(batch)
    if seqs_per_id := config.get("seqs_per_id"):
        if "order" in config:
            x, rows = x[config["order"]], rows[config["order"]]
        per_strip = batch_all_triplet(
            x, seqs_per_id=seqs_per_id, margin=margin, valid=rows
        )
    else:
        per_strip, _ = batch_all_triplet_by_label(
            x, batch["labels"], margin=margin, valid=rows
        )
    return jnp.mean(per_strip)


def _triplet_hard(output, batch, config):
    per_strip = batch_hard_triplet(
        output.embeddings,
        batch["labels"],
        margin=config["margin"],
        valid=_rows(batch),
    )
    return jnp.mean(per_strip)


def _cross_entropy(output, batch, config):
    require(
        output.logits is not None,
        "Loss 'cross_entropy' needs logits, which this model does not give; remove "
        "config.loss.cross_entropy.",
    )
    rows = _rows(batch)
    per_strip = strip_cross_entropy(
        output.logits,
        jnp.where(rows, batch["labels"], 0),
        scale=config["scale"],
        smoothing=config["smoothing"],
    )
    return mean_where(per_strip, rows)


def _supcon(output, batch, config):
    flat = output.embeddings.reshape(output.embeddings.shape[0], -1)  # [B S*D]
    return supcon_loss(
        flat, batch["labels"], temperature=config["temperature"], valid=_rows(batch)
    )


def _silhouette(output, batch, config):
    per_token = binary_cross_entropy(
        _aux(output, "foreground_probability", "silhouette"),
        _aux(output, "silhouette_target", "silhouette"),
    )  # [B T h w]
    return mean_where(per_token, _aux(output, "token_valid", "silhouette"))


def _reconstruction(output, batch, config):
    rebuilt = _aux(output, "reconstruction", "reconstruction").astype(jnp.float32)
    target = _aux(output, "reconstruction_target", "reconstruction")
    squared = jnp.square(rebuilt - target.astype(jnp.float32))  # [B T h w C]
    return mean_where(squared, _aux(output, "token_valid", "reconstruction"))


def _smoothness(output, batch, config):
    maps = _aux(output, "denoised", "smoothness")  # [B T h w C]
    maps = maps.reshape((-1,) + maps.shape[2:])  # [B*T h w C]
    if config["reduce"] == "sum":
        maps = maps[..., :-1]
    return smoothness_loss(maps, batch["valid"].reshape(-1), reduce=config["reduce"])


def _diversity(output, batch, config):
    maps = _aux(output, "denoised", "diversity")  # [B T h w C]
    maps = maps.reshape((-1,) + maps.shape[2:])  # [B*T h w C]
    return diversity_loss(maps, batch["valid"].reshape(-1))


def _binary_cross_entropy(output, batch, config):
    per_pixel = binary_cross_entropy(
        _aux(output, "mask_probability", "binary_cross_entropy"),
        _aux(output, "mask_target", "binary_cross_entropy"),
    )  # [B T H W]
    return mean_where(per_pixel, batch["valid"])


WORD_LAYERS = ("last", "mid")  # whose text masks are compared


def _words(output, batch, config):
    share = _aux(output, "word_share", "words")  # [B T P K]
    where = jnp.broadcast_to(batch["valid"][..., None], share.shape[:3]).reshape(-1)
    share = share.reshape(-1, share.shape[-1])
    scores = (_aux(output, f"word_scores_{layer}", "words") for layer in WORD_LAYERS)
    found = (
        jnp.mean(balanced_cross_entropy(rows.reshape(share.shape), share, where))
        for rows in scores
    )
    return sum(found) / len(WORD_LAYERS)


def _parts(output, batch, config):
    logits, share = (_aux(output, f"part_{x}", "parts") for x in ("logits", "share"))
    per_cell = soft_cross_entropy(logits, share)  # [B T P cells]
    return mean_where(per_cell, batch["valid"])


def _joints(output, batch, config):
    names = ("places", "targets", "logits", "patches", "seen")
    found = [_aux(output, f"joint_{name}", "joints") for name in names]  # [B T ...]
    *found, seen = (x.reshape((-1,) + x.shape[2:]) for x in found)
    return joint_loss(*found, seen & batch["valid"].reshape(-1, 1))


def _captions(output, batch, config):
    ids = _aux(output, "caption_ids", "captions")  # [N L]
    return caption_loss(
        output.aux["image_vectors"],
        output.aux["caption_vectors"],
        jnp.all(ids[:, None] == ids[None], axis=-1),
        config["temperature"],
        _rows(batch),
    )


# name -> loss(output, batch, its fields in config.loss) -> scalar
LOSSES: dict[str, Callable[[GaitOutput, Mapping, Mapping], jax.Array]] = {
    "triplet": _triplet,  # margin, seqs_per_id
    "triplet_hard": _triplet_hard,  # margin
    "cross_entropy": _cross_entropy,  # scale, smoothing
    "supcon": _supcon,  # temperature
    "silhouette": _silhouette,
    "reconstruction": _reconstruction,
    "smoothness": _smoothness,  # reduce
    "diversity": _diversity,
    "binary_cross_entropy": _binary_cross_entropy,
    "words": _words,
    "parts": _parts,
    "joints": _joints,
    "captions": _captions,  # temperature
}


def total_loss(
    output: GaitOutput,
    batch: Mapping[str, jax.Array],
    config_losses: Mapping[str, Mapping[str, Any]],
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Weighted sum of the losses that the config names (LMGait eq. 18).

    Args:
      output: of the model, in training mode.
      batch: valid bool [B T], labels int [B] and what the model read.
      config_losses: name -> {"weight": w, fields of that loss}.

    Returns (float32 scalar, {name: unweighted value, "total": the sum}).
    """
    terms = {}
    total = jnp.float32(0)
    for name, config in config_losses.items():
        loss = LOSSES[name]
        terms[name] = loss(output, batch, config)
        total = total + config["weight"] * terms[name]
    return total, {**terms, "total": total}
