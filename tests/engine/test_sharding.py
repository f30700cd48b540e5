"""Rules: the first match wins, an uncovered leaf is named."""

import functools
import re
import shlex
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from configs import cargait, common, lmgait
from gaitjax import main as gaitjax_main
from gaitjax import plan, state
from gaitjax.data import pipeline
from gaitjax.engine import optim, sharding
from gaitjax.rerank import train as train_reranker

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


def abstract_mesh(data, model):
    axes = (AxisType.Auto, AxisType.Auto)
    return AbstractMesh((data, model), ("data", "model"), axis_types=axes)


def test_a_rule_with_too_many_entries_is_named_and_odd_sizes_stay_whole():
    with pytest.raises(
        ValueError, match="for b/kernel has more entries than its shape"
    ):
        rules = ((r"^a/", ()), (".*", (None, "model")))
        sharding.infer_shardings(TREE, rules, mesh())
    whole = sharding.infer_shardings(TREE, ((".*", ("model",)),), abstract_mesh(1, 2))
    assert whole["a"]["kernel"].spec == whole["b"]["kernel"].spec == P(None)


@pytest.mark.parametrize(
    "rule,message",
    [
        ((".*", ("modle",)), r"\('modle',\) for '\.\*' must be 'fsdp' or entries of"),
        ((".*", ("model", "model")), "'data', 'model', each axis once"),
        ((".*", "model"), "'model' for '.*' must be 'fsdp'"),
        (("(", ()), r"'\(' is no regular expression"),
    ],
)
def test_mistakes_in_rules_are_named_whether_they_match_or_not(rule, message):
    with pytest.raises(ValueError, match=message):
        sharding.check_rules(((".*", ()), rule))


def test_rules_by_name():
    config = lmgait.get_config()
    assert sharding.rules_of(config) == common.SHARDING_RULES["data_parallel"]
    config.sharding = "moon"
    with pytest.raises(
        ValueError, match="'moon'; choose from data_parallel, fsdp, ten"
    ):
        sharding.rules_of(config)


# PartitionSpecs of named leaves on data=2 x model=4: (tensor_parallel, fsdp)
VIT = "params/visual_encoder/encoder/layer/0"
CLIP = "frozen/text_encoder/text_model"
GOLDEN = {
    f"{VIT}/attention/attention/query/kernel": (P(None, "model"), P("data", None)),
    f"{VIT}/attention/attention/value/bias": (P("model"), P("data")),
    f"{VIT}/attention/output/dense/kernel": (P("model", None), P("data", None)),
    f"{VIT}/mlp/fc1/kernel": (P(None, "model"), P(None, "data")),
    f"{VIT}/mlp/fc2/kernel": (P("model", None), P("data", None)),
    f"{VIT}/norm1/scale": (P(), P("data")),
    f"{CLIP}/encoder/layers/1/self_attn/out_proj/kernel": (
        P("model", None), P("data", None),
    ),
    f"{CLIP}/embeddings/token_embedding/embedding": (
        P("model", None), P("data", None),
    ),
    "params/mtcm_appearance/rte/kernel": (
        P(None, None, None, None, "model"), P(None, None, None, "data", None),
    ),
    "params/mtcm_denoised/fuse/kernel": (P("model", None), P("data", None)),
    "params/gait/block1/conv1/kernel": (P(), P(None, None, None, "data")),
    "batch_stats/mtcm_denoised/pte_norm/mean": (P("model"), P()),
    "step": (P(), P()),
}  # fmt: skip
GOLDEN_CARGAIT = {
    "params/directions_0_both/project/query/kernel": (
        P(None, "model"),
        P("data", None),
    ),
    "params/directions_0_both/update/output/kernel": (
        P("model", None),
        P("data", None),
    ),
    "opt_state/0/mu/directions_0_both/project/key/bias": (P("model"), P("data")),
    "opt_state/0/count": (P(), P()),
}


def specs(tree, rules):
    placed = sharding.infer_shardings(
        tree, common.SHARDING_RULES[rules], abstract_mesh(2, 4)
    )
    leaves = jax.tree_util.tree_leaves_with_path(placed)
    name = lambda path: jax.tree_util.keystr(path, simple=True, separator="/")  # noqa: E731
    return {name(path): leaf.spec for path, leaf in leaves}


@pytest.mark.parametrize("model", ["lmgait", "cargait"])
def test_golden_partition_specs(model):
    if model == "lmgait":
        config = lmgait.get_config()
        config.frozen = ("^text_encoder/",)
        setup, golden = state.build(config, state.example_batch(config)), GOLDEN
    else:
        setup = train_reranker.build(cargait.get_config(), 8, 64, 40, "euclidean")
        golden = GOLDEN_CARGAIT
    tensor, fsdp = (
        specs(setup.abstract_state, name) for name in ("tensor_parallel", "fsdp")
    )
    for name, expected in golden.items():
        assert (tensor[name], fsdp[name]) == expected, name
    if model == "lmgait":  # the optimizer's state lies as its parameter does
        tail = "visual_encoder/encoder/layer/0/mlp/fc1/kernel"
        twins = [s for n, s in tensor.items() if n.endswith(tail)]
        assert len(twins) >= 2 and set(twins) == {P(None, "model")}


def test_device_bytes_are_a_device_s_share():
    leaf = jax.ShapeDtypeStruct((8, 12), np.float32)
    for spec, expected in (
        (P("data", "model"), 48),
        (P(None, "model"), 96),
        (P(), 384),
    ):
        place = NamedSharding(abstract_mesh(2, 4), spec)
        assert sharding.device_bytes({"w": leaf}, {"w": place}) == expected


def test_own_rows_is_everything_on_one_process():
    assert sharding.own_rows(12, mesh()) == slice(0, 12)


@pytest.mark.parametrize("devices", [1, 2, 4])
def test_parts_are_the_same_whatever_the_devices(devices):
    rows = pipeline.part_order(24, 3, devices)
    parts = optim.split_parts({"x": jax.numpy.asarray(rows)}, 3, devices)["x"]
    np.testing.assert_array_equal(parts, np.arange(24).reshape(3, 8))
    per_device = rows.reshape(devices, 3, -1)  # a device holds its share of each part
    assert all(
        (per_device[d] // 8 == np.arange(3)[:, None]).all() for d in range(devices)
    )


def test_collectives_are_counted_with_their_bytes():
    hlo = """
  %a = f32[4,8]{1,0} all-reduce(f32[4,8] %x), replica_groups={}
  %b = (bf16[2]{0}, f32[3]{0}) all-reduce(bf16[2] %y, f32[3] %z), channel_id=1
  %c = f32[16]{0} all-gather-start(f32[2] %w), dimensions={0}
  %d = f32[16]{0} add(f32[16] %c, f32[16] %c)
"""
    assert plan.collectives(hlo) == {
        "all-reduce": {"count": 2, "bytes": 128 + 4 + 12},
        "all-gather": {"count": 1, "bytes": 64},
    }


def test_collectives_of_a_loop_count_as_often_as_it_runs():
    """As a step with accumulation has them: a scan of 3 parts, a scan of 5 in each."""
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("data",))

    def summed(x):
        return jax.lax.psum(jax.lax.scan(inner, x, length=5)[0], "data")

    def inner(x, _):
        return jax.lax.psum(jax.numpy.sin(x), "data"), None

    def step(x):
        return jax.lax.scan(lambda x, _: (summed(x), None), x, length=3)[0]

    step = jax.shard_map(
        step, mesh=mesh, in_specs=P(), out_specs=P(), check_vma=False
    )  # fmt: skip
    hlo = jax.jit(step).lower(np.ones((4, 2), np.float32)).compile().as_text()
    total = plan.collectives(hlo)["all-reduce"]
    assert total == {"count": 3 * 6, "bytes": 3 * 6 * 32}


def commands_of(text):
    """Command lines that run gaitjax.main or run.sh, continued lines joined."""
    lines = text.replace("\\\n", " ").splitlines()
    found = []
    for line in lines:
        inner = re.search(r"--command='(.*)'", line)
        line = inner[1] if inner else line
        if re.search(r"-m gaitjax\.main --|^\./run\.sh (train|launch) ", line.strip()):
            found.append(line.strip())
    return found


def check_command(line):
    """Fails on a flag, a config or one of its fields that does not exist."""
    words = shlex.split(line)
    config = next(w for w in words if re.search(r"configs/\w+\.py", w))
    path, _, variant = config.removeprefix("--config=").partition(":")
    module = {"configs/lmgait.py": lmgait, "configs/cargait.py": cargait}[path]
    fields = module.get_config(variant) if variant else module.get_config()
    flags = gaitjax_main.flags.FLAGS
    for word in words[words.index(config) + 1 :]:
        name = word.removeprefix("--").partition("=")[0]
        if name.startswith("config."):
            functools.reduce(lambda tree, key: tree[key], name.split(".")[1:], fields)
        elif word.startswith("-") and not (name == "manual_dir" and "run.sh" in line):
            assert name in flags, f"{line}: there is no flag {word}"


DOCUMENT = Path(__file__).parents[2] / "docs" / "scaling.md"


def test_the_documented_commands_exist():
    found = commands_of(DOCUMENT.read_text())
    assert len(found) >= 6  # dry run, train, launch, Slurm, JobSet, TPU VM
    for line in found:
        check_command(line)
    fields = re.findall(r"config((?:\.\w+)+)", DOCUMENT.read_text())
    for field in {"config.data.data_dir", *fields}:
        names = field.removeprefix("config").strip(".").split(".")
        functools.reduce(lambda tree, key: tree[key], names, lmgait.get_config("ccpg"))
    with pytest.raises(AssertionError, match="no flag --coordinater"):
        check_command(
            "python -m gaitjax.main --config=configs/lmgait.py --coordinater=a"
        )


def test_dry_run_prints_the_documented_commands(monkeypatch):
    arguments = [
        "--config=configs/lmgait.py:ccpg", "--config.data.data_dir=/shared/data",
        "--workdir=/shared/runs/lmgait_ccpg",
    ]  # fmt: skip
    extra = ["--dry_run", "--multihost", "--coordinator=a:1", "--process_id=0"]
    monkeypatch.setattr(sys, "argv", ["main", *arguments, *extra])
    printed = plan.commands()
    apart = [x for word in [*arguments, *extra] for x in word.split("=")]
    monkeypatch.setattr(sys, "argv", ["main", *apart])
    assert plan.commands() == printed
    document = DOCUMENT.read_text()
    assert printed["TPU VM"] in document
    slurm = printed["Slurm, in the job"].replace("srun python", "srun .venv/bin/python")
    assert slurm in document
    for line in commands_of("\n".join(printed.values())):
        check_command(line)
    assert "dry_run" not in str(printed) and "coordinator=a" not in str(printed)
