"""Frames with their times from a video file, a folder of images, or a camera."""

import contextlib
import os
import re
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gaitjax.engine.guards import require

IMAGES = (".png", ".jpg", ".jpeg", ".bmp")
FOLDER_RATE = 25.0  # frames/s that a folder of images is taken to have
SAMPLED = 40  # frames that show what the empty scene looks like


class Frame(NamedTuple):
    """time: seconds from the first frame. image: uint8 RGB [H W 3]."""

    time: float
    image: np.ndarray


class Video:
    """Iterates over the Frames of a source, one in memory at a time.

    source: a video file, a folder of image files, or a camera's number ("0"). rate:
    frames/s of a folder, whose files have no times. Times of a video are the file's
    own, so its frame rate may vary; frames are turned as its metadata say. After the
    iteration `count` is the number of frames read, and `fault` says what was wrong with
    the file ("": nothing).

    Raises FileNotFoundError or ValueError if there is nothing to read.
    """

    def __init__(self, source: str, rate: float = FOLDER_RATE):
        self.source, self.rate = str(source), rate
        self.count, self.fault, self.stopped = 0, "", False
        self.camera = bool(re.fullmatch(r"\d+", self.source))
        self.files = []
        if self.camera:
            return
        require(
            os.path.exists(self.source),
            f"There is no video, folder or camera {self.source!r}.",
            FileNotFoundError,
        )
        if os.path.isdir(self.source):
            self.files = image_files(self.source)
            require(
                self.files,
                f"The folder {self.source} has no images ({', '.join(IMAGES)}).",
                FileNotFoundError,
            )

    def __iter__(self) -> Iterator[Frame]:
        self.count, self.fault = 0, ""
        for frame in self._images() if self.files else self._video():
            self.count += 1
            yield frame
            if self.stopped:
                break
        require(
            self.count,
            f"No frame of {self.source} can be read: it is damaged or no video. "
            f"{self.fault}".strip(),
        )

    @contextlib.contextmanager
    def until_interrupted(self) -> Iterator[None]:
        """Within, Ctrl-C ends the frames of a camera, so that walks under way are told.

        A second Ctrl-C interrupts, as the first does for other sources and outside of
        the main thread.
        """
        before, self.stopped = signal.getsignal(signal.SIGINT), False
        main = threading.current_thread() is threading.main_thread()
        if not (self.camera and main) or before is signal.SIG_IGN:
            yield
            return

        def stop(*_) -> None:
            self.stopped = True
            signal.signal(signal.SIGINT, before)

        signal.signal(signal.SIGINT, stop)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    def _images(self) -> Iterator[Frame]:
        shape = None
        for number, file in enumerate(self.files):
            image = read_image(file)
            if image is None or image.shape != (shape or image.shape):
                what = "cannot be read" if image is None else "differs in size"
                self.fault = self.fault or f"{file.name} {what} and is left out"
                continue
            shape = image.shape
            yield Frame(number / self.rate, image)

    def _video(self) -> Iterator[Frame]:
        import cv2

        capture = self._open()
        try:
            expected = capture.get(cv2.CAP_PROP_FRAME_COUNT)
            step = 1 / (capture.get(cv2.CAP_PROP_FPS) or FOLDER_RATE)
            last, number = -step, 0
            while True:
                done, image = capture.read()
                if not done:
                    break
                time = capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
                # some containers and cameras have no times, or broken ones
                last = time if time > last else last + step
                number += 1
                yield Frame(last, cv2.cvtColor(image, cv2.COLOR_BGR2RGB))
            # the count in a header is an estimate; a few frames less are no fault
            if not self.camera and number < 0.95 * expected - 2:
                self.fault = (
                    f"it ends after {number} of {expected:.0f} frames: truncated or "
                    "damaged there"
                )
        finally:
            capture.release()

    def sampled(self) -> list[np.ndarray]:
        """Up to SAMPLED images spread over the first minutes; [] of a camera.

        Read ahead of the iteration, to know the empty scene from the first frame on.
        """
        if self.camera:
            return []
        if self.files:
            step = -(-len(self.files) // SAMPLED)
            read = (read_image(file) for file in self.files[::step])
            return [small(image) for image in read if image is not None]
        import cv2

        capture = self._open()
        try:
            seconds = 120 * (capture.get(cv2.CAP_PROP_FPS) or FOLDER_RATE)
            total = min(capture.get(cv2.CAP_PROP_FRAME_COUNT), seconds)
            step, images, number = max(1, int(total // SAMPLED)), [], 0
            while len(images) < SAMPLED and capture.grab():
                if number % step == 0:
                    done, image = capture.retrieve()
                    images += [small(image[..., ::-1])] if done else []
                number += 1
            return images
        finally:
            capture.release()

    def _open(self):
        import cv2

        capture = cv2.VideoCapture(int(self.source) if self.camera else self.source)
        require(
            capture.isOpened(),
            f"The camera {self.source} does not open."
            if self.camera
            else f"{self.source} is damaged or no video that OpenCV can read.",
        )
        return capture


class Images:
    """Images in memory, uint8 RGB [T H W 3], in place of a Video."""

    def __init__(self, images: np.ndarray, rate: float = FOLDER_RATE):
        self.images, self.rate, self.count = images, rate, len(images)

    def __iter__(self) -> Iterator[Frame]:
        return (Frame(t / self.rate, image) for t, image in enumerate(self.images))

    def sampled(self) -> list[np.ndarray]:
        step = max(1, -(-len(self.images) // SAMPLED))
        return [small(image) for image in self.images[::step]]


def small(image: np.ndarray, width: int = 320) -> np.ndarray:
    """The image [H W 3], shrunk to at most `width` columns."""
    import cv2

    if image.shape[1] <= width:
        return np.ascontiguousarray(image)
    size = width, max(1, round(image.shape[0] * width / image.shape[1]))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)


def image_files(folder: str) -> list[Path]:
    """The images of a folder; frame 10 comes after frame 9."""

    def natural(file: Path) -> list:
        parts = re.split(r"(\d+)", file.name)
        return [(int(p), p) if p.isdecimal() else (-1, p) for p in parts]

    found = (x for x in Path(folder).iterdir() if x.suffix.lower() in IMAGES)
    return sorted((x for x in found if not x.name.startswith(".")), key=natural)


def read_image(file: Path) -> np.ndarray | None:
    """uint8 RGB [H W 3], or None if it is no readable image."""
    import cv2

    data = np.frombuffer(file.read_bytes(), np.uint8)
    image = cv2.imdecode(data, cv2.IMREAD_COLOR) if len(data) else None
    return None if image is None else cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def shows_silhouettes(folder: str) -> bool:
    """Whether the images of a folder are silhouettes: grey, nearly all black or white.

    Judged by the image in the middle.
    """
    files = image_files(folder)
    image = read_image(files[len(files) // 2]) if files else None
    if image is None or np.ptp(image.astype(int), axis=2).max() > 16:
        return False
    extreme = ((image < 16) | (image > 239)).mean()
    # a dark photograph has hardly any white
    return bool(extreme > 0.9 and (image > 239).mean() > 0.02)
