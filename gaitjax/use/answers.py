"""What `gaitjax identify` gives beside its lines: a picture, or a page in one file."""

from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from gaitjax.pictures import charts, page, scores
from gaitjax.retrieval import error_rates
from gaitjax.retrieval.distance import pairwise_distance
from gaitjax.use.gallery import Gallery
from gaitjax.use.identification import Answer

STRIPS = 6  # walks in one picture of the page
COMPARED = 320  # walks of the gallery, at most, in histogram and map


def draw(gallery: Gallery, answers: list[Answer], path: str | PathLike) -> None:
    """A picture: each walk, and its nearest names with their distances."""
    rows = []
    for answer in answers:
        sample = answer.sample
        name = answer.name or answer.verdict
        cells: list[Any] = [
            (f"walk {sample.number}: {name}", _image(sample.thumbnail), None)
        ]
        for candidate in answer.nearest:
            known = answer.verdict == "known" and candidate.name == answer.name
            caption = f"{candidate.name} {candidate.distance:.3g}"
            image = _image(gallery.thumbnail(candidate.row))
            cells.append((caption, image, known or None))
        rows.append((Path(sample.source).name, cells))
    charts.filmstrips(rows, path)


def write(gallery: Gallery, answers: list[Answer], path: str | PathLike) -> None:
    """report.html of an identification: decisions, nearest walks, and the gallery's own
    distances (one person against two persons, and a map)."""
    rows = {
        f"{Path(x.sample.source).name}, walk {x.sample.number}": {
            "decision": x.name if x.verdict == "known" else x.verdict,
            "confidence": x.confidence,
            "nearest": x.nearest[0].name if x.nearest else None,
            "distance": x.distance,
        }
        for x in answers
    }
    pictures = [
        page.picture(
            lambda file, some=answers[i : i + STRIPS]: draw(gallery, some, file),
            "Searched walks and the nearest in the gallery",
        )
        for i in range(0, len(answers), STRIPS)
    ]
    known = sum(x.verdict == "known" for x in answers)
    histogram, chart = _of_gallery(gallery)
    page.write(
        path, "Identification", f"{len(gallery.names())} people in {gallery.folder}",
        [
            ("Decisions", page.table(rows, "walk")),
            ("Nearest in the gallery", "".join(pictures)),
            ("Known or unknown", histogram),
            ("Map of the embeddings", chart),
        ],
        headlines={
            "walks searched": len(answers), "named": known,
            "not named": len(answers) - known,
        },
        footer="gaitjax. A name is a guess, no proof.",
    )  # fmt: skip


def _of_gallery(gallery: Gallery) -> tuple[str, str]:
    """Histogram and map of the gallery's own walks; "" where there are too few."""
    contents = gallery.contents()
    count = len(contents.rows)
    chosen = np.unique(np.linspace(0, count - 1, min(count, COMPARED)).astype(int))
    if len(chosen) < 3:
        return "", ""
    walks, own = contents.take(chosen), contents.own[chosen]
    distance = np.asarray(pairwise_distance(walks, walks, metric=gallery.metric))
    upper = np.triu(np.ones(distance.shape, bool), 1)
    same = own[:, None] == own[None]
    genuine, impostor = distance[same & upper], distance[~same & upper]
    histogram = ""
    if len(genuine) and len(impostor):
        rate, at = error_rates.equal_error_rate(genuine, impostor)
        histogram = page.picture(
            lambda file: scores.histograms(genuine, impostor, file, marks={"EER": at}),
            "Histograms of distances of one person and of two persons",
            f"{len(chosen)} walks of the gallery; equal error rate {100 * rate:.1f} %.",
        )
    names = np.array(contents.names)[own]
    return histogram, scores.map_figure(distance, names)


def _image(data: bytes) -> np.ndarray:
    """uint8 RGB [1 128 W 3] of a thumbnail; grey if none was kept."""
    import cv2

    image = np.full((128, 64, 3), 200, np.uint8)
    if data:
        read: Any = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
        image = cv2.resize(read[..., ::-1], (read.shape[1], 128))
    return image[None]
