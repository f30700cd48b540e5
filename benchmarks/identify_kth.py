"""Who is who in KTH's walking videos: enrol from d1, identify d3 and d4.

    python -m benchmarks.identify_kth VIDEO_FOLDER --model=runs/gaitset

People 1 to --enrolled are enrolled from d1 (outdoors), all people's walks in d3 (other
clothes) and d4 (indoors) are identified; the others are strangers. Prints, for each of
d3 and d4, Rank-1 of the enrolled, and at --fpir the measured rates: FPIR, the share of
strangers' walks that got a name, and FNIR, the share of enrolled people's walks that
did not get their own.
"""

import argparse
import json
import re
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from gaitjax.use.gallery import Answer, Gallery
from gaitjax.use.recogniser import load
from gaitjax.use.video import Video

NAME = re.compile(r"person(\d+)_walking_(d\d)")


def rates(answers: list[tuple[str, Answer]], enrolled: set[str]) -> dict[str, float]:
    """answers: (who it is, Answer) of each walk that was not refused."""
    known = [(who, x) for who, x in answers if who in enrolled]
    strangers = [x for who, x in answers if who not in enrolled]
    first = [x.nearest[0].name == who for who, x in known]
    missed = [not (x.verdict == "known" and x.name == who) for who, x in known]
    named = [x.verdict == "known" for x in strangers]
    return {
        "walks": len(answers),
        "rank1": round(100 * float(np.mean(first)), 1),
        "fpir": round(float(np.mean(named)), 3) if named else float("nan"),
        "fnir": round(float(np.mean(missed)), 3),
    }


def main(arguments=None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", default="")
    parser.add_argument("--person_model", default="")
    parser.add_argument("--enrolled", type=int, default=8)
    parser.add_argument("--fpir", type=float, nargs="+", default=(0.05, 0.1))
    given = parser.parse_args(arguments)
    recogniser = load(given.model, person_model=given.person_model)
    frames, begin, refused = 0, time.perf_counter(), 0
    found: dict[str, list] = {}
    for file in sorted(given.folder.glob("person*_walking_d[134]*")):
        match = NAME.match(file.name)
        assert match is not None
        who, scene = match.groups()
        if scene == "d1" and int(who) > given.enrolled:
            continue
        video = Video(str(file))
        samples = list(recogniser.samples(video))
        frames += video.count
        refused += sum(bool(x.refused) for x in samples)
        fit = [(who, x) for x in samples if not x.refused]
        found.setdefault(scene, []).extend(fit)
        print(f"{file.name}: {len(fit)} walks", file=sys.stderr, flush=True)
    seconds = time.perf_counter() - begin
    report = {
        "model": recogniser.name, "frames_per_second": round(frames / seconds, 1),
        "refused": refused,
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        gallery = Gallery.open(Path(folder) / "people", recogniser)
        gallery.add_all(found.pop("d1"))
        enrolled = set(gallery.names())
        for scene, samples in found.items():
            for fpir in given.fpir:
                answers = [
                    (who, gallery.answer(x, fpir=fpir, least_people=given.enrolled))
                    for who, x in samples
                ]
                report[f"{scene} at fpir {fpir}"] = rates(answers, enrolled)
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
