"""Nothing is lost: kills at any moment, SIGTERM, full disks, damaged, missing data."""

import json
import os
import random
import re
import signal
import threading
import time
import types
from collections import Counter

import jax
import numpy as np
import pytest

from configs import gaitbase
from gaitjax import evaluate, run_folder, state, train
from gaitjax.data import pipeline
from gaitjax.engine import checkpoints, cluster, log, loop, sharding
from gaitjax.engine.log import read_metrics
from gaitjax.rerank import base_run
from tests.data.test_pipeline import make_source
from tests.fake_datasets import tiny_synthetic
from tests.forked_runs import Runs, wait_for
from tests.test_end_to_end import SMALLER, final_parameters

STEPS = 60
SMALL = [
    "--config=configs/gaitbase.py", *SMALLER, "--config.pictures=False",
    "--config.model.channels=(2,)", "--config.model.layers=(1,)",
    "--config.model.strides=(2,)", "--config.model.num_strips=2",
    "--config.model.embedding_size=4",
    f"--config.train.steps={STEPS}",
]  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    runs = Runs(tmp_path_factory.mktemp("compiled"))
    yield runs
    runs.close()


@pytest.fixture(scope="module")
def arguments(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    tiny_synthetic(folder)
    return [*SMALL, f"--config.data.data_dir={folder}"]


@pytest.fixture(scope="module")
def undisturbed(runs, arguments, tmp_path_factory):
    """(parameters and all other state, training rows, folder) of a run nobody
    disturbed."""
    folder = tmp_path_factory.mktemp("undisturbed")
    finish(runs, arguments, folder)
    return *outcome(folder), folder


def finish(runs, arguments, folder):
    runs.start([*arguments, f"--workdir={folder}"], folder / "out.txt")
    codes = runs.wait()
    assert codes == [0], (folder / "out.txt").read_text()[-3000:]
    return (folder / "out.txt").read_text()


def outcome(folder):
    step, state = final_parameters(folder)
    assert step == STEPS
    rows = [row for row in read_metrics(folder) if row["kind"] == "train"]
    return state, [{k: v for k, v in row.items() if k != "wait_share"} for row in rows]


def assert_same(got, expected):
    assert got[0].keys() == expected[0].keys()
    for name, value in expected[0].items():
        np.testing.assert_array_equal(got[0][name], value, err_msg=name)
    assert got[1] == expected[1]


def logged(folder) -> int:
    """Steps that the run has logged so far."""
    path = folder / "metrics.jsonl"
    steps = re.findall(rb'"step": (\d+)', path.read_bytes()) if path.exists() else []
    return int(steps[-1]) if steps else 0


def test_ten_kills_and_resumes_are_bit_equal(runs, arguments, undisturbed, tmp_path):
    rng, killed_at = random.Random(0), []
    for kill in range(10):
        before = logged(tmp_path)
        [child] = runs.start(
            [*arguments, f"--workdir={tmp_path}"], tmp_path / "out.txt"
        )
        if kill == 3:  # while it starts
            time.sleep(rng.uniform(0.1, 1.0))
        else:
            step = before + rng.randint(1, 4)  # those since its checkpoint repeat
            wait_for(lambda step=step: logged(tmp_path) >= step, f"step {step}")
            time.sleep(rng.uniform(0, 0.02))
        os.kill(child, signal.SIGKILL)
        assert runs.wait() == [-signal.SIGKILL], (tmp_path / "out.txt").read_text()
        killed_at.append(logged(tmp_path))
    # by the clock some kills fall on the same step, but they cover the run
    assert killed_at[-1] < STEPS and len(set(killed_at)) >= 5
    finish(runs, arguments, tmp_path)
    assert_same(outcome(tmp_path), undisturbed)


def test_a_second_run_in_a_folder_is_refused_and_harms_nothing(
    runs, arguments, undisturbed, tmp_path, tmp_path_factory
):
    other = Runs(tmp_path_factory.mktemp("compiled_too"))
    for more in ([], ["--config.seed=1"]):  # the same run, and another one
        folder = tmp_path / f"run{len(more)}"
        folder.mkdir()
        [child] = runs.start([*arguments, f"--workdir={folder}"], folder / "out.txt")
        wait_for(lambda folder=folder: logged(folder) >= 2, "step 2")
        os.kill(child, signal.SIGSTOP)  # it shall not end before the other begins
        other.start([*arguments, *more, f"--workdir={folder}"], tmp_path / "other.txt")
        assert other.wait() == [2]
        message = (tmp_path / "other.txt").read_text().strip().splitlines()[-1]
        expected = f"gaitjax: Another run writes in {folder}: process {child} on "
        assert message.startswith(expected) and "name another --workdir" in message
        os.kill(child, signal.SIGCONT)
        assert runs.wait() == [0]
        assert_same(outcome(folder), undisturbed)
    other.close()


def test_a_killed_reranker_resumes_bit_equal(runs, undisturbed, tmp_path):
    """Its optimizer, its best parameters so far and its triplets, over a real base."""
    arguments = """
        --config=configs/cargait.py --config.mode=train --config.train.log_every=1
        --config.train.checkpoint_every=4 --config.train.anchors=4
        --config.validation.every_steps=3 --config.validation.batches=1
        --config.validation.share=0.5 --config.lists.size=10 --config.model.num_heads=1
        --config.model.hidden_size=4 --config.model.classifier_size=4
    """.split()
    arguments += [
        f"--config.train.steps={STEPS}",
        f"--config.base_run={undisturbed[2]}",
    ]
    alone, killed = tmp_path / "alone", tmp_path / "killed"
    alone.mkdir(), killed.mkdir()
    finish(runs, arguments, alone)
    rng = random.Random(1)
    for _ in range(3):
        step = logged(killed) + rng.randint(5, 15)
        [child] = runs.start([*arguments, f"--workdir={killed}"], killed / "out.txt")
        wait_for(lambda step=step: logged(killed) >= step, f"step {step}")
        os.kill(child, signal.SIGKILL)
        assert runs.wait() == [-signal.SIGKILL], (killed / "out.txt").read_text()
    assert 15 <= logged(killed) < STEPS
    finish(runs, arguments, killed)
    assert_same(outcome(killed), outcome(alone))
    assert any(name.startswith("['best']") for name in outcome(killed)[0])


def test_preemption_by_sigterm_saves_and_resumes(
    runs, arguments, undisturbed, tmp_path
):
    [child] = runs.start([*arguments, f"--workdir={tmp_path}"], tmp_path / "out.txt")
    wait_for(lambda: logged(tmp_path) >= 4, "step 4")
    os.kill(child, signal.SIGTERM)
    codes, text = runs.wait(), (tmp_path / "out.txt").read_text()
    assert codes == [0], text[-3000:]
    step = int(re.search(r"Stopped after step (\d+) of 60; everything", text)[1])
    assert "run the same command again: gaitjax.main --config=" in text
    assert (tmp_path / "checkpoints" / str(step)).is_dir() and step < STEPS
    assert f"from step {step} of 60" in finish(runs, arguments, tmp_path)
    assert_same(outcome(tmp_path), undisturbed)


def test_preempted_on_two_processes_of_four_devices_resumes_on_two_of_one(
    runs, arguments, tmp_path
):
    """8 -> 2 devices in mid-run; then the test split is embedded on both processes.

    SGD with momentum, at a rate where parameters move by 100 times the tolerance and
    rounding, which the tiny model's gradients amplify, stays a hundredth of it.
    """
    arguments = [
        *arguments, "--config.data.ids_per_batch=4", "--config.optimizer.name=sgd",
        "--config.optimizer.schedule=constant", "--config.optimizer.learning_rate=1e-5",
        "--config.train.steps=20", "--config.train.keep=20",
    ]  # fmt: skip
    alone, several = tmp_path / "alone", tmp_path / "several"
    alone.mkdir(), several.mkdir()
    finish(runs, arguments, alone)

    shared = [*arguments, f"--workdir={several}"]
    children = runs.start(shared, several / "out", processes=2, devices=4)
    wait_for(lambda: logged(several) >= 2, "step 2", 300)
    os.kill(children[1], signal.SIGTERM)  # all stop where one is asked
    codes, text = runs.wait(), (several / "out0").read_text()
    assert codes == [0, 0], text[-3000:] + (several / "out1").read_text()[-3000:]
    step = int(re.search(r"Stopped after step (\d+) of 20; everything", text)[1])
    assert 2 <= step < 20
    assert "Stopped" not in (several / "out1").read_text()  # process 0 speaks
    runs.start(shared, several / "out", processes=2, devices=1)
    codes, text = runs.wait(), (several / "out0").read_text()
    assert codes == [0, 0], text[-3000:] + (several / "out1").read_text()[-3000:]
    assert f"from step {step} of 20" in text and "ccpg_gait" in text
    (last, expected), (other_last, got) = map(final_parameters, (alone, several))
    assert last == other_last == 20
    start, kinds = final_parameters(alone, 2)[1], Counter()
    for name, value in expected.items():
        kind = re.search(r"\w+", name)[0]
        kinds[kind] += 1
        if kind in ("params", "batch_stats"):
            assert np.abs(value - start[name]).max() > 2e-5, name  # or this is nothing
            np.testing.assert_allclose(got[name], value, 1e-5, 1e-5, err_msg=name)
        else:  # momentum: a sum of gradients, of which none may be missing
            limit = 1e-3 * np.abs(value).max()
            np.testing.assert_allclose(got[name], value, 0, limit, err_msg=name)
    assert kinds["params"] > 8 and kinds["opt_state"] > kinds["params"]
    results = [
        json.loads((folder / "results.json").read_text())["results"]
        for folder in (alone, several)
    ]
    assert results[0] == results[1]


def test_two_processes_use_what_both_can_read_and_stop_together(runs, tmp_path):
    task = ["tests.checkpoint_task", str(tmp_path / "run")]
    runs.start(task, tmp_path / "out", processes=2)
    codes = runs.wait()
    texts = [(tmp_path / f"out{i}").read_text() for i in range(2)]
    assert codes == [0, 0], texts
    assert all("restored step 1" in text for text in texts)
    skipped = "of step 2 cannot be read (another process); trying the one before"
    assert [skipped in text for text in texts] == [True, False]  # only 1 could not
    polls = [re.search(r"left at poll (\d+)", text)[1] for text in texts]
    assert polls[0] == polls[1] and int(polls[0]) > 3  # Ctrl-C on 0 stops both


# ---------------------------------------------------------------- data that goes wrong


def silhouette_config(**data):
    config = gaitbase.get_config()
    config.data.update(ids_per_batch=3, seqs_per_id=2, num_frames=4, flip=0.0)
    config.data.update(data)
    return config


def first_batches(source, config, damaged):
    mesh = sharding.make_mesh(config.mesh)
    return [
        np.asarray(batch["silhouettes"][:, 0, 0, 0])  # the records' numbers
        for batch in pipeline.train_batches(
            source, config, mesh, start_step=0, stop_step=6, damaged=damaged
        )
    ]


class Damaged:
    """Records of which some cannot be read."""

    def __init__(self, records, rows):
        self.records, self.rows = records, rows

    def __getitem__(self, row):
        if row in self.rows:
            raise RuntimeError("corrupt chunk")
        return self.records[row]


def damaged_source(*rows, shards=()):
    source = make_source()
    return source._replace(records=Damaged(source.records, rows), shards=shards)


def test_a_damaged_record_is_replaced_by_one_of_the_same_person_and_counted():
    config, damaged = silhouette_config(max_damaged=1), {}
    whole = first_batches(make_source(), config, {})
    batches = first_batches(damaged_source(2), config, damaged)
    assert list(damaged) == [2] and "b/2 cannot be read" in damaged[2]
    assert any((rows == 2).any() for rows in whole)
    for before, now in zip(whole, batches):  # person b has the records 2 and 3
        np.testing.assert_array_equal(np.where(before == 2, 3, before), now)


def test_more_damaged_records_than_allowed_are_an_error():
    message = "2 sequences cannot be read, more than config.data.max_damaged=1"
    with pytest.raises(ValueError, match=message):
        first_batches(damaged_source(2, 4), silhouette_config(max_damaged=1), {})
    with pytest.raises(ValueError, match="no sequence of identity b can be read"):
        first_batches(damaged_source(2, 3), silhouette_config(max_damaged=9), {})


def test_a_vanished_shard_is_named(tmp_path):
    source = damaged_source(0, 1, shards=(tmp_path / "part-00000",))
    with pytest.raises(ValueError, match="1 of 1 shards are missing.*part-00000"):
        first_batches(source, silhouette_config(), {})


# ---------------------------------------------------------------- folders and disks


def test_an_unwritable_workdir_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot be written"):
        checkpoints.check_folder(str(tmp_path / "file" / "run"))
    checkpoints.check_folder(str(tmp_path / "new" / "run"))


def test_a_disk_too_small_for_two_checkpoints_is_refused(tmp_path, monkeypatch):
    usage = checkpoints.shutil.disk_usage(tmp_path)._replace(free=7)
    monkeypatch.setattr(checkpoints.shutil, "disk_usage", lambda path: usage)
    checkpoints.check_space(str(tmp_path), {"w": np.zeros(3, np.uint8)})
    with pytest.raises(ValueError, match="two checkpoints need"):
        checkpoints.check_space(str(tmp_path), {"w": np.zeros(4, np.uint8)})


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_a_full_disk_at_a_log_row_is_one_sentence(tmp_path):
    message = "Step 3 could not be written.*No space left"
    with pytest.raises(ValueError, match=message), log.MetricLog(tmp_path) as rows:
        rows._file.close()
        rows._file = open("/dev/full", "w")  # noqa: SIM115
        rows.write(3, "train", {"total": 1.0})


def test_a_full_disk_at_a_checkpoint_keeps_the_one_before(tmp_path, monkeypatch):
    store = checkpoints.Checkpoints(str(tmp_path), keep=2)
    description = run_folder.describe(gaitbase.get_config(), "data")

    def full(*args, **kwargs):
        raise RuntimeError("write failed") from OSError(28, "No space left on device")

    state = {"w": np.arange(3.0)}
    store.save(1, state, description)
    store.wait()
    with monkeypatch.context() as patch:
        patch.setattr(store._manager, "save", full)
        with pytest.raises(ValueError, match="is full, .*; the checkpoint of step 2"):
            store.save(2, state, description)
    assert store._manager.all_steps() == [1]
    store.close()


# ---------------------------------------------------------------- devices and batches


class Mesh8:
    shape = {"data": 8, "model": 1}


def test_a_batch_that_does_not_divide_names_fields_and_a_mesh():
    config = silhouette_config(ids_per_batch=6, seqs_per_id=2)
    message = r"batch of 12 .*does not divide over the 8 devices.*--config.mesh.data=4"
    with pytest.raises(ValueError, match=message):
        state.check_batch(config, Mesh8())
    config.data.seqs_per_id = 4
    state.check_batch(config, Mesh8())
    config.train.accumulate = 4
    with pytest.raises(ValueError, match=r"in 4 parts .*does not divide"):
        state.check_batch(config, Mesh8())


def test_process_0_knows_whether_embeddings_are_stored(tmp_path, monkeypatch):
    """This process embeds although it sees a file, and reads one that comes late."""
    config = gaitbase.get_config()
    base = base_run.Base(config, types.SimpleNamespace(model=0, mesh=0), None, "base")
    data = make_source()
    path = tmp_path / "embeddings"
    rows = np.ones((len(data.index.key), 2, 3), np.float32)
    made = []
    monkeypatch.setattr(base_run, "model_variables", lambda state: {})
    monkeypatch.setattr(
        evaluate, "embed_split", lambda *_: made.append(len(made)) or rows + len(made)
    )
    for says in (False, False, True):
        monkeypatch.setattr(
            base_run.multihost_utils, "broadcast_one_to_all", lambda _, says=says: says
        )
        table = base_run.stored_embeddings(base, data, str(tmp_path))
    np.testing.assert_array_equal(table.embeddings, rows + 2)
    [file] = path.iterdir()
    file.rename(tmp_path / "late")
    timer = threading.Timer(0.2, (tmp_path / "late").rename, [file])
    timer.start()
    table = base_run.stored_embeddings(base, data, str(tmp_path))
    np.testing.assert_array_equal(table.embeddings, rows + 2)
    assert made == [0, 1]


def test_stop_is_noticed_and_handlers_come_back(monkeypatch):
    monkeypatch.setattr(cluster, "_noted", None)  # and again after the test
    before = signal.getsignal(signal.SIGTERM)
    with cluster.Stop():
        assert not cluster.asked()
        os.kill(os.getpid(), signal.SIGTERM)
        assert cluster.asked()
    assert signal.getsignal(signal.SIGTERM) == before
    with pytest.raises(cluster.Stopped) as stopped:  # not forgotten after the loop
        cluster.leave_if_asked()
    assert stopped.value.code == 0


@pytest.mark.parametrize("best", ["", "metric"])
def test_preempted_while_it_evaluates_it_saves_and_ends(tmp_path, monkeypatch, best):
    """A checkpoint and an evaluation at each second step; the second one is cut off."""
    events = []

    class Store:
        def __init__(self, *_):
            pass

        def restore(self, *_):
            return None

        def save(self, step, stored, description, results):
            events.append((f"save {int(stored['step'])} of {step}", results))

        def wait(self):
            events.append("wait")

        def close(self):
            pass

    def evaluated(config, setup, state):
        events.append(f"evaluate {int(state.step)}")
        if state.step == 4:
            raise cluster.Stopped(0)
        return evaluate.Evaluation({"metric": 1.0}, None, None, 0.0)

    def step(state, batch, rng):
        return state._replace(step=state.step + 1), {"total": batch}

    config = silhouette_config()
    config.train.update(steps=6, checkpoint_every=2, log_every=9, keep_best=best)
    config.evaluation.every_steps = 2
    monkeypatch.setattr(evaluate, "evaluate_state", evaluated)
    monkeypatch.setattr(loop, "Checkpoints", Store)
    parameters = {"w": jax.numpy.ones(2)}
    phase = loop.Phase(
        name="training", last=6, step=jax.jit(step), rate=lambda done: 0.1,
        batches=lambda start, stop: iter([np.float32(1)] * 6), name_rows=str,
    )  # fmt: skip
    task = loop.Task(
        name="fake", phases=[phase], target={}, stored=state.stored_part,
        new_state=lambda: state.TrainState(jax.numpy.int32(0), parameters, {}, {}, {}),
        restored=None, describe=lambda _: {}, differences=None,
        **train._hooks(config, None, tmp_path),
    )  # fmt: skip
    with pytest.raises(SystemExit) as end:
        loop.fit(task, tmp_path, np.int32(0), config.train)
    assert end.value.code == 0
    saved = [("save 2 of 2", {"metric": 1.0} if best else None), "evaluate 2"]
    cut = [("save 4 of 4", None), "evaluate 4"]
    assert events == [
        *(saved[::-1] if best else saved), *(cut[::-1] if best else cut), "wait"
    ]  # fmt: skip


@pytest.mark.parametrize(
    "given,message",
    [
        (("host:1", 2, None), "not process_id"),
        (("host", 2, 0), "has no port"),
    ],
)
def test_half_given_processes_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        cluster.join(*given)
