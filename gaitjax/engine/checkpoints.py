"""Atomic, asynchronous checkpoints of a run. Orbax is used here and nowhere else.

A checkpoint holds a tree of arrays (what the task stores of its state) and a
description: JSON that identifies the run, with a checksum of itself and of each array.
Random keys are functions of the seed and the step, so none is stored.

A run restores the newest checkpoint of its folder that can be read, and starts from its
seed only if the folder has no checkpoint. A checkpoint of another run is never used
and never overwritten. If checkpoints exist but none can be read, that is an error.
"""

import contextlib
import errno
import json
import os
import shutil
import tempfile
import zlib
from collections.abc import Callable, Sequence
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

from gaitjax.engine.guards import reading, require

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# (stored description, this run's) -> in what they differ, a phrase each; []: same run
Differences = Callable[[dict, dict], Sequence[str]]


class DifferentRun(ValueError):
    """The checkpoint belongs to a run with another config or other data."""


class Checkpoints:
    """Checkpoints of one run in WORKDIR/checkpoints.

    keep: the newest `keep` stay (None: all). best: name of an evaluation metric, for
    instance "ccpg_gait/mean/rank1": the checkpoint where it was highest stays too ("":
    none). read_only: another process may be writing this run, so nothing changes.
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
        self, step: int, stored: Any, description: dict, metrics: dict | None = None
    ) -> None:
        """Starts writing and returns; a checkpoint's folder appears only when whole.

        metrics: of an evaluation of this state, if there was one. Raises ValueError
        if the disk is full (also for the save before, which wrote in the
        background), or if `metrics` lacks the one that decides what is best.
        """
        if self._best and metrics is not None:
            require(
                self._best in metrics,
                f"config.train.keep_best={self._best!r} is none of the results; choose "
                f"from {', '.join(sorted(metrics))}.",
            )
        content = description | {"step": step, "crc32": checksums(stored)}
        content["checksum"] = _checksum_of(content)
        with self._explained(step):
            if step in self._manager.all_steps():
                self._manager.delete(step)  # damaged: the run restored an older one
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(stored),
                    description=ocp.args.JsonSave(content),
                ),
                metrics=metrics if self._best else None,
                force=True,  # also where a damaged newer one exists
            )

    def restore(
        self,
        target: Any,
        description: dict | None = None,
        differences: Differences | None = None,
        first: str = "newest",
    ) -> tuple[Any, int] | None:
        """The first readable (tree, step), or None if there is no checkpoint.

        target: tree of ShapeDtypeStruct with shardings, on any devices. description:
        of this run, compared by `differences`; None: any run will do. first: "newest",
        or "best" (then the newest).

        A damaged checkpoint is skipped with a warning. On several hosts each reads its
        own shards and a checkpoint counts only if all of them could.
        Raises DifferentRun for a checkpoint of another run, ValueError if there are
        checkpoints but none can be read.
        """
        steps, problem = self._order(first), ""

        def compare(content: dict) -> Sequence[str]:
            known = description is not None and differences is not None
            return differences(content, description) if known else ()

        for step in steps:
            content, stored, changed, problem = self._read(step, target, compare)
            own = np.array([not problem, not changed])
            read_by_all, same_for_all = (
                multihost_utils.process_allgather(own).reshape(-1, 2).all(axis=0)
            )
            require(
                same_for_all or not read_by_all,
                f"The run in {self._folder.parent} was made differently: "
                f"{_listed(changed) or 'another process says so'}. Name another "
                "--workdir, or remove that one to start again.",
                DifferentRun,
            )
            if read_by_all and content.get("crc32") in (None, checksums(stored)):
                return stored, step
            if read_by_all:
                problem = "a checksum of its arrays differs"
            problem = problem or "another process"
            logging.warning(
                "Checkpoint %s of step %d cannot be read (%s); trying the one before "
                "it.", self._folder, step, problem,
            )  # fmt: skip
        require(
            not steps,
            f"None of the {len(steps)} checkpoints in {self._folder} can be read "
            f"({problem}). Nothing was changed: bring their files back, or remove the "
            "folder to start from step 0.",
        )
        return None

    def description(self, step: int) -> dict:
        """The description in the checkpoint of `step`, which `restore` found whole."""
        folder = epath.Path(self._folder / str(step))
        return ocp.JsonCheckpointHandler().restore(folder / "description")

    def shape(self, *path: str) -> tuple[int, ...]:
        """Of the array at `path` in the newest checkpoint, which has not been read."""
        folder = epath.Path(self._folder)
        steps = self._order("newest")
        require(steps, f"There are no checkpoints in {folder}.", FileNotFoundError)
        state = folder / str(steps[0]) / "state"
        with reading(state, f"it has no {'/'.join(path)}"):
            found = ocp.StandardCheckpointHandler().metadata(state)
            for name in path:
                found = found[name]
            return tuple(found.shape)

    def _read(self, step: int, target: Any, compare):
        """(description, tree, differences, what is wrong or "") of one checkpoint.

        compare: description -> differences; where there are any, the arrays may have
        other shapes and are not read.
        """
        folder = epath.Path(self._folder / str(step))
        try:
            # Orbax's handlers: its checkpointers end in a barrier, where the other
            # processes would wait for one that cannot read its part
            content = ocp.JsonCheckpointHandler().restore(folder / "description")
            wrong = _wrong_description(content, step)
            if wrong:
                return {}, None, (), wrong
            if changed := compare(content):
                return content, None, changed, ""
            stored = ocp.StandardCheckpointHandler().restore(
                folder / "state", args=ocp.args.StandardRestore(target)
            )
            own = stored.get("step", step) if isinstance(stored, dict) else step
            if int(own) != step:
                wrong = f"its folder is named {step}, it holds step {own}"
                return {}, None, (), wrong
        except Exception as error:  # whatever a truncated file makes Orbax raise
            text = str(error).partition("\n")[0].partition(" [tensorstore")[0]
            return {}, None, (), f"{type(error).__name__}: {text[:300]}"
        return content, stored, (), ""

    def _order(self, first: str) -> list[int]:
        steps = sorted(map(int, self._manager.all_steps()), reverse=True)
        if first == "newest":
            return steps
        require(
            first == "best" and self._best,
            f"config.evaluation.checkpoint={first!r} with config.train.keep_best="
            f"{self._best!r}; choose newest, or best if keep_best names the metric.",
        )
        best = self._manager.best_step()
        best = int(multihost_utils.broadcast_one_to_all(np.array(best or -1)))
        return sorted(steps, key=lambda step: step != best)  # stable: then the newest

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
                f"The disk of {self._folder} is full, or files there may not be so "
                f"large (ulimit -f); the checkpoint of step {step} or the one before "
                "could not be written, older ones are kept. Free some space, then run "
                "the same command again."
            ) from error


def _listed(phrases: Sequence[str], most: int = 8) -> str:
    more = f"; and {len(phrases) - most} more" if len(phrases) > most else ""
    return "; ".join(phrases[:most]) + more


def _wrong_description(content: Any, step: int) -> str:
    """What is wrong with a checkpoint's description; "" if nothing is.

    Those written before version 0.2 have no checksum of themselves, but "checksums" of
    their arrays by another rule.
    """
    if not isinstance(content, dict):
        return "its description is no JSON object"
    content = dict(content)
    checksum = content.pop("checksum", None)
    if checksum is None and "checksums" in content:
        return ""
    if checksum != _checksum_of(content):
        return "the checksum of its description differs"
    return ""


def _checksum_of(content: dict) -> int:
    return zlib.crc32(json.dumps(content, sort_keys=True).encode())


def checksums(tree) -> list[int]:
    """CRC-32 of each array's bytes, whatever devices hold it.

    On several hosts an array that is split over them is gathered first (a collective).
    """
    return [zlib.crc32(_whole(leaf).tobytes()) for leaf in jax.tree.leaves(tree)]


def _whole(leaf) -> np.ndarray:
    shared = isinstance(leaf, jax.Array) and not leaf.is_fully_addressable
    if shared and not leaf.is_fully_replicated:
        leaf = multihost_utils.process_allgather(leaf, tiled=True)
    return np.asarray(leaf)


def check_folder(workdir: str) -> None:
    """Raises ValueError if a run could not write into `workdir`."""
    try:
        Path(workdir).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=workdir):
            pass
    except OSError as error:
        raise ValueError(
            f"--workdir={workdir} cannot be written ({error.strerror}). Name another "
            "folder with --workdir, or change its permissions."
        ) from error


def check_space(workdir: str, stored: Any) -> None:
    """Raises ValueError if two checkpoints of `stored` do not fit into `workdir`."""
    check_folder(workdir)
    needed = 2 * sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(stored))
    free = shutil.disk_usage(workdir).free
    require(
        free >= needed,
        f"The disk of --workdir={workdir} has {free / 2**20:,.2f} MiB left; two "
        f"checkpoints need {needed / 2**20:,.2f} MiB. Free some space or name another "
        "folder with --workdir.",
    )


def disk_full(error: BaseException | None) -> bool:
    """Whether a full disk, a quota or a limit of file size is behind an error."""
    while error is not None:
        if getattr(error, "errno", None) in FULL:
            return True
        if any(os.strerror(number).lower() in str(error).lower() for number in FULL):
            return True
        error = error.__cause__ or error.__context__
    return False


def _worth_logging(record) -> bool:
    """False for the tracebacks that Orbax's threads log if the disk is full: `save`
    and `wait` raise the same error in one sentence."""
    return not (record.exc_info and disk_full(record.exc_info[1]))


logging.get_absl_logger().addFilter(_worth_logging)


def abstract(tree, shardings):
    """ShapeDtypeStructs with shardings: what `restore` needs to place each leaf."""
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, shardings
    )
