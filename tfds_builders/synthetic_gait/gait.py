"""Identities as parameters of body and motion, and the joints of their walks.

The mean joint-angle curves over the stride were read off textbook figures (Winter 1991,
ch. 3; Perry & Burnfield 2010, ch. 3-5) to a few degrees and turned into Fourier series.
A person is a random draw of the parameters below. A row has the mean, the standard
deviation between people, and the share of that deviation between a person's sessions;
comments name the sources (entries of CITATIONS.bib). Angles are in degrees.

The numbers are rounded readings of the sources. The deviation of a habit is 0.7 of the
reading (10 steps/minute, 8 degrees of arm swing, ...): people differ less, which makes
the problem harder.
"""

from typing import NamedTuple

import numpy as np

from tfds_builders.figure import JOINTS, Body, make_body


class Parameter(NamedTuple):
    mean: float
    between: float
    session: float


# Between days a habit varies by 0.55 of the deviation between people. This is a
# reliability (ICC) of 1 / (1 + 0.55^2) = 0.77; McGinley 2009 finds 0.7 to 0.9 for most
# joint angles (also Kadaba 1989).
_FIXED, _HABIT = 0.0, 0.55

# fmt: off
PARAMETERS = {
    # body: Drillis & Contini 1966 (means), NHANES/ANSUR surveys (spread; build follows
    # the adult BMI range of about 18 to 35, girth ~ sqrt(BMI))
    "stature":          Parameter(1.70, 0.095, _FIXED),
    "build":            Parameter(1.00, 0.150, _FIXED),
    "leg_length":       Parameter(1.00, 0.045, _FIXED),  # of stature; trunk gives way
    "shank_share":      Parameter(1.00, 0.040, _FIXED),
    "arm_length":       Parameter(1.00, 0.050, _FIXED),
    "neck_length":      Parameter(1.00, 0.180, _FIXED),
    "head_size":        Parameter(1.00, 0.060, _FIXED),
    "shoulder_width":   Parameter(1.00, 0.085, _FIXED),
    "hip_width":        Parameter(1.00, 0.090, _FIXED),
    "leg_girth":        Parameter(1.00, 0.120, _FIXED),
    "arm_girth":        Parameter(1.00, 0.130, _FIXED),
    "belly":            Parameter(0.03, 0.035, _FIXED),  # metres
    "foot_length":      Parameter(1.00, 0.060, _FIXED),
    # time and distance: Murray 1964, Oberg 1993; width: Perry & Burnfield 2010
    "cadence":          Parameter(112.0, 7.0, _HABIT),  # steps / minute
    "hip_gain":         Parameter(1.00, 0.112, _HABIT),  # sets the stride length
    "step_width":       Parameter(0.09, 0.028, _HABIT),  # metres
    "toe_out":          Parameter(7.0, 4.5, _HABIT),
    # joint angles: Winter 1991 (between-subject spread of each curve)
    "hip_offset":       Parameter(0.0, 3.9, _HABIT),
    "hip_second":       Parameter(1.00, 0.245, _HABIT),
    "hip_phase":        Parameter(0.0, 0.0126, _HABIT),  # of a stride
    "knee_gain":        Parameter(1.00, 0.091, _HABIT),
    "knee_offset":      Parameter(2.0, 3.1, _HABIT),
    "knee_second":      Parameter(1.00, 0.175, _HABIT),
    "knee_phase":       Parameter(0.0, 0.0126, _HABIT),
    "ankle_gain":       Parameter(1.00, 0.175, _HABIT),
    "ankle_offset":     Parameter(0.0, 3.5, _HABIT),
    "circumduction":    Parameter(2.0, 1.8, _HABIT),
    # pelvis and trunk: Perry & Burnfield 2010, Thorstensson 1984, Stokes 1989
    "pelvis_list":      Parameter(4.0, 1.4, _HABIT),
    "pelvis_rotation":  Parameter(4.5, 1.8, _HABIT),
    "side_sway":        Parameter(0.022, 0.007, _HABIT),  # metres
    "trunk_lean":       Parameter(4.0, 3.5, _HABIT),
    "trunk_sway":       Parameter(2.2, 1.4, _HABIT),
    "trunk_pitch":      Parameter(1.2, 0.56, _HABIT),
    "chest_rotation":   Parameter(5.0, 1.8, _HABIT),
    # arms: Murray 1967, Kuhtz-Buschbeck 2008 (asymmetry)
    "arm_swing":        Parameter(17.0, 5.6, _HABIT),  # half range at the shoulder
    "arm_offset":       Parameter(-3.0, 4.9, _HABIT),
    "arm_asymmetry":    Parameter(0.0, 0.196, _HABIT),
    "arm_phase":        Parameter(0.0, 0.0245, _HABIT),
    "arm_abduction":    Parameter(8.0, 3.1, _HABIT),
    "elbow_offset":     Parameter(24.0, 8.4, _HABIT),
    "elbow_swing":      Parameter(10.0, 4.2, _HABIT),
    # head carriage: Raine & Twomey 1997
    "neck_lean":        Parameter(22.0, 6.3, _HABIT),
    "head_pitch":       Parameter(0.0, 5.6, _HABIT),
    "head_bob":         Parameter(1.5, 0.84, _HABIT),
    # left against right: Sadeghi 2000, Patterson 2010
    "step_asymmetry":   Parameter(0.0, 0.0112, _HABIT),  # of a stride
    "hip_asymmetry":    Parameter(0.0, 0.0315, _HABIT),
    "knee_asymmetry":   Parameter(0.0, 0.0385, _HABIT),
    "shoulder_drop":    Parameter(0.0, 1.3, _HABIT),
    "hip_asymmetric":   Parameter(0.0, 1.4, _HABIT),  # offset, left minus right
}
# Flexion over the stride, from heel strike, every 5 %. Ankle: dorsiflexion.
HIP = (25, 24, 22, 19, 14, 8, 3, -2, -7, -11, -12, -8, -1, 8, 17, 24, 28, 29, 28, 26)
KNEE = (5, 10, 16, 19, 18, 15, 11, 8, 7, 9, 15, 26, 42, 56, 61, 58, 46, 28, 11, 4)
ANKLE = (0, -5, -4, 0, 3, 5, 7, 8, 9, 8, 4, -7, -17, -16, -8, -2, 1, 2, 1, 1)
# fmt: on

# segment lengths as shares of stature (Drillis & Contini 1966; Winter 2009, ch. 4)
_THIGH, _SHANK, _ANKLE_HEIGHT, _FOOT = 0.245, 0.246, 0.039, 0.152
_UPPER_ARM, _FOREARM, _HAND = 0.186, 0.146, 0.06
_SHOULDER_HALF, _HIP_HALF = 0.108, 0.052  # joint centres
_TRUNK, _NECK = 0.288, 0.045

Person = dict[str, float]


def draw_person(rng: np.random.Generator) -> Person:
    """An identity; the parameters are normally distributed, cut at 2.2 deviations."""
    z = np.clip(rng.standard_normal(len(PARAMETERS)), -2.2, 2.2)
    return {
        name: row.mean + row.between * float(value)
        for (name, row), value in zip(PARAMETERS.items(), z)
    }


def draw_session(person: Person, rng: np.random.Generator) -> Person:
    """The person on another day: habits vary a little, the body does not."""
    z = np.clip(rng.standard_normal(len(PARAMETERS)), -2.2, 2.2)
    return {
        name: person[name] + row.session * row.between * float(value)
        for (name, row), value in zip(PARAMETERS.items(), z)
    }


def body_of(person: Person) -> Body:
    """The radii of a person."""
    return make_body(
        person["stature"],
        build=person["build"],
        legs=person["leg_girth"],
        arms=person["arm_girth"],
        shoulders=person["shoulder_width"],
        hips=person["hip_width"],
        head=person["head_size"],
        belly=max(0.0, person["belly"]),
    )


def _series(values) -> np.ndarray:
    """Fourier coefficients (harmonics 0..5) of a periodic curve at equal steps."""
    return np.fft.rfft(values)[:6] / len(values) * np.array([1, 2, 2, 2, 2, 2])


_CURVES = {"hip": _series(HIP), "knee": _series(KNEE), "ankle": _series(ANKLE)}


def _curve(joint, phase, gain, second, offset, shift) -> np.ndarray:
    """Angle in radians at `phase` [T] (strides) of a varied mean curve.

    gain: of the amplitude; second: of the harmonics above the first; offset: degrees;
    shift: strides.
    """
    coefficients = _CURVES[joint].copy()
    coefficients[1:] *= gain
    coefficients[2:] *= second
    orders = np.arange(len(coefficients))
    turns = np.exp(2j * np.pi * (phase + shift)[:, None] * orders[None])  # [T 6]
    return np.deg2rad((turns * coefficients[None]).real.sum(-1) + offset)


def _rotation(axis: int, angle: np.ndarray) -> np.ndarray:
    """Rotation matrices [T 3 3] about x, y or z by `angle` [T] radians."""
    c, s = np.cos(angle), np.sin(angle)
    matrix = np.zeros((len(angle), 3, 3))
    i, j = [(1, 2), (2, 0), (0, 1)][axis]
    matrix[:, axis, axis] = 1
    matrix[:, i, i], matrix[:, j, j] = c, c
    matrix[:, i, j], matrix[:, j, i] = -s, s
    return matrix


def _apply(matrix, vector) -> np.ndarray:
    return matrix @ np.asarray(vector, float)  # [T 3]


def walk(
    person: Person,
    rng: np.random.Generator,
    *,
    num_frames: int,
    fps: float,
    carries: bool = False,
) -> np.ndarray:
    """Joint positions [T J 3] of a straight walk (order walker.JOINTS, metres).

    The start phase is random. Cadence varies by 1.2 % between walks; the amplitudes of
    legs and arms vary by 2.5 and 5 % between strides (Hausdorff 1996 reports 2 to 4 %
    for the stride interval). carries: the right arm holds something heavy and hardly
    swings.
    """
    p = person
    time = np.arange(num_frames) / fps
    wander = _wander(rng, time)  # three slow functions, of about unit deviation
    stride_rate = p["cadence"] / 120 * (1 + 0.012 * rng.standard_normal())
    phase = rng.uniform() + stride_rate * time + 0.008 * wander[0]
    gain = 1 + 0.025 * wander[1]
    limbs = _legs(p, phase, gain)
    at = limbs | _upper_body(p, phase, 1 + 0.05 * wander[2], carries)
    joints = np.stack([at[name] for name in JOINTS], 1)  # [T J 3]
    feet = [
        JOINTS.index(f"{s}_{j}") for s in ("left", "right") for j in ("heel", "toe")
    ]
    floor = joints[:, feet, 1].min(1)  # [T]
    joints[:, :, 1] -= floor[:, None] - 0.024 * p["stature"]
    steps = np.linalg.norm(limbs["left_ankle"] - limbs["right_ankle"], axis=-1)
    joints[:, :, 2] += (2 * 0.95 * steps.max() * stride_rate * time)[:, None]
    return joints


def _wander(rng, time) -> np.ndarray:
    """Slow noise [3 T]: sinusoids with periods of a few seconds and random phases."""
    rates = rng.uniform(0.2, 0.9, (3, 3, 1))
    starts = rng.uniform(0, 2 * np.pi, (3, 3, 1))
    return np.sin(2 * np.pi * rates * time + starts).sum(1) * np.sqrt(2 / 3)


def _legs(p, phase, gain) -> dict[str, np.ndarray]:
    stature = p["stature"]
    turn = 2 * np.pi * phase
    pelvis = np.stack(
        [p["side_sway"] * np.sin(turn - 0.6), 0 * turn, 0 * turn], -1
    )  # [T 3], towards the stance leg; phase 0 is the left heel strike
    frame = _rotation(1, -np.deg2rad(p["pelvis_rotation"]) * np.cos(turn)) @ _rotation(
        2, np.deg2rad(p["pelvis_list"]) * np.sin(turn - 0.3)
    )
    at = {"pelvis": pelvis}
    thigh = _THIGH * stature * p["leg_length"] * (2 - p["shank_share"])
    shank = _SHANK * stature * p["leg_length"] * p["shank_share"]
    half = _HIP_HALF * stature * p["hip_width"]
    abduction = np.arctan2(p["step_width"] / 2 - half, thigh + shank)
    foot = _FOOT * stature * p["foot_length"]
    for side, sign, lag in (
        ("left", 1.0, 0.0),
        ("right", -1.0, 0.5 + p["step_asymmetry"]),
    ):
        t = phase - lag
        hip_gain = gain * p["hip_gain"] * (1 + sign * p["hip_asymmetry"])
        knee_gain = p["knee_gain"] * (1 + sign * p["knee_asymmetry"])
        hip_offset = p["hip_offset"] + sign * p["hip_asymmetric"] / 2
        hip = _curve("hip", t, 1.0, p["hip_second"], hip_offset, p["hip_phase"])
        mean = np.deg2rad(_CURVES["hip"][0].real + hip_offset)
        hip = mean + (hip - mean) * hip_gain
        knee = _curve(
            "knee", t, knee_gain, p["knee_second"], p["knee_offset"], p["knee_phase"]
        )
        knee = np.maximum(knee, np.deg2rad(-2))
        ankle = _curve("ankle", t, p["ankle_gain"], 1.0, p["ankle_offset"], 0.0)
        swing = np.sin(2 * np.pi * (t - 0.55)) * (np.sin(2 * np.pi * (t - 0.55)) > 0)
        outwards = sign * (abduction + np.deg2rad(p["circumduction"]) * swing)
        thigh_frame = frame @ _rotation(2, outwards) @ _rotation(0, -hip)
        shank_frame = thigh_frame @ _rotation(0, knee)
        toe_out = np.full_like(t, sign * np.deg2rad(p["toe_out"]))
        foot_frame = shank_frame @ _rotation(0, -ankle) @ _rotation(1, toe_out)
        at[f"{side}_hip"] = pelvis + _apply(frame, [sign * half, 0, 0])
        at[f"{side}_knee"] = at[f"{side}_hip"] + _apply(thigh_frame, [0, -thigh, 0])
        ankle_at = at[f"{side}_knee"] + _apply(shank_frame, [0, -shank, 0])
        at[f"{side}_ankle"] = ankle_at
        drop = _ANKLE_HEIGHT * stature * 0.6
        at[f"{side}_heel"] = ankle_at + _apply(foot_frame, [0, -drop, -0.16 * foot])
        at[f"{side}_toe"] = ankle_at + _apply(foot_frame, [0, -drop, 0.7 * foot])
    return at


def _upper_body(p, phase, gain, carries) -> dict[str, np.ndarray]:
    stature = p["stature"]
    turn = 2 * np.pi * phase
    pelvis = np.stack([p["side_sway"] * np.sin(turn - 0.6), 0 * turn, 0 * turn], -1)
    lean = np.deg2rad(p["trunk_lean"] + p["trunk_pitch"] * np.cos(2 * turn - 0.5))
    sway = np.deg2rad(p["trunk_sway"]) * np.sin(turn - 0.4)
    trunk = _rotation(2, -sway) @ _rotation(0, lean)
    longer_legs = (_THIGH + _SHANK) * (p["leg_length"] - 1)
    length = (_TRUNK - longer_legs) * stature
    chest = pelvis + _apply(trunk, [0, length, 0])
    twist = np.deg2rad(p["chest_rotation"]) * np.cos(turn)
    drop = np.full_like(turn, np.deg2rad(p["shoulder_drop"]))
    girdle = trunk @ _rotation(1, twist) @ _rotation(2, drop)
    nod = np.deg2rad(p["neck_lean"])
    neck_frame = trunk @ _rotation(0, np.full_like(turn, nod - 0.2))
    neck = chest + _apply(trunk, [0, 0.03 * stature, -0.01])
    head = neck + _apply(
        neck_frame, [0, (_NECK * p["neck_length"] + 0.03) * stature, 0]
    )
    pitch = np.deg2rad(p["head_pitch"] + p["head_bob"] * np.cos(2 * turn))
    face = _rotation(0, pitch)
    nose = head + _apply(face, [0, -0.012, 1.12 * 0.046 * stature * p["head_size"]])
    at = {"chest": chest, "neck": neck, "head": head, "nose": nose}
    for side, sign, lag in (("left", 1.0, 0.5), ("right", -1.0, 0.0)):
        t = 2 * np.pi * (phase - lag + p["arm_phase"])
        held = 0.25 if carries and side == "right" else 1.0
        reach = held * gain * max(0.0, 1 + sign * p["arm_asymmetry"])
        swing = max(1.0, p["arm_swing"]) * reach
        shoulder = np.deg2rad(p["arm_offset"] + swing * np.cos(t - 0.2))
        bend = p["elbow_offset"] * held + p["elbow_swing"] * reach * np.cos(t - 0.7)
        elbow = np.deg2rad(np.maximum(bend, 2.0))
        abduction = np.full_like(t, sign * np.deg2rad(p["arm_abduction"]))
        upper = girdle @ _rotation(2, abduction) @ _rotation(0, -shoulder)
        fore = upper @ _rotation(0, -elbow) @ _rotation(2, -0.7 * abduction)
        scale = stature * p["arm_length"]
        half = sign * _SHOULDER_HALF * stature * p["shoulder_width"]
        at[f"{side}_shoulder"] = chest + _apply(girdle, [half, 0, 0])
        elbow_at = at[f"{side}_shoulder"] + _apply(upper, [0, -_UPPER_ARM * scale, 0])
        wrist = elbow_at + _apply(fore, [0, -_FOREARM * scale, 0])
        at[f"{side}_elbow"], at[f"{side}_wrist"] = elbow_at, wrist
        at[f"{side}_hand"] = wrist + _apply(fore, [0, -_HAND * scale, 0])
    return at
