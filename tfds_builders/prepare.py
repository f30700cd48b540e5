"""Prepares data sets: python -m tfds_builders.prepare NAME[/CONFIG] ...

    python -m tfds_builders.prepare synthetic_gait
    python -m tfds_builders.prepare cmu_walk --manual_dir=DIR
    python -m tfds_builders.prepare --config=configs/lmgait.py:cmu_walk

Writes DATA_DIR/NAME/CONFIG/VERSION as array_record, without TensorFlow or Beam, unless
that folder is already prepared. `tfds build` builds the same folders, but imports
TensorFlow, apache_beam and mlcroissant first.
"""

import argparse
import contextlib
import errno
import fcntl
import importlib
import json
import os
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from absl import flags
from etils import epath
from ml_collections import ConfigDict, config_flags

from tfds_builders.damage import Damaged
from tfds_builders.parallel import WorkerKilled

# data set -> module of its `Builder`
BUILDERS = {
    name: f"tfds_builders.{name}.{name}_dataset_builder"
    for name in (
        "synthetic_gait",
        "cmu_walk",
        "ccpg",
        "casia_b",
        "casia_b_star",
        "oumvlp",
        "sustech1k",
        "gait3d",
        "grew",
        "ccgr_mini",
        "kinect_gait",
        "kth_walking",
        "seen_gait",
        "folder",
    )
}
DISK = {
    errno.ENOSPC: "the disk is full; free space",
    errno.EDQUOT: "your disk quota is used up; free space",
    errno.EFBIG: "a file reached the limit of `ulimit -f` or the file system; raise it",
}


class PrepareError(Exception):
    """Something the user can repair; the message says how."""


def builder_class(name: str):
    """The TFDS builder class of data set `name`."""
    if name not in BUILDERS:
        raise PrepareError(
            f"Unknown data set {name!r}; choose from {', '.join(sorted(BUILDERS))}."
        )
    return importlib.import_module(BUILDERS[name]).Builder


def make_builder(name: str, data_dir: str | Path):
    """The builder of "NAME" (its first config) or "NAME/CONFIG" under `data_dir`."""
    name, _, config = name.partition("/")
    builder = builder_class(name)
    if config and config not in builder.builder_configs:
        known = ", ".join(sorted(builder.builder_configs)) or "none"
        raise PrepareError(f"{name} has no config {config!r}; it has: {known}.")
    return builder(
        data_dir=str(data_dir), config=config or None, file_format="array_record"
    )


def prepare(
    name: str,
    data_dir: str | Path,
    *,
    manual_dir: str | Path | None = None,
    overwrite: bool = False,
    beam_options: str | None = None,
) -> Path:
    """Builds "NAME[/CONFIG]" under `data_dir` unless it is there; returns its folder.

    A build is written beside its final folder and moved there when it is complete, so a
    killed build is never read; the next call removes its remains. `overwrite` keeps the
    old folder until then. Two calls at the same time wait for each other. beam_options:
    comma-separated options of a Beam pipeline, "runner=DirectRunner,..."; None: no
    Beam. Raises PrepareError for unknown names, a full disk, and data that the user
    must fetch.
    """
    import tensorflow_datasets as tfds

    if "://" in str(data_dir):
        raise PrepareError(
            f"--data_dir={data_dir}: this command locks and moves folders, so it needs "
            "a local one; `tfds build` writes to buckets (docs/datasets.md)."
        )
    tfds.disable_progress_bar()  # ordered_map has its own
    builder = make_builder(name, data_dir)
    folder = Path(builder.data_dir)
    if (folder / "dataset_info.json").exists() and not overwrite:
        print(f"{name}: already prepared in {folder}", flush=True)
        return folder
    if manual_dir is not None and not epath.Path(manual_dir).is_dir():
        raise PrepareError(f"--manual_dir={manual_dir} is not a folder.")
    download_config = tfds.download.DownloadConfig(
        manual_dir=str(manual_dir) if manual_dir else None,
        beam_options=_beam_options(beam_options),
    )
    with _explained(name, folder), _locked(folder.parent / ".prepare.lock"):
        if (folder / "dataset_info.json").exists() and not overwrite:
            print(f"{name}: prepared meanwhile in {folder}", flush=True)
            return folder
        for leftover in folder.parent.glob("*incomplete*"):
            shutil.rmtree(leftover)
        began = time.time()
        builder = make_builder(name, folder.parent / "incomplete.build")
        builder.download_and_prepare(
            download_dir=str(Path(data_dir) / "downloads"),
            download_config=download_config,
            file_format="array_record",
        )
        _put(Path(builder.data_dir), folder)
    splits = {split: info.num_examples for split, info in builder.info.splits.items()}
    counts = ", ".join(f"{count} sequences {split}" for split, count in splits.items())
    print(f"{name}: {counts}, {time.time() - began:.0f} s, in {folder}", flush=True)
    return folder


def _beam_options(text: str | None):
    """PipelineOptions of "name=value,...", or None."""
    if text is None:
        return None
    try:
        import apache_beam as beam  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise PrepareError(
            "--beam_pipeline_options needs Apache Beam: pip install 'gaitjax[beam]' "
            "(or apache-beam). Without the option, the build uses all local cores."
        ) from error
    flags = [f"--{option}" for option in text.split(",")]
    return beam.options.pipeline_options.PipelineOptions(flags=flags)


def _put(built: Path, folder: Path):
    """Moves a complete build to its place; until then readers see the old one."""
    scratch = folder.parent / "incomplete.build"
    if folder.exists():
        folder.rename(scratch / "replaced")
    built.rename(folder)
    shutil.rmtree(scratch)


@contextlib.contextmanager
def _explained(name: str, folder: Path):
    """Turns missing downloads, damaged lists and lack of space into PrepareError."""
    try:
        yield
    except (OSError, RuntimeError, Damaged) as error:
        for number, cause in DISK.items():
            # array_record's errors are RuntimeErrors without a number
            if os.strerror(number) in str(error):
                shutil.rmtree(folder.parent / "incomplete.build", ignore_errors=True)
                raise PrepareError(
                    f"{name}: {cause} or choose another --data_dir, and try again. "
                    f"Data that was prepared before is unchanged. ({error})"
                ) from error
        if isinstance(error, RuntimeError) and not isinstance(error, WorkerKilled):
            raise
        raise PrepareError(f"{name}: {error}") from error


@contextlib.contextmanager
def _locked(path: Path):
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def read_config(argument: str, overrides: Sequence[str] = ()) -> ConfigDict:
    """The config FILE.py[:variant] with `--config.field=value` overrides.

    Reads it like `gaitjax.main`. Raises PrepareError for an unknown file, variant or
    field, and for a value of the wrong type.
    """
    if not Path(argument.partition(":")[0]).is_file():
        raise PrepareError(f"No config file {argument.partition(':')[0]!r}.")
    values, line = flags.FlagValues(), ["prepare", f"--config={argument}", *overrides]
    try:
        config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=line)
        values(line)
    except (AttributeError, KeyError, TypeError, ValueError, flags.Error) as error:
        line = str(error).strip().splitlines()[-1]  # a traceback precedes it
        raise PrepareError(f"{argument}: {line}") from error
    return values.config


def names_in_config(config: ConfigDict) -> list[str]:
    """The data sets that a config trains and tests on."""
    names = [config.data.train_dataset, config.data.test_dataset]
    return list(dict.fromkeys(name for name in names if name))


def data_dir_of(config: ConfigDict) -> str:
    """Where a config looks for prepared data; a re-ranker uses its base run's."""
    found = config.data.get("data_dir", "")
    base = Path(config.get("base_run", "")) / "config.json"
    if not found and base.is_file():
        found = json.loads(base.read_text())["data"]["data_dir"]
    return found or "data"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tfds_builders.prepare",
        description=f"Prepares data sets: {', '.join(sorted(BUILDERS))}.",
    )
    parser.add_argument(
        "names",
        nargs="*",
        metavar="NAME[/CONFIG]",
        help="ccpg, or ccpg/opengait; tfds_builders/NAME/README.md lists the configs",
    )
    parser.add_argument(
        "--config",
        help="prepare what FILE.py[:variant] needs; --config.field=value changes it",
    )
    parser.add_argument(
        "--data_dir", help="default: the config's data.data_dir, or else data"
    )
    parser.add_argument("--manual_dir", help="folder with data you downloaded")
    parser.add_argument(
        "--beam_pipeline_options",
        metavar="NAME=VALUE,...",
        help="run as a Beam pipeline, for instance runner=DataflowRunner,project=...",
    )
    parser.add_argument("--overwrite", action="store_true", help="build again")
    return parser


def main(arguments: list[str] | None = None) -> int:
    parser = _parser()
    args, others = parser.parse_known_args(arguments)
    strange = [x for x in others if not (args.config and x.startswith("--config."))]
    if strange:
        parser.error(f"unrecognized arguments: {' '.join(strange)}")
    names, data_dir = args.names, args.data_dir or "data"
    try:
        if args.config:
            config = read_config(args.config, others)
            names = names + names_in_config(config)
            data_dir = args.data_dir or data_dir_of(config)
        elif not names:
            parser.error("name a data set, or give --config=FILE.py")
        for name in names:  # all names are checked before the first build
            make_builder(name, data_dir)
        for name in names:
            prepare(
                name,
                data_dir,
                manual_dir=args.manual_dir,
                overwrite=args.overwrite,
                beam_options=args.beam_pipeline_options,
            )
    except PrepareError as error:
        print(f"prepare: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
