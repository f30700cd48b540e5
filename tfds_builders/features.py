"""The schema of all data sets: a record is one walk of one person before one camera.

Records are built and read without TensorFlow: numpy dtypes, array_record shards,
`as_data_source`. Frames are JPEG bytes in a sequence of Text, masks are packed one by
one, so the reader decides which of them to decode.
"""

import zlib
from collections.abc import Sequence
from unittest import mock

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core import example_serializer

SILHOUETTE_SIZE = 64
NUM_KEYPOINTS = 17  # COCO order
MODALITIES = ("frames", "masks", "silhouettes", "keypoints")  # each may be absent
EXTRAS = ("parsing", "points")  # which only some data sets have


class SortedSerializer(example_serializer.ExampleSerializer):
    """Writes a record's fields in sorted order.

    They are a protobuf map, whose order differs between processes, so the same data
    would become different bytes. The class is pickled by name, so Beam's workers use it
    too.
    """

    def serialize_example(self, example) -> bytes:
        return self.get_tf_example(example).SerializeToString(deterministic=True)


class RecordBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Base of all builders: it writes the same bytes in every process."""

    def _download_and_prepare(self, dl_manager, download_config):
        sorted_fields = mock.patch.object(
            example_serializer, "ExampleSerializer", SortedSerializer
        )
        with sorted_fields:  # TFDS has no setting for it
            super()._download_and_prepare(dl_manager, download_config)


def record_features(
    height: int,
    width: int,
    silhouette_size: int = SILHOUETTE_SIZE,
    caption: int = 0,
    joints: int = NUM_KEYPOINTS,
    extras: tuple[str, ...] = (),
) -> tfds.features.FeaturesDict:
    """The features of a record whose frames and masks are `height` x `width` pixels.

    An absent modality is stored with T = 0 (`silhouettes`, `keypoints`) or as an empty
    list (`frames`, `masks`). All present modalities have T = len(ratios).

    caption: tokens of a caption; then records also have `captions` [T caption] and
    `regions` [T height width] (walker.Walk).
    joints: of the key points. extras: names in EXTRAS. "parsing" are class numbers of
    the body's parts, aligned like a silhouette; "points" a point cloud per scan of a
    LiDAR (`pack_points`), whose number differs from T.
    """
    if height != 2 * width:
        raise ValueError(
            f"Frames are twice as high as wide, got {height} x {width}: pad them with "
            "black to height = 2 x width (tfds_builders.frames.fit_crop)."
        )
    described = {
        "captions": _array((None, caption), np.int32),
        "regions": _array((None, height, width), np.uint8),
    }
    optional = {
        "parsing": _array((None, silhouette_size, silhouette_size), np.uint8),
        "points": tfds.features.Sequence(tfds.features.Text()),
    }
    return tfds.features.FeaturesDict(
        (described if caption else {})
        | {name: optional[name] for name in extras}
        | {
            "subject": tfds.features.Text(),
            "condition": tfds.features.Text(),
            "view": tfds.features.Text(),
            "camera": tfds.features.Text(),
            "key": tfds.features.Text(),
            "frames": tfds.features.Sequence(tfds.features.Text()),
            "masks": tfds.features.Sequence(tfds.features.Text()),  # `pack_mask`
            "silhouettes": _array((None, silhouette_size, silhouette_size), np.uint8),
            "keypoints": _array((None, joints, 3), np.float32),
            "ratios": _array((None,), np.float32),
        }
    )


def _array(shape, dtype):
    return tfds.features.Tensor(
        shape=shape, dtype=dtype, encoding=tfds.features.Encoding.ZLIB
    )


def pack_mask(mask: np.ndarray) -> bytes:
    """uint8 [H W], 0 or 255 -> a deflated PBM file (raw, its white is the person).

    One bit per pixel takes half the time of one byte per pixel to inflate; PNG takes
    six times as long.
    """
    height, width = mask.shape
    black = np.packbits(mask <= 127, axis=1)  # 1 in a PBM file
    return zlib.compress(b"P4\n%d %d\n" % (width, height) + black.tobytes())


def unpack_mask(data: bytes) -> np.ndarray:
    """What `pack_mask` packed: uint8 [H W], 0 or 255."""
    import cv2

    file = np.frombuffer(zlib.decompress(data), np.uint8)
    return cv2.imdecode(file, cv2.IMREAD_GRAYSCALE)


def pack_points(points: np.ndarray) -> bytes:
    """A point cloud [N 3] (x, y, z in metres) -> deflated float32."""
    return zlib.compress(np.ascontiguousarray(points, "<f4").tobytes())


def unpack_points(data: bytes) -> np.ndarray:
    """What `pack_points` packed: float32 [N 3]."""
    return np.frombuffer(zlib.decompress(data), "<f4").reshape(-1, 3)


def empty_extra(name: str, silhouette_size: int) -> np.ndarray | list:
    """What a record holds of an extra that its sequence lacks."""
    size = silhouette_size
    return [] if name == "points" else _or_empty(None, (size, size), np.uint8)


def make_record(
    subject: str,
    condition: str,
    view: str,
    *,
    ratios: np.ndarray,
    height: int,
    width: int,
    frames: Sequence[bytes] = (),
    masks: np.ndarray | None = None,
    silhouettes: np.ndarray | None = None,
    keypoints: np.ndarray | None = None,
    silhouette_size: int = SILHOUETTE_SIZE,
    **described: np.ndarray,
) -> tuple[str, dict]:
    """(key, record) of one sequence; absent modalities become empty.

    frames: T JPEG files. masks: uint8 [T H W], 0 or 255, registered with the frames.
    silhouettes: uint8 [T 64 64] (or 128), normalised (`frames.normalise_silhouettes`).
    keypoints: float32 [T 17 3] (or 18), x and y in pixels of their image, confidence.
    ratios: float32 [T], width / height of the person crop before padding.
    described: captions int32 [T L], regions uint8 [T H W], parsing uint8 [T 64 64] and
    points (a list), where the data set has them (`record_features`).

    The camera is the part of `view` before its first underscore (CCPG's convention).
    Raises ValueError if modalities differ in T, and for names that no file should have:
    empty, "..", with a path separator or with a character that is not printable.
    """
    for name in (subject, condition, view):
        if name in ("", ".", "..") or set("/\\") & set(name) or not name.isprintable():
            raise ValueError(
                "Subject, condition and view are printable names other than '', '.' "
                f"and '..', without '/' and '\\', got {(subject, condition, view)}."
            )
    size = silhouette_size
    masks = _or_empty(masks, (height, width), np.uint8)
    if masks.shape[1:] != (height, width):
        raise ValueError(f"Masks are {masks.shape[1:]}, frames {(height, width)}.")
    record = {
        "frames": list(frames),
        "masks": [pack_mask(mask) for mask in masks],
        "silhouettes": _or_empty(silhouettes, (size, size), np.uint8),
        "keypoints": _or_empty(keypoints, (NUM_KEYPOINTS, 3), np.float32),
        **described,
    }
    lengths = {
        name: len(value)
        for name, value in record.items()
        if len(value) and name != "points"
    }
    lengths["ratios"] = len(ratios)
    key = f"{subject}/{condition}/{view}"
    if len(set(lengths.values())) != 1:
        raise ValueError(f"{key}: modalities differ in length: {lengths}.")
    return key, {
        "subject": subject,
        "condition": condition,
        "view": view,
        "camera": view.split("_")[0],
        "key": key,
        "ratios": np.asarray(ratios, np.float32),
        **record,
    }


def _or_empty(array, shape, dtype) -> np.ndarray:
    if array is None:
        return np.zeros((0, *shape), dtype)
    return np.asarray(array, dtype)
