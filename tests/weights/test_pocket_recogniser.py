"""The shipped weights for real people: small, whole, made of nobody who is tested."""

import jax
import pytest

from configs import pocket_recogniser
from gaitjax import models, run_folder
from gaitjax.state import example_batch
from gaitjax.weights import pocket_files
from tfds_builders.cmu_walk import cmu_walk_dataset_builder as cmu
from tfds_builders.seen_gait import seen_gait_dataset_builder as seen
from tfds_builders.synthetic_gait import synthetic_gait_dataset_builder as synthetic

CARD = pocket_files.SHIPPED / "recogniser.json"


@pytest.fixture(scope="module")
def pocket():
    return pocket_files.load_pocket(CARD)


def test_it_fits_a_pocket():
    files = CARD, CARD.with_suffix(".safetensors")
    assert sum(file.stat().st_size for file in files) <= 4_000_000
    assert pocket_files.shipped()["recogniser"] == CARD


def test_the_variables_are_those_of_the_card_s_config(pocket):
    config = run_folder.from_plain(pocket.card["config"])
    model = models.make(config)
    batch = example_batch(config)
    wanted = jax.eval_shape(
        lambda: model.init(
            jax.random.key(0),
            {name: jax.numpy.zeros(x.shape, x.dtype) for name, x in batch.items()},
            train=False,
        )
    )
    shapes = [
        {
            jax.tree_util.keystr(path): x.shape
            for path, x in jax.tree_util.tree_flatten_with_path(tree)[0]
        }
        for tree in (dict(wanted), pocket.variables)
    ]
    assert shapes[0] == shapes[1]


def test_the_config_makes_what_is_shipped(pocket):
    now = run_folder.plain(pocket_recogniser.get_config())
    for group in ("data", "model", "loss", "optimizer", "train"):
        assert now[group] == pocket.card["config"][group], group


def test_who_trained_is_not_who_is_tested(pocket):
    data = pocket.card["data"]
    people = {split: set(numbers) for split, numbers in data["people"].items()}
    assert people["train"] and people["test"]
    assert not people["train"] & people["test"]
    # the other rendered set has another seed; CMU and KTH are real people
    others = {c.seed for c in synthetic.Builder.BUILDER_CONFIGS}
    others |= {c.seed for c in cmu.Builder.BUILDER_CONFIGS}
    assert data["seed"] not in others
    config = seen.Builder.BUILDER_CONFIGS[0]
    assert config.seed == data["seed"]
    for split, numbers in people.items():
        assert numbers == {task.subject for task in config.tasks(split)}
    assert len(people["train"]) == pocket.card["config"]["data"]["num_classes"]
    trained = pocket.card["config"]["data"]["train_dataset"]
    assert trained == "seen_gait"  # and on nothing else


def test_the_card_says_what_the_weights_are_not(pocket):
    assert any("benchmark" in line for line in pocket.card["data"]["is not"])
    assert pocket.card["results"] and pocket.card["licences"]
