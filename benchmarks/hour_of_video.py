"""An hour before one camera: does memory grow, how many frames a second, what is found?

    python -m benchmarks.hour_of_video CLIP.avi --person_model=FILE

A video of --minutes is written from a clip of a still camera: the clip is played once
in every --every seconds, between them the empty scene (the clip's median) with the
sensor's noise. `tracks.walks` reads it, as `gaitjax watch` does. Prints a line a minute
of video and, last, one line of JSON: frames, frames/s, seconds of walks, walks fit and
refused, and the resident memory (MiB) after 5, 10, ... minutes.
"""

import argparse
import json
import resource
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from gaitjax.use import person, tracks
from gaitjax.use.video import Video

PAGE = resource.getpagesize()


def resident() -> float:
    """MiB that this process holds now (Linux)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * PAGE / 2**20


def write(clip: Path, file: Path, minutes: float, every: float) -> int:
    """The long video; how many frames it has."""
    capture = cv2.VideoCapture(str(clip))
    rate = capture.get(cv2.CAP_PROP_FPS) or 25.0
    frames = []
    while (read := capture.read())[0]:
        frames.append(read[1])
    empty = np.median(frames[:: max(len(frames) // 50, 1)], axis=0)
    rng = np.random.default_rng(0)
    noisy = [
        np.clip(empty + rng.normal(0, 2, empty.shape), 0, 255).astype(np.uint8)
        for _ in range(50)
    ]
    height, width = empty.shape[:2]
    writer = cv2.VideoWriter(
        str(file), cv2.VideoWriter_fourcc(*"MJPG"), rate, (width, height)
    )
    count, period = round(60 * minutes * rate), round(every * rate)
    for number in range(count):
        place = number % period
        writer.write(frames[place] if place < len(frames) else noisy[place % 50])
    writer.release()
    return count


class Watched(Video):
    """A video that notes time and memory at each minute."""

    def __init__(self, source: str):
        super().__init__(source)
        self.minutes: list[tuple[float, float]] = []  # seconds so far, MiB

    def __iter__(self):
        begin = time.perf_counter()
        for frame in super().__iter__():
            if frame.time >= 60 * (len(self.minutes) + 1):
                self.minutes.append((time.perf_counter() - begin, resident()))
                seconds, held = self.minutes[-1]
                print(
                    f"minute {len(self.minutes)}: {seconds:.0f} s, {held:.0f} MiB",
                    flush=True,
                )
            yield frame


def main(arguments=None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("clip", type=Path)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--every", type=float, default=120, help="seconds")
    parser.add_argument("--person_model", default="")
    given = parser.parse_args(arguments)
    see = person.load(given.person_model)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "hour.avi"
        frames = write(given.clip, file, given.minutes, given.every)
        video, fit, refused, seconds = Watched(str(file)), 0, {}, 0.0
        begin = time.perf_counter()
        for walk in tracks.walks(video, see):
            seconds += walk.end - walk.start
            fit += not walk.refusal
            if walk.refusal:
                reason = walk.refusal.split(",")[0]
                refused[reason] = refused.get(reason, 0) + 1
        total = time.perf_counter() - begin
    print(
        json.dumps(
            {
                "frames": frames,
                "frames_per_s": round(frames / total, 1),
                "seconds": round(total, 1),
                "seconds_with_people": round(seconds, 1),
                "fit": fit,
                "refused": refused,
                "mib": [round(held) for _, held in video.minutes[4::5]],
                "peak_mib": round(
                    resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
                ),
            }
        )
    )


if __name__ == "__main__":
    main()
