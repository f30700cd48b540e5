"""A user's detector: what its outputs mean, and how it takes the place of motion."""

import cv2
import numpy as np
import onnx_by_hand
import pytest
import walkers_on_video as drawn

from gaitjax.engine.guards import Damaged
from gaitjax.use import detector, tracks
from gaitjax.use.video import Images

# two people (one found twice), a car, and somebody who is hardly there
CENTRES = np.array(
    [[100, 200, 40, 80], [102, 201, 40, 80], [300, 200, 30, 90], [500, 50, 90, 40],
     [600, 60, 20, 50]], np.float32,
)  # fmt: skip
SCORES = np.array([0.9, 0.8, 0.7, 0.95, 0.1], np.float32)
CLASSES = np.array([0, 0, 0, 2, 0])
EXPECTED = [(80, 160, 120, 240), (285, 155, 315, 245)]


def outputs():
    one_hot = np.eye(3, dtype=np.float32)[CLASSES]
    many = np.tile(np.zeros(8, np.float32), (40, 1))
    many[:5] = np.c_[CENTRES, SCORES, one_hot]
    yield "v5", many[None]
    transposed = np.zeros((1, 7, 40), np.float32)
    transposed[0, :4, :5], transposed[0, 4:, :5] = CENTRES.T, (one_hot.T * SCORES)
    yield "v8", transposed
    corners = np.c_[CENTRES[:, :2] - CENTRES[:, 2:] / 2, CENTRES[:, :2]]
    corners[:, 2:] += CENTRES[:, 2:] / 2
    kept = [0, 2, 3, 4]
    yield "inside", np.c_[corners, SCORES, CLASSES][kept][None].astype(np.float32)


@pytest.mark.parametrize(
    "output", [x for _, x in outputs()], ids=[x for x, _ in outputs()]
)
def test_outputs_of_three_kinds_are_understood(output):
    np.testing.assert_allclose(sorted(detector.people(output)), EXPECTED)
    assert detector.people(np.zeros_like(output)) == []


def test_other_outputs_and_files_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"x.onnx gives an output of shape \(1, 4\)"):
        detector.people(np.zeros((1, 4)), "x.onnx")
    with pytest.raises(FileNotFoundError, match="no file none.onnx"):
        detector.load("none.onnx")
    file = tmp_path / "x.onnx"
    file.write_bytes(b"nothing")
    with pytest.raises(Damaged, match="OpenCV cannot read it as an ONNX model"):
        detector.load(str(file))


class Net:
    """Sees the red people of a picture, like a network of the third kind."""

    seen = 0

    def setInput(self, blob):
        Net.seen += 1
        assert blob.shape == (1, 3, 640, 640) and blob.max() <= 1
        red = ((blob[0, 0] - blob[0, 2]) > 0.25).astype(np.uint8)
        _, _, stats, _ = cv2.connectedComponentsWithStats(red)
        self.boxes = [s for s in stats[1:] if s[4] > 2000]

    def forward(self):
        rows = [(x, y, x + w, y + h, 0.9, 0) for x, y, w, h, _ in self.boxes]
        return np.array(rows, np.float32).reshape(1, -1, 6)


@pytest.fixture(scope="module")
def moving():
    """Two people before a camera that moves: nothing of the scene stays."""
    rng = np.random.default_rng(0)
    images = []
    for t in range(40):
        image = np.repeat(rng.integers(60, 150, (240, 400, 1), np.uint8), 3, 2)
        for place in (80, 260):
            drawn.draw(image, place + 2 * t, 210, 120, 0.4 * t)
        images.append(image)
    return np.stack(images)


def test_a_detector_finds_people_before_a_moving_camera(monkeypatch, tmp_path, moving):
    monkeypatch.setattr(cv2.dnn, "readNetFromONNX", lambda file: Net())
    file = tmp_path / "people.onnx"
    file.touch()
    detect, images = detector.load(str(file)), moving
    boxes = detect(0.0, images[0])
    assert len(boxes) == 2 and boxes[0][3] - boxes[0][1] == pytest.approx(120, abs=6)
    assert detect(0.1, images[1]) == []  # it looks five times a second
    detect = detector.load(str(file))
    Net.seen = 0
    found = list(tracks.walks(Images(images), drawn.see, regions=detect))
    assert [walk.refusal for walk in found] == ["", ""] and 5 <= Net.seen <= 9


def test_a_file_of_a_user_s_own_is_run_by_opencv(tmp_path, moving):
    file = tmp_path / "people.onnx"
    file.write_bytes(onnx_by_hand.red_people())
    detect = detector.load(str(file))
    boxes = sorted(detect(0.0, moving[0]))
    for place in (80, 260):  # the middle of a person lies in a box
        assert any(x[0] < place < x[2] and x[1] < 150 < x[3] for x in boxes)
    assert all(min(abs((x[0] + x[2]) / 2 - p) for p in (80, 260)) < 30 for x in boxes)
    assert detect(1.0, drawn.scene()) == []
    found = list(
        tracks.walks(Images(moving), drawn.see, regions=detector.load(str(file)))
    )
    assert [walk.refusal for walk in found] == ["", ""]
