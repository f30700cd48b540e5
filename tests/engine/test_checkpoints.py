"""Checkpoints: exact, skipped when damaged, refused for another run."""

import errno
import json
import logging
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import gaitbase
from gaitjax import run_folder
from gaitjax.engine import checkpoints, sharding


@pytest.fixture
def shardings():
    mesh = sharding.make_mesh(gaitbase.get_config().mesh)
    return lambda tree: sharding.infer_shardings(tree, ((".*", ()),), mesh)


def state(step, shardings):
    tree = {"step": jnp.int32(step), "w": jnp.arange(6.0).reshape(2, 3) / 7 + step}
    return jax.device_put(tree, shardings(tree))


def saved(folder, shardings, steps, keep=3):
    config = gaitbase.get_config()
    store = checkpoints.Checkpoints(str(folder), keep)
    description = run_folder.describe(config, "data")
    for step in steps:
        store.save(step, state(step, shardings), description)
    store.wait()
    store.close()
    return description


def restore(folder, shardings, description):
    target = state(0, shardings)
    store = checkpoints.Checkpoints(str(folder), 3)
    restored = store.restore(
        checkpoints.abstract(target, shardings(target)),
        description,
        run_folder.differences,
    )
    store.close()
    return restored


def test_round_trip_is_bit_equal_and_newest(tmp_path, shardings):
    description = saved(tmp_path, shardings, (1, 2, 5))
    restored, step = restore(tmp_path, shardings, description)
    assert step == 5 and int(restored["step"]) == 5
    np.testing.assert_array_equal(restored["w"], state(5, shardings)["w"])


def test_only_the_newest_are_kept(tmp_path, shardings):
    saved(tmp_path, shardings, (1, 2, 3, 4, 5), keep=2)
    kept = {int(p.name) for p in (tmp_path / "checkpoints").iterdir() if p.is_dir()}
    assert kept == {4, 5}


def test_a_reader_changes_nothing_of_a_run_that_is_being_written(tmp_path, shardings):
    saved(tmp_path, shardings, (1,))
    writing = tmp_path / "checkpoints" / "2.orbax-checkpoint-tmp"
    writing.mkdir()
    store = checkpoints.Checkpoints(str(tmp_path), None, read_only=True)
    target = state(0, shardings)
    target = checkpoints.abstract(target, shardings(target))
    assert store.restore(target)[1] == 1
    store.close()
    assert writing.is_dir()


def test_nothing_there(tmp_path, shardings):
    assert restore(tmp_path, shardings, None) is None


@pytest.mark.parametrize("damage", ["truncate", "remove", "flip"])
def test_a_damaged_checkpoint_is_skipped(tmp_path, shardings, damage):
    description = saved(tmp_path, shardings, (1, 2))
    files = [
        p
        for p in (tmp_path / "checkpoints" / "2" / "state").rglob("*")
        if p.is_file() and p.stat().st_size
    ]
    for path in files:
        if damage == "remove":
            path.unlink()
        elif damage == "flip":  # one byte: Orbax itself reads some of these
            data = bytearray(path.read_bytes())
            data[len(data) // 2] ^= 0xFF
            path.write_bytes(data)
        else:
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    restored, step = restore(tmp_path, shardings, description)
    assert step == 1
    np.testing.assert_array_equal(restored["w"], state(1, shardings)["w"])


def test_nothing_is_started_over_where_no_checkpoint_can_be_read(tmp_path, shardings):
    description = saved(tmp_path, shardings, (1,))
    for path in (tmp_path / "checkpoints" / "1" / "state").rglob("*"):
        if path.is_file():
            path.write_bytes(b"")
    with pytest.raises(ValueError, match="None of the 1 checkpoints .* can be read"):
        restore(tmp_path, shardings, description)


def test_a_changed_description_is_damage_and_no_other_run(tmp_path, shardings):
    description = saved(tmp_path, shardings, (1, 2))
    (path,) = (tmp_path / "checkpoints" / "2" / "description").glob("metadata*")
    text = path.read_text()
    assert '"seed": 0' in text
    path.write_text(text.replace('"seed": 0', '"seed": 1'))
    assert restore(tmp_path, shardings, description)[1] == 1
    for other in ("[]", "{}", '{"config": []}', '{"config": 3, "data": 5, "step": 2}'):
        path.write_text(other)
        assert restore(tmp_path, shardings, description)[1] == 1
        assert restore(tmp_path, shardings, None)[1] == 1  # as an evaluation reads


def test_a_renamed_folder_is_not_another_step(tmp_path, shardings):
    description = saved(tmp_path, shardings, (1, 3))
    folder = tmp_path / "checkpoints"
    (folder / "3").rename(folder / "99")
    assert restore(tmp_path, shardings, description)[1] == 1


@pytest.mark.parametrize("broken", [{}, {"config": []}, {"config": 3, "data": "x"}])
def test_a_checkpoint_of_version_0_1_is_held_against_its_folder(
    tmp_path, shardings, broken
):
    description = saved(tmp_path, shardings, (1, 3))
    folder = tmp_path / "checkpoints"
    (path,) = (folder / "3" / "description").glob("metadata*")
    path.write_text(json.dumps(description | {"checksums": [1]}))
    assert restore(tmp_path, shardings, description)[1] == 3
    (folder / "3").rename(folder / "99")
    assert restore(tmp_path, shardings, description)[1] == 1
    (folder / "99").rename(folder / "3")
    path.write_text(json.dumps(broken | {"checksums": [1]}))
    assert restore(tmp_path, shardings, description)[1] == 1


@pytest.mark.parametrize("number", checkpoints.FULL)
def test_a_full_disk_is_one_sentence_and_no_traceback_of_a_thread(number):
    found = OSError(number, os.strerror(number))
    for error in (found, ValueError(f"RESOURCE_EXHAUSTED: Error writing: {found}")):
        assert checkpoints.disk_full(error)
        record = logging.makeLogRecord({"exc_info": (type(error), error, None)})
        assert not checkpoints._worth_logging(record)
    other = OSError(errno.EACCES, "no")
    record = logging.makeLogRecord({"exc_info": (OSError, other, None)})
    assert checkpoints._worth_logging(record) and not checkpoints.disk_full(other)
    assert checkpoints._worth_logging(logging.makeLogRecord({}))


def test_checksums_see_every_bit_and_place():
    tree = {"w": jnp.arange(6.0).reshape(2, 3), "n": jnp.int32(3), "b": jnp.array(True)}
    first = checkpoints.checksums(tree)
    assert len(first) == 3 and first == checkpoints.checksums(tree)
    swapped = tree["w"][:, jnp.array([1, 0, 2])]
    for name, value in (("w", swapped), ("n", jnp.int32(2)), ("b", jnp.array(False))):
        other = checkpoints.checksums({**tree, name: value})
        assert sum(a != b for a, b in zip(first, other)) == 1
    wide = np.arange(3.0) / 7  # float64, as host arrays may be
    for bit in range(64):
        flipped = wide.copy()
        flipped.view(np.uint64)[2] ^= np.uint64(1 << bit)
        assert checkpoints.checksums([flipped]) != checkpoints.checksums([wide]), bit


def test_another_config_or_data_is_refused(tmp_path, shardings):
    description = saved(tmp_path, shardings, (1,))
    config = gaitbase.get_config()
    config.optimizer.learning_rate = 0.5
    config.data.workers = 7  # does not change what is computed
    with pytest.raises(ValueError, match=r"config.optimizer.learning_rate: .* -> 0.5"):
        restore(tmp_path, shardings, run_folder.describe(config, "data"))
    with pytest.raises(ValueError, match="data fingerprint: data -> other"):
        restore(tmp_path, shardings, {**description, "data": "other"})
    config = gaitbase.get_config()
    config.data.workers = 7
    config.evaluation.batch_size = 3
    assert restore(tmp_path, shardings, run_folder.describe(config, "data"))[1] == 1


def test_a_run_of_another_model_is_named_and_not_called_damaged(tmp_path, shardings):
    description = saved(tmp_path, shardings, (1,))
    other = json.loads(json.dumps(description))
    other["config"]["model"] = {"name": "gaitset", "channels": [2, 2, 2]}
    target = state(0, shardings) | {"more": jnp.zeros(5)}
    store = checkpoints.Checkpoints(str(tmp_path), 3)
    with pytest.raises(
        checkpoints.DifferentRun, match="differently: config.model.channels.*; and"
    ):
        store.restore(
            checkpoints.abstract(target, shardings(target)),
            other,
            lambda *two: run_folder.differences(*two) + ["more"] * 8,
        )
    store.close()


def test_other_frozen_weights_in_the_same_file_are_refused(tmp_path, shardings):
    config = gaitbase.get_config()
    config.pretrained = {"encoder": "w.safetensors", "text": ""}
    frozen = {"encoder": {"w": jnp.arange(3.0)}, "text": {"w": jnp.ones(2)}}
    description = run_folder.describe(config, "data", frozen)
    frozen["text"] = {"w": jnp.zeros(2)}  # of the seed: described by the config
    assert description == run_folder.describe(config, "data", frozen)
    frozen["encoder"] = {"w": jnp.arange(3.0) + 1}
    other = run_folder.describe(config, "data", frozen)
    plain = {k: v for k, v in description.items() if k != "weight_files"}
    store = checkpoints.Checkpoints(str(tmp_path), 3)
    store.save(1, state(1, shardings), plain)  # as older versions did
    store.wait()
    store.close()
    assert restore(tmp_path, shardings, other)[1] == 1
    store = checkpoints.Checkpoints(str(tmp_path), 3)
    store.save(2, state(2, shardings), description)
    store.wait()
    store.close()
    assert restore(tmp_path, shardings, description)[1] == 2
    with pytest.raises(ValueError, match="the weights in config.pretrained.encoder: "):
        restore(tmp_path, shardings, other)


def test_a_damaged_newest_checkpoint_is_replaced(tmp_path, shardings):
    description = saved(tmp_path, shardings, (1, 4))
    for path in (tmp_path / "checkpoints" / "4" / "state").rglob("*"):
        if path.is_file():
            path.write_bytes(b"")
    assert restore(tmp_path, shardings, description)[1] == 1
    saved(tmp_path, shardings, (3,))  # below the damaged one
    assert restore(tmp_path, shardings, description)[1] == 3
    saved(tmp_path, shardings, (4,))  # in its place
    restored, step = restore(tmp_path, shardings, description)
    assert step == 4
    np.testing.assert_array_equal(restored["w"], state(4, shardings)["w"])


def test_the_best_is_kept_beside_the_newest(tmp_path, shardings):
    config = gaitbase.get_config()
    description = run_folder.describe(config, "data")
    key = "ccpg_gait/mean/rank1"
    store = checkpoints.Checkpoints(str(tmp_path), 2, best=key)
    for step, metric in ((1, 20.0), (2, 70.0), (3, None), (4, 50.0), (5, None)):
        metrics = None if metric is None else {key: metric}
        store.save(step, state(step, shardings), description, metrics)
    store.wait()
    with pytest.raises(ValueError, match="'ccpg_gait/mean/rank1' is none of the res"):
        store.save(6, state(6, shardings), description, {"other": 1.0})
    store.close()
    kept = {int(p.name) for p in (tmp_path / "checkpoints").iterdir() if p.is_dir()}
    assert kept == {2, 4, 5}
    target = checkpoints.abstract(state(0, shardings), shardings(state(0, shardings)))
    store = checkpoints.Checkpoints(str(tmp_path), None, best=key)
    assert store.restore(target)[1] == 5
    restored, step = store.restore(target, first="best")
    assert step == 2 and int(restored["step"]) == 2
    store.close()
    store = checkpoints.Checkpoints(str(tmp_path), None)
    with pytest.raises(ValueError, match="checkpoint='best' with config.train.keep_be"):
        store.restore(target, first="best")
    store.close()
