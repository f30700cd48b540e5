"""What a run draws, and that every modality is drawn as images."""

import io

import numpy as np
import pytest
from PIL import Image

from configs import gaittr
from gaitjax.data.source import Index, Source
from gaitjax.pictures import clips, run

FRAMES = 5
SIZE = {"frames": (24, 12), "masks": (24, 12)}  # others: 64 x 44, cut from 64 x 64


def walk(rng):
    """Key points [T 17 3] of somebody upright whose ankles swing, in pixels."""
    points = np.zeros((FRAMES, 17, 3), np.float32)
    points[..., 0] = 300 + 30 * rng.random(17) + 20 * np.sin(np.arange(FRAMES))[:, None]
    points[..., 1] = np.linspace(100, 500, 17) + 5 * rng.random((FRAMES, 17))
    points[..., 2] = 0.9
    return points


def jpeg(rng):
    file = io.BytesIO()
    image = rng.integers(0, 255, (24, 12, 3)).astype(np.uint8)
    Image.fromarray(image).save(file, "jpeg")
    return file.getvalue()


def make_source(count=8):
    rng = np.random.default_rng(0)
    records = [
        {
            "frames": [jpeg(rng) for _ in range(FRAMES)],
            "masks": np.full((FRAMES, 24, 12), 255, np.uint8),
            "silhouettes": rng.integers(0, 255, (FRAMES, 64, 64)).astype(np.uint8),
            "keypoints": walk(rng),
            "ratios": np.full(FRAMES, 0.4, np.float32),
        }
        for _ in range(count)
    ]
    subject = np.array([f"{i // 4:02d}" for i in range(count)])
    condition = np.array(["nm-01", "nm-05"] * (count // 2))
    view = np.array([f"{90 * (i // 2 % 2):03d}" for i in range(count)])
    key = np.array([f"{i:02d}/x" for i in range(count)])
    return Source(
        "made_up",
        records,
        Index(subject, condition, view, key, np.full(count, FRAMES)),
        "",
    )


@pytest.mark.parametrize(
    "modality", ["frames", "masks", "silhouettes", "heatmaps", "keypoints"]
)
def test_every_modality_is_shown_as_rgb(modality):
    data = make_source()
    images = clips.rgb_frames(data, 1, modality)
    assert images.dtype == np.uint8
    assert images.shape == (3, *SIZE.get(modality, (64, 44)), 3)
    assert images.max() > 150


def test_key_points_are_shown_as_the_skeleton_drawn_from_them():
    data = make_source()
    images = clips.rgb_frames(data, 1, gaittr.get_config().data.modalities[0])
    np.testing.assert_array_equal(images, clips.rgb_frames(data, 1, "heatmaps"))
    lit = images[..., 0] > 60
    assert lit.any(axis=2).mean() > 0.5  # a body, from top to bottom ...
    assert 0.02 < lit.mean() < 0.5  # ... and not all of the image
    assert not np.array_equal(images[0], images[2])


def test_a_run_draws_what_it_has(tmp_path):
    config, data = gaittr.get_config("casia_b"), make_source()
    embeddings = np.random.default_rng(0).normal(size=(8, 2, 3)).astype(np.float32)
    config.evaluation.protocols = ("casia_b",)
    draw = lambda folder, **more: run.draw(  # noqa: E731
        config, None, {}, data, embeddings, folder, phases={}, **more
    )
    assert draw(tmp_path / "a") == ["ranked_NM.png", "cmc.png"]
    history = [{"step": 1, "kind": "train", "total": 0.5}]
    found = draw(tmp_path / "b", history=history)
    assert found == ["learning.png", "ranked_NM.png", "cmc.png"]
    assert {path.name for path in (tmp_path / "b").iterdir()} == set(found)


def test_without_a_rank_1_there_are_no_curves(tmp_path):
    """All sequences are of one view, so casia_b compares nothing."""
    config, data = gaittr.get_config("casia_b"), make_source()
    config.evaluation.protocols = ("casia_b",)
    data = data._replace(index=data.index._replace(view=np.full(8, "000")))
    embeddings = np.zeros((8, 2, 3), np.float32)
    assert run.draw(config, None, {}, data, embeddings, tmp_path, phases={}) == []
