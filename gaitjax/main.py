"""Trains, continues or evaluates what a config describes.

    python -m gaitjax.main --config=configs/lmgait.py
    python -m gaitjax.main --config=configs/lmgait.py:ccpg --config.data.data_dir=/data
    python -m gaitjax.main --config=configs/lmgait.py --config.mode=evaluate

Any field is overridden by --config.field.name=value; `--print_config` lists them all.
The same command again continues a run where it stopped. On several hosts the same
command runs on each, with --multihost (docs/scaling.md).
"""

import errno
import os
import sys

from absl import app, flags, logging
from ml_collections import config_flags

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Config file, with a variant after a colon.", lock_config=True
)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of checkpoints, results, pictures. Default: runs/<name>."
)
_PRINT_CONFIG = flags.DEFINE_bool("print_config", False, "Print the config and stop.")
_MULTIHOST = flags.DEFINE_bool(
    "multihost",
    False,
    "This is one process of several: found out from Slurm, Open MPI or Cloud TPU, or "
    "given by the next three flags.",
)
_COORDINATOR = flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0.")
_NUM_PROCESSES = flags.DEFINE_integer(
    "num_processes", None, "How many processes run this command.", lower_bound=1
)
_PROCESS_ID = flags.DEFINE_integer(
    "process_id", None, "Which of them this is, from 0.", lower_bound=0
)
_DRY_RUN = flags.DEFINE_bool(
    "dry_run",
    False,
    "Print mesh, shardings, memory per device and the commands for clusters; stop.",
)
_TRACEBACK = flags.DEFINE_bool("traceback", False, "Errors with their traceback.")

# A user's mistake (wrong path, name, shape, field, data) is one of these; everything
# else is ours and keeps its traceback.
_USER_ERRORS = (ValueError, FloatingPointError, FileNotFoundError, PermissionError)


def main(argv) -> int:
    if len(argv) > 1:
        raise ValueError(f"Arguments not understood: {argv[1:]}. See --help.")
    if _CONFIG.value is None:
        raise ValueError("No --config given, for instance --config=configs/lmgait.py.")
    path = config_flags.get_config_filename(flags.FLAGS["config"]).partition(":")[0]
    if not os.path.isfile(path):
        raise ValueError(f"There is no config file {path}; see the folder configs/.")
    config = _CONFIG.value
    if _PRINT_CONFIG.value:
        print(config)
        return 0
    workdir = _WORKDIR.value or os.path.join("runs", config.name)

    from gaitjax import evaluate, import_checkpoint, models, plan, train
    from gaitjax.engine import checkpoints, cluster
    from gaitjax.rerank import train as train_reranker

    modes = {
        "train": train.run,
        "evaluate": evaluate.run,
        "import": import_checkpoint.run,
    }
    if config.model.name == "cargait":
        rerank = train_reranker.rerank
        modes = {"train": train_reranker.run, "rerank": rerank, "evaluate": rerank}
    else:
        models.check(config)  # before any data is opened
    if config.mode not in modes:
        raise ValueError(
            f"Unknown config.mode {config.mode!r} of {config.name}; choose from "
            f"{', '.join(modes)} (re-ranking: configs/cargait.py)."
        )
    if _MULTIHOST.value:
        cluster.join(_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
    elif {_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value} != {None}:
        raise ValueError(
            "--coordinator, --num_processes and --process_id belong to --multihost; "
            "add it, or leave them out."
        )
    else:
        cluster.exit_when_stopped()
    if _DRY_RUN.value:
        cluster.say(plan.dry_run(config, workdir))
        return 0
    checkpoints.check_folder(workdir)
    try:
        modes[config.mode](config, workdir)
    except cluster.Stopped:
        cluster.say_stopped()
    return 0


def _parse(arguments):
    """absl's parser, with every mistake in the flags or the config file as one line."""
    try:
        return flags.FLAGS(arguments)
    except Exception as error:  # config files run arbitrary code
        if "--traceback" in arguments:
            raise
        _exit(error)


def _main(argv) -> int:
    try:
        return main(argv)
    except (Exception, KeyboardInterrupt) as error:
        if _MULTIHOST.value:
            from gaitjax.engine import cluster

            cluster.leave_soon(130 if isinstance(error, KeyboardInterrupt) else 2)
        if isinstance(error, KeyboardInterrupt) and not _TRACEBACK.value:
            print("\ngaitjax: interrupted; what was saved stays.", file=sys.stderr)
            raise SystemExit(130) from None
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            error = ValueError(
                f"The disk is full ({error}); the checkpoints written so far are kept. "
                "Free some space, then run the same command again."
            )
        if _TRACEBACK.value or not isinstance(error, _USER_ERRORS):
            raise
        _exit(error)


def _exit(error: Exception):
    text = str(error)
    cause = error.args[0] if isinstance(error, AttributeError) and error.args else error
    if isinstance(cause, KeyError):  # ml_collections' way
        text = f"No such config field (--print_config lists them): {cause.args[0]}"
    if "Traceback (most recent call last)" in text:  # config_flags quotes one
        text = text.strip().splitlines()[-1]
    text = " ".join(text.split()) or type(error).__name__
    print(f"gaitjax: {text}", file=sys.stderr)
    raise SystemExit(2)


if __name__ == "__main__":
    logging.set_verbosity(logging.WARNING)  # Orbax and TFDS are chatty
    app.run(_main, flags_parser=_parse)
