"""Real optical motion capture of walking people, rendered. See README.md."""

import dataclasses
import json
import urllib.request
from pathlib import Path

import tensorflow_datasets as tfds
from etils import epath

from tfds_builders import walker
from tfds_builders.cmu_walk import sequences
from tfds_builders.features import RecordBuilder, record_features
from tfds_builders.parallel import ordered_map

SITE = "http://mocap.cs.cmu.edu/subjects"
_LIST = "; ".join(
    f"{subject}: " + ", ".join(f"{trial:02d}" for trial in trials)
    for subject, trials in sequences.WALKS.items()
)
INSTRUCTIONS = (
    f"For each subject NN, download the skeleton {SITE}/NN/NN.asf and the walks "
    f"{SITE}/NN/NN_MM.amc into DIR/NN/ and pass --manual_dir=DIR. "
    f"Walks MM of NN: {_LIST}."
)


@dataclasses.dataclass
class CmuWalkConfig(tfds.core.BuilderConfig):
    """max_recordings: per person. num_frames: at most, per sequence (12 per second)."""

    num_cameras: int = 4
    max_recordings: int = 9
    num_frames: int = 48
    seed: int = 0


class Builder(RecordBuilder):
    """Walks of the CMU motion capture database under CCPG's conditions."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First release."}
    BUILDER_CONFIGS = [
        CmuWalkConfig(name="default", description="14 people, 4 cameras."),
        CmuWalkConfig(
            name="tiny",
            description="One camera, three walks a person, for tests.",
            num_cameras=1,
            max_recordings=3,
            num_frames=12,
        ),
    ]
    MANUAL_DOWNLOAD_INSTRUCTIONS = INSTRUCTIONS

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            features=record_features(walker.HEIGHT, walker.WIDTH)
        )

    def _split_generators(self, dl_manager):
        folder = _local_folder(dl_manager) or _download(dl_manager)
        return {"test": self._generate_examples(folder)}

    def _generate_examples(self, folder: Path):
        config = self.builder_config
        assert isinstance(config, CmuWalkConfig)
        found, missing = sequences.recordings(
            folder,
            seed=config.seed,
            num_cameras=config.num_cameras,
            max_recordings=config.max_recordings,
            num_frames=config.num_frames,
        )
        skipped, rendered = {}, 0
        for outcome in ordered_map(
            sequences.render, found, "cmu_walk", unit="recording", min_per_worker=4
        ):
            if outcome.problem:
                skipped[outcome.name] = outcome.problem
            rendered += not outcome.problem
            yield from outcome.records
        if not rendered:
            raise FileNotFoundError(
                f"No readable walk in {folder}; {len(missing)} are missing, "
                f"{len(skipped)} unreadable or short: {skipped}. {INSTRUCTIONS}"
            )
        report = {"recordings": rendered, "missing": missing, "skipped": skipped}
        text = json.dumps(report, indent=1)
        epath.Path(self.data_dir).joinpath("build_report.json").write_text(text)
        print(
            f"cmu_walk: {rendered} recordings rendered, {len(missing)} of the list "
            f"missing, {len(skipped)} skipped (build_report.json)",
            flush=True,
        )


def _local_folder(dl_manager) -> Path | None:
    """--manual_dir or its sub-folder cmu_walk; None if no --manual_dir was given.

    Raises FileNotFoundError if neither has recordings.
    """
    try:
        given = Path(dl_manager.manual_dir)
    except AssertionError:  # TFDS: there is no such folder, or it is empty
        return None
    for folder in (given, given / "cmu_walk"):
        if any(folder.glob("[0-9][0-9]/*.asf")):
            return folder
    raise FileNotFoundError(
        f"No NN/NN.asf in {given} nor in {given / 'cmu_walk'}. {INSTRUCTIONS}"
    )


def _download(dl_manager) -> Path:
    """Downloads the listed files from the database's site; returns their folder."""
    names = [f"{subject}/{subject}.asf" for subject in sequences.WALKS]
    names += [
        f"{subject}/{subject}_{trial:02d}.amc"
        for subject, trials in sequences.WALKS.items()
        for trial in trials
    ]
    try:  # first a quick request, because failing downloads retry for a minute
        urllib.request.urlopen(f"{SITE}/{names[0]}", timeout=10).close()
        fetched = dl_manager.download({name: f"{SITE}/{name}" for name in names})
    except Exception as error:  # TFDS and its HTTP library raise a dozen types
        raise FileNotFoundError(
            f"No --manual_dir was given and {SITE} cannot be reached "
            f"({type(error).__name__}). {INSTRUCTIONS}"
        ) from error
    folder = Path(dl_manager.download_dir) / "cmu_walk"
    for name, path in fetched.items():
        place = folder / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(Path(path).read_bytes())
    return folder
