"""Orbax lives here and nowhere else: atomic, asynchronous checkpoints of a run.

A checkpoint holds the TrainState without `frozen` (those weights come from a file or
from the seed) and a description: the config, the data set's fingerprint, checksums of
the frozen weights that came from files, and one of each array. The run's random keys
are functions of config.seed and the step.

Precedence of restores, of everything but the frozen weights:

1. train, and train of a re-ranker: the newest checkpoint of the run's own workdir that
   can be read; where the workdir has no checkpoint, a fresh state from the seed.
   Imported weights (mode import) are such a checkpoint, of step 0.
2. evaluate: in config.base_run, or where that is empty in the workdir, the newest that
   can be read; with config.evaluation.checkpoint="best" the best one, then the newest.
   The base of a re-ranker: in config.base_run, the newest that can be read. There is no
   fresh state: a run without a checkpoint is an error.

Frozen weights come from config.pretrained's files, else from the seed, in every case.
A checkpoint of another config or other data is never used and never overwritten, and
checkpoints none of which can be read are not started over: both are errors.
"""

import contextlib
import errno
import hashlib
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from etils import epath
from jax.experimental import multihost_utils
from orbax.checkpoint.checkpoint_managers import (
    AnyPreservationPolicy,
    BestN,
    LatestN,
)

# Config fields that may change between a run and its continuation: they do not change
# what step s computes.
FREE = (
    "mode",
    "data.data_dir",
    "data.workers",
    "train.log_every",
    "evaluation",
    "model.representation.remat",
    "model.visual_encoder.remat",
    "model.visual_encoder.frames_per_chunk",
    "mesh",
    "sharding",
    "sharding_rules",
    "data.max_damaged",
    "train.checkpoint_every",
    "train.keep",
    "train.keep_best",
    "pictures",
    "base_run",
    "checkpoint",
    "partial",
)


IMPORTED = "imported"  # in place of a fingerprint: published weights, any data will do


class Checkpoints:
    """Checkpoints of one run in WORKDIR/checkpoints.

    keep: the newest `keep` stay (None: all). best: name of a metric of the evaluations
    during training, for instance "ccpg_gait/mean/rank1": the checkpoint where it was
    highest stays too ("": none).
    read_only: another process may be writing this run: nothing in the folder changes.
    """

    def __init__(
        self,
        workdir: str,
        keep: int | None,
        best: str = "",
        read_only: bool = False,
    ):
        self._folder = Path(workdir).absolute() / "checkpoints"
        self._best = best
        policies = [LatestN(n=keep)]
        if best:
            policies.append(
                BestN(
                    get_metric_fn=self._metric,
                    n=1,
                    keep_checkpoints_without_metrics=False,
                )
            )
        options = ocp.CheckpointManagerOptions(
            preservation_policy=AnyPreservationPolicy(policies),
            best_fn=self._metric if best else None,
            cleanup_tmp_directories=not read_only,
            create=not read_only,
            single_host_load_and_broadcast=True,  # folders may be seen late on NFS
        )
        self._manager = ocp.CheckpointManager(self._folder, options=options)

    def _metric(self, metrics: dict) -> float:
        return metrics[self._best]

    def save(
        self, step: int, state: Any, description: dict, metrics: dict | None = None
    ) -> None:
        """Starts writing; returns before it is on disk. A name appears only whole.

        metrics: of an evaluation of this state, if there was one.
        Raises ValueError where the disk is full (also for the save before, which wrote
        in the background), or where `metrics` lacks the one that decides what is best.
        """
        if self._best and metrics is not None and self._best not in metrics:
            raise ValueError(
                f"config.train.keep_best={self._best!r} is none of the results; choose "
                f"from {', '.join(sorted(metrics))}."
            )
        with self._explained(step):
            if step in self._manager.all_steps():
                self._manager.delete(step)  # damaged: we started from one before it
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state),
                    description=ocp.args.JsonSave(
                        {**description, "checksums": checksums(state)}
                    ),
                ),
                metrics=metrics if self._best else None,
                force=True,  # also below a damaged newer one
            )

    def restore(
        self, abstract_state: Any, description: dict | None, first: str = "newest"
    ) -> tuple[Any, int] | None:
        """The first readable (state, step), or None where there is no checkpoint.

        abstract_state: tree of ShapeDtypeStruct with shardings: any topology.
        description: of the current run, to be compared; None: any run will do.
        first: "newest", or "best" (then the newest).
        A damaged checkpoint is skipped with a warning and the one before it used; on
        several hosts only what all of them can read is used: each reads its own shards
        alone, then all agree.
        Raises ValueError where the run was made by another config or on other data, or
        where there are checkpoints but none can be read.
        """
        steps = self._order(first)
        for step in steps:
            stored, state, different, problem = {}, None, None, ""
            try:
                # Orbax's handlers, because its checkpointers end in a barrier, where
                # the others would wait for one that cannot read its part
                folder = epath.Path(self._folder / str(step))
                stored = ocp.JsonCheckpointHandler().restore(folder / "description")
                if description is not None:
                    _check_same_run(stored, description, self._folder)
                state = ocp.StandardCheckpointHandler().restore(
                    folder / "state", args=ocp.args.StandardRestore(abstract_state)
                )
            except DifferentRun as error:
                different = error
            except Exception as error:  # whatever a truncated file makes Orbax raise
                text = str(error).partition("\n")[0].partition(" [tensorstore")[0]
                problem = f"{type(error).__name__}: {text[:300]}"
            own = np.array([not problem, different is None])
            read_by_all, same_for_all = (
                multihost_utils.process_allgather(own).reshape(-1, 2).all(axis=0)
            )
            if read_by_all and not same_for_all:
                raise different or DifferentRun(
                    f"Another process found that {self._folder} is of another run."
                )
            if read_by_all and stored.get("checksums") in (None, checksums(state)):
                return state, step
            if read_by_all:
                problem = "a checksum of its arrays differs"
            logging.warning(
                "Checkpoint %s of step %d cannot be read (%s); trying the one before "
                "it.",
                self._folder,
                step,
                problem or "another process",
            )
        if steps:
            raise ValueError(
                f"None of the {len(steps)} checkpoints in {self._folder} can be read "
                f"({problem or 'another process'}). Nothing was changed: bring their "
                "files back, or remove the folder to start from step 0."
            )
        return None

    def _order(self, first: str) -> list[int]:
        steps = sorted(map(int, self._manager.all_steps()), reverse=True)
        if first == "newest":
            return steps
        if first != "best" or not self._best:
            raise ValueError(
                f"config.evaluation.checkpoint={first!r} with config.train.keep_best="
                f"{self._best!r}; choose newest, or best where keep_best names the "
                "metric."
            )
        best = self._manager.best_step()
        best = multihost_utils.broadcast_one_to_all(np.array(best or -1))
        return sorted(
            steps, key=lambda step: step != int(best)
        )  # stable: then the newest

    def wait(self) -> None:
        """Blocks until everything saved is on disk."""
        with self._explained(self._manager.latest_step()):
            self._manager.wait_until_finished()

    def close(self) -> None:
        self._manager.close()

    @contextlib.contextmanager
    def _explained(self, step: int | None):
        try:
            yield
        except Exception as error:
            if not disk_full(error):
                raise
            raise ValueError(
                f"The disk of {self._folder} is full; the checkpoint of step {step} or "
                "the one before could not be written, older ones are kept. Free some "
                "space, then run the same command again."
            ) from error


def check_folder(workdir: str) -> None:
    """Raises ValueError where a run could not write into `workdir`."""
    try:
        Path(workdir).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=workdir):
            pass
    except OSError as error:
        raise ValueError(
            f"--workdir={workdir} cannot be written ({error.strerror}). Name another "
            "folder with --workdir, or change its permissions."
        ) from error


def check_space(workdir: str, state: Any) -> None:
    """Raises ValueError where two checkpoints of `state` do not fit into `workdir`."""
    check_folder(workdir)
    needed = 2 * sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))
    free = shutil.disk_usage(workdir).free
    if free < needed:
        raise ValueError(
            f"The disk of --workdir={workdir} has {free / 2**20:,.2f} MiB left; two "
            f"checkpoints need {needed / 2**20:,.2f} MiB. Free some space or name "
            "another folder with --workdir."
        )


def disk_full(error: BaseException | None) -> bool:
    """Whether a full disk or quota is behind an error, through its causes."""
    while error is not None:
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
            return True
        text = str(error).lower()
        if "no space left" in text or "quota exceeded" in text:
            return True
        error = error.__cause__ or error.__context__
    return False


def checksums(tree) -> list[int]:
    """One number per array: the sum modulo 2^32 of its bits, weighted by position.

    Exact, so equal whatever the devices that hold the arrays; on several hosts each
    adds what it holds (a collective). One wrong bit anywhere changes it.
    """
    sums = np.array([_bit_sum(leaf) for leaf in jax.tree.leaves(tree)], np.uint32)
    if jax.process_count() > 1:
        sums = multihost_utils.process_allgather(sums).sum(axis=0, dtype=np.uint32)
    return sums.tolist()


def _bit_sum(leaf) -> int:
    parts = [((slice(None),) * np.ndim(leaf), leaf)]
    if isinstance(leaf, jax.Array):
        shards = leaf.addressable_shards
        parts = [(x.index, x.data) for x in shards if x.replica_id == 0]
    total = 0
    for index, data in parts:
        place = np.zeros((), np.uint32)  # of each element in the whole array
        for axis, size in zip(index, leaf.shape):
            own = np.arange(size, dtype=np.uint32)[axis]
            place = place[..., None] * np.uint32(size) + own
        weight = place * np.uint32(2654435761) | np.uint32(1)  # odd: no bit is lost
        bits = np.asarray(data).view(f"uint{8 * leaf.dtype.itemsize}")
        if leaf.dtype.itemsize == 8:
            bits = bits ^ (bits >> np.uint64(32))  # the upper half counts too
        total += int(np.sum(bits.astype(np.uint32) * weight, dtype=np.uint32))
    return total % 2**32


class DifferentRun(ValueError):
    """The checkpoint belongs to another config or other data."""


def describe(config, fingerprint: str) -> dict:
    """What identifies a run: its config (as plain JSON) and its data's fingerprint."""
    return {"config": json.loads(config.to_json_best_effort()), "data": fingerprint}


def weights_of_files(config, frozen: dict) -> dict:
    """More of the description: a checksum of each encoder that config.pretrained loaded
    (they are in no checkpoint; a collective)."""
    sources = config.get("pretrained", {})
    loaded = sorted(scope for scope in frozen if sources.get(scope))
    sums = [checksums(frozen[scope]) for scope in loaded]
    digests = [hashlib.sha256(json.dumps(x).encode()).hexdigest()[:16] for x in sums]
    return {"weights": dict(zip(loaded, digests))}


def _check_same_run(stored: dict, current: dict, folder: Path) -> None:
    old, new = _flatten(stored["config"]), _flatten(current["config"])
    changed = [
        f"config.{name}: {old.get(name, 'absent')} -> {new.get(name, 'absent')}"
        for name in sorted(old.keys() | new.keys())
        if old.get(name, _MISSING) != new.get(name, _MISSING)
        and not any(name == free or name.startswith(free + ".") for free in FREE)
    ]
    if stored["data"] not in (current["data"], IMPORTED):
        changed.append(f"data fingerprint: {stored['data']} -> {current['data']}")
    weights = current.get("weights", {})
    changed += [
        f"the weights in config.pretrained.{scope}: {digest} -> {weights[scope]}"
        for scope, digest in stored.get("weights", {}).items()  # older ones have none
        if scope in weights and weights[scope] != digest
    ]
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
