"""The page and the picture of an identification."""

import cv2
import numpy as np
from test_gallery import recogniser, sample

from gaitjax.use import answers
from gaitjax.use.gallery import Gallery
from tests.test_report import check_in_browser, pictures_in


def test_a_page_of_decisions_nearest_walks_and_the_gallery(tmp_path):
    picture = np.random.default_rng(0).integers(0, 255, (128, 64, 3), np.uint8)
    image = cv2.imencode(".jpg", picture)[1].tobytes()
    gallery = Gallery.open(tmp_path / "people", recogniser())
    for person in range(12):
        walks = [sample(person, walk, thumbnail=image) for walk in range(3)]
        gallery.add("<ann>" if person == 0 else f"p{person}", walks)
    found = [gallery.answer(sample(p, 9, thumbnail=image)) for p in (0, 3, 99)]
    assert [x.verdict for x in found] == ["known", "known", "unknown"]
    file = tmp_path / "report.html"
    answers.write(gallery, found, file)
    text = file.read_text()
    assert "&lt;ann&gt;" in text and "<ann>" not in text
    assert "video99.mp4, walk 9" in text and "<td>unknown" in text
    assert "36 walks of the gallery; equal error rate" in text
    pictures = pictures_in(text)
    assert len(pictures) == 3  # nearest walks, histogram, map
    assert all(len(np.unique(x)) > 10 for x in pictures)
    check_in_browser(file, 3)
    answers.draw(gallery, found, tmp_path / "who.png")
    assert cv2.imread(str(tmp_path / "who.png")).shape[1] > 300


def test_a_thumbnail_of_any_shape_is_shown():
    assert answers._image(b"").shape == (1, 128, 64, 3)
    data = cv2.imencode(".png", np.zeros((64, 64), np.uint8))[1].tobytes()
    assert answers._image(data).shape == (1, 128, 64, 3)
