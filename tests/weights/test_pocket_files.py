"""A model in two files: what is written comes back, what is damaged is refused."""

import json

import numpy as np
import pytest

from gaitjax.engine.guards import Damaged
from gaitjax.weights.pocket_files import is_pocket, load_pocket, save_pocket

FACTS = {"data": "walkers", "results": {"rank1": 50.0}, "licences": "Apache-2.0"}
CONFIG = {"model": {"name": "gaitset", "bins": [4, 1]}, "data": {"num_classes": 3}}


@pytest.fixture
def variables():
    rng = np.random.default_rng(0)
    kernel = rng.normal(size=(3, 4)).astype(np.float32)
    return {
        "params": {"a": {"b": {"kernel": kernel}, "scale": np.float32(2.0)}},
        "batch_stats": {"a": {"mean": kernel[0]}},
    }


@pytest.mark.parametrize("dtype, tolerance", [("float32", 0), ("float16", 2e-3)])
def test_what_is_written_comes_back(variables, tmp_path, dtype, tolerance):
    card = save_pocket(tmp_path, "tiny", variables, CONFIG, dtype=dtype, **FACTS)
    assert card == tmp_path / "tiny.json" and is_pocket(tmp_path) and is_pocket(card)
    for path in (card, card.with_suffix(".safetensors"), tmp_path, str(tmp_path)):
        pocket = load_pocket(path)
        assert pocket.card["config"] == CONFIG and pocket.card["name"] == "tiny"
        assert {k: pocket.card[k] for k in FACTS} == FACTS
        weights = pocket.card["weights"]
        assert weights["parameters"] == 13 and weights["dtype"] == dtype
        for group, tree in variables.items():
            found = pocket.variables[group]["a"]
            assert found.keys() == tree["a"].keys()
        kernel = pocket.variables["params"]["a"]["b"]["kernel"]
        expected = variables["params"]["a"]["b"]["kernel"]
        assert kernel.dtype == np.float32
        assert pocket.variables["params"]["a"]["scale"].shape == ()
        np.testing.assert_allclose(kernel, expected, atol=tolerance)
    save_pocket(tmp_path, "other", {"params": variables["params"]}, CONFIG, **FACTS)
    assert load_pocket(tmp_path / "other.json").variables["batch_stats"] == {}
    with pytest.raises(ValueError, match="has 2 models"):
        load_pocket(tmp_path)


def test_what_is_damaged_or_absent_is_one_sentence(variables, tmp_path):
    with pytest.raises(FileNotFoundError, match="has no model"):
        load_pocket(tmp_path)
    assert not is_pocket(tmp_path)
    with pytest.raises(FileNotFoundError, match="no file .*none.json"):
        load_pocket(tmp_path / "none.json")
    card = save_pocket(tmp_path, "tiny", variables, CONFIG, **FACTS)
    tensors, text = card.with_suffix(".safetensors"), card.read_text()
    whole = tensors.read_bytes()
    tensors.write_bytes(whole[:-1])
    with pytest.raises(Damaged, match="tiny.safetensors is damaged: SHA-256"):
        load_pocket(card)
    tensors.unlink()
    with pytest.raises(FileNotFoundError, match="beside the card tiny.json"):
        load_pocket(card)
    tensors.write_bytes(whole)
    content = json.loads(text)
    for broken in (text[:50], "[]", json.dumps(content | {"format": "x"})):
        card.write_text(broken)
        with pytest.raises(Damaged, match="tiny.json is damaged"):
            load_pocket(card)
    card.write_text(json.dumps({k: v for k, v in content.items() if k != "licences"}))
    with pytest.raises(Damaged, match="it lacks licences"):
        load_pocket(card)
