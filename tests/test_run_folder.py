"""The folder of a run: one writer, whole files, damage by name."""

import errno
import os
import re
import subprocess
import sys

import pytest

from configs import gaitbase, lmgait
from gaitjax import run_folder
from gaitjax.engine.guards import Damaged


def test_a_config_comes_back_with_its_tuples(tmp_path):
    config = gaitbase.get_config()
    assert run_folder.read_config(tmp_path) is None
    run_folder.write_config(config, tmp_path)
    assert run_folder.read_config(tmp_path) == config
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", "3", '{"model": 3}', "{" * 5000, "\0"]
    + ['{"model": {}}', '{"model": {"name": 3}}', '{"model": {"name": "a"}, "b.c": 1}']
    + ["9" * 5000, "[1, 2]", '"text"', "null"],
)
def test_a_damaged_config_is_named(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(Damaged, match="config.json is damaged: it .*another --workdir"):
        run_folder.read_config(tmp_path)


def test_a_writer_that_fails_leaves_the_file_as_it_was(tmp_path):
    run_folder.write_json(tmp_path / "results.json", {"a": 1})
    before = (tmp_path / "results.json").read_bytes()
    with pytest.raises(TypeError):
        run_folder.write_json(tmp_path / "results.json", {"a": object()})
    assert (tmp_path / "results.json").read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("name", ["metrics.jsonl", "import.json", "results.json"])
@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo])
def test_what_should_be_a_file_is_named(tmp_path, name, make):
    make(tmp_path / name)
    with pytest.raises(ValueError, match=f"{name} is no file; move it away, or name"):
        run_folder.check_entries(tmp_path)


@pytest.mark.parametrize(
    "name", ["checkpoints", "tensorboard", "checkpoints/8", "checkpoints/08"]
)
def test_what_should_be_a_folder_is_named(tmp_path, name):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("")
    with pytest.raises(ValueError, match=f"{name} is no folder.*; move it away, or na"):
        run_folder.check_entries(tmp_path)
    path.unlink()
    path.symlink_to(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=f"{name} is no folder"):
        run_folder.check_entries(tmp_path)
    path.unlink()
    path.symlink_to(path)
    with pytest.raises(ValueError, match=f"{name} is no folder"):
        run_folder.check_entries(tmp_path)
    path.unlink()
    path.mkdir()
    run_folder.check_entries(tmp_path)


def test_a_number_that_is_no_step_is_named(tmp_path):
    (tmp_path / "checkpoints" / ("9" * 30)).mkdir(parents=True)
    with pytest.raises(ValueError, match="9999 is no folder of a step"):
        run_folder.check_entries(tmp_path)


def test_a_config_that_is_no_file_is_damaged(tmp_path):
    os.mkfifo(tmp_path / "config.json")  # would be waited for
    with pytest.raises(Damaged, match="config.json is damaged: it is no file"):
        run_folder.read_config(tmp_path)


def test_a_file_system_without_locks_is_a_warning(tmp_path, monkeypatch, caplog):
    def flock(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(run_folder.fcntl, "flock", flock)
    with run_folder.locked(tmp_path):
        assert "cannot be locked (No locks available)" in caplog.text


def test_one_run_writes_at_a_time_and_the_lock_ends_with_its_process(tmp_path):
    program = (
        "import sys, time\n"
        "from gaitjax import run_folder\n"
        "with run_folder.locked(sys.argv[1]):\n"
        "    print('held', flush=True)\n"
        "    time.sleep(60)\n"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)],
        stdout=subprocess.PIPE, text=True, env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )  # fmt: skip
    assert holder.stdout.readline() == "held\n"
    message = rf"Another run writes in .*: process {holder.pid} on .* since 20"
    with pytest.raises(ValueError, match=message), run_folder.locked(tmp_path):
        pass
    holder.kill()
    holder.wait()
    holder.stdout.close()
    with run_folder.locked(tmp_path):  # the stale lock is taken over
        text = (tmp_path / "lock").read_text()
        assert re.match(rf"process {os.getpid()} on ", text)


@pytest.mark.parametrize(
    "field, same",
    [
        ("model.representation.remat", True),
        ("model.visual_encoder.frames_per_chunk", True),
        ("evaluation.max_frames", True),
        ("mesh.data", True),
        ("sharding_rules.fsdp", True),
        ("train.keep_best", True),
        ("allow_cpu", True),
        ("data.workers", True),
        ("train.steps", False),
        ("data.num_frames", False),
        ("model.dtype", False),
        ("seed", False),
    ],
)
def test_what_may_change_between_a_run_and_its_continuation(field, same):
    assert run_folder.is_free(field) == same


def test_a_run_of_version_0_1_goes_on_as_it_began(tmp_path):
    config = lmgait.get_config()
    today = run_folder.plain(config)
    earlier = run_folder.plain(config)
    for group, fields in run_folder.FORMERLY["lmgait"].items():
        for name in fields:
            del earlier["model"][group][name]
    run_folder.write_json(tmp_path / "config.json", earlier)
    kept = run_folder.keep_to_run(config, tmp_path)
    assert kept == [
        "config.model.decoder.edge_rule=published, not valid",
        "config.model.representation.direct=True, not False",
        "config.model.text.temperature=plain, not log",
    ]
    assert run_folder.read_config(tmp_path) == config
    stored = {"config": earlier, "data": "d"}
    kept = {"config": run_folder.plain(config), "data": "d"}
    assert run_folder.differences(stored, kept) == []
    named = run_folder.differences(stored, {"config": today, "data": "d"})
    assert named == [
        "config.model.decoder.edge_rule: published -> valid",
        "config.model.representation.direct: True -> False",
        "config.model.text.temperature: plain -> log",
    ]
    run_folder.write_config(config, tmp_path)  # as its continuation does
    again = lmgait.get_config()
    assert len(run_folder.keep_to_run(again, tmp_path)) == 3 and again == config


def test_a_run_of_today_keeps_its_config(tmp_path):
    config = lmgait.get_config()
    assert run_folder.keep_to_run(config, tmp_path) == []  # no run there
    run_folder.write_config(config, tmp_path)
    config.model.text.temperature = "plain"
    assert run_folder.keep_to_run(config, tmp_path) == []
    assert run_folder.keep_to_run(gaitbase.get_config(), tmp_path) == []


def test_a_run_from_before_allow_cpu_goes_on():
    config = gaitbase.get_config("ccpg")
    new = run_folder.describe(config, "data")
    with config.unlocked():
        del config["allow_cpu"]
    config.data.workers = 2
    assert run_folder.differences(run_folder.describe(config, "data"), new) == []


def test_a_stored_config_gets_the_fields_that_all_models_have_now():
    """A run's config.json and a card of weights are read through this."""
    stored = {"model": {"name": "gaitbase"}, "optimizer": {"name": "sgd"}, "train": {}}
    config = run_folder.from_plain(stored)
    assert config.optimizer.adam_for == ()
    assert config.train.accumulate == 1
    assert "adam_for" not in stored["optimizer"]
    given = stored | {"optimizer": {"adam_for": ["table"]}}
    assert run_folder.from_plain(given).optimizer.adam_for == ("table",)
