"""Rendered walkers as the person model sees them. See README.md."""

import dataclasses

import tensorflow_datasets as tfds

from tfds_builders import walker
from tfds_builders.features import RecordBuilder, record_features
from tfds_builders.parallel import ordered_map
from tfds_builders.seen_gait import sequences

EXACT_FROM, TEST_FROM = 3001, 9001  # first numbers of identities


@dataclasses.dataclass
class SeenGaitConfig(tfds.core.BuilderConfig):
    """Numbers of identities; of the exact ones, the person model sees nothing.

    seed: no other builder draws people from it.
    """

    train_subjects: int = 377
    exact_subjects: int = 52  # more of the train split
    test_subjects: int = 60
    seed: int = 15_001

    def tasks(self, split: str) -> list[sequences.Task]:
        parts = {
            "train": (
                (1, self.train_subjects, True),
                (EXACT_FROM, self.exact_subjects, False),
            ),
            "test": ((TEST_FROM, self.test_subjects, True),),
        }[split]
        return [
            sequences.Task(self.seed, first + i, seen)
            for first, count, seen in parts
            for i in range(count)
        ]


class Builder(RecordBuilder):
    """What trains the pocket recogniser: four or eight walks of each identity."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First release."}
    BUILDER_CONFIGS = [
        SeenGaitConfig(name="default", description="429 + 60 identities."),
        SeenGaitConfig(
            name="tiny",
            description="6 + 4 identities, for tests.",
            train_subjects=4,
            exact_subjects=2,
            test_subjects=4,
        ),
    ]

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            features=record_features(walker.HEIGHT, walker.WIDTH)
        )

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(split) for split in ("train", "test")}

    def _generate_examples(self, split: str):
        config = self.builder_config
        assert isinstance(config, SeenGaitConfig)
        for made in ordered_map(
            sequences.records, config.tasks(split), f"seen_gait {split}",
            unit="person", min_per_worker=4,
        ):  # fmt: skip
            yield from made
