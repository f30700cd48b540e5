"""Devices that are elsewhere: XLA compiles for them on a machine that has none.

`--dry_run --target=NAME` plans for one of TARGETS. Nothing runs there, so this says
what a step needs and what it sends, and nothing of its speed.
"""

import importlib.util
import os
import sysconfig
from pathlib import Path
from typing import NamedTuple

import jax

from gaitjax.engine.guards import choose, require
from gaitjax.parts.backend import Backend


class Target(NamedTuple):
    """platform: of XLA, "cuda", "tpu" or "cpu"; memory: GiB that a device offers."""

    platform: str
    topology: str
    memory: float

    @property
    def backend(self) -> Backend:
        """What a step is traced for. cuDNN's flash attention compiles on a card only;
        here attention goes through XLA, which may write scores that a card does not."""
        return Backend("gpu" if self.platform == "cuda" else self.platform)

    @property
    def share(self) -> float:
        """The part of a device's memory that JAX takes."""
        if self.platform != "cuda":
            return 1.0
        return float(os.environ.get("XLA_PYTHON_CLIENT_MEM_FRACTION", 0.75))

    def memory_of(self, count: int) -> float:
        """GiB that each of `count` devices offers; virtual CPU devices share theirs."""
        return self.memory / count if self.platform == "cpu" else self.memory

    def devices(self) -> list:
        """The devices to compile for; `prepare` comes first."""
        if self.platform == "cpu":
            return jax.devices()
        from jax.experimental import topologies

        options = {"cuda": {"target_config": _H100, "topology": self.topology}}
        name = self.topology if self.platform == "tpu" else "gpu"
        found = topologies.get_topology_desc(
            name, platform=self.platform, **options.get(self.platform, {})
        )
        return found.devices


TARGETS = {
    # an 80 GB card offers 78 GiB; the topology is slices x hosts x cards
    "h100x1": Target("cuda", "1x1x1", 78),
    "h100x8": Target("cuda", "1x1x8", 78),
    # memory as libtpu's compiler counts it
    "v5e:2x2": Target("tpu", "v5e:2x2", 15.75),
    "v5e:4x4": Target("tpu", "v5e:4x4", 15.75),
    "v5p:2x2x1": Target("tpu", "v5p:2x2x1", 95),
    "v6e:4x4": Target("tpu", "v6e:4x4", 31.25),
    # as many devices as JAX_NUM_CPU_DEVICES says, in this machine's memory
    "cpu": Target(
        "cpu", "", os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    ),
}
COMPILERS = {"cuda": ("jax_plugins.xla_cuda12", "nvidia.cuda_nvcc"), "tpu": ("libtpu",)}
_NO_CARD = "--xla_gpu_autotune_level=0 --xla_gpu_enable_triton_gemm=false"
_H100 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152
  shared_memory_per_core: 233472 threads_per_core_limit: 2048 core_count: 132
  fpus_per_core: 128 block_dim_limit_x: 2147483647 block_dim_limit_y: 65535
  block_dim_limit_z: 65535 memory_bandwidth: 3352320000000 l2_cache_size: 52428800
  clock_rate_ghz: 1.98 device_memory_size: 84929347584
  shared_memory_per_block_optin: 232448 cuda_compute_capability { major: 9 minor: 0 }
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
}
platform_name: "CUDA" dnn_version_info { major: 9 minor: 8 patch: 0 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""


def prepare(name: str) -> Target:
    """The target of --target=NAME; must come before JAX looks for devices.

    Raises ValueError where there is no such target, and where this Python lacks its
    compiler.
    """
    target = choose(name, TARGETS, "--target")
    missing = [x for x in COMPILERS.get(target.platform, ()) if not _installed(x)]
    require(
        not missing,
        f"--target={name} needs XLA's compiler for {target.platform} "
        f"({', '.join(missing)}), which this Python lacks. ./run.sh target {name} "
        "CONFIG installs it in .venv-target and plans with it.",
    )
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_compilation_cache", False)  # it would hide compile_s
    os.environ["TPU_SKIP_MDS_QUERY"] = "1"
    os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"  # compiling needs no lock on a chip
    if target.platform == "cuda":
        tools = Path(sysconfig.get_paths()["purelib"], "nvidia", "cuda_nvcc")
        os.environ["PATH"] = f"{tools / 'bin'}:{os.environ['PATH']}"
        flags = f"{_NO_CARD} --xla_gpu_cuda_data_dir={tools}"
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}"
    return target


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of its parent
        return False
