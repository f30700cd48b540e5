"""The person model as a program for builders: arrays in, arrays out."""

import io
import sys
from types import SimpleNamespace as plain

import numpy as np
import walkers_on_video as drawn
from numpy.lib.format import read_array, write_array

from gaitjax.use import look, person


def test_a_drawn_walk_is_seen(monkeypatch):
    one = {"x": 100, "speed": 3, "stride": 0.3}
    images = np.stack(drawn.walk(one, frames=6))
    images[3] = drawn.scene()  # out of sight for one frame
    box = np.array([60.0, 80.0, 150.0, 215.0])
    given = io.BytesIO()
    for _ in range(2):  # two requests
        write_array(given, images)
        write_array(given, box)
    answers = io.BytesIO()
    monkeypatch.setattr(person, "load", lambda file: drawn.see)
    reader = io.BufferedReader(io.BytesIO(given.getvalue()))
    monkeypatch.setattr(sys, "stdin", plain(buffer=reader))
    monkeypatch.setattr(sys, "stdout", plain(buffer=answers))
    assert look.main([]) == 0
    told = io.BytesIO(answers.getvalue())
    for _ in range(2):
        silhouettes, points, ratios = (read_array(told) for _ in range(3))
        assert silhouettes.shape == (5, 64, 64) and silhouettes.dtype == np.uint8
        assert points.shape == (5, 17, 3) and ratios.shape == (5,)
        assert (silhouettes > 127).any((1, 2)).all() and (ratios > 0).all()
    assert not told.read()


def test_no_person_model_is_one_sentence(monkeypatch, capsys):
    assert look.main(["--person_model=nowhere.tflite"]) == 2
    assert "nowhere.tflite" in capsys.readouterr().err
