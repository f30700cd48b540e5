"""The folder of a run: one writer, whole files, damage by name."""

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
    "text", ["", "[]", "{}", "3", '{"model": 3}', "{" * 5000, "\0"]
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


@pytest.mark.parametrize(
    "name, folder", [("metrics.jsonl", True), ("checkpoints", False)]
)
def test_an_entry_of_the_wrong_kind_is_named(tmp_path, name, folder):
    (tmp_path / name).mkdir() if folder else (tmp_path / name).write_text("")
    kind = "folder" if folder else "file"
    with (
        pytest.raises(ValueError, match=f"{name} is a {kind}; name another --workdir"),
        run_folder.locked(tmp_path),
    ):
        pass


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
