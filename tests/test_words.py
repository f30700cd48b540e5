"""The words of the rendered world, and what the renderer says that pixels show."""

import numpy as np
import pytest

from configs import prompts, words
from gaitjax.models import pocket_encoders
from tfds_builders import appearance, figure, walker
from tfds_builders.synthetic_gait import captions, sequences

PLAN = sequences.Plan(3, 2, 2, 2, 2.7, 5, outdoors=0.5, described=True)


def test_ids_are_those_of_the_shipped_prompts():
    for prompt, ids in prompts.TOKEN_IDS.items():
        assert words.token_ids(prompt) == ids


def test_the_renderer_and_the_words_number_regions_alike():
    assert words.PARTS == figure.PARTS
    assert len(words.PARTS) == pocket_encoders.NUM_PARTS
    assert words.NUM_REGIONS == pocket_encoders.NUM_REGIONS
    assert words.MATERIALS_PER_PART == walker.MATERIALS_PER_PART
    for number, name in enumerate(words.MATERIALS):
        assert getattr(appearance, name.upper()) == number
    for number, name in enumerate(words.SURROUNDINGS):
        assert getattr(appearance, name.upper()) == number


def test_phrases_name_what_they_say():
    found = dict(words.phrases(300, seed=0, without={"the arms"}))
    assert len(found) == 300 and found == dict(words.phrases(300, 0, {"the arms"}))
    assert "the arms" not in found
    forearm = words.MATERIALS_PER_PART * words.PARTS.index("forearm")
    for text, named in found.items():
        assert len(words.token_ids(text)) <= 32
        if "sky" in text or "clouds" in text:
            assert words.SURROUNDINGS.index("sky") in named
        if "forearm" in text or " arms" in text:
            assert forearm in named
    assert any(not named for named in found.values())  # of things that no frame shows


@pytest.mark.parametrize("task", sequences.tasks(PLAN, "train")[::5])
def test_regions_agree_with_the_mask_and_the_skeleton(task):
    walk = sequences.render(task)
    parts = walk.regions // words.MATERIALS_PER_PART
    inside = walk.regions != appearance.BESIDE
    np.testing.assert_array_equal((parts > 0) & inside, walk.masks > 0)
    nose, wrist, ankle = 0, (9, 10), (15, 16)
    for joints, names in (
        ((nose,), ("head",)),
        (wrist, ("forearm", "hand")),
        (ankle, ("shank", "foot")),
    ):
        for t, points in enumerate(walk.keypoints):
            for joint in joints:
                x, y, confidence = points[joint]
                x, y = min(int(x), walker.WIDTH - 1), min(int(y), walker.HEIGHT - 1)
                if confidence == 1 and inside[t, y, x]:
                    near = parts[t, max(y - 2, 0) : y + 3, max(x - 2, 0) : x + 3]
                    assert {words.PARTS[k] for k in np.unique(near)} & {*names, "bag"}


def test_a_record_has_a_caption_of_known_words_and_regions():
    task = sequences.tasks(PLAN, "train")[1]
    _, record = sequences.record(task)
    assert record["regions"].shape == (2, walker.HEIGHT, walker.WIDTH)
    text = captions.caption(sequences.draw(task))
    ids = words.token_ids(text)
    assert record["captions"].shape == (2, captions.LENGTH)
    assert tuple(record["captions"][0][: len(ids)]) == ids


@pytest.mark.parametrize("name, colour", list(captions.COLOURS.items()))
def test_colours_have_their_names(name, colour):
    assert captions.colour(np.full((32, 32, 3), colour, np.float32)) == name
