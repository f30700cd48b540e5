"""One mesh with axes `data` and `model`; one sharding per leaf from ordered regexes."""

import re

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec


def make_mesh(config, devices=None) -> Mesh:
    """Mesh of config.data x config.model devices; -1 (one of them) means the rest.

    Axis types are Auto: linen modules do not trace under jax's Explicit default.
    """
    devices = np.array(jax.devices() if devices is None else devices)
    shape = [config.data, config.model]
    if -1 in shape:
        known = -int(np.prod(shape))
        shape[shape.index(-1)] = len(devices) // max(known, 1)
    if np.prod(shape) != len(devices):
        raise ValueError(
            f"config.mesh asks for data={config.data} x model={config.model} devices, "
            f"there are {len(devices)}. Set one of them to -1 to take the rest."
        )
    axes = (AxisType.Auto, AxisType.Auto)
    return Mesh(devices.reshape(shape), ("data", "model"), axis_types=axes)


def infer_shardings(tree, rules, mesh: Mesh):
    """Tree of NamedSharding for `tree` (arrays or shapes).

    rules: ordered (regex on the leaf's path "a/b/c", spec); the first match wins.
    spec: a tuple for PartitionSpec (entries: None or axis name), or "fsdp": the largest
    dimension that the data axis divides is split over it, else replicated.
    Raises ValueError naming a leaf no rule covers.
    """

    def sharding(path, leaf):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        for pattern, spec in rules:
            if re.search(pattern, name):
                return NamedSharding(mesh, _spec(spec, leaf.shape, mesh))
        raise ValueError(
            f"No sharding rule covers {name} {leaf.shape}; add one to config.sharding, "
            'for instance (".*", ()) at its end.'
        )

    return jax.tree_util.tree_map_with_path(sharding, tree)


def _spec(spec, shape, mesh) -> PartitionSpec:
    if spec != "fsdp":
        return PartitionSpec(*spec)
    count = mesh.shape["data"]
    fitting = [i for i, size in enumerate(shape) if size % count == 0 and size >= count]
    if not fitting:
        return PartitionSpec()
    largest = max(fitting, key=lambda i: shape[i])
    return PartitionSpec(
        *(["data" if i == largest else None for i in range(len(shape))])
    )
