"""Two processes save, one of them damages what only the other reads, both restore; then
one is interrupted and both leave."""

import os
import signal
import time
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from gaitjax.engine import checkpoints, cluster, sharding


def run(folder: str, multihost: str, *address: str) -> None:
    """address: the flags of gaitjax.main that say which process this is."""
    coordinator, count, number = (flag.partition("=")[2] for flag in address)
    cluster.join(coordinator, int(count), int(number))
    mesh = sharding.make_mesh(ConfigDict({"data": -1, "model": 1}))
    values = np.random.default_rng(0).normal(size=(64, 4096)).astype(np.float32)
    tree = {"w": values, "b": np.arange(3, dtype=np.float32)}
    rules = (("w", "fsdp"), (".*", ()))
    shardings = sharding.infer_shardings(tree, rules, mesh)
    tree = sharding.place(tree, shardings)
    description = {"config": {}, "data": "data"}
    store = checkpoints.Checkpoints(folder, 3)
    for step in (1, 2):
        store.save(step, tree, description)
    store.wait()
    store.close()
    if jax.process_index() == 0:
        state = Path(folder) / "checkpoints" / "2" / "state"
        for path in (state / "ocdbt.process_1" / "d").iterdir():
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    multihost_utils.sync_global_devices("damaged")
    store = checkpoints.Checkpoints(folder, None, read_only=True)
    target = checkpoints.abstract(tree, shardings)
    state, step = store.restore(target, description)
    store.close()
    whole = multihost_utils.process_allgather(state, tiled=True)
    np.testing.assert_array_equal(whole["w"], values)
    np.testing.assert_array_equal(whole["b"], np.arange(3))
    print(f"restored step {step}", flush=True)
    for poll in range(1000):
        try:
            cluster.leave_if_asked()
        except cluster.Stopped:
            print(f"left at poll {poll}", flush=True)
            raise
        if (jax.process_index(), poll) == (0, 3):
            os.kill(os.getpid(), signal.SIGINT)  # Ctrl-C
        time.sleep(0.02)
    raise AssertionError("nobody told this process to leave")
