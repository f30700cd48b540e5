"""Renders KinectGait's recordings: text -> joints of a walk on the spot -> record."""

import numpy as np
from etils import epath

from tfds_builders import appearance, walker
from tfds_builders.archives import Outcome, Sequence, unreadable
from tfds_builders.damage import Damaged, naming, read_text
from tfds_builders.figure import (
    JOINTS,
    check_stature,
    make_body,
    of_human_size,
    unit,
)
from tfds_builders.frames import normalise_silhouettes
from tfds_builders.image_folders import outcome

# the 20 joints of a frame, in this order; left and right are the person's own
KINECT_JOINTS = (
    "Head", "Shoulder-Center", "Shoulder-Right", "Shoulder-Left", "Elbow-Right",
    "Elbow-Left", "Wrist-Right", "Wrist-Left", "Hand-Right", "Hand-Left", "Spine",
    "Hip-centro", "Hip-Right", "Hip-Left", "Knee-Right", "Knee-Left", "Ankle-Right",
    "Ankle-Left", "Foot-Right", "Foot-Left",
)  # fmt: skip
STEP = 2  # every second frame is used: 15 per second
SMOOTH = 15  # frames over which the heading is averaged
MAX_FRAMES = 20_000  # of a recording; the longest has 1,711
ELEVATION = 5.0  # of the virtual cameras, degrees
VIEWS = ("000", "030", "060", "090")  # degrees from the walking direction


def parse(text: str) -> np.ndarray:
    """Lines "Name;x;y;z", metres -> float64 [T 20 3] in the order KINECT_JOINTS.

    Raises Damaged if the lines are not whole frames of finite positions.
    """
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    count = len(KINECT_JOINTS)
    if not lines or len(lines) % count:
        raise Damaged(f"{len(lines)} lines, not a multiple of {count} joints", "ragged")
    if len(lines) > count * MAX_FRAMES:
        raise Damaged(
            f"{len(lines) // count:,} frames; at most {MAX_FRAMES:,} are read"
        )
    points = []
    for number, line in enumerate(lines):
        name, *place = line.split(";")
        try:
            position = [float(word) for word in place]
        except ValueError:
            position = []
        expected = KINECT_JOINTS[number % count]
        if name.strip() != expected or len(position) != 3:
            raise Damaged(
                f"line {number + 1} is {line!r:.60}, expected {expected};x;y;z"
            )
        if not np.isfinite(position).all():
            raise Damaged(f"line {number + 1}: a position that is not finite")
        points.append(position)
    return np.array(points).reshape(-1, count, 3)  # [T 20 3]


def joints_of(points: np.ndarray) -> tuple[np.ndarray, float]:
    """Joints [T J 3] of a walk on the spot along z, and the stature; metres.

    The person walks out and back on a half circle around a turning sensor, so hips and
    shoulders of each frame, averaged over 15 frames, determine the heading.
    """
    k = {name: points[:, i] for i, name in enumerate(KINECT_JOINTS)}
    feet = sum(k[f"Foot-{side}"] - k[f"Ankle-{side}"] for side in ("Left", "Right"))
    forward = _forward(k)
    if np.sum(forward * feet) < 0:  # the feet point backwards: mirror the recording
        points = points * np.array([-1.0, 1.0, 1.0])
        k = {name: points[:, i] for i, name in enumerate(KINECT_JOINTS)}
        forward = _forward(k)
    left = np.cross([0.0, 1.0, 0.0], forward)
    turn = np.stack([left, np.broadcast_to([0.0, 1.0, 0.0], left.shape), forward], 1)
    origin = k["Hip-centro"] * np.array([1.0, 0.0, 1.0])
    k = {n: np.einsum("tij,tj->ti", turn, p - origin) for n, p in k.items()}  # [T 3]
    stature = _stature(k)
    at = {
        "pelvis": k["Hip-centro"],
        "chest": (k["Shoulder-Left"] + k["Shoulder-Right"]) / 2,
        "neck": k["Shoulder-Center"],
        "head": k["Head"],
        "nose": k["Head"] + np.array([0, 0, 0.051 * stature]),
    }
    for side in ("left", "right"):
        for part in ("hip", "knee", "ankle", "shoulder", "elbow", "wrist", "hand"):
            at[f"{side}_{part}"] = k[f"{part.title()}-{side.title()}"]
        ankle, toe = at[f"{side}_ankle"], k[f"Foot-{side.title()}"]
        at[f"{side}_toe"] = toe
        # the sensor has no heel: place it behind the ankle, as low as the toe
        heel = ankle - 0.35 * (toe - ankle)
        heel[:, 1] = np.minimum(toe[:, 1], ankle[:, 1])
        at[f"{side}_heel"] = heel
    joints = np.stack([at[name] for name in JOINTS], 1)  # [T J 3]
    joints[..., 1] += 0.024 * stature - np.percentile(joints[..., 1].min(1), 5)
    return joints, stature


def _forward(k: dict[str, np.ndarray]) -> np.ndarray:
    """Unit vectors [T 3] in the floor plane in which the person faces."""
    left = sum(k[f"{part}-Left"] - k[f"{part}-Right"] for part in ("Hip", "Shoulder"))
    left = left * np.array([1.0, 0.0, 1.0])
    kernel = np.ones(min(SMOOTH, len(left)))
    weight = np.convolve(np.ones(len(left)), kernel, "same")
    smooth = [np.convolve(left[:, i], kernel, "same") / weight for i in range(3)]
    return unit(np.cross(np.stack(smooth, 1), [0.0, 1.0, 0.0]))


def _stature(k: dict[str, np.ndarray]) -> float:
    """The sum of bone lengths from head to floor, medians over frames."""

    def length(a, b):
        return float(np.median(np.linalg.norm(k[a] - k[b], axis=-1)))

    legs = [
        length(f"Hip-{s}", f"Knee-{s}") + length(f"Knee-{s}", f"Ankle-{s}")
        for s in ("Left", "Right")
    ]
    trunk = length("Hip-centro", "Spine") + length("Spine", "Shoulder-Center")
    # 0.039 of stature is below the ankle, 0.06 above the middle of the head
    whole = sum(legs) / 2 + trunk + length("Shoulder-Center", "Head")
    return whole / (1 - 0.039 - 0.06)


def read(sequence: Sequence, *, height: int, silhouette_size: int) -> Outcome:
    """One recording from one virtual camera: silhouettes, keypoints, ratios.

    Everybody wears the same clothes and has the same girths for their stature, so shape
    and motion come from the skeleton alone. There are no frames, because their colours
    would be invented. Frames with a joint that is too far away and frames without a
    silhouette are dropped and counted.
    """
    file = epath.Path(sequence.files["skeleton"])
    try:
        with naming(file):
            points = parse(read_text(file))
            human = of_human_size(points, KINECT_JOINTS.index("Hip-centro"))  # [T]
            if not human[::STEP].any():
                raise Damaged("no frame is of human size")
            joints, stature = joints_of(points[human])
            check_stature(stature)
    except Damaged as error:
        return unreadable(sequence, error)
    used = np.arange(len(points)) % STEP == 0  # [T]
    joints = joints[used[human]]
    walk = walker.render(
        joints, make_body(stature), *_outfit(), _scene(float(sequence.view))
    )
    silhouettes = walk.silhouettes
    if silhouette_size != silhouettes.shape[1]:
        silhouettes = normalise_silhouettes(walk.masks, silhouette_size)
    seen = silhouettes.any((1, 2)) & np.isfinite(walk.ratios)  # [T]
    return outcome(
        sequence,
        {
            "not of human size": int((used & ~human).sum()),
            "empty": int((~seen).sum()),
        },
        height,
        silhouette_size,
        silhouettes=silhouettes[seen],
        keypoints=walk.keypoints[seen],
        ratios=walk.ratios[seen],
    )


def _outfit():
    """Tight clothes, the same for everyone."""
    cloth = np.full((appearance.TILE, appearance.TILE, 3), 128, np.float32)
    skin = np.full(3, 180, np.float32)
    return (
        appearance.Upper(0.5, 0.005, 0.004, 0.05, False, cloth),
        appearance.Lower("trousers", 0.005, 0.005, cloth, cloth, 0.01),
        appearance.Head(skin, skin / 4, 0.008, 0.0),
    )


def _scene(azimuth: float) -> appearance.Scene:
    scene = appearance.draw_scene(np.random.default_rng(0), azimuth, ELEVATION, (0,))
    return scene._replace(azimuth=azimuth, elevation=ELEVATION, margin=0.02, jitter=0.0)
