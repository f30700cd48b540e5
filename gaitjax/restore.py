"""The weights of a finished run, and how that run's config differs from this one."""

from pathlib import Path

import jax
from ml_collections import ConfigDict

from gaitjax import run_folder, text_vectors
from gaitjax.engine.checkpoints import Checkpoints, abstract
from gaitjax.engine.guards import require
from gaitjax.state import Setup, TrainState, build, example_batch, stored_part

LISTED = 8  # changed fields in one sentence
# fields that change a model's embedding and nothing that its weights would show
UNSEEN = (
    "model.retrieve",
    "model.max_pool",
    "model.cut_to_patches",
    "model.edge",
    "model.straighten",
    "model.part_masks",
    "model.visual_encoder.cut_to_patches",
)


def read_config(folder: str | Path) -> ConfigDict:
    """The config of the run in `folder`, unlocked; a ValueError if there is none."""
    config = run_folder.read_config(folder)
    require(
        config is not None,
        f"{folder} is no trained run: it has no config.json. Name the folder that "
        "--workdir named in its training, for instance runs/lmgait.",
    )
    return config.unlock()


def open_run(config: ConfigDict, folder: str | Path) -> tuple[Setup, TrainState]:
    """Model and weights of the run in `folder` of this config, on one device."""
    with config.unlocked():
        for axis in config.mesh:
            config.mesh[axis] = 1
    setup = build(config, example_batch(config), jax.devices()[:1])
    if not jax.tree.leaves(setup.abstract_state.params):
        return setup, setup.new_state()
    first = config.evaluation.checkpoint
    return setup, load_run(setup, config, str(folder), first=first)


def load_run(
    setup: Setup, config, workdir: str, first: str = "newest", made: str = ""
) -> TrainState:
    """The state in a readable checkpoint of `workdir`, with `config`'s frozen weights.

    In place of a text tower and its file the checkpoint's text vectors are used, unless
    `config` has other texts. first: "newest", or "best" by config.train.keep_best.
    made: a sentence for the error where no checkpoint fits.
    """
    require(
        (Path(workdir) / "checkpoints").is_dir(),
        f"There is no trained run in {workdir}. Train it first: the same command with "
        "--config.mode=train, or name its folder with --workdir.",
    )
    # read-only: that run may still be training
    best = config.train.get("keep_best", "")
    checkpoints = Checkpoints(workdir, None, best, read_only=True)
    target = stored_part(abstract(setup.abstract_state, setup.shardings))
    restored = checkpoints.restore(target, first=first)
    unreadable = f"No checkpoint in {workdir} can be read. {made}".strip()
    require(restored is not None, unreadable)
    stored, step = restored
    description = checkpoints.description(step)
    checkpoints.close()
    return setup.new_state(stored, text_vectors.from_description(config, description))


def made_otherwise(config, frozen, folder: str) -> str:
    """A sentence on the fields of model, encoders and seed in which the run in `folder`
    differs from `config`; "" if none does, or if the folder has no config.json.

    frozen: {scope: weights} that are frozen in this config's model. They are in no
    checkpoint, so weights drawn from another seed would go unnoticed.

    Raises ValueError if the run is of another model, differs in a field of UNSEEN, or
    drew its frozen weights from another seed.
    """
    config_of_run = run_folder.read_config(folder)
    if config_of_run is None:
        return ""
    old, new = _weight_fields(config_of_run), _weight_fields(config)
    require(
        old["model.name"] == new["model.name"],
        f"The run in {folder} is of the model {old['model.name']}, the config is of "
        f"{new['model.name']}. Evaluate it with the config of its training.",
    )
    sources = config.get("pretrained", {})
    drawn = [name for name in frozen if not sources.get(name)]
    require(
        not drawn or old["seed"] == new["seed"],
        f"The run in {folder} has frozen weights ({', '.join(drawn)}) of its seed "
        f"{old['seed']}, the config says {new['seed']}. Add --config.seed="
        f"{old['seed']}.",
    )
    differing = run_folder.changes(old, new)
    for name, stored, here in differing:
        require(
            name not in UNSEEN,
            f"The run in {folder} has config.{name}={stored}, this config {here}: its "
            f"numbers would be others. Add --config.{name}={stored}.",
        )
    changed = [
        f"config.{name}={stored} (here {here})"
        for name, stored, here in differing
        if name != "seed" and not run_folder.is_free(name)
    ]
    if not changed:
        return ""
    more = f" and {len(changed) - LISTED} others" if len(changed) > LISTED else ""
    return f"The run in {folder} was trained with {', '.join(changed[:LISTED])}{more}."


def _weight_fields(config) -> dict:
    """{"model.name": value, ...}: the fields on which a run's weights depend."""
    tree = run_folder.plain(config)
    fields = {name: tree.get(name) for name in ("model", "pretrained", "seed")}
    return run_folder.flat(fields)
