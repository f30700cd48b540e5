"""The walking figure: joints, body, and the round cones of a dressed walker.

Axes: x to the walker's left, y up, z in the walking direction; metres.
"""

from typing import NamedTuple

import numpy as np

from tfds_builders.appearance import BAG, HAIR, LOWER, SHOES, SKIN, UPPER
from tfds_builders.damage import Damaged

# chest: middle of the shoulder joints; head: centre of the skull
SIDES = ("hip", "knee", "ankle", "heel", "toe", "shoulder", "elbow", "wrist", "hand")
JOINTS = ("pelvis", "chest", "neck", "head", "nose") + tuple(
    f"{side}_{part}" for part in SIDES for side in ("left", "right")
)
BAGS = ("backpack", "shoulder bag", "suitcase")
# part 0 is what surrounds the person (appearance.WALL and on)
PARTS = (
    "surroundings", "head", "torso", "upper arm", "forearm", "hand", "thigh", "shank",
    "foot", "bag",
)  # fmt: skip
STATURES = 0.8, 2.5  # metres; others are no person
REACH = 3.0  # metres from the pelvis; a joint beyond is no person's
PLACES = 100.0  # metres from the origin; a recording leaves no room


class Body(NamedTuple):
    """Radii and half widths in metres; the joints determine the lengths.

    width, depth: half extents of the trunk at hips, waist and chest. belly: how far the
    belly protrudes.
    """

    thigh: float
    knee: float
    calf: float
    ankle: float
    upper_arm: float
    elbow: float
    wrist: float
    neck: float
    head: float
    foot: float
    width: tuple[float, float, float]
    depth: tuple[float, float, float]
    belly: float


def make_body(
    stature: float, build: float = 1.0, legs: float = 1.0, arms: float = 1.0,
    shoulders: float = 1.0, hips: float = 1.0, head: float = 1.0, belly: float = 0.0,
) -> Body:  # fmt: skip
    """A body of average proportions times the given factors (`build` scales girths).

    The average radii are shares of stature, circumference / 2 pi of the 50th percentile
    adult, after the segment geometry of Hanavan (1964) and Winter (2009, ch. 4).
    stature, belly: metres.
    """
    unit = stature * build
    return Body(
        thigh=0.046 * unit * legs,
        knee=0.032 * unit * legs,
        calf=0.034 * unit * legs,
        ankle=0.022 * unit * legs,
        upper_arm=0.028 * unit * arms,
        elbow=0.023 * unit * arms,
        wrist=0.016 * unit * arms,
        neck=0.033 * unit,
        head=0.046 * stature * head,
        foot=0.024 * stature,
        width=(
            0.094 * unit * hips,
            0.077 * unit * (hips + shoulders) / 2,
            0.094 * unit * shoulders,
        ),
        depth=(0.062 * unit, 0.055 * unit, 0.064 * unit),
        belly=belly,
    )


def check_stature(stature: float):
    """Raises Damaged for a stature that no person has."""
    if not STATURES[0] < stature < STATURES[1]:
        raise Damaged(f"a person of {stature:.3g} m")


def of_human_size(points: np.ndarray, pelvis: int) -> np.ndarray:
    """bool [T]: frames of points [T J 3], metres, within REACH of point `pelvis`."""
    bounded = np.abs(points) < PLACES
    near = np.where(bounded, points, 0)
    distance = np.abs(near - near[:, [pelvis]]).max((1, 2))  # [T]
    return bounded.all((1, 2)) & (distance < REACH)


class Cones:
    """Collects round cones: end points [T 3], radii in metres, material, body part."""

    def __init__(self):
        self.start, self.end, self.radii, self.material = [], [], [], []
        self.part, self._part = [], 0

    def of(self, part: str) -> "Cones":
        """The part of the cones that follow, one of PARTS."""
        self._part = PARTS.index(part)
        return self

    def add(self, start, end, start_radius, end_radius, material):
        self.start.append(start)
        self.end.append(end)
        self.radii.append((start_radius, end_radius))
        self.material.append(material)
        self.part.append(self._part)


def unit(vector: np.ndarray) -> np.ndarray:
    """`vector` [... 3] at length 1."""
    return vector / (np.linalg.norm(vector, axis=-1, keepdims=True) + 1e-9)


def dress(joints, body, upper, lower, head, bag) -> Cones:
    """The round cones of a dressed walker. joints: [T J 3]."""
    at = {name: joints[:, i] for i, name in enumerate(JOINTS)}
    cones = Cones()
    left = unit(at["left_hip"] - at["right_hip"])  # [T 3]
    up = unit(at["chest"] - at["pelvis"])
    forward = np.cross(left, up)
    left_chest = unit(at["left_shoulder"] - at["right_shoulder"])
    forward_chest = np.cross(left_chest, up)
    _add_trunk(cones, at, body, upper, left, left_chest, forward)
    for side in ("left", "right"):
        _add_leg(cones, {j: at[f"{side}_{j}"] for j in SIDES}, body, lower)
        _add_arm(cones, {j: at[f"{side}_{j}"] for j in SIDES}, body, upper)
    _add_hems(cones, at, body, upper, lower)
    _add_head(cones, at, body, upper, head)
    if bag:
        _add_bag(cones, at, body, bag, up, left_chest, forward_chest)
    return cones


def _add_trunk(cones, at, body, upper, left, left_chest, forward):
    trunk = at["chest"] - at["pelvis"]
    loose = upper.loose_torso
    cones.of("torso")
    levels = []
    for share, width, depth, belly in zip(
        (0.02, 0.40, 0.72), body.width, body.depth, (0.0, body.belly, 0.0)
    ):
        side = unit(left * (1 - share) + left_chest * share)
        centre = at["pelvis"] + share * trunk + belly * 0.5 * forward
        depth = depth + loose + 0.5 * belly
        offset = max(width + loose - depth, 0.01)
        levels.append((centre, side * offset, depth))
    for (c0, s0, d0), (c1, s1, d1) in zip(levels, levels[1:]):
        for sign in (-1.0, 0.0, 1.0):
            top = d1 if sign == 0 or c1 is not levels[-1][0] else 0.85 * d1
            cones.add(c0 + sign * s0, c1 + sign * s1, d0, top, UPPER)
    for side in ("left", "right"):
        inner = at["neck"] * 0.6 + at["chest"] * 0.4
        shoulder, radius = at[f"{side}_shoulder"], 1.3 * body.upper_arm
        cones.add(inner, shoulder, 0.9 * body.neck + loose, radius + loose, UPPER)


def _add_leg(cones, at, body, lower):
    hip, knee, ankle = at["hip"], at["knee"], at["ankle"]
    calf = knee + 0.3 * (ankle - knee)
    bare = lower.kind != "trousers"
    thigh, shank = lower.loose_thigh, lower.loose_shank
    cones.of("thigh").add(hip, knee, body.thigh + thigh, body.knee + thigh, LOWER)
    cones.of("shank")
    if bare:
        cones.add(knee, calf, body.knee, body.calf, SKIN)
        cones.add(calf, ankle, body.calf, body.ankle, SKIN)
    else:
        cones.add(knee, calf, body.knee + thigh, body.calf + shank, LOWER)
        low = ankle + 0.04 * (knee - ankle)
        cones.add(calf, low, body.calf + shank, body.ankle + shank, LOWER)
    radius = body.foot + lower.shoe_height
    ball = at["heel"] + 0.72 * (at["toe"] - at["heel"])
    cones.of("foot").add(at["heel"], ball, radius * 1.15, radius * 1.2, SHOES)
    cones.add(ball, at["toe"], radius * 1.2, radius * 0.8, SHOES)
    cones.add(ankle, ball, body.ankle, radius, SHOES)


def _add_arm(cones, at, body, upper):
    shoulder, elbow, wrist = at["shoulder"], at["elbow"], at["wrist"]
    loose = upper.loose_arm
    if upper.sleeve >= 1:
        cones.of("upper arm").add(
            shoulder, elbow, body.upper_arm + loose, body.elbow + loose, UPPER
        )
        cones.of("forearm").add(
            elbow, wrist, body.elbow + loose, body.wrist + loose, UPPER
        )
    else:
        cuff = shoulder + 2 * upper.sleeve * 0.6 * (elbow - shoulder)
        cones.of("upper arm").add(
            shoulder, cuff, body.upper_arm + loose, body.upper_arm + loose, UPPER
        )
        cones.of("upper arm").add(shoulder, elbow, body.upper_arm, body.elbow, SKIN)
        cones.of("forearm").add(elbow, wrist, body.elbow, body.wrist, SKIN)
    cones.of("hand").add(wrist, at["hand"], body.wrist * 1.15, body.wrist * 1.25, SKIN)


def _add_hems(cones, at, body, upper, lower):
    width, loose = body.width[0], lower.loose_thigh
    knees = (at["left_knee"] + at["right_knee"]) / 2
    drop = knees - at["pelvis"]
    if lower.kind == "skirt":
        radius = 0.8 * width + loose
        cones.of("thigh").add(
            at["pelvis"], at["pelvis"] + 0.55 * drop, radius, radius, LOWER
        )
        for side in ("left", "right"):
            hip, knee = at[f"{side}_hip"], at[f"{side}_knee"]
            hem = hip + 0.9 * (0.6 * (knee - hip) + 0.4 * drop)
            cones.add(hip, hem, radius * 0.8, radius * 0.75, LOWER)
    cones.of("torso").add(  # the seat of the lower garment
        at["left_hip"], at["right_hip"], body.depth[0] + loose, body.depth[0] + loose,
        LOWER,
    )  # fmt: skip
    cones.of("thigh")
    if upper.hem > 0.02:
        for side in ("left", "right"):
            hip, knee = at[f"{side}_hip"], at[f"{side}_knee"]
            end = hip + upper.hem * (knee - hip)
            radius = body.depth[0] + upper.loose_torso + 0.01
            cones.add(hip, end, radius, radius + 0.03 * upper.hem, UPPER)


def _add_head(cones, at, body, upper, head):
    face = unit(at["nose"] - at["head"])  # [T 3]
    axis = unit(at["head"] - at["neck"])
    radius = body.head
    chin, crown = (
        at["head"] - 0.5 * radius * axis + 0.25 * radius * face,
        at["head"] + 0.45 * radius * axis,
    )
    cones.of("head").add(
        at["neck"] - 0.04 * axis, at["head"], body.neck, body.neck, SKIN
    )
    cones.add(chin, crown, radius * 0.78, radius, SKIN)
    cones.add(at["head"], at["nose"], 0.2 * radius, 0.14 * radius, SKIN)
    back = crown - 0.22 * radius * face + 0.08 * radius * axis
    nape = at["head"] - (0.3 + 1.6 * head.hair_length) * radius * axis
    nape = nape - 0.35 * radius * face
    cones.add(
        back, nape, radius + head.hair_volume, 0.8 * radius + head.hair_volume, HAIR
    )
    if upper.hood:
        hood = at["neck"] - 0.045 * face - 0.02 * axis
        cones.of("torso").add(hood, hood - 0.05 * axis, 0.06, 0.07, UPPER)


def _add_bag(cones, at, body, bag, up, left, forward):
    cones.of("bag")
    if bag == "backpack":
        out = body.depth[2] + 0.07
        top = at["chest"] - out * forward
        low = top - 0.36 * up
        for sign in (-1.0, 1.0):
            side = 0.06 * sign * left
            cones.add(top - 0.06 * up + side, low + side, 0.085, 0.1, BAG)
            strap = at["chest"] + 0.1 * sign * left
            cones.add(
                strap + 0.06 * up, strap + body.depth[2] * forward - 0.2 * up, 0.03,
                0.025, BAG,
            )  # fmt: skip
    elif bag == "shoulder bag":
        out = body.width[0] + 0.09
        centre = at["pelvis"] + out * left + 0.02 * up
        cones.add(centre - 0.12 * forward, centre + 0.12 * forward, 0.1, 0.1, BAG)
        cones.add(at["left_shoulder"] + 0.05 * up, centre, 0.022, 0.022, BAG)
    else:  # a suitcase
        centre = at["right_hand"] - np.array([0.0, 0.2, 0.0])
        along = np.array([0.0, 0.0, 0.17])
        for shift in (0.0, 0.16):
            low = centre - np.array([0.0, shift, 0.0])
            cones.add(low - along, low + along, 0.075, 0.075, BAG)
