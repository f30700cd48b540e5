"""The command line around `main`: help, finding the config, one-line errors."""

import errno
import functools
import os
import re
import sys
from pathlib import Path

from absl import app, flags, logging
from ml_collections import ConfigDict

from gaitjax import __version__
from gaitjax.engine.guards import require

_TRACEBACK = flags.DEFINE_bool("traceback", False, "Errors with their traceback.")

# Errors of the user (wrong name, shape, field, data), and those of the system that name
# a file, are printed as one line; any other error is a fault of the program and keeps
# its traceback.
_USER_ERRORS = (ValueError, FloatingPointError)
_INSTALLED = Path(__file__).parents[1]  # configs/ lies beside the package
_HELP = {"--help", "-help", "-h", "--helpfull", "--helpshort"}


def run(main, module) -> None:
    """Runs `main(argv)` and ends the program. module: defines the flags and the help.

    Exit codes: 0, 2 after a mistake of the user, 130 after Ctrl-C.
    """
    logging.set_verbosity(logging.WARNING)  # Orbax and TFDS log a lot
    parse = functools.partial(_parse, module)
    app.run(functools.partial(_run, main), flags_parser=parse)


def _parse(module, arguments):
    """absl's parser, with every mistake in the flags or the config file as one line."""
    if _HELP & set(arguments):
        of_flags = map(flags.FLAGS.module_help, (module, sys.modules[__name__]))
        print(module.__doc__, *of_flags, sep="\n")
        raise SystemExit(0)
    if "--version" in arguments:
        print(f"gaitjax {__version__}")
        raise SystemExit(0)
    try:
        line = "\0".join(arguments)  # the value of a flag may be a word of its own
        line = re.sub(r"(?<![^\0])(--?config[=\0])([^\0:]*)", _find_config, line)
        return flags.FLAGS(line.split("\0"))
    except Exception as error:  # a config file may run any code
        if "--traceback" in arguments:
            raise
        _exit(error)


def keep_compiled() -> None:
    """Compiled programs are kept in ~/.cache/gaitjax for the next start.

    JAX_COMPILATION_CACHE_DIR names another folder; JAX_ENABLE_COMPILATION_CACHE=0 keeps
    nothing.
    """
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        import jax

        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        jax.config.update("jax_compilation_cache_dir", f"{home}/gaitjax")


def read_empty_tuples(config) -> None:
    """Makes () of every tuple that was given as "--config.field=".

    ml_collections reads ('',), which as a tuple of patterns would match everything.
    """
    for name, value in config.items() if isinstance(config, ConfigDict) else ():
        if isinstance(value, ConfigDict):
            read_empty_tuples(value)
        elif value == ("",):
            config[name] = ()


def _find_config(match: re.Match) -> str:
    """A --config flag whose file exists, in the current folder or as installed."""
    flag, path = match.groups()
    found = next((x for x in (Path(path), _INSTALLED / path) if x.is_file()), None)
    require(
        found,
        f"There is no config file {path!r}; those of gaitjax are in "
        f"{_INSTALLED / 'configs'}.",
    )
    return f"{flag}{found}"


def _run(main, argv) -> int:
    try:
        return main(argv)
    except (Exception, KeyboardInterrupt) as error:
        interrupted = isinstance(error, KeyboardInterrupt)
        if flags.FLAGS.multihost:
            from gaitjax.engine import cluster

            cluster.leave_soon(130 if interrupted else 2)
        if interrupted and not _TRACEBACK.value:
            print("\ngaitjax: interrupted; saved checkpoints stay.", file=sys.stderr)
            raise SystemExit(130) from None
        full = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        if isinstance(error, OSError) and error.errno in full:
            error = ValueError(
                f"The disk is full, or files may not be so large ({error}); the "
                "checkpoints written so far are kept. Free some space or raise ulimit "
                "-f, then run the same command again."
            )
        of_file = isinstance(error, OSError) and error.filename is not None
        if _TRACEBACK.value or not (of_file or isinstance(error, _USER_ERRORS)):
            raise
        _exit(error)


def _exit(error: Exception):
    """Ends the program with code 2 and the error as one line."""
    text = str(error)
    cause = error.args[0] if isinstance(error, AttributeError) and error.args else error
    if isinstance(cause, KeyError):  # ml_collections raises it for an unknown field
        text = f"No such config field (--print_config lists them): {cause.args[0]}"
    if "Traceback (most recent call last)" in text:  # config_flags quotes one
        text = text.strip().splitlines()[-1]
    text = " ".join(text.split()) or type(error).__name__
    print(f"gaitjax: {text}", file=sys.stderr)
    raise SystemExit(2)
