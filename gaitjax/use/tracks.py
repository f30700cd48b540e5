"""People in a video -> walks: one person each, with a quality, refused or usable.

    for walk in walks(Video("street.mp4"), person.load()):
        print(walk.number, walk.heading, walk.refusal or len(walk.moments))

Each person is followed by the person model: what it saw says where to look next. New
people are found as moving regions before a still camera, or, where nothing moves, once
a second in the whole picture. Where two people overlap, both walks end and new ones
begin once they are apart: who is who after a crossing is not guessed. A region that is
much wider than the person in it is searched for a second one, because two people who
come together are one region; often it is their shadow.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np

from gaitjax.use.crops import Moment, moment, normalised
from gaitjax.use.person import ANKLES, Crop, Person, See, crop_of_box, find
from gaitjax.use.quality import (
    LIMITS,
    Limits,
    Quality,
    crossings,
    heading,
    measured,
    refusal,
)
from gaitjax.use.regions import Box, Regions, iou, overlap
from gaitjax.use.video import (
    FOLDER_RATE,
    Frame,
    Images,
    Video,
    image_files,
    read_image,
)

PATIENCE = 0.4  # seconds for which a person may be out of sight
APART = 0.4  # seconds for which people must be apart after a crossing
GAP = 1.0  # seconds without a usable frame that end a walk
RETRY = 0.5  # seconds for which a region without a person is not looked at again
LOOK = 1.0  # seconds between looks at the whole picture, where nothing moves
TOUCHING, SAME = 0.15, 0.7  # shared area, of the smaller box
BESIDE = 0.2  # of the height: a region that reaches so far beyond a person is searched
JUMP, GROWTH = 0.5, 1.6  # of the height; ratio: more, between frames, is someone else
EDGE = 0.01  # of the person's height: so close to the edge, they may be cut
VISIBLE = 0.5  # visibility of an ankle that is seen


class Walk(NamedTuple):
    """One person's walk. number: from 1, in the order in which walks began.

    start, end: seconds. heading: left, right, near, far or still. ended: why: "left"
    (out of sight), "crossing", "gap", "jump", "long" or "end". refusal: why it is unfit
    for recognition, "" if it is fit. moments: the usable frames, in time order.
    """

    number: int
    start: float
    end: float
    heading: str
    ended: str
    quality: Quality
    refusal: str
    moments: list[Moment]

    def record(self, subject: str, condition: str, view: str) -> dict:
        """The walk in the schema of the data sets; at least one moment.

        frames: JPEG files [128 64]. masks: uint8 [T 128 64], silhouettes: uint8
        [T 64 64], 0..255. keypoints: float32 [T 17 3]. ratios: float32 [T]. A folder of
        silhouettes gives neither frames, masks nor keypoints (T = 0).
        """
        t = len(self.moments) if self.moments[0].frame else 0
        return {
            "subject": subject,
            "condition": condition,
            "view": view,
            "camera": view.partition("_")[0],
            "key": f"{subject}/{condition}/{view}",
            "frames": [x.frame for x in self.moments[:t]],
            "masks": _stacked([x.mask for x in self.moments[:t]], (128, 64), np.uint8),
            "silhouettes": np.stack([x.silhouette for x in self.moments]),
            "keypoints": _stacked(
                [x.keypoints for x in self.moments[:t]], (17, 3), np.float32
            ),
            "ratios": np.array([x.ratio for x in self.moments], np.float32),
        }

    def thumbnail(self) -> bytes:
        """The middle frame (JPEG), or silhouette (PNG) if there are no frames."""
        import cv2

        middle = self.moments[len(self.moments) // 2]
        return middle.frame or cv2.imencode(".png", middle.silhouette)[1].tobytes()


def _stacked(arrays: list[np.ndarray], shape, dtype) -> np.ndarray:
    return np.stack(arrays) if arrays else np.zeros((0, *shape), dtype)


def walks(
    video: Video | Images,
    see: See,
    limits: Limits = LIMITS,
    max_rate: float = 30.0,
    regions: Callable[[float, np.ndarray], list[Box]] | None = None,
) -> Iterator[Walk]:
    """The walks of a video, each as it ends; memory does not grow with the video.

    max_rate: frames/s that are looked at; more are left out. regions: (time, image) ->
    boxes where people may be; None: what moves.
    """
    regions = regions or Regions(video.sampled())
    watcher = _Watcher(see, limits, regions)
    due = 0.0
    for frame in video:
        if frame.time >= due - 1e-6:
            due = max(due + 1 / max_rate, frame.time)
            yield from watcher.step(frame)
    yield from watcher.finish()


class _Track:
    """A person who is followed. The counts are of the present walk."""

    def __init__(self, number: int, time: float, person: Person):
        self.number, self.person, self.last_seen = number, person, time
        self.alone = time  # when it last had a body of its own
        self.apart_from = 0.0  # recorded from this time on
        self.clear(number)

    def clear(self, number: int) -> None:
        self.number, self.moments = number, []
        self.seen = self.without_ankles = self.cut = 0
        self.start: float | None = None

    @property
    def crop(self) -> Crop:
        return self.person.crop

    def jumped(self, person: Person) -> bool:
        """Whether what was seen now can hardly be the same person."""
        (x, y), high = _centre_and_height(self.person.box)
        (x2, y2), high2 = _centre_and_height(person.box)
        hips = [p.keypoints[[11, 12], :2].mean(0) for p in (self.person, person)]
        far = float(np.hypot(*(hips[1] - hips[0]))) > JUMP * max(high, high2)
        return far or not 1 / GROWTH < high2 / high < GROWTH

    def unusable_for(self, time: float) -> float:
        """Seconds since the last usable frame of the walk; 0 if it has none."""
        return time - self.moments[-1].time if self.moments else 0.0

    def note(self, frame: Frame, person: Person) -> None:
        """Adds the frame to the walk, if it is usable, and counts it."""
        self.start = frame.time if self.start is None else self.start
        self.seen += 1
        at_edge, hidden = _at_edge(person.box, frame.image), _ankles_hidden(person)
        self.cut += at_edge
        self.without_ankles += hidden and not at_edge
        if not at_edge and not hidden:
            made = moment(frame.time, frame.image, person)
            self.moments += [] if made is None else [made]


def _at_edge(box, image: np.ndarray) -> bool:
    """Whether the picture may cut the person: masks end a little before its edge."""
    height, width = image.shape[:2]
    left, top, right, bottom = box
    near = max(1.0, EDGE * (bottom - top))
    return min(left, top, width - right, height - bottom) <= near


def _ankles_hidden(person: Person) -> bool:
    top, bottom = person.box[1], person.box[3]
    ankles = person.keypoints[ANKLES, :]
    reach = bottom + 0.1 * (bottom - top)
    return bool((ankles[:, 2] < VISIBLE).any() or (ankles[:, 1] > reach).any())


def usable(person: Person, image: np.ndarray) -> bool:
    """Whether the whole person is seen, as a frame of a walk needs."""
    return not _at_edge(person.box, image) and not _ankles_hidden(person)


def _beside(region: Box, person: Box) -> list[Box]:
    """The parts of a region to the left and right of the person in it, if wide."""
    if overlap(region, person) < SAME:
        return []
    left, top, right, bottom = region
    least = BESIDE * (person[3] - person[1])
    parts = (left, top, person[0], bottom), (person[2], top, right, bottom)
    return [part for part in parts if part[2] - part[0] > least]


def _centre_and_height(box) -> tuple[tuple[float, float], float]:
    left, top, right, bottom = box
    return ((left + right) / 2, (top + bottom) / 2), bottom - top


class _Watcher:
    """Follows everybody in a video, frame by frame."""

    def __init__(self, see: See, limits: Limits, regions):
        self.see, self.limits, self.regions = see, limits, regions
        self.tracks: list[_Track] = []
        self.empty: list[tuple[Box, float]] = []  # regions without a person, until when
        self.count, self.look_at = 0, 0.0

    def step(self, frame: Frame) -> Iterator[Walk]:
        moving = self.regions(frame.time, frame.image)
        nearest = _assigned(self.tracks, moving)
        for track in list(self.tracks):
            person = find(self.see, frame.image, track.crop)
            if person is None and track.number in nearest:
                crop = crop_of_box(nearest[track.number])
                person = find(self.see, frame.image, crop, passes=2)
            if person is not None and track.jumped(person):
                leaving = _at_edge(track.person.box, frame.image)
                if leaving:  # what is still seen of them is nobody new
                    self.empty.append((person.box, frame.time + RETRY))
                yield from self._end(track, "left" if leaving else "jump")
            elif person is not None:
                track.person, track.last_seen = person, frame.time
            elif frame.time - track.last_seen > PATIENCE:
                yield from self._end(track, "left")
        self._begin(frame, moving)
        yield from self._crossings(frame.time)
        for track in list(self.tracks):
            if track.last_seen == frame.time >= track.apart_from:
                if track.unusable_for(frame.time) > GAP:
                    yield from self._split(track, "gap")
                track.note(frame, track.person)
                if len(track.moments) >= self.limits.max_frames:
                    yield from self._split(track, "long")

    def finish(self) -> Iterator[Walk]:
        for track in list(self.tracks):
            yield from self._end(track, "end")

    def _begin(self, frame: Frame, moving: list[Box]) -> None:
        """New tracks where something moves that is nobody known."""
        self.empty = [x for x in self.empty if x[1] > frame.time]
        height, width = frame.image.shape[:2]
        known = [track.person.box for track in self.tracks]
        taken = [(box, 2 * TOUCHING) for box in known]
        taken += [(box, 0.5) for box, _ in self.empty]
        if not known and not moving and frame.time >= self.look_at:
            self.look_at = frame.time + LOOK
            moving, taken = [(0.0, 0.0, float(width), float(height))], []
        beside = [x for box in moving for one in known for x in _beside(box, one)]
        for box in [*moving, *beside]:
            low = box[3] - box[1] < 0.6 * self.limits.min_height
            if low or any(overlap(box, other) > share for other, share in taken):
                continue
            person = find(self.see, frame.image, crop_of_box(box), passes=3)
            if person is None or any(overlap(person.box, x) > SAME for x in known):
                if box[2] - box[0] < width:  # the whole picture is no region
                    self.empty.append((box, frame.time + RETRY))
            else:
                self.tracks.append(_Track(self._number(), frame.time, person))
                known.append(person.box)

    def _number(self) -> int:
        self.count += 1
        return self.count

    def _crossings(self, time: float) -> Iterator[Walk]:
        """Ends the walks of people who overlap. Of two eyes on one body, one goes."""
        for i, younger in enumerate(list(self.tracks)):
            older = self.tracks[:i]
            shared = [overlap(younger.person.box, x.person.box) for x in older]
            touched = [x for x, area in zip(older, shared) if area > TOUCHING]
            for track in (*touched, younger) if touched else ():
                yield from self._split(track, "crossing")
                track.apart_from = time + APART
            if max(shared, default=0.0) <= SAME:
                younger.alone = time
        merged = [x for x in self.tracks if time - x.alone > PATIENCE]
        self.tracks = [x for x in self.tracks if x not in merged]

    def _split(self, track: _Track, reason: str) -> Iterator[Walk]:
        """Ends the walk, and goes on following the person under a new number."""
        if track.seen:
            yield from self._told(track, reason)
            track.clear(self._number())

    def _end(self, track: _Track, reason: str) -> Iterator[Walk]:
        self.tracks.remove(track)
        yield from self._told(track, reason)

    def _told(self, track: _Track, reason: str) -> Iterator[Walk]:
        """The walk, unless a glimpse at the picture's edge is all there was."""
        if track.moments or track.seen > 2:
            yield self._walk(track, reason)

    def _walk(self, track: _Track, reason: str) -> Walk:
        quality = measured(track.moments, track.seen, track.without_ankles, track.cut)
        assert track.start is not None  # it was seen
        return Walk(
            track.number, track.start, track.last_seen, heading(track.moments), reason,
            quality, refusal(quality, self.limits), track.moments,
        )  # fmt: skip


def _assigned(tracks: list[_Track], moving: list[Box]) -> dict[int, Box]:
    """{track's number: its region}: the pairs of largest IoU first, each used once.

    Where that differs from the best assignment as a whole, people overlap, and their
    walks end anyway.
    """
    pairs = [(iou(t.person.box, box), t.number, box) for t in tracks for box in moving]
    found, used = {}, set()
    for shared, number, box in sorted(pairs, reverse=True):
        if shared > 0.1 and number not in found and box not in used:
            found[number] = box
            used.add(box)
    return found


def silhouette_walk(folder: str, limits: Limits = LIMITS) -> Walk:
    """The walk in a folder of silhouette images of one person, cut or not."""
    read = (read_image(file) for file in image_files(folder))
    return silhouettes_as_walk(
        (np.zeros((1, 1)) if image is None else image.max(-1) for image in read), limits
    )


def silhouettes_as_walk(masks: Iterable[np.ndarray], limits: Limits = LIMITS) -> Walk:
    """The walk in silhouettes [H W], 0..255, of one person, cut or not.

    Empty ones are left out. Time passes as in a folder of images.
    """
    moments = []
    nothing = np.zeros((0, 3), np.float32), np.zeros((0, 0), np.uint8)
    for number, mask in enumerate(masks):
        silhouette = normalised(mask)
        if silhouette is None:
            continue
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        high, wide = np.ptp(rows) + 1, np.ptp(columns) + 1
        centre = float(columns.mean()), float(rows.mean())
        moments.append(
            Moment(
                number / FOLDER_RATE, b"", nothing[1], silhouette, nothing[0],
                wide / high, centre, float(high),
            )
        )  # fmt: skip
    height = float(np.median([x.height for x in moments])) if moments else 0.0
    legs = [(x.silhouette[44:] > 127).any(0).sum() / 64 for x in moments]
    # the legs are apart twice in a cycle: four crossings of the mean
    cycles = crossings(np.array(legs)[:, None]) / 4 if legs else 0.0
    end = moments[-1].time if moments else 0.0
    quality = Quality(len(moments), 1.0, 0.0, height, cycles, end)
    way = heading(moments)
    return Walk(1, 0.0, end, way, "end", quality, refusal(quality, limits), moments)
