"""Orbax lives here and nowhere else: atomic, asynchronous checkpoints of a run.

A checkpoint holds the TrainState without `frozen` (those weights come from a file or
from the seed) and a description: the config and the data set's fingerprint.
"""

import json
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from absl import logging

# Config fields that may change between a run and its continuation: they do not change
# what step s computes.
_FREE = (
    "mode",
    "data.data_dir",
    "data.workers",
    "train.log_every",
    "evaluation",
    "mesh",
    "sharding",
    "train.checkpoint_every",
    "train.keep",
    "pictures",
    "base_run",
)


class Checkpoints:
    """Checkpoints of one run in WORKDIR/checkpoints, the newest `keep` (None: all)."""

    def __init__(self, workdir: str, keep: int | None):
        self._folder = Path(workdir).absolute() / "checkpoints"
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, cleanup_tmp_directories=True, create=True
        )
        self._manager = ocp.CheckpointManager(self._folder, options=options)

    def save(self, step: int, state: Any, description: dict) -> None:
        """Starts writing; returns before it is on disk. A name appears only whole."""
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state),
                description=ocp.args.JsonSave(description),
            ),
        )

    def restore(
        self, abstract_state: Any, description: dict | None
    ) -> tuple[Any, int] | None:
        """The newest readable (state, step), or None where there is none.

        abstract_state: tree of ShapeDtypeStruct with shardings: any topology.
        description: of the current run, to be compared; None: any run will do.
        A damaged checkpoint is skipped with a warning and the one before it used.
        Raises ValueError where the run was made by another config or on other data.
        """
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                stored = self._manager.restore(
                    step, args=ocp.args.Composite(description=ocp.args.JsonRestore())
                ).description
                if description is not None:
                    _check_same_run(stored, description, self._folder)
                state = self._manager.restore(
                    step,
                    args=ocp.args.Composite(
                        state=ocp.args.StandardRestore(abstract_state)
                    ),
                ).state
                return state, step
            except DifferentRun:
                raise
            except Exception as error:  # whatever a truncated file makes Orbax raise
                logging.warning(
                    "Checkpoint %s of step %d cannot be read (%s: %s); trying the one "
                    "before it.",
                    self._folder,
                    step,
                    type(error).__name__,
                    str(error).splitlines()[0] if str(error) else "",
                )
        return None

    def wait(self) -> None:
        """Blocks until everything saved is on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        self._manager.close()


class DifferentRun(ValueError):
    """The checkpoint belongs to another config or other data."""


def describe(config, fingerprint: str) -> dict:
    """What identifies a run: its config (as plain JSON) and its data's fingerprint."""
    return {"config": json.loads(config.to_json_best_effort()), "data": fingerprint}


def _check_same_run(stored: dict, current: dict, folder: Path) -> None:
    old, new = _flatten(stored["config"]), _flatten(current["config"])
    changed = [
        f"config.{name}: {old.get(name, 'absent')} -> {new.get(name, 'absent')}"
        for name in sorted(old.keys() | new.keys())
        if old.get(name, _MISSING) != new.get(name, _MISSING)
        and not any(name == free or name.startswith(free + ".") for free in _FREE)
    ]
    if stored["data"] != current["data"]:
        changed.append(f"data fingerprint: {stored['data']} -> {current['data']}")
    if changed:
        raise DifferentRun(
            f"The run in {folder.parent} was made differently: {'; '.join(changed)}. "
            "Name another --workdir, or remove that one to start again."
        )


_MISSING = object()


def _flatten(tree: dict, prefix: str = "") -> dict[str, Any]:
    flat = {}
    for name, value in tree.items():
        if isinstance(value, dict) and value:
            flat |= _flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def abstract(tree, shardings):
    """ShapeDtypeStructs with shardings: what `restore` needs to place each leaf."""
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, shardings
    )
