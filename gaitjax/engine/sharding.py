"""One mesh with axes `data` and `model`; one sharding per leaf from ordered regexes.

What is computed does not depend on the mesh: arrays are global, so batch statistics,
triplets and means run over the whole batch however it is split (up to the rounding of
sums that are taken in another order).
"""

import re
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from gaitjax.engine.guards import choose, require, require_regex

AXES = ("data", "model")
BATCH = PartitionSpec("data")  # every batch array is split along its first axis


def make_mesh(config, devices=None) -> Mesh:
    """Mesh of config.data x config.model devices; -1 (one of them) means the rest.

    Axis types are Auto: linen modules do not trace under jax's Explicit default.
    """
    devices = np.array(jax.devices() if devices is None else devices)
    shape = [config.data, config.model]
    if -1 in shape:
        known = -int(np.prod(shape))
        shape[shape.index(-1)] = len(devices) // max(known, 1)
    require(
        np.prod(shape) == len(devices),
        f"config.mesh asks for data={config.data} x model={config.model} devices, "
        f"there are {len(devices)}. Set one of them to -1 to take the rest.",
    )
    types = (AxisType.Auto, AxisType.Auto)
    return Mesh(devices.reshape(shape), AXES, axis_types=types)


def rules_of(config) -> tuple:
    """The rules that config.sharding names in config.sharding_rules, or is.

    Raises ValueError for an unknown name, listing the choices.
    """
    if not isinstance(config.sharding, str):
        return config.sharding
    rules = config.sharding_rules
    return choose(config.sharding, dict(rules.items()), "config.sharding")


def check_rules(rules) -> None:
    """Raises ValueError for a malformed rule (bad regex, unknown axis)."""
    for pattern, spec in rules:
        require_regex(pattern, "config.sharding_rules")
        axes = () if spec == "fsdp" else spec
        known = isinstance(axes, list | tuple) and all(x in (None, *AXES) for x in axes)
        require(
            known and all(axes.count(axis) < 2 for axis in AXES),
            f"config.sharding_rules: {spec!r} for {pattern!r} must be 'fsdp' or "
            f"entries of None, {', '.join(map(repr, AXES))}, each axis once.",
        )


def infer_shardings(tree, rules, mesh: Mesh):
    """Tree of NamedSharding for `tree` (arrays or shapes).

    rules: ordered (regex on the leaf's path "a/b/c", spec); the first match wins.
    spec: a tuple for PartitionSpec (entries: None or axis name), or "fsdp": the largest
    dimension that the data axis divides is split over it, else replicated. A dimension
    that its axis does not divide is not split.
    Raises ValueError naming a leaf no rule covers, or whose rule has too many
    entries. rules: as `check_rules` accepts them.
    """

    def sharding(path, leaf):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        specs = [spec for pattern, spec in rules if re.search(pattern, name)]
        require(
            specs,
            f"No sharding rule covers {name} {leaf.shape}; add one to config.sharding, "
            'for instance (".*", ()) at its end.',
        )
        return NamedSharding(mesh, _spec(name, specs[0], leaf.shape, mesh))

    return jax.tree_util.tree_map_with_path(sharding, tree)


def _spec(name: str, spec, shape, mesh) -> PartitionSpec:
    if spec != "fsdp":
        require(
            len(spec) <= len(shape),
            f"The sharding rule {spec} for {name} has more entries than its shape "
            f"{shape}; put a narrower rule before it.",
        )
        fitting = (
            axis if axis and size % mesh.shape[axis] == 0 else None
            for axis, size in zip(spec, shape)
        )
        return PartitionSpec(*fitting)
    count = mesh.shape["data"]
    fitting = [i for i, size in enumerate(shape) if size % count == 0 and size >= count]
    if not fitting:
        return PartitionSpec()
    largest = max(fitting, key=lambda i: shape[i])
    return PartitionSpec(
        *(["data" if i == largest else None for i in range(len(shape))])
    )


def check_divides(count: int, mesh: Mesh, what: str, parts: int = 1) -> None:
    """Raises ValueError if `count` rows do not divide over the data axis.

    what: the config fields they come from; parts: batches that a step is cut into.
    """
    devices = mesh.shape["data"]
    cut = f" in {parts} parts (config.train.accumulate)" if parts > 1 else ""
    require(
        count % (devices * parts) == 0,
        f"A batch of {count} rows ({what}){cut} does not divide over the "
        f"{devices} devices of the data axis. Choose a multiple of {devices * parts}, "
        "or another mesh, for instance --config.mesh.data="
        f"{_largest_divisor(count, devices, parts)} --config.mesh.model=-1.",
    )


def _largest_divisor(count: int, devices: int, parts: int) -> int:
    fits = (n for n in range(devices, 0, -1) if count % (n * parts) == 0)
    return next((n for n in fits if devices % n == 0), 1)


def own_rows(count: int, mesh: Mesh) -> slice:
    """The rows of a global batch of `count` that this process's devices hold.

    Processes that share rows (a model axis across hosts) get the same ones.
    """
    sharding = NamedSharding(mesh, BATCH)
    held = sharding.addressable_devices_indices_map((count,)).values()
    ranges = sorted({index[0].indices(count)[:2] for index in held})
    gaps = [(a, b) for (_, a), (b, _) in zip(ranges, ranges[1:]) if a != b]
    require(
        not gaps,
        "This process's devices hold rows of a batch that are not neighbours; use the "
        "device order of jax.devices() for the mesh.",
    )
    return slice(ranges[0][0], ranges[-1][1])


def key(seed: int, mesh: Mesh) -> jax.Array:
    """jax.random.key(seed), on every device of the mesh."""
    whole = NamedSharding(mesh, PartitionSpec())
    return jax.jit(jax.random.key, static_argnums=0, out_shardings=whole)(seed)


def place(tree, shardings):
    """The leaves of `tree` where `shardings` says; on several hosts host arrays are
    the same on each, and each takes its part."""

    def put(leaf, sharding):
        if isinstance(leaf, jax.Array) and leaf.sharding == sharding:
            return leaf
        if sharding.is_fully_addressable:
            return jax.device_put(leaf, sharding)
        leaf = np.asarray(leaf)
        return jax.make_array_from_callback(leaf.shape, sharding, leaf.__getitem__)

    return jax.tree.map(put, tree, shardings)


def device_bytes(tree, shardings) -> int:
    """Bytes that one device holds of `tree` (arrays or shapes)."""
    sizes = jax.tree.map(
        lambda leaf, sharding: (
            int(np.prod(sharding.shard_shape(leaf.shape))) * leaf.dtype.itemsize
        ),
        tree,
        shardings,
    )
    return sum(jax.tree.leaves(sizes))


def sharded_init(init: Callable[[jax.Array], Any], seed: int, rules, mesh: Mesh):
    """(abstract state, shardings, new_state) of a state that `init(key)` makes.

    Shapes first (`eval_shape`), then a sharding for each leaf from the rules, then
    new_state() makes the arrays with these shardings: no leaf is ever whole on one
    device unless the rules replicate it.
    """
    abstract = jax.eval_shape(init, jax.random.key(seed))
    shardings = infer_shardings(abstract, rules, mesh)

    def new_state():
        return jax.jit(init, out_shardings=shardings)(key(seed, mesh))

    return abstract, shardings, new_state


def memory(state: Any, compiled) -> dict[str, int]:
    """Bytes per device: each field of a state, and what the compiled step adds.

    state: NamedTuple of trees of arrays, or of shapes with shardings. activations: the
    largest sum of temporary buffers during the step, by the compiler's own analysis (0
    if a backend gives none). total: everything at that moment.
    """
    fields = {k: v for k, v in state._asdict().items() if k != "step"}
    parts = {
        name: device_bytes(tree, jax.tree.map(lambda leaf: leaf.sharding, tree))
        for name, tree in fields.items()
    }
    analysis = compiled.memory_analysis()
    if analysis is None:
        return {**parts, "batch": 0, "activations": 0, "total": sum(parts.values())}
    arguments = analysis.argument_size_in_bytes
    new = analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    parts["batch"] = max(arguments - sum(parts.values()), 0)
    parts["activations"] = analysis.temp_size_in_bytes
    return {**parts, "total": arguments + new + analysis.temp_size_in_bytes}


def memory_line(parts: dict[str, int]) -> str:
    """`memory` as one line, in MiB."""
    cells = (f"{name} {size / 2**20:,.1f}" for name, size in parts.items())
    return f"MiB per device: {', '.join(cells)}."
