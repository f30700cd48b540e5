"""The zoo: one plain file per model, one line per model here."""

from collections.abc import Callable

from flax import linen as nn

from gaitjax.models import gaitbase, gei, lmgait
from gaitjax.models.output import GaitOutput

__all__ = ["MODELS", "GaitOutput", "create_model"]

# name -> create(config, num_classes). Each model(batch, train=...) -> GaitOutput.
MODELS: dict[str, Callable[..., nn.Module]] = {
    "gei": gei.create,
    "gaitbase": gaitbase.create,
    "lmgait": lmgait.create,
}


def create_model(config) -> nn.Module:
    """The linen module that config.model describes.

    Raises ValueError for an unknown config.model.name, listing the choices.
    """
    name = config.model.name
    if name not in MODELS:
        raise ValueError(
            f"Unknown model {name!r} (config.model.name); choose from "
            f"{', '.join(sorted(MODELS))}."
        )
    return MODELS[name](config, config.data.num_classes)
