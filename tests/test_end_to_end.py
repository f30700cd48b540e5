"""Whole runs, as a user starts them: train, die, continue, evaluate, mistakes."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from gaitjax.engine.log import read_metrics
from tests.fake_datasets import tiny_synthetic
from tests.forked_runs import Runs, wait_for

ROOT = Path(__file__).resolve().parents[1]
# Everything about the default config, only smaller.
SMALLER = """
    --config.data.train_dataset=synthetic_gait/tiny
    --config.data.test_dataset=synthetic_gait/tiny
    --config.data.num_classes=4 --config.data.ids_per_batch=2
    --config.data.seqs_per_id=2 --config.data.num_frames=4
    --config.evaluation.frame_multiple=8 --config.evaluation.batch_size=8
    --config.train.steps=6 --config.train.log_every=1 --config.train.checkpoint_every=2
    --config.optimizer.rise_steps=2
""".split()
LMGAIT = (
    ["--config=configs/lmgait.py", *SMALLER]
    + """
    --config.warmup.steps=2 --config.pretrained.visual_encoder=
    --config.pretrained.text_encoder= --config.pretrained.text_projection_last=
    --config.pretrained.text_projection_mid= --config.model.image_size=(64,32)
    --config.model.feature_grid=(16,8) --config.model.gait.strides=(1,2,1)
    --config.model.visual_encoder.num_heads=1 --config.model.text.num_heads=1
    --config.model.visual_encoder.hidden_size=16
    --config.model.visual_encoder.num_layers=2
    --config.model.visual_encoder.blocks=(0,1)
    --config.model.text.num_layers=1 --config.model.text.width=16
    --config.model.text.adapter_size=4 --config.model.representation.hidden=16
    --config.model.gait.stem=8 --config.model.gait.squeeze=4
    --config.model.gait.channels=(8,8,8) --config.model.gait.embedding_size=8
""".split()
)
GAITBASE = (
    ["--config=configs/gaitbase.py", *SMALLER]
    + """
    --config.model.channels=(4,8) --config.model.layers=(1,1)
    --config.model.strides=(2,2) --config.model.embedding_size=8
""".split()
)


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    tiny_synthetic(folder)
    return folder


@pytest.fixture(scope="module")
def program(data_dir, tmp_path_factory):
    """Runs gaitjax.main in a fork: program(workdir, *arguments, expect=0) -> output."""
    runs = Runs()
    output = tmp_path_factory.mktemp("output") / "out.txt"

    def start(workdir, config, *arguments):
        folders = [f"--config.data.data_dir={data_dir}", f"--workdir={workdir}"]
        return runs.start([config, *folders, *arguments], output)[0]

    def run(workdir, *arguments, expect=0):
        start(workdir, *arguments)
        codes = runs.wait()
        assert codes == [expect], output.read_text()[-3000:]
        return output.read_text()

    run.start, run.wait, run.runs = start, runs.wait, runs
    yield run
    runs.close()


def train_rows(workdir):
    rows = read_metrics(workdir / "metrics.jsonl")
    return [row for row in rows if row["kind"] == "train"]


def final_parameters(workdir, step=None):
    """(step, all arrays by path) of the last checkpoint, or of `step`'s, whatever
    devices wrote it."""
    import jax
    import orbax.checkpoint as ocp

    steps = (Path(workdir).absolute() / "checkpoints").iterdir()
    step = step or max(int(path.name) for path in steps if path.name.isdigit())
    folder = Path(workdir).absolute() / "checkpoints" / str(step) / "state"
    checkpointer = ocp.PyTreeCheckpointer()
    tree = checkpointer.metadata(folder).item_metadata.tree
    as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
    restored = checkpointer.restore(folder, restore_args=as_numpy)
    leaves = jax.tree_util.tree_leaves_with_path(restored)
    return step, {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def test_train_evaluate_and_continue_lmgait(program, tmp_path):
    output = program(tmp_path / "a", *LMGAIT, "--config.evaluation.every_steps=5")
    results = json.loads((tmp_path / "a" / "results.json").read_text())
    for key in ("ccpg_gait/CL/rank1", "ccpg_gait/mean/rank1", "ccpg_reid/CL/mAP"):
        assert 0 <= results["results"][key] <= 100
    assert all(key.count("/") >= 2 for key in results["results"])
    assert results["step"] == 8 and results["identities"] == 4
    assert "ccpg_gait" in output and "never seen in training" in output
    names = {path.name for path in (tmp_path / "a" / "pictures").iterdir()}
    assert {"learning.png", "cmc.png", "maps.png", "ranked_CL.png"} <= names
    train = train_rows(tmp_path / "a")
    assert [row["step"] for row in train] == list(range(1, 9))
    assert "triplet" not in train[1] and "triplet" in train[2]  # decoder warm-up first
    rows = read_metrics(tmp_path / "a" / "metrics.jsonl")
    (between,) = (row for row in rows if row["kind"] == "eval")  # the last is no row
    assert between.keys() == {"kind", "step"} | results["results"].keys()
    assert between["step"] == 5
    assert list((tmp_path / "a").glob("**/events.out.tfevents*"))

    # The same command again: nothing is trained, the results are the same.
    assert "is finished (8 steps)" in program(tmp_path / "a", *LMGAIT)
    repeated = json.loads((tmp_path / "a" / "results.json").read_text())
    assert repeated["results"] == results["results"]

    # Mode evaluate, of another run, into its own folder.
    program(
        tmp_path / "b", *LMGAIT, "--config.mode=evaluate",
        f"--config.base_run={tmp_path / 'a'}", "--config.pictures=False",
    )  # fmt: skip
    other = json.loads((tmp_path / "b" / "results.json").read_text())
    assert other["results"] == results["results"]

    # Another config in the same folder is refused, naming the difference.
    refused = program(
        tmp_path / "a", *LMGAIT, "--config.loss.triplet.margin=0.3", expect=2
    )
    assert "config.loss.triplet.margin: 0.2 -> 0.3" in refused


def test_kill_and_resume_is_bit_equal(program, tmp_path):
    """LMGait, with its warm-up; ten kills of a GaitBase run: test_preemption.py."""
    quiet = [*LMGAIT, "--config.pictures=False"]
    program(tmp_path / "undisturbed", *quiet)
    child = program.start(tmp_path / "killed", *quiet)
    checkpoints = tmp_path / "killed" / "checkpoints"
    wait_for(lambda: any(p.name in "2468" for p in checkpoints.glob("*")), "step 2")
    os.kill(child, signal.SIGKILL)
    assert program.wait() == [-signal.SIGKILL], "the run ended before it was killed"
    program(tmp_path / "killed", *quiet)
    step, expected = final_parameters(tmp_path / "undisturbed")
    resumed_step, resumed = final_parameters(tmp_path / "killed")
    assert step == resumed_step and expected.keys() == resumed.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(resumed[name], value, err_msg=name)
    histories = [train_rows(tmp_path / name) for name in ("undisturbed", "killed")]
    for rows in histories:
        for row in rows:
            del row["wait_share"]  # wall clock
    assert histories[0] == histories[1]


MISTAKES = {
    "config file": (["--config=configs/moon.py"], "configs/moon.py"),
    "variant": (["--config=configs/lmgait.py:moon"], "Unknown variant 'moon'"),
    "field": (["--config=configs/gaitbase.py", "--config.train.step=3"], "step"),
    "group": (
        ["--config=configs/gaitbase.py", "--config.lossy.foo=3"],
        "No such config field (--print_config lists them): 'lossy'",
    ),
    "type": (["--config=configs/gaitbase.py", "--config.train.steps=many"], "many"),
    "mode": (["--config=configs/gaitbase.py", "--config.mode=fly"], "train, evaluate"),
    "model": (
        ["--config=configs/gaitbase.py", "--config.model.name=x"],
        "Unknown config.model.name 'x'",
    ),
    "data": (
        [
            "--config=configs/gaitbase.py:ccpg",
            "--config.data.data_dir=nowhere",
            "--config.allow_cpu=True",
        ],
        "./run.sh build ccpg",
    ),
    "full size": (["--config=configs/gaitbase.py:ccpg"], "--config.allow_cpu=True"),
    "name of a file": (
        [*GAITBASE, f"--config.data.data_dir=/tmp/{'a' * 300}"],
        "File name too long: '/tmp/aaa",
    ),
    "no run": (
        [*GAITBASE, "--config.mode=evaluate"],
        "There is no trained run",
    ),
    "no config": ([], "No --config given"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_one_sentence_and_exit_code_2(program, mistake, tmp_path):
    arguments, expected = MISTAKES[mistake]
    if mistake == "no config":  # as a user starts it; the others in a fork
        command = [sys.executable, "-m", "gaitjax.main", f"--workdir={tmp_path}"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 2 and not done.stdout
        output = done.stderr
    else:
        output = program(tmp_path, *arguments, expect=2)
    assert "Traceback" not in output
    message = [line for line in output.splitlines() if "gaitjax: " in line]
    assert len(message) == 1 and expected in message[0], output[-2000:]


def test_an_embedded_data_set_that_cannot_be_made_is_explained(program, tmp_path):
    wrong = "--config.data.train_dataset=synthetic_gait/moon"
    output = program(tmp_path, *GAITBASE, wrong, expect=2)
    assert "prepare: synthetic_gait has no config 'moon'; it has: " in output
    assert "gaitjax: The data set synthetic_gait/moon was not made" in output
    assert "Traceback" not in output


def test_two_processes_make_the_embedded_data_set_once(program, tmp_path):
    """They stop at a mistake that is found in the data which they have made."""
    folders = [f"--config.data.data_dir={tmp_path / 'data'}", f"--workdir={tmp_path}"]
    arguments = [*GAITBASE, *folders, "--config.data.num_classes=7"]
    program.runs.start(arguments, tmp_path / "out", processes=2)
    codes = program.runs.wait()
    outputs = [(tmp_path / f"out{number}").read_text() for number in range(2)]
    assert codes == [2, 2], outputs
    for output in outputs:
        assert "prepared with 4 training identities, the config says 7" in output
    both = "".join(outputs)
    assert both.count("Making the embedded data set synthetic_gait/tiny") == 1
    assert both.count("synthetic_gait/tiny: 56 sequences train") == 1  # one builds
    assert both.count("synthetic_gait/tiny: prepared meanwhile") == 1  # one waits


def test_wrong_shape_is_explained(program, tmp_path):
    output = program(tmp_path, *GAITBASE, "--config.data.num_classes=7", expect=2)
    assert "prepared with 4 training identities, the config says 7" in output


def test_a_protocol_of_other_data_is_refused_before_training(program, tmp_path):
    arguments = [*GAITBASE, "--config.evaluation.protocols=sustech1k"]
    output = program(tmp_path, *arguments, expect=2)
    assert "Protocol 'sustech1k' finds no task" in output
    assert not (tmp_path / "checkpoints").exists()


def test_print_config_shows_a_variant_with_overrides():
    done = subprocess.run(
        [sys.executable, "-m", "gaitjax.main", "--config=configs/lmgait.py:ccpg",
         "--config.train.steps=7", "--print_config"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert "name: lmgait_ccpg" in done.stdout and "steps: 7" in done.stdout


def test_help_names_the_flags_and_an_example():
    done = subprocess.run(
        [sys.executable, "-m", "gaitjax.main", "--help"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert "--config=configs/lmgait.py" in done.stdout and "--workdir" in done.stdout


def test_the_command_alone_makes_its_data_and_imports_no_tensorflow(tmp_path):
    """In an empty folder; and neither transformers nor torch are imported."""
    script = (
        "import sys; from gaitjax import main\n"
        "try: main.run()\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "heavy = {'tensorflow', 'transformers', 'torch'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    folders = [f"--config.data.data_dir={tmp_path}/data", f"--workdir={tmp_path}/run"]
    arguments = [*GAITBASE, "--config.train.steps=3", *folders]
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Making the embedded data set synthetic_gait/tiny" in done.stdout
    assert (tmp_path / "run" / "results.json").exists()
