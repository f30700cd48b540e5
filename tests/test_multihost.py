"""One model, however many devices and processes: benchmarks/scaling.py, as a test.

Every layout runs in processes of its own on virtual CPU devices (gloo between them).
"""

import pytest

from benchmarks import scaling

LIMIT = 1e-5


@pytest.mark.parametrize(
    "model,layouts",
    [
        ("lmgait", ["one", "fsdp", "processes_tensor"]),
        ("cargait", ["one", "tensor", "processes_fsdp"]),
    ],
)
def test_devices_and_processes_do_not_change_what_is_learned(model, layouts):
    result = scaling.measure(model, layouts, 5, quick=True)
    assert result["max_rel_diff"] <= LIMIT, result
    assert result["state_diff"] <= LIMIT, result
    assert result["learned"] > 1e-4  # or equality would mean nothing
    memory = {name: row["memory"] for name, row in result["layouts"].items()}
    for name in layouts:
        sent = result["layouts"][name]["collectives"]
        assert bool(sent) == (name != "one")
        if "fsdp" in name:  # split over 8 devices, but for what is too small
            assert memory[name]["params"] < 0.3 * memory["one"]["params"]
            assert "all-gather" in sent
        if "tensor" in name:
            assert memory[name]["params"] < memory["one"]["params"]
