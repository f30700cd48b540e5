"""Rules: the first match wins, an uncovered leaf is named."""

import jax
import pytest
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from gaitjax import sharding

TREE = {
    "a": {"kernel": jax.ShapeDtypeStruct((3, 8), "float32")},
    "b": {"kernel": jax.ShapeDtypeStruct((5,), "float32")},
}


def mesh(data=-1, model=1):
    return sharding.make_mesh(ConfigDict(dict(data=data, model=model)))


def test_first_rule_wins_and_fsdp_falls_back_to_replication():
    rules = ((r"a/kernel", ("model",)), (r"kernel", "fsdp"))
    specs = sharding.infer_shardings(TREE, rules, mesh())
    assert specs["a"]["kernel"].spec == P("model")
    assert specs["b"]["kernel"].spec == P("data")  # one device divides everything


def test_uncovered_leaf_is_named():
    with pytest.raises(ValueError, match="No sharding rule covers b/kernel"):
        sharding.infer_shardings(TREE, ((r"^a/", ()),), mesh())


def test_mesh_must_use_the_devices():
    with pytest.raises(ValueError, match="data=7 x model=1 devices, there are"):
        mesh(data=7)
    sizes = dict(mesh(data=1, model=-1).shape)
    assert sizes == {"data": 1, "model": jax.device_count()}
