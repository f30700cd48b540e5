"""Tiny data sets for tests: a prepared synthetic one, and raw folders for builders."""

import contextlib
import io
from pathlib import Path

import numpy as np


def tiny_synthetic(data_dir: Path) -> Path:
    """Prepares synthetic_gait/tiny under `data_dir` unless it is there; its folder.

    4 + 4 identities, 7 conditions, 2 cameras, 8 frames; a few seconds. Use one
    `data_dir` for a whole test session.
    """
    from tfds_builders.prepare import prepare

    quiet = io.StringIO()
    with contextlib.redirect_stdout(quiet), contextlib.redirect_stderr(quiet):
        return prepare("synthetic_gait/tiny", data_dir)


# a skeleton with CMU's bone names, directions near CMU's, lengths in 1/0.45 inches
_CHAINS = {
    "root": {"lhipjoint": (0.7, -0.65, 0.3, 2.4), "rhipjoint": (-0.7, -0.65, 0.3, 2.4)},
    "lhipjoint": {"lfemur": (0.2, -0.98, 0, 7.2)},
    "rhipjoint": {"rfemur": (-0.2, -0.98, 0, 7.2)},
    "lfemur": {"ltibia": (0.1, -0.99, 0, 7.4)},
    "rfemur": {"rtibia": (-0.1, -0.99, 0, 7.4)},
    "ltibia": {"lfoot": (0, -0.22, 0.97, 2.2)},
    "rtibia": {"rfoot": (0, -0.22, 0.97, 2.2)},
    "lfoot": {"ltoes": (0, 0, 1, 1.1)},
    "rfoot": {"rtoes": (0, 0, 1, 1.1)},
    "ROOT": {"lowerback": (0, 1, 0, 2.2)},
    "lowerback": {"upperback": (0, 1, -0.08, 2.2)},
    "upperback": {"thorax": (0, 1, -0.08, 2.2)},
    "thorax": {
        "lowerneck": (0, 0.98, 0.1, 1.5),
        "lclavicle": (0.97, 0.25, 0, 3.3),
        "rclavicle": (-0.97, 0.25, 0, 3.3),
    },
    "lowerneck": {"upperneck": (0, 0.97, -0.1, 1.5)},
    "upperneck": {"head": (0, 1, 0, 1.5)},
    "lclavicle": {"lhumerus": (0.15, -0.99, 0, 5.0)},
    "rclavicle": {"rhumerus": (-0.15, -0.99, 0, 5.0)},
    "lhumerus": {"lradius": (0, -1, 0.1, 3.3)},
    "rhumerus": {"rradius": (0, -1, 0.1, 3.3)},
    "lradius": {"lwrist": (0, -1, 0.1, 1.7)},
    "rradius": {"rwrist": (0, -1, 0.1, 1.7)},
    "lwrist": {"lhand": (0, -1, 0.1, 0.8)},
    "rwrist": {"rhand": (0, -1, 0.1, 0.8)},
}
_SWINGING = ("lfemur", "rfemur", "ltibia", "rtibia", "lhumerus", "rhumerus")


def write_cmu_walk(folder: Path, subjects: dict[str, tuple[int, ...]]) -> Path:
    """An ASF file per subject and an AMC file per trial, as mocap.cs.cmu.edu has them:
    3 seconds of a stiff walk at 120 frames/s, with angles that differ by subject."""
    for subject, trials in subjects.items():
        place = folder / subject
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{subject}.asf").write_text(_skeleton())
        for trial in trials:
            text = _motion(int(subject), trial, 360)
            (place / f"{subject}_{trial:02d}.amc").write_text(text)
    return folder


def _skeleton() -> str:
    bones, hierarchy = [], []
    for parent, children in _CHAINS.items():
        hierarchy.append(f"    {parent.lower()} {' '.join(children)}")
        for name, (x, y, z, length) in children.items():
            dof = "    dof rx\n" if name in _SWINGING else ""
            bones.append(
                f"  begin\n    id {len(bones) + 1}\n    name {name}\n"
                f"    direction {x} {y} {z}\n    length {length}\n"
                f"    axis 0 0 0 XYZ\n{dof}  end"
            )
    return "\n".join(
        [
            "# a comment",
            ":version 1.10",
            ":name fake",
            ":units",
            "  mass 1.0",
            "  length 0.45",
            "  angle deg",
            ":root",
            "   order TX TY TZ RX RY RZ",
            "   axis XYZ",
            "   position 0 0 0",
            "   orientation 0 0 0",
            ":bonedata",
            *bones,
            ":hierarchy",
            "  begin",
            *hierarchy,
            "  end",
        ]
    )


def _motion(subject: int, trial: int, num_frames: int) -> str:
    lines = ["#!fake", ":FULLY-SPECIFIED", ":DEGREES"]
    rng = np.random.default_rng((subject, trial))
    start, swing = rng.uniform(0, 6), 20 + subject % 7
    for frame in range(num_frames):
        phase = 2 * np.pi * frame / 130 + start
        lines += [str(frame + 1), f"root {0.22 * frame:.4f} 17 2 0 90 0"]
        for name in _SWINGING:
            sign = 1 if name[0] == "l" else -1
            sign *= 1 if "humerus" in name else -1
            angle = swing * sign * np.sin(phase)
            if "tibia" in name:
                angle = 25 + 25 * np.sin(phase + sign)
            lines.append(f"{name} {angle:.4f}")
    return "\n".join(lines) + "\n"
