"""What the published models have in common: how a config becomes a model.

    MODELS[name](num_classes, **config.model)

The fields of a model are its options; their types are their domains (engine.fields).
"""

from typing import Annotated, ClassVar, Literal

from flax import linen as nn

from gaitjax.engine.fields import Between, Positive, fields_of, settle
from gaitjax.engine.guards import require

Dtype = Literal["float32", "bfloat16"]  # of convolutions and matmuls
# which embedding evaluation returns; losses always see the one before the BN neck
Retrieve = Literal["before_neck", "after_neck"]
Side = Annotated[int, Between(1, 8192)]  # pixels; as the builders allow
Size = tuple[Side, Side]  # (height, width)
ThreeStages = tuple[Positive, Positive, Positive]
FourStages = tuple[Positive, Positive, Positive, Positive]
NOT_IN_CONFIG = ("num_classes", "name", "parent")  # `name` and `parent` are linen's
IMAGES = ("silhouettes", "heatmaps", "frames", "parsing")
TEXT_VECTORS = "text_vectors"


class GaitModel(nn.Module):
    """A published model. Lists of a config become tuples, groups their option classes.

    num_classes: training identities N; models without a classifier do not use it.
    reads: the batch entries that it needs besides `valid`.
    images: how many of IMAGES it takes, whichever the batch holds.
    optional: parts of its parameters that a switch may leave out.
    text_tower: parts that `text_vectors` reads and nothing else. They are not needed
      where TEXT_VECTORS, its result, stands among the parameters.
    unseen: options that published weights were trained with in more than one way and
      that the weights do not show, so that an import must state them.
    no_decay: regexes of parameters that are never decayed, like
      config.optimizer.no_decay.
    """

    reads: ClassVar[tuple[str, ...]] = ()
    images: ClassVar[int] = 0
    optional: ClassVar[tuple[str, ...]] = ()
    text_tower: ClassVar[tuple[str, ...]] = ()
    unseen: ClassVar[tuple[str, ...]] = ()
    no_decay: ClassVar[tuple[str, ...]] = ()
    num_classes: int

    def __post_init__(self):
        for name, (domain, _) in fields_of(type(self)).items():
            if name not in NOT_IN_CONFIG:
                object.__setattr__(self, name, settle(getattr(self, name), domain))
        super().__post_init__()

    @nn.nowrap
    def optimizer(self, tx, steps: int):
        """The optimizer of a phase of `steps` steps, given that of config.optimizer."""
        return tx

    @nn.nowrap
    def check(self, config) -> None:
        """Raises ValueError for options that do not fit each other or the data."""


def images_in(names) -> list[str]:
    """The image entries among the names of a batch or of config.data.modalities."""
    return [name for name in IMAGES if name in names]


def image_rows(config) -> int:
    """Rows of the images that a model with `images` or silhouettes reads."""
    frames = images_in(config.data.modalities) == ["frames"]
    return (config.data.image_size if frames else config.data.silhouette_size)[0]


def check_stages(stages: int, **options) -> None:
    """Each option must have one entry per stage."""
    for name, values in options.items():
        require(
            len(values) == stages,
            f"config.model.{name} must have one entry per stage, {stages}; got "
            f"{values}.",
        )


def check_patches(size: Size, patch: int, cut: bool, group: str = "") -> None:
    """Images of `size` must be whole patches, unless the rest is to be cut off."""
    require(
        cut or not any(side % patch for side in size),
        f"config.model.image_size {size} is not a multiple of config.model.{group}"
        f"patch_size {patch}. Choose a multiple; only for weights that were trained "
        f"with such images set config.model.{group}cut_to_patches=True.",
    )


def check_strips(strips: int, rows: int, strides, field: str = "num_strips") -> None:
    """The strips must divide the rows that are left of `rows` after the strides."""
    for stride in strides:
        rows = -(-rows // stride)
    require(
        rows % strips == 0,
        f"config.model.{field}={strips} does not divide the {rows} rows of the feature "
        "map; choose it, or the strides, so that it does.",
    )
