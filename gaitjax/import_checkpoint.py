"""Mode "import": a published PyTorch checkpoint becomes step 0 of a run.

    python -m gaitjax.main --config=configs/gaitset.py:casia_b --config.mode=import \\
        --config.checkpoint=GaitSet-40000.pt --workdir=runs/published

WORKDIR/import.json lists what matched. Mode "evaluate" reads the run like any other,
and mode "train" continues it.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import traverse_util

from gaitjax.engine import cluster, sharding
from gaitjax.engine.checkpoints import Checkpoints
from gaitjax.engine.guards import require
from gaitjax.run_folder import IMPORTED, describe, write_config, write_json
from gaitjax.state import (
    Setup,
    TrainState,
    build,
    example_batch,
    model_variables,
    stored_part,
)
from gaitjax.weights import encoder_names, encoders, files, zoo_names

LISTED = 10  # printed names of each kind; import.json has them all


def run(config, workdir: str) -> dict[str, Any]:
    """Reads config.checkpoint, reports how it fits, writes the checkpoint of step 0.

    Checkpoints hold no frozen parameters. Those of the file are written to
    WORKDIR/SCOPE.safetensors, to be named in config.pretrained.SCOPE.

    Returns the content of import.json. Raises ValueError if the file cannot be read, if
    `workdir` has a run already, and, unless config.partial is set, if anything does not
    fit.
    """
    folder = Path(workdir)
    require(
        not (folder / "checkpoints").exists(),
        f"There is a run in {workdir} already; name another --workdir to import.",
    )
    require(config.checkpoint, "No file to import: set --config.checkpoint=FILE.pt.")
    file = Path(config.checkpoint)
    tensors = plain_names(files.read_published(file))
    setup = build(config, example_batch(config))
    for name in setup.model.unseen:
        require(
            name in config.model,
            f"The config must state config.model.{name}: published weights differ in "
            f"it and {file} does not show it. Add it to the config file's model.",
        )
    variables = model_variables(setup.abstract_state)
    values, parity = zoo_names.fit(config.model.name, tensors, variables)
    report = _report(config, values, parity, variables["params"])
    cluster.say(_summary(report))
    write_json(folder / "import.json", report)
    require(
        not parity.faults() or (config.partial and values),
        f"{file} does not fit {config.name}; see {workdir}/import.json. Choose the "
        "config and variant it was trained with, or keep the seed's values for the "
        "rest with --config.partial=True.",
    )
    checkpoints = Checkpoints(workdir, keep=None)
    state = _state(setup, values)
    checkpoints.save(0, stored_part(state), describe(config, IMPORTED))
    checkpoints.wait()
    checkpoints.close()
    write_config(config, workdir)
    for scope, parameters in _frozen(setup, values).items():
        weights = folder / f"{scope}.safetensors"
        if jax.process_index() == 0:
            encoders.save(weights, parameters)
        cluster.say(f"Frozen: add --config.pretrained.{scope}={weights} to use it.")
    cluster.say(f"Imported into {workdir}; evaluate it with --config.mode=evaluate.")
    return report


def plain_names(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The tensors; BigGait's DINOv2 gets the names that Hugging Face gives to it."""
    prefix = "backbone."
    own = {
        name.removeprefix(prefix): value
        for name, value in tensors.items()
        if name.startswith(prefix)
    }
    if not any(name.startswith("blocks.") for name in own):
        return dict(tensors)
    rest = {k: v for k, v in tensors.items() if not k.startswith(prefix)}
    encoder = encoder_names.from_dinov2_repository(own)
    return rest | {prefix + name: value for name, value in encoder.items()}


def _report(config, values, parity, params) -> dict[str, Any]:
    """Content of import.json: the names that match, and those that do not."""
    found = sum(x.size for name, x in values.items() if name.startswith("params/"))
    return {
        "checkpoint": config.checkpoint,
        "config": config.name,
        "model": config.model.name,
        "parameters": sum(x.size for x in jax.tree.leaves(params)),
        "imported_parameters": found,
        **parity._asdict(),
    }


def _summary(report: dict[str, Any]) -> str:
    lines = [
        f"{report['checkpoint']} -> {report['config']}: "
        f"{report['imported_parameters']:,} of {report['parameters']:,} parameters"
    ]
    for kind in zoo_names.Parity._fields:
        names = report[kind]
        line = f"  {kind.replace('_', ' ')}: {len(names)}"
        if names and kind != "matched":
            more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
            line += f" ({', '.join(names[:LISTED])}{more})"
        lines.append(line)
    return "\n".join(lines)


def _state(setup: Setup, values: Mapping[str, np.ndarray]) -> TrainState:
    """Step 0 with the file's values; the seed's values if the file has none."""
    abstract, shardings, seed = setup.abstract_state, setup.shardings, None
    filled = {}
    for collection in ("params", "batch_stats"):
        flat = traverse_util.flatten_dict(getattr(abstract, collection), sep="/")
        absent = [name for name in flat if f"{collection}/{name}" not in values]
        if absent:
            seed = seed or setup.new_state()
            flat = traverse_util.flatten_dict(getattr(seed, collection), sep="/")
        found = {k: values.get(f"{collection}/{k}", v) for k, v in flat.items()}
        tree = traverse_util.unflatten_dict(found, sep="/")
        filled[collection] = sharding.place(tree, getattr(shardings, collection))
    start = jax.jit(setup.tx.init, out_shardings=shardings.opt_state)
    return abstract._replace(
        step=sharding.place(np.zeros((), np.int32), shardings.step),
        opt_state=start(filled["params"]),
        **filled,
    )


def _frozen(setup: Setup, values: Mapping[str, np.ndarray]) -> dict[str, dict]:
    """{scope: parameters} of the frozen encoders that are complete in the file."""
    scopes = {}
    for scope, tree in setup.abstract_state.frozen.items():
        names = traverse_util.flatten_dict(tree, sep="/")
        keys = {name: f"params/{scope}/{name}" for name in names}
        if all(key in values for key in keys.values()):
            found = {name: values[key] for name, key in keys.items()}
            scopes[scope] = traverse_util.unflatten_dict(found, sep="/")
    return scopes
