"""Drawn people in, walks out: one, several, crossing, half, none."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import walkers_on_video as drawn

from gaitjax.use import crops, quality, tracks
from gaitjax.use.tracks import silhouette_walk, walks
from gaitjax.use.video import Frame
from tfds_builders import frames as builders
from tfds_builders.features import MODALITIES, make_record


class Memory:
    """A video whose frames are in memory; images: a list, or a function of the time.

    live: nothing is known ahead, as of a camera.
    """

    def __init__(self, images, rate=25.0, count=None, live=False):
        self.images, self.rate, self.count = images, rate, count or len(images)
        self.live = live

    def sampled(self):
        if self.live:
            return []
        step = max(1, self.count // 40)
        return [self.image(t) for t in range(0, self.count, step)][:40]

    def image(self, t):
        return self.images(t) if callable(self.images) else self.images[t]

    def __iter__(self):
        return (Frame(t / self.rate, self.image(t)) for t in range(self.count))


def found(*people, **options):
    images = drawn.walk(*people, **options)
    return list(walks(Memory(images), drawn.see))


def test_a_walk_through_the_picture_becomes_a_record():
    (walk,) = found({"x": -40, "speed": 5})
    assert not walk.refusal and walk.heading == "right" and walk.ended == "left"
    assert walk.quality.frames == len(walk.moments) >= 45
    assert walk.quality.height == pytest.approx(120, abs=5)
    assert 0 < walk.quality.cut < 0.4 and walk.quality.ankles == 1
    assert walk.quality.cycles == pytest.approx(0.2 * 50 / 2 / np.pi, abs=0.5)
    record = walk.record("anna", "street-1", "camera1_a")
    key, expected = make_record(
        "anna", "street-1", "camera1_a", height=128, width=64,
        **{k: record[k] for k in (*MODALITIES, "ratios")},
    )  # fmt: skip
    assert record.keys() == expected.keys() and record["key"] == key
    assert record["camera"] == "camera1"
    for name, value in expected.items():
        assert getattr(value, "dtype", None) == getattr(record[name], "dtype", None)
    frame = builders.decode_jpeg(record["frames"][20])
    red = frame[..., 0].astype(int) - frame[..., 2] > 60
    assert (red == (record["masks"][20] > 0)).mean() > 0.96  # registered
    assert not builders.check_alignment(record["silhouettes"])
    # the feet lie on the lowest rows of the frame
    np.testing.assert_allclose(record["keypoints"][:, [15, 16], 1], 121, atol=4)


def test_walking_left_and_towards_the_camera():
    (walk,) = found({"x": 350, "speed": -5})
    assert walk.heading == "left"

    def approaching(t):
        image = drawn.scene()
        drawn.draw(image, 160, 190 + t // 4, 90 + t // 2, 0.2 * t)
        return image

    (walk,) = walks(Memory(approaching, count=90), drawn.see)
    assert walk.heading == "near" and not walk.refusal


def colours(walk) -> set[str]:
    """The colours of the people in a walk's frames, where its masks are."""
    names = set()
    for frame, mask in zip(
        *(walk.record("a", "b", "c")[x] for x in ("frames", "masks"))
    ):
        image = builders.decode_jpeg(frame).astype(int)
        inside = cv2.erode(mask, np.ones((5, 5), np.uint8)) > 0
        red = image[inside][:, 0] > image[inside][:, 2]
        names |= {"red"} if red.mean() > 0.05 else set()
        names |= {"blue"} if red.mean() < 0.95 else set()
    return names


def test_people_who_cross_are_never_mixed():
    ended = found(
        {"x": 20, "speed": 4, "stride": 0.3},
        {"x": 460, "speed": -4, "stride": 0.3, "colour": drawn.BLUE},
        frames=100,
        size=(480, 240),
    )
    assert sum(walk.ended == "crossing" for walk in ended) == 2
    fit = [walk for walk in ended if not walk.refusal]
    assert len(fit) == 4  # each before and after
    assert all(len(colours(walk)) == 1 for walk in fit)
    assert len({walk.number for walk in ended}) == len(ended)


@pytest.mark.parametrize("gap", (32, 50))
def test_people_who_come_as_one_region_are_never_mixed(gap):
    slow, fast = {"x": -30, "speed": 3.5}, {"x": -30 - gap, "speed": 4.5}
    ended = found(slow, fast | {"colour": drawn.BLUE}, frames=100, size=(480, 240))
    usable = [walk for walk in ended if walk.moments]
    assert all(len(colours(walk)) == 1 for walk in usable)
    assert any(walk.ended == "crossing" for walk in usable)
    assert max(walk.quality.frames for walk in usable) > 20  # they part in the end


def test_a_wide_region_without_a_second_person_breaks_no_walk():
    def image(t):  # a shadow on the wall goes before the person
        made = drawn.scene()
        shadow = made[80:200, 10 + 3 * t : 60 + 3 * t]
        shadow[:] = shadow // 2
        drawn.draw(made, 20 + 3 * t, 210, 120, 0.2 * t)
        return made

    (walk,) = [x for x in walks(Memory(image, count=80), drawn.see) if x.moments]
    assert not walk.refusal and walk.quality.frames > 60


def test_four_people_are_four_walks():
    people = [
        {"x": 60 + 110 * i, "speed": 1.5 if i % 2 else 1.2, "height": 100}
        for i in range(4)
    ]
    ended = found(*people, frames=60, size=(560, 240))
    assert [walk.refusal for walk in ended] == [""] * 4


@pytest.mark.parametrize(
    "person, frames, why",
    [
        ({"x": 50, "speed": 4}, 1, "1 usable frames, at least 15"),
        ({"x": 50, "speed": 3, "bottom": 290}, 60, "edge cuts the person in 100%"),
        (
            {"x": 50, "speed": 2, "height": 34},
            60,
            "34 pixels high, at least 40|35 pixels",
        ),
        ({"x": 50, "speed": 3, "stride": 0.0}, 60, "0.0 gait cycles"),
    ],
    ids=["one frame", "half a person", "too small", "on wheels"],
)
def test_what_is_unfit_is_refused_with_its_reason(person, frames, why):
    ended = found(person, frames=frames)
    assert ended and all(walk.refusal for walk in ended)
    assert any(part in ended[0].refusal for part in why.split("|")), ended[0].refusal


def test_nobody_is_found_in_an_empty_scene():
    assert found(frames=40) == []


def test_a_camera_starts_with_somebody_in_the_picture():
    images = drawn.walk({"x": 30, "speed": 3}, frames=90)
    fit = [x for x in walks(Memory(images, live=True), drawn.see) if not x.refusal]
    assert len(fit) == 1 and fit[0].start < 1 and fit[0].quality.frames > 60


def test_before_a_moving_camera_the_whole_picture_is_looked_at():
    blocks = np.random.default_rng(0).integers(0, 255, (60, 180), np.uint8)
    wall = np.repeat(np.kron(blocks, np.ones((4, 4), np.uint8))[..., None], 3, 2)

    def image(t):
        made = wall[:, 4 * t : 4 * t + 320].copy()
        drawn.draw(made, 160 + t, 210, 120, 0.2 * t)
        return made

    (walk,) = walks(Memory(image, count=60), drawn.see)
    assert not walk.refusal and walk.quality.frames > 50


def test_hidden_ankles_refuse_a_walk():
    def without_feet(square):
        seen = drawn.see(square)
        seen.landmarks[27:29, 3] = 0.1
        return seen

    images = drawn.walk({"x": 0, "speed": 5}, frames=50)
    (walk,) = walks(Memory(images), without_feet)
    assert walk.refusal.startswith("both ankles are seen in")


def test_somebody_else_in_the_next_frame_is_another_walk():
    images = drawn.walk({"x": 60, "speed": 1}, frames=30)
    images += drawn.walk({"x": 220, "speed": 1, "colour": drawn.BLUE}, frames=30)
    fit = [x for x in walks(Memory(images), drawn.see) if x.quality.frames > 5]
    assert [colours(walk) for walk in fit] == [{"red"}, {"blue"}]


def test_fewer_frames_are_looked_at_where_there_are_too_many():
    images = drawn.walk({"x": 0, "speed": 2.5, "stride": 0.1}, frames=120)
    (walk,) = walks(Memory(images, rate=50.0), drawn.see, max_rate=25.0)
    times = np.diff([x.time for x in walk.moments])
    np.testing.assert_allclose(times, 0.04, atol=1e-6)


def test_a_portrait_video_of_a_telephone_whose_frame_rate_varies():
    images = drawn.walk(
        {"x": -20, "speed": 4, "stride": 0.3}, frames=60, size=(200, 320)
    )
    times = np.cumsum(np.random.default_rng(0).choice([0.02, 0.04, 0.09], 60))

    class Telephone(Memory):
        def __iter__(self):
            return (Frame(time, image) for time, image in zip(times, self.images))

    (walk,) = walks(Telephone(images), drawn.see, max_rate=60.0)
    assert not walk.refusal and walk.heading == "right"
    assert {x.time for x in walk.moments} <= set(times)
    assert walk.quality.seconds == pytest.approx(walk.end - walk.start, abs=0.8)


def test_a_long_walk_is_split_and_memory_does_not_grow():
    background = drawn.scene(96, 72)
    held = []

    def image(t):  # somebody walks up and down from frame 100 to 1700, then nobody
        made = background.copy()
        if 100 <= t < 1700:
            drawn.draw(made, 48 + 20 * np.sin(t / 150), 68, 60, 0.05 * t)
        if t % 1000 == 0:
            held.append(int(Path("/proc/self/statm").read_text().split()[1]) * 4096)
        return made

    limits = quality.Limits(max_frames=100)
    video = Memory(image, rate=120.0, count=10_000)  # every fourth is looked at
    ended = walks(video, drawn.see, limits)
    lengths = [walk.quality.frames for walk in ended]
    assert max(lengths) == 100 and sum(lengths) > 350
    assert held[-1] - held[-9] < 20e6  # 8,000 frames have 166 MB


def test_a_folder_of_silhouettes(tmp_path):
    images = drawn.walk({"x": 100, "speed": 1}, frames=40)
    for t, image in enumerate(images):
        mask = np.where(image[..., 0].astype(int) - image[..., 2] > 60, 255, 0)
        cv2.imwrite(str(tmp_path / f"{t}.png"), mask.astype(np.uint8))
    walk = silhouette_walk(str(tmp_path))
    assert not walk.refusal and walk.quality.frames == 40
    assert walk.quality.cycles == pytest.approx(0.2 * 40 / 2 / np.pi, abs=0.5)
    record = walk.record("anna", "a", "b")
    assert record["silhouettes"].shape == (40, 64, 64)
    assert record["frames"] == [] and record["masks"].shape == (0, 128, 64)
    for file in tmp_path.iterdir():
        cv2.imwrite(str(file), np.zeros((64, 64), np.uint8))
    assert (
        silhouette_walk(str(tmp_path)).refusal == "0 usable frames, at least 15 needed"
    )


def test_crops_and_silhouettes_are_those_of_the_builders():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 255, (200, 180, 3), np.uint8)
    mask = np.zeros((200, 180), np.uint8)
    drawn.draw(mask, 90, 190, 170, 1.0, 255)
    np.testing.assert_array_equal(
        crops.normalised(mask), builders.normalise_silhouette(mask)
    )
    assert crops.normalised(mask * 0) is None
    for box in ((50, 15, 130, 195), (60.5, 100.2, 100, 141)):
        made = crops.cut(image, mask, box)
        for ours, theirs in zip(made, builders.fit_crop(image, mask, box, height=128)):
            np.testing.assert_array_equal(ours, theirs)


def test_regions_are_assigned_by_their_overlap():
    def track(number, box):
        made = tracks._Track.__new__(tracks._Track)
        made.number = number
        made.person = type("P", (), {"box": box})
        return made

    boxes = [(0.0, 0.0, 10.0, 20.0), (100.0, 0.0, 110.0, 20.0)]
    people = [
        track(1, (101, 0, 111, 20)),
        track(2, (1, 0, 11, 20)),
        track(3, (50, 0, 60, 20)),
    ]
    assert tracks._assigned(people, boxes) == {1: boxes[1], 2: boxes[0]}
