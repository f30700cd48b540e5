"""The folder of a run: what lies in it; the one reader and writer of its JSON files.

config.json      the config, as plain JSON
checkpoints/     steps and their descriptions (`describe`)
metrics.jsonl    rows of the training; tensorboard/ has them for TensorBoard
results.json     of the last evaluation; rerank.json, import.json of those modes
pictures/        what was drawn
embeddings/      of a re-ranker's base run
lock             names the process that writes here (`locked`)
"""

import contextlib
import fcntl
import hashlib
import json
import os
import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
from absl import logging
from flax import traverse_util
from ml_collections import ConfigDict

from gaitjax.engine.atomic import replacing
from gaitjax.engine.checkpoints import checksums
from gaitjax.engine.guards import Damaged, require, require_whole

IMPORTED = "imported"  # in place of a fingerprint: any data may follow an import
# Config fields that may change between a run and its continuation, because they do not
# change what step s computes: regexes on the field's path.
FREE = (
    r"mode|base_run|reranker|checkpoint|partial|pictures|allow_cpu",
    r"data\.(data_dir|workers|max_damaged)",
    r"train\.(log_every|checkpoint_every|keep|keep_best)",
    r"evaluation\..*|mesh\..*|sharding|sharding_rules\..*",
    r"model\..*\.(remat|frames_per_chunk)",
)
# Config fields that later versions added, and the value that a run without them has
ADDED = {
    "train.accumulate": 1,
    "optimizer.adam_for": [],
    "model.visual_prompts": 0,
    "model.text.rank": 8,
    "model.text.alpha": 8.0,
    "model.text.initial_rank": 12,
    "model.text.budget": [0.1, 0.5],
    "model.text.orthogonality": 0.1,
    "model.text.prompt_length": 16,
    "model.retrieve": "before_neck",
    "model.joint_format": "coco",
    "model.max_pool": False,
    "model.cut_to_patches": False,
    "model.swiglu": False,
    "model.edge": True,
    "model.visual_encoder.cut_to_patches": False,
    "model.representation.appearance_channels": 0,
    "pretrained.text_projection_last": "",
    "pretrained.text_projection_mid": "",
}
# Fields of config.model that runs of version 0.1 lack, and what those runs did: they go
# on, and are evaluated, with these values
FORMERLY = {
    "lmgait": {
        "decoder": {"edge_rule": "published"},
        "representation": {"direct": True},
        "text": {"place": "before_extractor", "temperature": "plain"},
    }
}
_ABSENT = "absent"
_FILES = ("config.json", "metrics.jsonl", "results.json", "rerank.json", "import.json")
_FOLDERS = ("checkpoints", "tensorboard", "pictures", "embeddings")
_REPAIR = "Bring it back from a copy, or name another --workdir."


@contextlib.contextmanager
def locked(workdir: str | Path) -> Iterator[None]:
    """Only one run writes in `workdir` while the context is open.

    Process 0 holds the lock for all processes of a run; the system releases it when
    that process ends, however it ends. Readers need none. Raises ValueError, naming the
    holder, if another run writes. If the file system has no locks, a warning says so.
    """
    if jax.process_index() > 0:
        yield
        return
    folder = Path(workdir)
    with (folder / "lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise ValueError(
                f"Another run writes in {folder}: {file.read().strip() or 'unknown'}. "
                "Wait for it to end, or name another --workdir."
            ) from error
        except OSError as error:
            logging.warning(
                "%s cannot be locked (%s): see to it that no other run writes there.",
                folder, error.strerror,
            )  # fmt: skip
        file.truncate(0)
        now = time.strftime("%Y-%m-%d %H:%M:%S")
        file.write(f"process {os.getpid()} on {socket.gethostname()} since {now}\n")
        file.flush()
        yield


def check_entries(workdir: str | Path) -> None:
    """Raises ValueError for an entry of a run's folder that is of the wrong kind."""
    folder = Path(workdir)
    for name, kind, fits in [
        *((name, "file", Path.is_file) for name in (*_FILES, "lock")),
        *((name, "folder", Path.is_dir) for name in _FOLDERS),
        # Orbax cannot write where a step is no folder, nor read such a number
        *(
            (f"checkpoints/{path.name}", "folder of a step", _is_step)
            for path in folder.glob("checkpoints/*")
            if path.name.isdigit()
        ),
    ]:
        path = folder / name
        require(
            fits(path) or not os.path.lexists(path),
            f"{path} is no {kind}; move it away, or name another --workdir.",
        )


def _is_step(path: Path) -> bool:
    return path.is_dir() and len(path.name) < 10


def write_json(path: str | Path, content: Any) -> None:
    """`content` as JSON, whole or not at all; on process 0 only."""
    if jax.process_index() == 0:
        with replacing(path) as file:
            file.write(json.dumps(content, indent=2) + "\n")


def plain(config) -> dict[str, Any]:
    """A config as JSON has it: tuples are lists."""
    return json.loads(config.to_json_best_effort())


def from_plain(tree: dict[str, Any]) -> ConfigDict:
    """The inverse of `plain`: a config with tuples, and with today's fields."""
    return ConfigDict(_with_tuples(renewed(tree)))


def write_config(config, workdir: str | Path) -> None:
    """WORKDIR/config.json, by which re-rankers and evaluations read a run."""
    write_json(Path(workdir) / "config.json", plain(config))


def read_config(workdir: str | Path) -> ConfigDict | None:
    """The config of the run in `workdir`, with tuples; None if there is none.

    A config of version 0.1 gets the fields of FORMERLY.
    """
    path = Path(workdir) / "config.json"
    if not os.path.lexists(path):
        return None
    require_whole(path.is_file(), path, "it is no file", _REPAIR)
    try:
        content = json.loads(path.read_text())
        content = content if isinstance(content, dict) else {}
        for group, fields in _former(content).items():
            content["model"][group] |= fields
        content = from_plain(content)
    except (AttributeError, ValueError, TypeError, RecursionError) as error:
        raise Damaged(path, f"it is no JSON of a config ({error})", _REPAIR) from error
    model = content.get("model")
    whole = isinstance(model, ConfigDict) and isinstance(model.get("name"), str)
    require_whole(whole, path, "it has no field model.name", _REPAIR)
    return content


def keep_to_run(config, folder: str | Path) -> list[str]:
    """Sets in `config` what the run in `folder` did, if it was begun by version 0.1.

    Returns a phrase for each field that was set. A run with all values of FORMERLY
    counts as such a run.
    """
    run = read_config(folder)
    if run is None or run.model.get("name") != config.model.name:
        return []
    former = flat(FORMERLY.get(config.model.name, {}))
    old, new = flat(run.model.to_dict()), flat(config.model.to_dict())
    if any(old.get(name) != value for name, value in former.items()):
        return []
    changed = {name: value for name, value in former.items() if new[name] != value}
    config.model.update_from_flattened_dict(changed)
    return [f"config.model.{name}={changed[name]}, not {new[name]}" for name in changed]


def _former(config: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The entry of FORMERLY of a config of version 0.1; {} of any other."""
    model = config.get("model", {})
    former = FORMERLY.get(model.get("name"), {})
    lacks = all(
        isinstance(model.get(group), dict) and not fields.keys() & model[group].keys()
        for group, fields in former.items()
    )
    return former if lacks else {}


def renewed(config: dict[str, Any]) -> dict[str, Any]:
    """A stored config with today's fields in place of those that were replaced.

    model.text.adapter was model.text.mam, True or False. Those of ADDED that the
    configs of all models have are filled in.
    """
    for name, value in ADDED.items():
        section, field = name.split(".", 1)
        if section in ("train", "optimizer") and section in config:
            config = config | {section: {field: value} | config[section]}
    text = config.get("model", {}).get("text")
    if not isinstance(text, dict) or "mam" not in text:
        return config
    text = {"adapter": "mam" if text["mam"] else "none"} | text
    del text["mam"]
    return config | {"model": config["model"] | {"text": text}}


def _with_tuples(value):
    """JSON's lists as the tuples that configs have."""
    if isinstance(value, dict):
        return {name: _with_tuples(item) for name, item in value.items()}
    return tuple(map(_with_tuples, value)) if isinstance(value, list) else value


def is_free(field: str) -> bool:
    """Whether a config field "a.b" may change between a run and its continuation."""
    return any(re.fullmatch(pattern, field) for pattern in FREE)


def describe(config, fingerprint: str, frozen: dict | None = None) -> dict[str, Any]:
    """What identifies a run: its config, its data, and frozen weights read from files.

    fingerprint: of the data set. frozen: the frozen parameters by scope; of those that
    config.pretrained names a source for, a digest is taken (a collective): they are in
    no checkpoint, and a file may change under its name.
    """
    sources = config.get("pretrained", {})
    digests = {
        scope: hashlib.sha256(repr(checksums(tree)).encode()).hexdigest()[:16]
        for scope, tree in sorted((frozen or {}).items())
        if sources.get(scope)
    }
    return {"config": plain(config), "data": fingerprint, "weight_files": digests}


def differences(stored: dict, current: dict) -> list[str]:
    """In what two descriptions differ, a phrase each; [] if they are of one run."""
    old, new = flat(renewed(stored["config"])), flat(current["config"])
    old |= {f"model.{k}": v for k, v in flat(_former(stored["config"])).items()}
    if not any(name.startswith("warmup.") for name in new) and not old.get(
        "warmup.steps"
    ):  # before version 0.2 every config had this section
        old = {k: v for k, v in old.items() if not k.startswith("warmup.")}
    changed = [
        f"config.{name}: {before} -> {now}"
        for name, before, now in changes(old, new, _ABSENT)
        if not is_free(name)
    ]
    if stored["data"] not in (current["data"], IMPORTED):
        changed.append(f"data fingerprint: {stored['data']} -> {current['data']}")
    weights = current.get("weight_files", {})
    return changed + [
        f"the weights in config.pretrained.{scope}: {digest} -> {weights[scope]}"
        for scope, digest in stored.get("weight_files", {}).items()
        if weights.get(scope, digest) != digest
    ]


def changes(old: dict, new: dict, absent=None) -> list[tuple[str, Any, Any]]:
    """(name, old value, new value) of the fields in which two flat configs differ.

    absent: the value of a field that one of them lacks, unless ADDED has it.
    """
    values = [
        (name, *(side.get(name, ADDED.get(name, absent)) for side in (old, new)))
        for name in sorted(old.keys() | new.keys())
    ]
    return [(name, before, now) for name, before, now in values if before != now]


def flat(config: dict[str, Any]) -> dict[str, Any]:
    """{"a.b.c": value} of a nested config."""
    return traverse_util.flatten_dict(config, sep=".", keep_empty_nodes=True)
