"""Trains, continues or evaluates what a config describes.

    gaitjax --config=configs/lmgait.py                 (or: python -m gaitjax.main ...)
    gaitjax --config=configs/lmgait.py:ccpg --config.data.data_dir=/data
    gaitjax --config=configs/lmgait.py --config.mode=evaluate

config.mode is one of
  train      train, or continue where the run stopped, then evaluate; the default
  evaluate   evaluate a trained run again
  import     read a published checkpoint: --config.checkpoint=FILE
  rerank     re-rank a trained run: --config=configs/cargait.py --config.base_run=RUN

--config.FIELD=VALUE sets any field of a config; --print_config lists the values, and
gaitjax/settings.py explains the fields. Often:
  --config.train.steps=200           --config.data.data_dir=DIR
  --config.data.ids_per_batch=4      --config.data.test_dataset=cmu_walk
  --config.optimizer.learning_rate=0.01

A config that is not in the current folder is looked for among the installed ones.
On several hosts the same command runs on each, with --multihost (docs/scaling.md).
"""

import contextlib
import os
import sys

from absl import flags
from ml_collections import config_flags

from gaitjax import command_line
from gaitjax.engine.guards import require

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Config file FILE.py, or FILE.py:VARIANT.", lock_config=True
)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of checkpoints, results, pictures. Default: runs/NAME."
)
_PRINT_CONFIG = flags.DEFINE_bool("print_config", False, "Print the config and stop.")
_DRY_RUN = flags.DEFINE_bool(
    "dry_run",
    False,
    "Print mesh, shardings, memory per device and the commands for clusters; stop.",
)
_TARGET = flags.DEFINE_string(
    "target", "", "With --dry_run: devices elsewhere to plan for, for instance h100x8."
)
_MULTIHOST = flags.DEFINE_bool(
    "multihost",
    False,
    "This is one process of several, all started with the same command. Slurm, Open "
    "MPI and Cloud TPU are recognised; elsewhere give the next three flags too.",
)
_COORDINATOR = flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0.")
_NUM_PROCESSES = flags.DEFINE_integer(
    "num_processes", None, "Number of processes.", lower_bound=1
)
_PROCESS_ID = flags.DEFINE_integer(
    "process_id", None, "Number of this process, from 0.", lower_bound=0
)


def main(argv) -> int:
    require(len(argv) == 1, f"Arguments not understood: {argv[1:]}. See --help.")
    config = _CONFIG.value
    require(
        config is not None,
        "No --config given, for instance --config=configs/lmgait.py.",
    )
    command_line.read_empty_tuples(config)
    if _PRINT_CONFIG.value:
        print(config)
        return 0
    workdir = _WORKDIR.value or os.path.join("runs", config.name)
    run_mode = _function_of(config)

    from gaitjax import plan, run_folder, targets
    from gaitjax.data import embedded
    from gaitjax.engine import checkpoints, cluster

    processes = (_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
    if _TARGET.value:
        require(_DRY_RUN.value, "--target belongs to --dry_run; add it.")
        targets.prepare(_TARGET.value)
    elif _MULTIHOST.value:
        cluster.join(*processes)
    else:
        require(
            processes == (None, None, None),
            "--coordinator, --num_processes and --process_id belong to --multihost; "
            "add it, or leave them out.",
        )
        cluster.exit_when_stopped()
    if kept := run_folder.keep_to_run(config, config.base_run or workdir):
        cluster.say(f"A run of version 0.1 goes on as it began: {'; '.join(kept)}.")
    if _DRY_RUN.value:
        cluster.say(plan.dry_run(config, workdir, _TARGET.value))
        return 0
    checkpoints.check_folder(workdir)
    run_folder.check_entries(workdir)
    command_line.keep_compiled()
    reads = config.mode == "evaluate" and config.model.name != "cargait"
    try:
        with contextlib.nullcontext() if reads else run_folder.locked(workdir):
            if config.mode != "import":  # it reads no data
                embedded.prepare(config.data)
            run_mode(config, workdir)
    except cluster.Stopped:
        cluster.say_stopped()
    return 0


def _function_of(config):
    """The function (config, workdir) that does what config.mode says."""
    from gaitjax import evaluate, import_checkpoint, settings, train
    from gaitjax.rerank import run as rerank_run

    settings.check(config)
    if config.model.name == "cargait":
        return rerank_run.run if config.mode == "train" else rerank_run.rerank
    modes = {"train": train, "evaluate": evaluate, "import": import_checkpoint}
    return modes[config.mode].run


def run() -> None:
    """The command `gaitjax`."""
    command_line.run(main, sys.modules[__name__])


if __name__ == "__main__":
    run()
