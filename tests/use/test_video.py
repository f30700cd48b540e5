"""Frames and times of files, folders and cameras, whole and damaged."""

import struct

import cv2
import numpy as np
import pytest
import walkers_on_video as drawn

from gaitjax.use import video
from gaitjax.use.video import Video


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """40 images and the video file made of them."""
    images = drawn.walk({"x": 20, "speed": 3}, frames=40, size=(160, 120))
    return drawn.save(tmp_path_factory.mktemp("video") / "clip.avi", images), images


def test_a_file_gives_its_frames_and_times(clip):
    file, images = clip
    read = Video(str(file))
    frames = list(read)
    assert read.count == len(frames) == 40 and not read.fault
    np.testing.assert_allclose([f.time for f in frames], np.arange(40) / 25, atol=1e-3)
    assert np.abs(frames[20].image.astype(int) - images[20]).mean() < 6  # RGB
    assert len(list(read)) == 40  # again from the start
    assert len(read.sampled()) == 40 and read.sampled()[0].shape == (120, 160, 3)


def test_a_truncated_file_ends_early_and_says_so(clip, tmp_path):
    data = clip[0].read_bytes()
    short = tmp_path / "short.avi"
    short.write_bytes(data[: len(data) // 2])
    read = Video(str(short))
    assert 5 < len(list(read)) < 30
    assert f"ends after {read.count} of 40 frames" in read.fault


@pytest.mark.parametrize("content", [b"", b"no video" * 1000])
def test_what_is_no_video_is_one_sentence(content, tmp_path):
    file = tmp_path / "x.mp4"
    file.write_bytes(content)
    with pytest.raises(ValueError, match="x.mp4 is damaged or no video"):
        list(Video(str(file)))


def test_what_is_not_there_is_one_sentence(tmp_path):
    with pytest.raises(FileNotFoundError, match="There is no video, folder or camera"):
        Video(str(tmp_path / "none.avi"))
    with pytest.raises(FileNotFoundError, match="has no images"):
        Video(str(tmp_path))
    with pytest.raises(ValueError, match="The camera 97 does not open"):
        list(Video("97"))


def test_a_folder_in_natural_order_without_its_damaged_images(tmp_path):
    for number in (10, 9, 2):
        image = np.full((20, 30, 3), number * 10, np.uint8)
        cv2.imwrite(str(tmp_path / f"f{number}.png"), image)
    (tmp_path / "f11.png").write_bytes(b"damaged")
    read = Video(str(tmp_path), rate=10.0)
    frames = list(read)
    assert [int(f.image[0, 0, 0]) for f in frames] == [20, 90, 100]
    assert [f.time for f in frames] == [0.0, 0.1, 0.2]
    assert read.fault == "f11.png cannot be read and is left out"
    assert len(read.sampled()) == 3
    for file in tmp_path.iterdir():
        file.write_bytes(b"")
    with pytest.raises(ValueError, match="No frame of"):
        list(Video(str(tmp_path)))


def test_a_portrait_video_is_turned_as_its_metadata_say(clip, tmp_path):
    file = drawn.save(tmp_path / "phone.mp4", clip[1])
    data = bytearray(file.read_bytes())
    # the matrix of the track header: 90 degrees clockwise, as telephones write it
    place = data.index(b"tkhd") + 4 + 40
    one = 1 << 16
    matrix = struct.pack(">9i", 0, one, 0, -one, 0, 0, 120 * one, 0, 1 << 30)
    data[place : place + 36] = matrix
    file.write_bytes(data)
    first = next(iter(Video(str(file)))).image
    assert first.shape == (160, 120, 3)
    upright = np.rot90(first, 1).astype(int)
    assert np.abs(upright - clip[1][0]).mean() < 12


class Capture:
    """cv2.VideoCapture whose frames have the given times."""

    def __init__(self, times):
        self.times, self.at = times, -1

    def isOpened(self):
        return True

    def get(self, what):
        if what == cv2.CAP_PROP_POS_MSEC:
            return 1000 * self.times[self.at]
        return 10.0 if what == cv2.CAP_PROP_FPS else float(len(self.times))

    def read(self):
        self.at += 1
        done = self.at < len(self.times)
        return done, np.zeros((4, 4, 3), np.uint8) if done else None

    def release(self):
        pass


@pytest.mark.parametrize(
    "times, expected",
    [
        ((0.0, 0.04, 0.3, 0.31), (0.0, 0.04, 0.3, 0.31)),
        ((0.0, 0.0, 0.0), (0.0, 0.1, 0.2)),
        ((0.0, 0.5, 0.2), (0.0, 0.5, 0.6)),
    ],
    ids=["variable", "none", "backwards"],
)
def test_times_are_the_file_s_own_where_it_has_any(times, expected, monkeypatch):
    monkeypatch.setattr(cv2, "VideoCapture", lambda source: Capture(times))
    frames = list(Video("0"))
    np.testing.assert_allclose([f.time for f in frames], expected)


def test_silhouettes_are_told_from_photographs(tmp_path):
    for name, image in {
        "photos": drawn.walk({"x": 80, "speed": 0}, frames=1)[0],
        "silhouettes": 255 * (drawn.walk({"x": 80, "speed": 0}, frames=1)[0] > 200),
        "night": np.zeros((20, 20, 3)),
    }.items():
        (tmp_path / name).mkdir()
        made = (
            np.repeat(image.max(-1, keepdims=True), 3, 2) if name[0] == "s" else image
        )
        cv2.imwrite(str(tmp_path / name / "1.png"), made.astype(np.uint8))
    shown = {x.name: video.shows_silhouettes(str(x)) for x in tmp_path.iterdir()}
    assert shown == {"photos": False, "silhouettes": True, "night": False}
