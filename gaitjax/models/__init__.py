"""The zoo: one plain file per model, one line per model here."""

from flax import linen as nn

from gaitjax.engine import fields
from gaitjax.engine.guards import choose, require
from gaitjax.models.biggergait import BiggerGait
from gaitjax.models.deepgaitv2 import DeepGaitV2
from gaitjax.models.gaitbase import GaitBase
from gaitjax.models.gaitedge import GaitEdge
from gaitjax.models.gaitgl import GaitGL
from gaitjax.models.gaitgraph2 import GaitGraph2
from gaitjax.models.gaitpart import GaitPart
from gaitjax.models.gaitset import GaitSet
from gaitjax.models.gaittr import GaitTR
from gaitjax.models.gei import GEI
from gaitjax.models.gpgait import GPGait, GPGaitPlusPlus
from gaitjax.models.lmgait import LMGait
from gaitjax.models.multigaitpp import MultiGaitPP
from gaitjax.models.pocket_encoders import PocketEncoders
from gaitjax.models.pocketgait import PocketGait
from gaitjax.models.skeletongaitpp import SkeletonGaitPP
from gaitjax.models.swingait import SwinGait
from gaitjax.parts.model import IMAGES, NOT_IN_CONFIG, GaitModel, images_in

# name -> class. MODELS[name](num_classes, **config.model) is a module, and
# module.apply(variables, batch, train=...) a parts.output.GaitOutput
MODELS: dict[str, type[GaitModel]] = {
    "biggergait": BiggerGait,
    "deepgaitv2": DeepGaitV2,
    "gaitbase": GaitBase,
    "gaitedge": GaitEdge,
    "gaitgl": GaitGL,
    "gaitgraph2": GaitGraph2,
    "gaitpart": GaitPart,
    "gaitset": GaitSet,
    "gaittr": GaitTR,
    "gei": GEI,
    "gpgait": GPGait,
    "gpgaitpp": GPGaitPlusPlus,
    "lmgait": LMGait,
    "multigaitpp": MultiGaitPP,
    "pocket_encoders": PocketEncoders,
    "pocketgait": PocketGait,  # our own, not a published model
    "skeletongait": DeepGaitV2,  # on heat maps
    "skeletongaitpp": SkeletonGaitPP,
    "swingait": SwinGait,
}


def make(config) -> nn.Module:
    """The module that config.model describes, for config.data.num_classes."""
    model = choose(config.model.name, MODELS, "config.model.name")
    return model(config.data.num_classes, **config.model)


def check(config) -> None:
    """Raises ValueError, naming the field, for a model that cannot be made or trained.

    Needs the config alone, so that it can run before any data is opened. The model's
    name is a key of MODELS.
    """
    name = config.model.name
    model = MODELS[name]
    options = {key: config.model[key] for key in config.model if key != "name"}
    fields.check(options, model, "config.model", skip=NOT_IN_CONFIG)
    trained = tuple(config.data.modalities)
    evaluated = tuple(config.evaluation.modalities)
    evaluated = evaluated or tuple(x for x in trained if x != "masks")
    for field, given in {"data": trained, "evaluation": evaluated}.items():
        what = f"config.{field}.modalities, which has {', '.join(given) or 'none'}"
        for entry in model.reads:
            require(entry in given, f"{name} reads {entry!r}: add it to {what}.")
        require(
            not model.images or len(images_in(given)) == model.images,
            f"{name} reads {model.images} of {', '.join(IMAGES)}: name exactly that "
            f"many in {what}.",
        )
    make(config).check(config)
