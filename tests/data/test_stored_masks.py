"""Masks on disk: packed one by one, and as data sets of earlier builds have them."""

import contextlib
import io
import zlib

import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds

from gaitjax.data import clips, source
from tfds_builders import features

LENGTH, SIZE = 9, (24, 12)  # 12 columns: rows of a PBM file end with padding


def walk(number: int):
    rng = np.random.default_rng(number)
    masks = 255 * rng.integers(0, 2, (LENGTH, *SIZE)).astype(np.uint8)
    return masks if number else None  # the first has none


class Walks(features.RecordBuilder, skip_registration=True):
    """Three sequences with masks and nothing else."""

    VERSION = tfds.core.Version("1.0.0")
    pkg_dir_path = None
    packed = True

    def _info(self):
        spec = features.record_features(*SIZE)
        if not self.packed:
            spec = tfds.features.FeaturesDict(
                dict(spec) | {"masks": features._array((None, *SIZE), np.uint8)}
            )
        return tfds.core.DatasetInfo(builder=self, features=spec)

    def _split_generators(self, _):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for number in range(3):
            key, record = features.make_record(
                f"{number}", "a", "v", ratios=np.ones(LENGTH), masks=walk(number),
                height=SIZE[0], width=SIZE[1],
            )  # fmt: skip
            if not self.packed:
                record["masks"] = features._or_empty(walk(number), SIZE, np.uint8)
            yield key, record


class EarlierWalks(Walks, skip_registration=True):
    packed = False


def prepared(folder, kind) -> source.Source:
    builder = kind(data_dir=str(folder), file_format="array_record")
    with contextlib.redirect_stdout(io.StringIO()):
        builder.download_and_prepare()
    return source.open_split(str(folder), builder.name, "train", ("masks",))


def test_both_layouts_are_read_alike(tmp_path, monkeypatch):
    one, other = (prepared(tmp_path, kind) for kind in (Walks, EarlierWalks))
    assert one.packed_masks and not other.packed_masks
    np.testing.assert_array_equal(one.index.key, other.index.key)
    chosen = np.array([7, 2, 2, 5])
    for row, subject in enumerate(one.index.subject):
        for data in (one, other):
            assert data.present["masks"][row] == (subject != "0")
            if subject == "0":
                with pytest.raises(clips.DamagedRecord, match="has no 'masks'"):
                    clips.load_clip(data, row, chosen, ("masks",))
                continue
            clip = clips.load_clip(data, row, chosen, ("masks",))
            np.testing.assert_array_equal(
                clip["masks"], walk(int(subject))[chosen] // 255
            )
            assert clip["masks"].dtype == np.uint8
    # only the chosen masks are inflated
    inflated, inflate = [], zlib.decompress
    monkeypatch.setattr(
        zlib, "decompress", lambda data: inflated.append(data) or inflate(data)
    )
    row = one.index.subject.tolist().index("1")
    clips.load_clip(one, row, chosen, ("masks",))
    assert inflated[1:] == [one.records[row]["masks"][i] for i in chosen]  # [0]: ratios


def test_a_packed_mask_is_a_picture_of_the_person():
    mask = walk(1)[0]
    packed = features.pack_mask(mask)
    picture = cv2.imdecode(np.frombuffer(zlib.decompress(packed), np.uint8), 0)
    np.testing.assert_array_equal(picture, mask)
    np.testing.assert_array_equal(features.unpack_mask(packed), mask)
    grey = np.tile(np.array([0, 127, 128, 255], np.uint8), (8, 1))
    expected = np.tile(np.array([0, 0, 255, 255]), (8, 1))
    np.testing.assert_array_equal(
        features.unpack_mask(features.pack_mask(grey)), expected
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x[:-6], "masks cannot be inflated"),
        (lambda x: zlib.compress(b"P4\n9"), "mask 1 is not a decodable image"),
        (lambda x: features.pack_mask(np.zeros((8, 4))), "masks differ in size"),
    ],
)
def test_damaged_masks_name_their_sequence(change, message):
    packed = [features.pack_mask(mask) for mask in walk(1)]
    packed[4] = change(packed[4])
    names = np.array(["k"])
    index = source.Index(names, names, names, names, np.array([LENGTH]))
    records = [{"masks": packed, "ratios": np.ones(LENGTH)}]
    data = source.Source("fake", records, index, "f", packed_masks=True)
    clips.load_clip(data, 0, np.arange(4), ("masks",))
    with pytest.raises(clips.DamagedRecord, match=f"fake: Sequence k: {message}"):
        clips.load_clip(data, 0, np.array([3, 4]), ("masks",))
