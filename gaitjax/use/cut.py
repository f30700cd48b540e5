"""Cuts the walks of people out of videos: python -m gaitjax.use.cut VIDEO... --out=DIR

Each VIDEO is a video file, a folder of images (frames, or silhouettes of one person),
or the number of a camera. Of each walk that is fit for recognition,
DIR/VIDEO/NNNN-HEADING/ has

  frames/*.jpg, masks/*.png   128 x 64, the person upright and whole; same names
  silhouettes/*.png           64 x 64, aligned as gait models expect
  walk.json                   key points (COCO-17, in pixels of the frame), ratios,
                              times, quality

(of silhouettes: no frames, masks and key points).
DIR/VIDEO/walks.json lists all walks and why some were refused. It is written last: a
video that has it is not read again.
"""

import argparse
import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from gaitjax.engine.atomic import replacing
from gaitjax.engine.guards import require
from gaitjax.use import detector, person
from gaitjax.use.tracks import Walk, silhouette_walk, walks
from gaitjax.use.video import Video, shows_silhouettes

LIST = "walks.json"


def cut(source: str, out: Path, see: person.See, parts: int = 1, **options) -> dict:
    """Writes the walks of one video under `out`; the content of its walks.json.

    parts: of the video's path that name its folder. options: of `tracks.walks`. A
    camera is watched until Ctrl-C.
    """
    video = Video(source)
    if video.camera:
        name = f"camera{source}-{time.strftime('%Y%m%d-%H%M%S')}"
    else:
        source = str(Path(source).resolve())
        name = "/".join([*Path(source).parts[-parts:-1], Path(source).stem])
    folder = out / name
    if (folder / LIST).is_file():
        report = json.loads((folder / LIST).read_text())
        require(
            report["video"] == source,
            f"{folder} has the walks of {report['video']}, so those of {source} need "
            "another --out.",
        )
        return report
    shutil.rmtree(folder, ignore_errors=True)  # a run that was killed left a part
    rows, begin = [], time.perf_counter()
    if video.files and shows_silhouettes(source):
        found = [silhouette_walk(source)]
    else:
        found = walks(video, see, **options)
    with video.until_interrupted():
        for walk in found:
            rows.append(_row(walk))
            if not walk.refusal:
                _write(walk, folder / rows[-1]["folder"])
            print(f"{name}: {_line(walk)}", flush=True)
    seconds = time.perf_counter() - begin
    report = {
        "video": source,
        "frames": video.count or len(video.files),
        "fault": video.fault,
        "frames_per_second": round((video.count or len(video.files)) / seconds, 1),
        "walks": rows,
    }
    with replacing(folder / LIST) as file:
        json.dump(report, file, indent=1)
    return report


def _row(walk: Walk) -> dict[str, Any]:
    return {
        "folder": f"{walk.number:04d}-{walk.heading}",
        "start": round(walk.start, 3),
        "end": round(walk.end, 3),
        "heading": walk.heading,
        "ended": walk.ended,
        "refused": walk.refusal,
        "quality": {k: round(float(v), 3) for k, v in walk.quality._asdict().items()},
    }


def _line(walk: Walk) -> str:
    told = f"walk {walk.number}, {walk.start:.1f} to {walk.end:.1f} s, {walk.heading}"
    if walk.refusal:
        return f"{told}: refused, {walk.refusal}"
    quality = walk.quality
    return (
        f"{told}: {quality.frames} frames, {quality.cycles:.1f} cycles, "
        f"{quality.height:.0f} pixels high"
    )


def _write(walk: Walk, folder: Path) -> None:
    record = walk.record("", "", "")
    for number, frame in enumerate(record["frames"], 1):
        _save(folder / "frames" / f"{number:05d}.jpg", frame)
    for name in ("masks", "silhouettes"):
        for number, image in enumerate(record[name], 1):
            _save(folder / name / f"{number:05d}.png", _png(image))
    described = _row(walk) | {
        "times": [round(x.time, 4) for x in walk.moments],
        "ratios": np.round(record["ratios"].astype(float), 5).tolist(),
        "keypoints": np.round(record["keypoints"].astype(float), 3).tolist(),
    }
    _save(folder / "walk.json", json.dumps(described).encode())


def _png(image: np.ndarray) -> bytes:
    import cv2

    return cv2.imencode(".png", image)[1].tobytes()


def _save(file: Path, data: bytes) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(data)


def main(arguments: list[str] | None = None) -> int:
    """Exit codes: 0; 2 after a mistake of the user or if a video cannot be read."""
    parser = argparse.ArgumentParser(
        prog="python -m gaitjax.use.cut", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("video", nargs="+")
    parser.add_argument("--out", required=True, type=Path, help="folder of the walks")
    parser.add_argument(
        "--person_model", default="", metavar="FILE",
        help="pose_landmark_full.tflite; by default it is fetched from PyPI once",
    )  # fmt: skip
    parser.add_argument(
        "--parts", type=int, default=1, metavar="N",
        help="folders are named by the last N parts of a video's path; default 1",
    )  # fmt: skip
    parser.add_argument(
        "--detector", default="", metavar="FILE.onnx",
        help="your people detector (docs/identify.md); by default what moves",
    )  # fmt: skip
    parser.add_argument(
        "--max_rate", type=float, default=30.0, help="frames/s that are looked at"
    )
    given = parser.parse_args(arguments)
    try:
        require(given.max_rate > 0, f"--max_rate={given.max_rate} must be positive.")
        require(given.parts > 0, f"--parts={given.parts} must be positive.")
        see = person.load(given.person_model)
    except (ValueError, OSError) as error:
        print(f"gaitjax: {error}", file=sys.stderr)
        return 2
    failed = 0
    for source in given.video:
        try:
            regions = detector.load(given.detector) if given.detector else None
            options = {"max_rate": given.max_rate, "regions": regions}
            report = cut(source, given.out, see, given.parts, **options)
        except (ValueError, OSError) as error:
            print(f"gaitjax: {error}", file=sys.stderr)
            failed = 2
            continue
        refused = sum(bool(row["refused"]) for row in report["walks"])
        print(
            f"{source}: {len(report['walks']) - refused} walks, {refused} refused; "
            f"{report['frames']} frames, {report['frames_per_second']} frames/s"
            + (f"; {report['fault']}" if report["fault"] else "")
        )
    return failed


if __name__ == "__main__":
    raise SystemExit(main())
