"""Who is who in videos of people walking.

    gaitjax enroll NAME VIDEO...       remember how somebody walks
    gaitjax identify VIDEO...          who walks there: a name, or unknown
    gaitjax watch VIDEO|CAMERA         the same, a line as each walk ends
    gaitjax gallery list|remove|check|export

VIDEO is a video file, a folder of frames, a folder of silhouettes of one person, or the
number of a camera. People are kept in the folder --gallery. --model is the folder of a
trained run of any model, or a card of weights (NAME.json).

`gaitjax COMMAND --help` explains a command; docs/identify.md explains all.
"""

import argparse
import errno
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from absl import logging

from gaitjax import command_line
from gaitjax.engine.guards import require
from gaitjax.use import unknown
from gaitjax.use.gallery import Gallery
from gaitjax.use.identification import Answer
from gaitjax.use.quality import LIMITS
from gaitjax.use.recogniser import Sample, load
from gaitjax.use.video import Video

COLUMNS = ("video", "walk", "seconds", "heading", "who", "distance", "confidence")
WIDTHS = (32, 4, 13, 7, 20, 8, 10)
PICTURED, REPORTED = 12, 60  # walks, at most, in the picture and on the page
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def main(arguments: list[str]) -> int:
    """Exit codes: 0; 2 after a mistake of the user or if a video cannot be read."""
    given = _parser().parse_args(arguments)
    logging.set_verbosity(logging.WARNING)  # Orbax logs a lot
    try:
        return given.run(given)
    except (ValueError, OSError) as error:
        return _say(error)
    except KeyboardInterrupt:
        print("\ngaitjax: interrupted; who was enrolled stays.", file=sys.stderr)
        return 130


def _say(error: Exception) -> int:
    if isinstance(error, OSError) and error.errno in FULL:
        error = ValueError(
            f"The disk is full, or files may not be so large ({error}). Nothing of "
            "this video was kept; who was enrolled before stays. Free some space."
        )
    print(f"gaitjax: {' '.join(str(error).split())}", file=sys.stderr)
    return 2


# ---------------------------------------------------------------------- the commands


def _enroll(given) -> int:
    gallery = _gallery(given)

    def enroll(video: Video) -> list[Sample]:
        found = gallery.enroll(given.name, video, thumbnails=not given.no_thumbnails)
        fit = [sample for sample in found if not sample.refused]
        for sample in found:
            what = f"refused, {sample.refused}" if sample.refused else "enrolled"
            print(f"{given.name}: {video.source}, {_place(sample)}: {what}", flush=True)
        _warn_of_few(gallery, fit)
        return found

    return _each(given.video, enroll)


def _enrolled(people: int) -> str:
    return "1 person is enrolled" if people == 1 else f"{people} people are enrolled"


def _warn_of_few(gallery: Gallery, fit: list[Sample]) -> None:
    headings = {sample.heading for sample in fit}
    people = len(gallery.names())
    told = _enrolled(people)
    if people < unknown.PEOPLE:
        told += f"; from {unknown.PEOPLE} on, strangers are told from them"
    print(f"{told}. This person was seen walking {', '.join(sorted(headings))}.")


def _identify(given) -> int:
    """Also `watch`, whose answers are not kept."""
    gallery, answers = _gallery(given), []
    law, people = gallery.calibration(given.least_people), len(gallery.names())
    if not people:
        print(f"gaitjax: Nobody is enrolled in {gallery.folder}.", file=sys.stderr)
    elif law is None and given.threshold is None:
        print(
            f"gaitjax: {_enrolled(people)}, fewer than {given.least_people}, so "
            "strangers cannot be told from them: the nearest name is given with its "
            "distance, and may be wrong. Enrol more people, or give "
            "--threshold=DISTANCE.",
            file=sys.stderr,
        )
    if not given.json:
        print("  ".join(x.ljust(n) for x, n in zip(COLUMNS, WIDTHS)).rstrip())

    def identify(video: Video) -> list[Sample]:
        samples = []
        for answer in _answers(given, gallery, video):
            print(_json(answer) if given.json else _line(answer), flush=True)
            samples.append(answer.sample._replace(embedding=None, thumbnail=b""))
            if len(answers) < REPORTED and not answer.sample.refused:
                answers.append(answer)
        return samples

    code = _each(given.video, identify)
    if (given.picture or given.report) and answers:
        from gaitjax.use import answers as shown

        if given.picture:
            shown.draw(gallery, answers[:PICTURED], given.picture)
            print(f"picture: {given.picture}", file=sys.stderr)
        if given.report:
            shown.write(gallery, answers, given.report)
            print(f"report: {given.report}", file=sys.stderr)
    return code


def _answers(given, gallery: Gallery, video: Video) -> Iterator[Answer]:
    for sample in gallery.samples(video, max_rate=given.max_rate):
        yield gallery.answer(
            sample, fpir=given.fpir, threshold=given.threshold, top=given.top,
            least_people=given.least_people,
        )  # fmt: skip


def _each(videos: list[str], act: Callable[[Video], list[Sample]]) -> int:
    """act(video) for each; a video that cannot be read stops no other."""
    code = 0
    for source in videos:
        begin = time.perf_counter()
        try:
            video = Video(source)
            with video.until_interrupted():
                found = act(video)
        except (ValueError, OSError) as error:
            code = _say(error)
            continue
        seconds = time.perf_counter() - begin
        frames = video.count or len(video.files)
        refused = sum(bool(sample.refused) for sample in found)
        fault = f"; {video.fault}" if video.fault else ""
        print(
            f"{source}: {len(found)} walks, {refused} refused; {frames} frames, "
            f"{frames / seconds:.1f} frames/s{fault}",
            file=sys.stderr,
        )
        if not found:
            print(f"{source}: nobody was seen walking.", file=sys.stderr)
    return code


def _list(given) -> int:
    rows = Gallery.open(given.gallery).rows()
    if given.json:
        for row in rows:
            facts = row._asdict() | {"part": row.part.name}
            print(json.dumps(facts, ensure_ascii=False))
        return 0
    for name in sorted({row.name for row in rows}):
        own = [row for row in rows if row.name == name]
        headings = ", ".join(sorted({row.heading for row in own}))
        sources = ", ".join(sorted({Path(row.source).name for row in own}))
        print(f"{name}: {len(own)} walks ({headings}), from {sources}")
    print(f"{len({row.name for row in rows})} people, {len(rows)} walks")
    return 0


def _remove(given) -> int:
    gallery = Gallery.open(given.gallery, index=given.index)
    for name in given.name:
        print(f"{name}: {gallery.remove(name)} walks deleted")
    return 0


def _check(given) -> int:
    gallery = Gallery.open(given.gallery)
    faults = gallery.check()
    for fault in faults:
        print(fault)
    if not faults:
        names, rows = gallery.names(), gallery.rows()
        print(f"whole: {len(names)} people, {len(rows)} walks")
    return 2 if faults else 0


def _export(given) -> int:
    count = Gallery.open(given.gallery).export(given.file)
    print(f"{count} walks: {given.file.with_suffix('.jsonl')} and .safetensors")
    return 0


# ------------------------------------------------------------------------- printing


def _gallery(given) -> Gallery:
    command_line.keep_compiled()
    require(given.max_rate > 0, f"--max_rate={given.max_rate} must be positive.")
    recogniser = load(
        given.model, person_model=given.person_model, detector=given.detector
    )
    return Gallery.open(given.gallery, recogniser, given.index)


def _place(sample: Sample) -> str:
    return f"walk {sample.number}, {sample.start:.1f} to {sample.end:.1f} s"


def _line(answer: Answer) -> str:
    sample = answer.sample
    who = {
        "known": answer.name,
        "nearest": f"nearest {answer.name}",
        "refused": f"refused, {sample.refused}",
        "empty": "nobody is enrolled",
    }.get(answer.verdict, "unknown")
    cells = [
        Path(sample.source).name, str(sample.number),
        f"{sample.start:.1f} to {sample.end:.1f}", sample.heading, who,
    ]  # fmt: skip
    if answer.distance is not None:
        near = "" if answer.name else f"(nearest {answer.nearest[0].name})"
        sure = "" if answer.confidence is None else f"{answer.confidence:.1%}"
        cells += [f"{answer.distance:.4g}", sure, near]
    widths = (*WIDTHS, 0)
    return "  ".join(x.ljust(n) for x, n in zip(cells, widths)).rstrip()


def _json(answer: Answer) -> str:
    facts = answer.sample._asdict()
    del facts["embedding"], facts["thumbnail"]
    facts |= {
        "verdict": answer.verdict,
        "name": answer.name,
        "distance": answer.distance,
        "confidence": answer.confidence,
        "nearest": [
            {
                "name": x.name,
                "distance": x.distance,
                "source": x.row.source,
                "walk": x.row.number,
            }
            for x in answer.nearest
        ],
    }
    return json.dumps(facts, ensure_ascii=False)


# -------------------------------------------------------------------- the arguments


def _parser() -> argparse.ArgumentParser:
    plain = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="gaitjax", description=__doc__, formatter_class=plain
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    folder = argparse.ArgumentParser(add_help=False)
    folder.add_argument(
        "--gallery", default="people", metavar="DIR",
        help="folder of the people; made by the first enroll (default: people)",
    )  # fmt: skip
    folder.add_argument(
        "--index", default="", metavar="milvus:FILE|URI",
        help="search in Milvus, for galleries that outgrow memory",
    )  # fmt: skip
    looking = _looking(folder)

    enroll = commands.add_parser(
        "enroll", parents=[looking], formatter_class=plain,
        help="remember how somebody walks",
        description="Enrols the one person in each VIDEO under NAME. A walk is refused "
        f"under {LIMITS.min_frames} usable\nframes, {LIMITS.min_height:.0f} pixels of "
        f"height or {LIMITS.min_cycles} gait cycles, and if ankles are hidden or the "
        "picture's\nedge cuts the person. Two walks in each direction are a good "
        "start.",
    )  # fmt: skip
    enroll.add_argument("name", metavar="NAME")
    enroll.add_argument("video", nargs="+", metavar="VIDEO")
    enroll.add_argument(
        "--no_thumbnails", action="store_true", help="keep no picture of the person"
    )
    enroll.set_defaults(run=_enroll)

    for name, what, told in (
        (
            "identify",
            "who walks there: a name, or unknown",
            "Names the people in videos.",
        ),
        ("watch", "the same, a line as each walk ends", "Names people as they pass."),
    ):
        identify = commands.add_parser(
            name, parents=[looking], formatter_class=plain, help=what,
            description=f"{told} One line a walk: the name and its distance, or "
            "unknown.\nConfidence: the share of strangers who would not come so near.",
        )  # fmt: skip
        identify.add_argument("video", nargs="+", metavar="VIDEO")
        _deciding(identify)
        identify.set_defaults(run=_identify)

    gallery = commands.add_parser(
        "gallery", help="list, remove, check and export who is enrolled"
    )
    of_gallery = gallery.add_subparsers(required=True, metavar="COMMAND")
    for name, run, what in (
        ("list", _list, "who is enrolled, from which videos"),
        ("remove", _remove, "delete people, with embeddings and thumbnails"),
        ("check", _check, "damaged files, and walks under a wrong name"),
        ("export", _export, "FILE.jsonl with the facts, FILE.safetensors"),
    ):
        one = of_gallery.add_parser(name, parents=[folder], help=what, description=what)
        one.set_defaults(run=run)
        if name == "list":
            one.add_argument(
                "--json", action="store_true", help="a line of JSON a walk"
            )
        if name == "remove":
            one.add_argument("name", nargs="+", metavar="NAME")
        if name == "export":
            one.add_argument("file", type=Path, metavar="FILE")
    return parser


def _looking(folder) -> argparse.ArgumentParser:
    looking = argparse.ArgumentParser(add_help=False, parents=[folder])
    looking.add_argument(
        "--model", default="", metavar="RUN|CARD",
        help="folder of a trained run, or a card NAME.json of weights (default: the "
        "weights that come with gaitjax)",
    )  # fmt: skip
    looking.add_argument(
        "--person_model", default="", metavar="FILE",
        help="pose_landmark_full.tflite; by default it is fetched from PyPI once",
    )  # fmt: skip
    looking.add_argument(
        "--detector", default="", metavar="FILE.onnx",
        help="your people detector (docs/identify.md); by default what moves is looked "
        "at, which needs a still camera",
    )  # fmt: skip
    looking.add_argument(
        "--max_rate", type=float, default=30.0, help="frames/s that are looked at"
    )
    return looking


def _deciding(parser) -> None:
    parser.add_argument(
        "--fpir", type=float, default=0.05,
        help="share of strangers who may be given a name (default: 0.05)",
    )  # fmt: skip
    parser.add_argument(
        "--threshold", type=float, metavar="DISTANCE",
        help="further is unknown, in place of --fpir",
    )  # fmt: skip
    parser.add_argument(
        "--least_people", type=int, default=unknown.PEOPLE,
        help=f"people from which strangers are told apart (default: {unknown.PEOPLE})",
    )  # fmt: skip
    parser.add_argument("--top", type=int, default=5, help="nearest names to give")
    parser.add_argument("--json", action="store_true", help="a line of JSON a walk")
    parser.add_argument(
        "--picture", default="", metavar="FILE.png", help="probes and their nearest"
    )
    parser.add_argument(
        "--report", default="", metavar="FILE.html",
        help="a page in one file: decisions, nearest walks, the gallery's distances",
    )  # fmt: skip
