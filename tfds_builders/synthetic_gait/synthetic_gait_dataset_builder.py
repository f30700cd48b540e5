"""The embedded data set: synthetic walkers, without a download. See README.md."""

import dataclasses

import tensorflow_datasets as tfds

from tfds_builders import walker
from tfds_builders.features import RecordBuilder, record_features
from tfds_builders.parallel import ordered_map
from tfds_builders.synthetic_gait import captions, sequences

# of the pocket encoders' walkers. Everything random of a walker is drawn from (seed,
# ...), so no person, outfit or scene of another seed is among them
POCKET_SEED = 1000


@dataclasses.dataclass
class SyntheticGaitConfig(tfds.core.BuilderConfig):
    """Numbers of identities, cameras (1 to 4) and frames per sequence."""

    train_subjects: int = 60
    test_subjects: int = 30
    num_cameras: int = 4
    num_frames: int = 24
    fps: float = 12.0
    seed: int = 0
    outdoors: float = 0.0  # share of the scenes before a sky
    described: bool = False  # with regions and captions

    @property
    def plan(self) -> sequences.Plan:
        return sequences.Plan(
            **{name: getattr(self, name) for name in sequences.Plan._fields}
        )


class Builder(RecordBuilder):
    """Articulated 3-D walkers under CCPG's conditions and cameras."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First release."}
    BUILDER_CONFIGS = [
        SyntheticGaitConfig(name="default", description="60 + 30 identities."),
        SyntheticGaitConfig(
            name="tiny",
            description="4 + 4 identities, for tests.",
            train_subjects=4,
            test_subjects=4,
            num_cameras=2,
            num_frames=8,
        ),
        SyntheticGaitConfig(
            name="pocket",
            description="Regions and captions, to train the pocket encoders.",
            train_subjects=200,
            test_subjects=30,
            num_frames=4,
            fps=2.7,  # an odd part of a stride: the poses differ
            seed=POCKET_SEED,
            outdoors=0.35,
            described=True,
        ),
        SyntheticGaitConfig(
            name="pocket_tiny",
            description="The same of 4 + 4 identities, for tests.",
            train_subjects=4,
            test_subjects=4,
            num_cameras=2,
            num_frames=2,
            fps=2.7,
            seed=POCKET_SEED,
            outdoors=0.35,
            described=True,
        ),
    ]

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            features=record_features(
                walker.HEIGHT,
                walker.WIDTH,
                caption=captions.LENGTH if self.builder_config.described else 0,
            )
        )

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(split) for split in ("train", "test")}

    def _generate_examples(self, split: str):
        config = self.builder_config
        assert isinstance(config, SyntheticGaitConfig)
        tasks = sequences.tasks(config.plan, split)
        yield from ordered_map(sequences.record, tasks, f"synthetic_gait {split}")
