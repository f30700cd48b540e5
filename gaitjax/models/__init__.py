"""The zoo: one plain file per model, one line per model here."""

from collections.abc import Callable

from flax import linen as nn

from gaitjax.models import (
    biggergait,
    deepgaitv2,
    gaitbase,
    gaitedge,
    gaitgl,
    gaitgraph2,
    gaitpart,
    gaitset,
    gaittr,
    gei,
    lmgait,
    multigaitpp,
    skeletongaitpp,
    swingait,
)
from gaitjax.parts.output import GaitOutput

__all__ = ["MODELS", "GaitOutput", "check_name", "create_model"]

# name -> create(config, num_classes). Each model(batch, train=...) -> GaitOutput.
MODELS: dict[str, Callable[..., nn.Module]] = {
    "biggergait": biggergait.create,
    "deepgaitv2": deepgaitv2.create,
    "gaitbase": gaitbase.create,
    "gaitedge": gaitedge.create,
    "gaitgl": gaitgl.create,
    "gaitgraph2": gaitgraph2.create,
    "gaitpart": gaitpart.create,
    "gaitset": gaitset.create,
    "gaittr": gaittr.create,
    "gei": gei.create,
    "lmgait": lmgait.create,
    "multigaitpp": multigaitpp.create,
    "skeletongait": deepgaitv2.create,  # on heat maps
    "skeletongaitpp": skeletongaitpp.create,
    "swingait": swingait.create,
}


def check_name(name: str) -> None:
    """Raises ValueError for a name that is not in MODELS, listing the choices."""
    if name not in MODELS:
        raise ValueError(
            f"Unknown model {name!r} (config.model.name); choose from "
            f"{', '.join(sorted(MODELS))}."
        )


def create_model(config) -> nn.Module:
    """The linen module that config.model describes; raises as `check_name` does."""
    check_name(config.model.name)
    return MODELS[config.model.name](config, config.data.num_classes)
