"""The dry run for devices elsewhere: the table, what is traced, what it prints."""

import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from configs import gaitbase
from gaitjax import models, plan, program, targets
from gaitjax.parts import convolution, transformer
from gaitjax.parts.backend import Backend, current, tracing_for
from tests.forked_runs import ROOT, Runs

PYTHON = ROOT / ".venv-target" / "bin" / "python"  # ./run.sh target makes it


@pytest.fixture
def tiny():
    """gaitbase on 8 clips of 3 frames."""
    config = gaitbase.get_config()
    config.model.update(channels=(4, 8, 8, 8), embedding_size=8)
    config.data.update(ids_per_batch=4, seqs_per_id=2, num_frames=3)
    return config


def test_the_table_of_targets():
    assert {"h100x1", "h100x8", "v5e:4x4", "v5p:2x2x1", "v6e:4x4", "cpu"} <= set(
        targets.TARGETS
    )
    for name, target in targets.TARGETS.items():
        assert target.platform in ("cuda", "tpu", "cpu"), name
        assert target.memory > 1 and 0 < target.share <= 1, name
        assert target.backend.platform in ("gpu", "tpu", "cpu"), name
    assert targets.TARGETS["h100x1"].share == 0.75
    cpu = targets.TARGETS["cpu"]
    assert cpu.memory_of(4) == cpu.memory / 4 and cpu.devices() == jax.devices()


def test_an_unknown_target_and_a_missing_compiler_are_named(monkeypatch):
    with pytest.raises(ValueError, match="--target 'h100x3'; choose from h100x1, h10"):
        targets.prepare("h100x3")
    monkeypatch.setattr(targets, "_installed", lambda module: False)
    with pytest.raises(ValueError, match=r"for tpu \(libtpu\).*run.sh target v5e:4x4 "):
        targets.prepare("v5e:4x4")


def test_the_memory_that_jax_takes_of_a_card_can_be_set(monkeypatch):
    monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.9")
    assert targets.TARGETS["h100x8"].share == 0.9
    assert targets.TARGETS["v5e:4x4"].share == 1


@pytest.mark.parametrize(
    "platform, formulation, attention",
    [("cpu", "matmul", "explicit"), ("gpu", "stock", "xla"), ("tpu", "stock", "xla")],
)
def test_the_parts_follow_the_backend_that_they_are_told(
    platform, formulation, attention
):
    with tracing_for(Backend(platform)):
        assert convolution.formulation() == formulation
        assert transformer.attention_formulation(jnp.bfloat16, 64, False) == attention
        wide = transformer.result_type(jnp.bfloat16)
        assert wide == (jnp.float32 if platform == "cpu" else None)
    with tracing_for(Backend("gpu", flash_attention=True)):
        assert transformer.attention_formulation(jnp.bfloat16, 64, False) == "cudnn"
        assert transformer.attention_formulation(jnp.bfloat16, 64, True) == "xla"
    assert current() == Backend(jax.default_backend(), devices=jax.device_count())


@pytest.mark.parametrize("platform", ["cpu", "gpu", "tpu"])
def test_a_step_is_traced_for_its_target_and_asks_no_backend(
    tiny, platform, monkeypatch
):
    asked = []
    real = jax.default_backend
    with tracing_for(Backend(platform)):
        setup, batch, step = plan._planned(tiny)
        monkeypatch.setattr(jax, "default_backend", lambda: asked.append(1) or real())
        text = str(plan.trace_step(setup, batch, step).jaxpr)
    assert not asked
    # on CPU weight gradients are matmuls in a loop over the images
    assert ("scan[" in text) == (platform == "cpu")
    assert "conv_general_dilated" in text


def test_work_is_counted_from_the_jaxpr():
    def f(x, kernel, w):
        y = jax.lax.conv_general_dilated(
            x,
            kernel,
            (2, 1),
            [(1, 1), (0, 0)],
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )  # [2 4 5 6]
        return jax.lax.scan(lambda y, _: (y @ w, None), y, length=3)[0]

    arguments = (jnp.ones((2, 7, 5, 4)), jnp.ones((3, 1, 4, 6)), jnp.ones((6, 6)))
    jaxpr = jax.make_jaxpr(f)(*arguments).jaxpr
    taps = 3 * 4 - 2  # two are padding
    convolution_work = 2 * 2 * (taps * 5) * 4 * 6
    assert program.flops(jaxpr) == convolution_work + 3 * 2 * (2 * 4 * 5) * 6 * 6
    gradient = jax.make_jaxpr(jax.grad(lambda *a: f(*a).sum(), (0, 1)))(*arguments)
    # the input's and the kernel's gradient are as much work as the convolution
    loops = 2 * 3 * 2 * (2 * 4 * 5) * 6 * 6
    assert program.flops(gradient.jaxpr) == 3 * convolution_work + loops


HLO = """
%body (a: f32[8]) -> f32[8] {
  %a = f32[8]{0} parameter(0)
  ROOT %sum = f32[4096]{0} add(%a, %a), metadata={op_name="jit(step)/while/body/add"}
}

%fused (b: f32[8]) -> f32[8] {
  ROOT %inside = f32[99999]{0} add(%b, %b)
}

ENTRY %main (p: f32[9999]) -> f32[8] {
  %p = f32[9999]{0} parameter(0)
  %conv = (bf16[3,5,64]{2,1,0:T(8,128)(2,1)}, f32[9]{0:T(8)S(1)}) fusion(%p), \
calls=%fused, metadata={op_name="jit(step)/transpose(jvp(gaitbase))/stem/conv"}
  %start = f32[70000]{0} copy-start(%p)
  %loop = f32[60000]{0} while(%p), body=%body
  ROOT %out = f32[8]{0} bitcast(%loop)
}
"""


def test_the_largest_buffers_have_names_and_the_tiles_of_a_tpu():
    first, second = program.largest_buffers(HLO)
    assert first == ("sum", "f32[4096]", 16384, "while/body/add")
    padded = 3 * 8 * 128 * 2
    operation = "gaitbase/stem/conv, backward"
    assert second == ("conv", "bf16[3,5,64]", padded, operation)


def test_the_size_of_a_model(tiny):
    model = models.make(tiny)
    small, large = (plan.size_of(tiny, model, frames) for frames in (0, 6))
    assert small.trained == large.trained > 0 and small.frozen == 0
    assert (small.frames, large.frames) == (3, 6)
    head = 2 * small.flops - large.flops  # what does not grow with the frames
    strips, classes, width = 8, tiny.data.num_classes, 8
    assert head == 2 * strips * width * (width + classes)
    tiny.frozen = ("^head/",)
    held = plan.size_of(tiny, model)
    assert held.frozen > 0 and held.trained + held.frozen == small.trained
    assert f"{small.flops / 2e9:,.2f} G multiply-adds" in small.words


def test_a_plan_for_this_machine_ends_with_json(tiny):
    text = plan.dry_run(tiny, "runs/x", "cpu")
    assert "parameters are trained, 0 frozen. Embedding a sequence of 3 fram" in text
    row = json.loads(text.splitlines()[-1])
    assert list(row) == [
        "target", "fits", "arguments_gib", "temporaries_gib", "step_tflop",
        "collectives", "compile_s",
    ]  # fmt: skip
    assert row["target"] == "cpu" and row["fits"] is True
    assert 0 < row["arguments_gib"] < 0.1 and 0 < row["temporaries_gib"] < 1
    assert 0 < row["step_tflop"] < 1 and row["compile_s"] > 0
    assert "10. " in text and "gaitbase/stem" in text and "the step fits" in text


def test_a_batch_that_no_target_holds_is_said(tiny):
    tiny.data.ids_per_batch = 400_000
    text = plan.dry_run(tiny, "runs/x", "cpu")
    assert json.loads(text.splitlines()[-1])["fits"] is False
    assert "does not fit. Take more devices" in text


def test_a_compiler_that_runs_out_of_memory_is_an_answer(tiny, monkeypatch):
    def lower(self, **platforms):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Used 25G of 15.75G hbm")

    monkeypatch.setattr(jax.stages.Traced, "lower", lower)
    text = plan.dry_run(tiny, "runs/x", "cpu")
    row = json.loads(text.splitlines()[-1])
    assert row["fits"] is False and row["temporaries_gib"] is None
    assert row["arguments_gib"] > 0 and row["collectives"] is None
    assert "The compiler: RESOURCE_EXHAUSTED: Used 25G" in text
    with pytest.raises(jax.errors.JaxRuntimeError):
        plan.dry_run(tiny, "runs/x")


@pytest.fixture(scope="module")
def program_of():
    """Runs gaitjax.main in a fork: (arguments, file of its output) -> exit code."""
    runs = Runs()

    def run(arguments, output):
        runs.start(arguments, output)
        return runs.wait()[0]

    yield run
    runs.close()


SMALL = [
    "--config=configs/gaitbase.py", "--config.model.channels=(4,4,4,4)",
    "--config.data.num_frames=2", "--dry_run",
]  # fmt: skip


@pytest.mark.parametrize(
    "arguments, code, words",
    [
        (["--target=h100x3"], 2, "Unknown --target 'h100x3'; choose from h100x1, h100"),
        (["--nodry_run", "--target=cpu"], 2, "--target belongs to --dry_run; add it."),
        (
            ["--target=cpu", "--config.mesh.data=3"],
            2,
            "data=3 x model=1 devices, there",
        ),
        (["--target=cpu"], 0, '{"target": "cpu", "fits": true'),
    ],
)
def test_the_flag(program_of, arguments, code, words, tmp_path):
    assert program_of([*SMALL, *arguments], tmp_path / "output") == code
    text = (tmp_path / "output").read_text()
    assert words in text.splitlines()[-1], text[-3000:]
    assert "--target" not in text or code == 2  # the commands are those of the run


def compiler_of(target):
    """The Python that can compile for the target; without one the test is skipped."""
    modules = targets.COMPILERS[targets.TARGETS[target].platform]
    find = "import sys, importlib.util as u; sys.exit(None in map(u.find_spec, {}))"
    for python in filter(os.path.exists, (sys.executable, PYTHON)):
        found = subprocess.run(
            [python, "-c", find.format(modules)], capture_output=True
        )
        if found.returncode == 0:
            return python
    return pytest.skip(f"no compiler for {target}: ./run.sh target installs it")


@pytest.mark.parametrize("target, devices", [("h100x8", 8), ("v5e:2x2", 4)])
def test_a_tiny_step_compiles_for_devices_that_are_not_there(target, devices):
    done = subprocess.run(
        [compiler_of(target), "-m", "gaitjax.main", *SMALL, f"--target={target}"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    row = json.loads(done.stdout.splitlines()[-1])
    assert row["target"] == target and row["fits"] is True
    assert row["collectives"]["all-reduce"]["count"] > 0
    assert f"of {devices} " in done.stdout and row["step_tflop"] > 0


def test_a_batch_that_does_not_divide_over_the_target_is_named():
    done = subprocess.run(
        [compiler_of("h100x8"), "-m", "gaitjax.main", *SMALL, "--target=h100x8",
         "--config.data.ids_per_batch=3"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2
    assert "does not divide over the 8 devices" in done.stderr
