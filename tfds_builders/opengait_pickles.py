"""Reads sequences preprocessed for OpenGait: pickled numpy arrays, id/type/view/*.pkl.

Python's unpickler runs any code that a file asks for, so this module has its own, which
admits numbers, lists and plain numpy arrays only.
"""

import io
import pickle
import re
from collections.abc import Callable, Iterator, Mapping

import cv2
import numpy as np
from etils import epath

from tfds_builders.archives import (
    Outcome,
    Sequence,
    files_in,
    found_at,
    unreadable,
    walk,
)
from tfds_builders.frames import (
    encode_jpeg,
    fit_frame,
    mask_box,
    normalise_silhouettes,
)
from tfds_builders.image_folders import outcome

# role of a file -> pattern of its name without ".pkl"; VIEW.pkl has silhouettes
ROLES = {
    "silhouettes": r"-aligned-sils$",
    "padded_frames": r"-aligned-rgbs$",
    "frames": r"-rgbs$",
    "masks": r"-sils$",
    "ratios": r"-ratios$",
}
# the four files of a sequence that was preprocessed with RGB
REQUIRED = ("ratios", "frames|padded_frames", "masks", "silhouettes")


# --- the unpickler


class _DType:
    """Stands in for numpy.dtype: a kind of number and its byte order."""

    def __init__(self, code, *_):
        code = code.decode() if isinstance(code, bytes) else code
        if not re.fullmatch(r"b1|[iu][1248]|f[248]", str(code)):
            raise pickle.UnpicklingError(f"dtype {code!r}: not an array of numbers")
        self.dtype = np.dtype(code)

    def __setstate__(self, state):
        if state[1] in ("<", ">"):
            self.dtype = self.dtype.newbyteorder(state[1])


class _Array:
    """Stands in for numpy.ndarray; its content arrives last."""

    value: np.ndarray | None = None

    def __setstate__(self, state):
        _, shape, kind, fortran, data = state
        if not isinstance(kind, _DType) or not isinstance(data, bytes):
            raise pickle.UnpicklingError("an array that holds objects, not numbers")
        self.value = _from_bytes(data, kind, shape, "F" if fortran else "C").value


def _reconstruct(*_):
    return _Array()


def _from_bytes(data, kind, shape, order, axis_order=None) -> _Array:
    array = _Array()
    flat = np.frombuffer(data, kind.dtype)
    array.value = flat.reshape(shape, order="F" if order == "F" else "C")
    if order == "K" and axis_order is not None:
        array.value = array.value.transpose(axis_order)
    return array


def _scalar(kind, data):
    return np.frombuffer(data, kind.dtype)[0].item()


def _latin1(text, encoding):
    """Bytes as Python 2 protocols spell them."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"codec {encoding!r}")
    return text.encode("latin1")


class _Ndarray:
    """Stands in for the class numpy.ndarray, which pickles mention but never call."""


class _Admitted:
    """Wraps a function that pickles may call, so that they cannot change it.

    The BUILD opcode could otherwise set a function's defaults or a class's methods, for
    all pickles that are read afterwards.
    """

    __slots__ = ("function",)

    def __init__(self, function: Callable):
        self.function = function

    def __call__(self, *arguments):
        return self.function(*arguments)

    def __setstate__(self, state):
        raise pickle.UnpicklingError("it sets attributes; no such pickle is admitted")


_ADMITTED: Mapping[tuple[str, str], _Admitted] = {
    ("numpy", "dtype"): _Admitted(_DType),
    ("numpy", "ndarray"): _Admitted(_Ndarray),
    ("_codecs", "encode"): _Admitted(_latin1),
    **{
        (f"numpy.{core}.{module}", name): _Admitted(function)
        for core in ("core", "_core")
        for module, name, function in (
            ("multiarray", "_reconstruct", _reconstruct),
            ("multiarray", "scalar", _scalar),
            ("numeric", "_frombuffer", _from_bytes),
        )
    },
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module, name):
        if (module, name) not in _ADMITTED:
            raise pickle.UnpicklingError(
                f"it asks for {module}.{name}; only arrays of numbers are admitted"
            )
        return _ADMITTED[module, name]


def load_array(data: bytes) -> np.ndarray:
    """The array in a pickle, or the stack of a list of arrays or numbers.

    Raises ValueError. Its text begins with "refused" if the pickle asks for anything
    but arrays of numbers, "ragged" for a list of arrays of different shapes, otherwise
    "corrupt".
    """
    try:
        value = _Unpickler(io.BytesIO(data)).load()
    except pickle.UnpicklingError as error:
        kind = "refused" if "admitted" in str(error) else "corrupt"
        raise ValueError(f"{kind}: {error}") from error
    except Exception as error:  # damaged pickles raise a dozen types
        raise ValueError(f"corrupt: {type(error).__name__}: {error}") from error
    if isinstance(value, _Array):
        if value.value is None:
            raise ValueError("corrupt: an array without content")
        return value.value
    if not isinstance(value, (list, tuple)):
        raise ValueError(f"corrupt: a {type(value).__name__}, not an array")
    items = [item.value if isinstance(item, _Array) else item for item in value]
    shapes = {np.shape(item) for item in items if item is not None}
    if len(shapes) > 1:
        raise ValueError(f"ragged: frames of shapes {sorted(shapes)[:3]}")
    array = np.array(items)
    if array.dtype.kind not in "biuf":
        raise ValueError(f"corrupt: a list of {array.dtype}, not of numbers")
    return array


# --- the layout


def find(
    root: epath.Path,
    split_of: Callable[[str], str | None],
    roles: Mapping[str, str] = ROLES,
) -> Iterator[Sequence]:
    """Sequences id/type/view/*.pkl. roles: role of a file -> pattern of its name."""
    for names in walk(root, 3):
        files, view = {}, names[-1] if names else ""
        for file in files_in(root / "/".join(names), (".pkl",)):
            stem = file.name.removesuffix(".pkl")
            matches = [role for role, name in roles.items() if re.search(name, stem)]
            if stem == view:
                matches = ["silhouettes"]
            for role in matches[:1]:
                files.setdefault(role, str(file))
        yield found_at(names, split_of, files)


def read(
    sequence: Sequence,
    *,
    height: int,
    silhouette_size: int,
    interpolation: int = cv2.INTER_CUBIC,
    optional: tuple[str, ...] = (),
) -> Outcome:
    """The record of one sequence's pickles.

    Roles in `files`:
    "silhouettes" [T s s], normalised; if cut to 11/16 of the width, padded back.
    "padded_frames" [T 3 2w w].
    "frames" [T 3 h h] or [T h h 3], "masks" [T h h]: crops squeezed into squares, which
    "ratios", [T] = W / H or [T 2] = (H, W), stretch back.
    "masks_or_silhouettes": masks if they are as large as the frames.
    "keypoints" [T 17 3], in the coordinates of their file.

    optional: roles; if such a file is damaged, the sequence is kept with a note. Frames
    whose silhouette is empty are dropped from all modalities and counted.
    """
    if not sequence.files:
        return Outcome(sequence, None, "empty: no pickle of a known name")
    try:
        arrays, note = _load(sequence.files, optional)
        lengths = {role: len(array) for role, array in arrays.items()}
        if len(set(lengths.values())) != 1:
            raise ValueError(f"ragged: arrays differ in length: {lengths}")
        if not next(iter(lengths.values())):
            return Outcome(sequence, None, "empty: arrays of no frames")
        modalities = _modalities(arrays, height, silhouette_size, interpolation)
        count = len(modalities["ratios"])
        modalities = _with_a_person(modalities)
        made = outcome(sequence, count, height, silhouette_size, **modalities)
        return made._replace(note=note)
    except (ValueError, OSError, cv2.error) as error:
        return unreadable(sequence, error)


def _load(files: Mapping[str, str], optional) -> tuple[dict[str, np.ndarray], str]:
    """role -> array, and a note on optional files that are unusable."""
    arrays, note = {}, ""
    for role, path in sorted(files.items(), key=lambda item: item[0] in optional):
        try:
            array = load_array(epath.Path(path).read_bytes())
            if role in optional and (array.ndim != 3 or len(array) != _length(arrays)):
                raise ValueError(f"ragged: shape {array.shape}")
            if role == "keypoints" and array.shape[1:] != (17, 3):
                raise ValueError(f"corrupt: shape {array.shape}, expected (T, 17, 3)")
            if not np.isfinite(array).all():
                raise ValueError("corrupt: values that are not finite")
            arrays[role] = array
        except ValueError as error:
            kind, _, text = str(error).partition(": ")
            text = f"{kind}: {epath.Path(path).name}: {text}"
            if role not in optional or kind == "refused":
                raise ValueError(text) from error
            note += ("; " if note else "") + f"without {role}, {text}"
    if not arrays or any(array.ndim == 0 for array in arrays.values()):
        raise ValueError("corrupt: no array with a time axis")
    sizes = {role: array.shape[1:] for role, array in arrays.items()}
    if "masks_or_silhouettes" in arrays:
        masks = {sizes.get("frames", ())[:2], sizes.get("frames", ())[1:]}
        role = "masks" if sizes["masks_or_silhouettes"] in masks else "silhouettes"
        arrays[role] = arrays.pop("masks_or_silhouettes")
    return arrays, note


def _length(arrays: Mapping[str, np.ndarray]) -> int:
    """T of the required arrays, which are read first."""
    return len(arrays.get("ratios", next(iter(arrays.values()), ())))


def _modalities(arrays, height, silhouette_size, interpolation) -> dict:
    ratios = _ratios(arrays["ratios"]) if "ratios" in arrays else None
    made = {}
    if "padded_frames" in arrays:
        frames = _channels_last(arrays["padded_frames"])
        if frames.shape[1:3] != (height, height // 2):
            raise ValueError(
                f"frames are {frames.shape[1]}x{frames.shape[2]}, expected "
                f"{height}x{height // 2}"
            )
        made["frames"] = [encode_jpeg(frame) for frame in frames]
    squeezed = [r for r in ("frames", "masks") if r in arrays and r not in made]
    if squeezed and ratios is None:
        raise ValueError(f"{squeezed[0]} without ratios cannot be stretched back")
    if "frames" in squeezed and ratios is not None:
        frames = _channels_last(arrays["frames"])
        made["frames"] = [
            encode_jpeg(fit_frame(frame, ratio, height))
            for frame, ratio in zip(frames, ratios)
        ]
    if "masks" in squeezed and ratios is not None:
        masks = _bytes(arrays["masks"], 3)
        made["masks"] = np.stack(
            [_fit_mask(mask, ratio, height) for mask, ratio in zip(masks, ratios)]
        )
    if "silhouettes" in arrays:
        silhouettes = _bytes(arrays["silhouettes"], 3)
        made["silhouettes"] = _square(silhouettes, silhouette_size)
    elif "masks" in made:
        made["silhouettes"] = normalise_silhouettes(
            made["masks"], silhouette_size, interpolation
        )
    if "keypoints" in arrays:
        made["keypoints"] = arrays["keypoints"].astype(np.float32)
    if not made.keys() & {"silhouettes", "frames", "masks"}:
        raise ValueError(f"none of silhouettes, frames, masks: {sorted(arrays)}")
    if ratios is None:  # nothing is squeezed: measure the silhouettes
        if "silhouettes" not in made:
            raise ValueError("frames without ratios")
        boxes = [mask_box(s) or (0, 0, 1, 1) for s in made["silhouettes"]]
        ratios = [(right - left) / (low - top) for left, top, right, low in boxes]
    return {"ratios": np.asarray(ratios, np.float32), **made}


def _with_a_person(modalities: dict) -> dict:
    """Drops the frames whose silhouette has no pixel from all modalities."""
    if "silhouettes" not in modalities:
        return modalities
    seen = modalities["silhouettes"].any((1, 2))  # [T]
    return {
        name: value[seen]
        if isinstance(value, np.ndarray)
        else [frame for frame, kept in zip(value, seen) if kept]
        for name, value in modalities.items()
    }


def _ratios(array: np.ndarray) -> np.ndarray:
    """Width / height [T] of stored ratios [T] or sizes [T 2] = (H, W)."""
    if array.ndim == 2 and array.shape[1] == 2:
        if (array <= 0).any():
            raise ValueError("a crop of no height or width")
        array = array[:, 1] / array[:, 0]
    if array.ndim != 1 or not (np.isfinite(array) & (array > 0)).all():
        raise ValueError(f"ratios {array.shape} are not T positive numbers")
    return array.astype(np.float64)


def _channels_last(array: np.ndarray) -> np.ndarray:
    """RGB uint8 [T H W 3] from frames with channels first or last."""
    array = _bytes(array, 4)
    if array.shape[1] == 3 and array.shape[3] != 3:
        array = np.moveaxis(array, 1, 3)  # [T H W 3]
    if array.shape[3] != 3:
        raise ValueError(f"frames {array.shape} have no three channels")
    return np.ascontiguousarray(array)


def _bytes(array: np.ndarray, ndim: int) -> np.ndarray:
    """uint8 0..255 from values 0..255, or 0..1 if none is above 1, of any dtype."""
    if array.ndim != ndim:
        raise ValueError(f"an array {array.shape}, expected {ndim} axes, time first")
    if array.max(initial=0) <= 1:
        array = np.round(array * 255.0)
    if not np.isfinite(array).all() or array.min() < 0 or array.max() > 255:
        raise ValueError("values outside 0..255")
    return array.astype(np.uint8)


def _fit_mask(mask: np.ndarray, ratio: float, height: int) -> np.ndarray:
    person = np.where(mask > 127, 255, 0).astype(np.uint8)
    return np.where(fit_frame(person, ratio, height) > 127, 255, 0).astype(np.uint8)


def _square(silhouettes: np.ndarray, size: int) -> np.ndarray:
    """Silhouettes [T size size]; cut ones get their empty margins back."""
    cut = 11 * size // 16
    if silhouettes.shape[1:] == (size, cut):
        margin = (size - cut) // 2
        return np.pad(silhouettes, ((0, 0), (0, 0), (margin, margin)))
    if silhouettes.shape[1:] != (size, size):
        raise ValueError(
            f"silhouettes are {silhouettes.shape[1]}x{silhouettes.shape[2]}, expected "
            f"{size}x{size} (or cut, {size}x{cut}); there are configs for 64 and 128"
        )
    return silhouettes
