"""The text mask with the shipped encoders: it lies on what its prompt names."""

import json

import numpy as np
import pytest

from configs import lmgait
from gaitjax import state, text_masks
from gaitjax.data import source
from tests.fake_datasets import tiny_synthetic


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    tiny_synthetic(folder)
    return source.open_split(str(folder), "synthetic_gait/tiny", "test", ("frames",))


@pytest.fixture(scope="module")
def setup(data):
    config = lmgait.get_config()
    config.data.update(ids_per_batch=1, seqs_per_id=1, num_frames=1)
    config.data.data_dir = str(data.shards[0].parents[3])
    config.data.test_dataset = "synthetic_gait/tiny"
    return config, state.build(config, state.example_batch(config))


def test_places_by_hand():
    masks = np.zeros((1, 8, 8), np.uint8)
    masks[:, :, 2:6] = 1
    keypoints = np.zeros((1, 17, 3), np.float32)
    keypoints[0, 7], keypoints[0, 9] = (2.5, 0.5, 1), (2.5, 7.5, 1)  # a forearm
    keypoints[0, 13], keypoints[0, 15] = (5, 0.5, 1), (5, 7.5, 0)  # not seen
    inside = np.ones((1, 4, 4), bool)
    inside[..., 3] = False
    limbs, person, background = text_masks._places(
        {"masks": masks, "keypoints": keypoints}, inside
    )
    row = np.array([[0, 1, 1, 0]], bool).repeat(4, 0)[None]
    np.testing.assert_array_equal(person, row)
    np.testing.assert_array_equal(limbs, row & np.array([0, 1, 0, 0], bool))
    np.testing.assert_array_equal(background, inside & np.array([1, 0, 0, 0], bool))


def test_masks_of_the_shipped_encoders_mean_what_their_prompts_say(setup, data):
    config, built = setup
    found = text_masks.report(config, built, built.new_state(), data)
    assert found["text"] == "computed"
    json.dumps(found)
    for means in found["text_masks"].values():
        correct, wrong = means["correct"], means["wrong"]
        assert correct["arms_and_legs"] >= 2 * correct["background"]
        assert wrong["background"] > wrong["person"]
    trained = found["text_masks"]["trained"]
    assert trained == found["text_masks"]["untrained"]  # the same state here


def test_without_masks_or_a_text_branch_nothing_is_measured(setup, data):
    config, built = setup
    absent = dict(data.present, keypoints=np.zeros(len(data.index.key), bool))
    found = text_masks.report(
        config, built, built.new_state(), data._replace(present=absent)
    )
    assert found == {"text": "computed"}
    plain = lmgait.get_config()
    plain.model.text.enabled = False
    plain.data.update(ids_per_batch=1, seqs_per_id=1, num_frames=1)
    other = state.build(plain, state.example_batch(plain))
    assert text_masks.report(plain, other, other.abstract_state, data) == {}


def test_with_stored_text_vectors_there_is_no_tower_to_compare_with(setup, data):
    config, built = setup
    whole = built.new_state()
    vectors = text_masks.vectors(config, built.model, state.model_variables(whole))
    assert set(vectors) == {"correct", "wrong"}
    bare = built.new_state(state.stored_part(whole), vectors["correct"])
    variables = state.model_variables(bare)
    assert text_masks.vectors(config, built.model, variables) == {}
