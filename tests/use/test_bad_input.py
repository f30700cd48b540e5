"""What a user may point the commands at: each has a clear outcome, and nobody who is
enrolled is lost."""

import shutil
import signal
import struct

import cv2
import numpy as np
import pytest
import walkers_on_video as drawn

from configs import gei
from gaitjax import run_folder
from gaitjax.use import commands, cut, person
from gaitjax.use.video import Video

ANNA = {"x": -30, "speed": 10, "stride": 0.3}


@pytest.fixture(autouse=True)
def eyes(monkeypatch):
    monkeypatch.setattr(person, "load", lambda file: drawn.see)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "gei"
    folder.mkdir()
    run_folder.write_config(gei.get_config(), folder)
    return folder


@pytest.fixture(scope="module")
def enrolled(run, tmp_path_factory):
    """The folder of a gallery of anna."""
    folder = tmp_path_factory.mktemp("anna")
    anna = drawn.save(folder / "anna.avi", drawn.walk(ANNA, frames=40))
    words = ["enroll", "anna", str(anna), f"--gallery={folder / 'people'}"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(person, "load", lambda file: drawn.see)
        assert commands.main([*words, f"--model={run}"]) == 0
    return folder / "people"


@pytest.fixture
def call(run, tmp_path, capsys):
    """call(*words) -> (exit code, output, messages)."""

    def call(*words):
        options = [f"--gallery={tmp_path / 'people'}"]
        options += [f"--model={run}"] * (words[0] != "gallery")
        code = commands.main([*map(str, words), *options])
        said = capsys.readouterr()
        return code, said.out, said.err

    return call


# ------------------------------------------------------------------ the videos


def nobody(folder):
    return drawn.save(folder / "nobody.avi", [drawn.scene()] * 20)


def one_frame(folder):
    return drawn.save(folder / "one.avi", drawn.walk({"x": 160, "speed": 0}, frames=1))


def half_a_person(folder):
    half = {"x": 50, "speed": 3, "bottom": 290}
    return drawn.save(folder / "half.avi", drawn.walk(half, frames=20))


def four_people(folder):
    four = [{"x": 60 + 110 * i, "speed": 1.5, "height": 100} for i in range(4)]
    walk = drawn.walk(*({"stride": 0.4} | x for x in four), frames=24, size=(560, 240))
    return drawn.save(folder / "four.avi", walk)


def people_crossing(folder):
    left = {"x": 460, "speed": -6, "stride": 0.4, "colour": drawn.BLUE}
    right = {"x": 20, "speed": 6, "stride": 0.4}
    return drawn.save(
        folder / "cross.avi", drawn.walk(right, left, frames=78, size=(480, 240))
    )


def corrupt(folder):
    (folder / "corrupt.mp4").write_bytes(b"no video" * 1000)
    return folder / "corrupt.mp4"


def truncated(folder):
    walk = drawn.walk({"x": 40, "speed": 4, "stride": 0.4}, frames=60)
    file = drawn.save(folder / "truncated.avi", walk)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    return file


def variable_rate(folder):
    """Every second frame comes late: an MP4 whose table of times has two entries."""
    walk = drawn.walk({"x": 0, "speed": 7, "stride": 0.35}, frames=40)
    file = drawn.save(folder / "variable.mp4", walk)
    data = bytearray(file.read_bytes())
    place = data.index(b"stts")
    count, step = struct.unpack_from(">2I", data, place + 12)
    half = count // 2
    data[place + 8 : place + 20] = struct.pack(
        ">5I", 2, half, step, count - half, 3 * step
    )
    for name in (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stts"):
        (size,) = struct.unpack_from(">I", data, data.index(name) - 4)
        struct.pack_into(">I", data, data.index(name) - 4, size + 8)
    assert data.index(b"moov") > data.index(b"mdat")  # no frame has moved
    file.write_bytes(data)
    return file


def ten_thousand_frames(folder):
    """Two people pass in 10,000 frames, 100 a second."""
    empty, images = drawn.scene(96, 72), []
    for t in range(10_000):
        image = empty
        for begin in (3000, 7000):
            if begin <= t < begin + 240:
                image = empty.copy()
                drawn.draw(image, 0.6 * (t - begin) - 20, 68, 56, 0.08 * t)
        images.append(image)
    return drawn.save(folder / "long.avi", images, rate=100)


def rotated(folder):
    """A telephone's portrait video: frames lie on their side, the header turns them."""
    walk = drawn.walk({"x": -20, "speed": 6, "stride": 0.4}, frames=45, size=(240, 320))
    lying = [np.ascontiguousarray(np.rot90(image)) for image in walk]
    file = drawn.save(folder / "phone.mp4", lying)
    data, one = bytearray(file.read_bytes()), 1 << 16
    place = data.index(b"tkhd") + 44
    matrix = struct.pack(">9i", 0, one, 0, -one, 0, 0, 240 * one, 0, 1 << 30)
    data[place : place + 36] = matrix
    file.write_bytes(data)
    return file


# exit code of identify and parts of what it says, and the same of enroll
OUTCOMES = {
    nobody: ((0, ("nobody was seen walking",)), (2, ("no person was found",))),
    one_frame: (
        (0, ("refused, 1 usable frames, at least 15 needed",)),
        (2, ("Nobody was enrolled: 1 usable frames",)),
    ),
    half_a_person: (
        (0, ("refused, the picture's edge cuts the person in 100%",)),
        (2, ("Nobody was enrolled: the picture's edge cuts",)),
    ),
    four_people: (
        (0, ("nearest anna", "4 walks, 0 refused")),
        (2, ("four.avi shows several people at once",)),
    ),
    people_crossing: (
        (0, ("nearest anna", "4 walks, 0 refused")),
        (2, ("cross.avi shows several people at once",)),
    ),
    corrupt: (
        (2, ("corrupt.mp4 is damaged or no video",)),
        (2, ("corrupt.mp4 is damaged or no video",)),
    ),
    truncated: (
        (0, ("nearest anna", "of 60 frames: truncated or damaged there")),
        (0, (": enrolled", "of 60 frames: truncated or damaged there")),
    ),
    variable_rate: ((0, ("nearest anna",)), (0, (": enrolled",))),
    ten_thousand_frames: (
        (0, ("nearest anna", "2 walks, 0 refused; 10000 frames")),
        None,
    ),
    rotated: ((0, ("nearest anna", "right")), (0, (": enrolled",))),
}


@pytest.mark.parametrize("make", OUTCOMES, ids=lambda x: x.__name__)
def test_every_video_has_a_clear_outcome(call, enrolled, make, tmp_path):
    shutil.copytree(enrolled, tmp_path / "people")
    video = make(tmp_path)
    of_identify, of_enroll = OUTCOMES[make]
    for outcome, words in (
        (of_identify, ("identify", video)),
        (of_enroll, ("enroll", "bob", video)),
    ):
        if outcome is None:
            continue
        expected, parts = outcome
        code, out, err = call(*words)
        assert code == expected, err
        for part in parts:
            assert part in out + err
        assert "Traceback" not in err
    listed = call("gallery", "list")[1]
    assert "anna: 1 walks" in listed
    assert ("bob" in listed) == (of_enroll is not None and of_enroll[0] == 0)


def test_times_of_a_variable_rate_are_the_file_s(tmp_path):
    times = [frame.time for frame in Video(str(variable_rate(tmp_path)))]
    np.testing.assert_allclose(np.diff(times)[:18], 0.04, atol=2e-3)
    np.testing.assert_allclose(np.diff(times)[21:], 0.12, atol=2e-3)


def test_an_empty_gallery_and_an_unknown_name(call, tmp_path):
    anna = drawn.save(tmp_path / "anna.avi", drawn.walk(ANNA, frames=40))
    code, out, err = call("identify", anna)
    assert code == 0 and "nobody is enrolled" in out
    assert "Nobody is enrolled in" in err and "nearest name" not in err
    code, _, err = call("gallery", "remove", "zoe")
    assert code == 2 and "Nobody is called 'zoe'" in err and "it has nobody" in err
    assert call("enroll", "anna", anna)[0] == 0
    code, out, err = call("identify", anna)
    assert code == 0 and "nearest anna" in out  # a gallery of one
    assert "1 person is enrolled, fewer than 10" in err


# ------------------------------------------------------------------ cameras


class Camera:
    """cv2.VideoCapture of camera 0: somebody walks by, again and again, for ever.

    Ctrl-C is pressed at frame `stop`.
    """

    stop, walk = 0, []

    def __init__(self, source):
        self.open, self.at = source == 0, -1

    def isOpened(self):
        return self.open

    def get(self, what):
        return {cv2.CAP_PROP_FPS: 25.0, cv2.CAP_PROP_POS_MSEC: 0.0}.get(what, -1.0)

    def read(self):
        self.at += 1
        if self.at == self.stop:
            signal.raise_signal(signal.SIGINT)
        assert self.at <= self.stop  # it reads no further
        return True, Camera.walk[self.at % len(Camera.walk)][..., ::-1]

    def release(self):
        pass


@pytest.fixture
def camera(monkeypatch):
    passing = {"x": -60, "speed": 8, "stride": 0.4}
    monkeypatch.setattr(Camera, "walk", drawn.walk(passing, frames=60))
    monkeypatch.setattr(cv2, "VideoCapture", Camera)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield Camera
    signal.signal(signal.SIGINT, before)


def test_a_camera_is_watched_until_it_is_stopped(call, camera, tmp_path):
    camera.stop = 40  # while somebody walks by
    code, out, err = call("enroll", "anna", "0")
    assert code == 0 and "anna: 0, walk 1" in out, err
    camera.stop = 150
    code, out, err = call("watch", "0")
    assert code == 0 and out.count("nearest anna") == 3
    assert "0: 3 walks, 0 refused; 151 frames" in err
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert cut.main(["0", f"--out={tmp_path / 'out'}"]) == 0
    assert len(list((tmp_path / "out").glob("camera0-*/*-right"))) == 3
    code, _, err = call("watch", "7")
    assert code == 2 and "The camera 7 does not open" in err


def test_a_second_interrupt_stops_at_once(camera):
    camera.stop = 1000
    video = Video("0")
    with pytest.raises(KeyboardInterrupt), video.until_interrupted():
        for count, _ in enumerate(video):
            signal.raise_signal(signal.SIGINT)
            assert count == 0
            signal.raise_signal(signal.SIGINT)
