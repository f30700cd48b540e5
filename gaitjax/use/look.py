"""Looks at drawn walks with the person model: python -m gaitjax.use.look

A program for other programs: the builders, which import nothing of gaitjax, draw walks
and read here what the person model sees of them. Standard input is a series of requests
of two arrays in numpy's format, images uint8 [T H W 3] and the person's box in the
first image [4]; for each, standard output gets three arrays, silhouettes uint8
[n 64 64], keypoints float32 [n 17 3] and ratios float32 [n] of the n usable frames.
"""

import argparse
import sys
from types import SimpleNamespace as plain
from typing import Any

import numpy as np
from numpy.lib.format import read_array, write_array

from gaitjax.use import person
from gaitjax.use.crops import SIZE, Moment, moment
from gaitjax.use.tracks import usable


def look(see: person.See, images: np.ndarray, box) -> list[Moment]:
    """The usable frames of one person, who is followed as `tracks.walks` does."""
    height, width = images.shape[1:3]
    whole = person.crop_of_box((0.0, 0.0, float(width), float(height)))
    crop, passes, found = person.crop_of_box(box), 3, []
    for time, image in enumerate(images):
        seen = person.find(see, image, crop, passes)
        crop, passes = (whole, 3) if seen is None else (seen.crop, 1)
        if seen is not None and usable(seen, image):
            made = moment(float(time), image, seen)
            found += [] if made is None else [made]
    return found


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m gaitjax.use.look", description=__doc__
    )
    parser.add_argument("--person_model", default="", metavar="FILE")
    try:
        see = person.load(parser.parse_args(arguments).person_model)
    except (ValueError, OSError) as error:
        print(f"gaitjax: {error}", file=sys.stderr)
        return 2
    given: Any = sys.stdin.buffer
    told = sys.stdout.buffer
    # numpy asks real files for their position, and a pipe has none
    read_from: Any = plain(read=given.read)
    write_to: Any = plain(write=told.write)
    while given.peek(1):
        images, box = (read_array(read_from, allow_pickle=False) for _ in range(2))
        found = look(see, images, box)
        silhouettes = np.zeros((len(found), SIZE, SIZE), np.uint8)
        points = np.zeros((len(found), 17, 3), np.float32)
        for i, each in enumerate(found):
            silhouettes[i], points[i] = each.silhouette, each.keypoints
        ratios = np.array([each.ratio for each in found], np.float32)
        for array in (silhouettes, points, ratios):
            write_array(write_to, array, allow_pickle=False)
        told.flush()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
