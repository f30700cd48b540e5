"""How good a walk is for recognition, and why one is refused."""

from typing import NamedTuple

import numpy as np

from gaitjax.use.crops import HEIGHT, Moment
from gaitjax.use.person import ANKLES


class Quality(NamedTuple):
    """frames: usable ones. ankles: share of the frames with a person in which both
    ankles are seen. cut: share in which the picture's edge cuts the person. height:
    median in pixels. cycles: gait cycles, two steps each. seconds: from first to last.
    """

    frames: int
    ankles: float
    cut: float
    height: float
    cycles: float
    seconds: float


class Limits(NamedTuple):
    """A walk below one of them is refused. max_frames: longer walks are split."""

    min_frames: int = 15
    min_ankles: float = 0.5
    max_cut: float = 0.5
    min_height: float = 40.0
    min_cycles: float = 0.75
    max_frames: int = 720


LIMITS = Limits()


def refusal(quality: Quality, limits: Limits) -> str:
    """Why the walk is refused; "" if it is not."""
    if quality.cut > limits.max_cut:
        return f"the picture's edge cuts the person in {quality.cut:.0%} of the frames"
    if quality.ankles < limits.min_ankles:
        return f"both ankles are seen in {quality.ankles:.0%} of the frames only"
    if quality.frames < limits.min_frames:
        return f"{quality.frames} usable frames, at least {limits.min_frames} needed"
    if quality.height < limits.min_height:
        return (
            f"{quality.height:.0f} pixels high, at least {limits.min_height:.0f} needed"
        )
    if quality.cycles < limits.min_cycles:
        return f"{quality.cycles:.1f} gait cycles, at least {limits.min_cycles} needed"
    return ""


def measured(moments: list[Moment], seen: int, without_ankles: int, cut: int):
    """The Quality of the usable frames of a walk.

    seen: frames with the person, usable or not. without_ankles, cut: of these.
    """
    if not moments:
        return Quality(
            0, 1 - without_ankles / max(seen, 1), cut / max(seen, 1), 0, 0, 0
        )
    height = float(np.median([x.height for x in moments]))
    seconds = moments[-1].time - moments[0].time
    ankles = np.stack([x.keypoints[ANKLES, :2] for x in moments])  # [T 2 2]
    # unsigned, because the model confuses left and right: the feet are apart twice in
    # a cycle, which is four crossings
    cycles = crossings(np.abs(ankles[:, 0] - ankles[:, 1]) / HEIGHT) / 4
    return Quality(
        len(moments), 1 - without_ankles / seen, cut / seen, height, cycles, seconds
    )


def crossings(signal: np.ndarray, least: float = 0.03) -> int:
    """How often the more lively column of [T C] crosses its mean; 0 if none swings.

    A crossing counts once the signal has gone `least` beyond the mean on both sides, so
    noise makes none.
    """
    signal = signal - np.median(signal, axis=0)
    column = signal[:, np.argmax(signal.std(0))]
    smooth = np.convolve(column, np.full(3, 1 / 3), "same")
    side = np.sign(smooth)[np.abs(smooth) > least]
    return int((side[1:] != side[:-1]).sum())


def heading(moments: list[Moment]) -> str:
    """Where the person walks in the picture: left, right, near, far or still."""
    if len(moments) < 2:
        return "still"
    ends = max(1, len(moments) // 5)
    first, last = moments[:ends], moments[-ends:]
    height = np.median([x.height for x in moments])
    across = np.mean([x.centre[0] for x in last]) - np.mean(
        [x.centre[0] for x in first]
    )
    grown = np.mean([x.height for x in last]) / np.mean([x.height for x in first])
    if abs(across) > 0.5 * height:
        return "right" if across > 0 else "left"
    if abs(np.log(grown)) > 0.1:
        return "near" if grown > 1 else "far"
    return "still"
