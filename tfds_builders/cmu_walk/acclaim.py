"""Reads Acclaim ASF/AMC motion capture: skeleton and motion files to joint positions.

Format: J. Lander, "Working with Motion Capture File Formats", Game Developer, January
1998. A bone has a direction (at rest, in the axes of the whole figure), a length, an
axis C (the rotation of its own coordinate system), and degrees of freedom. If M is the
rotation by a frame's angles, a bone turns by C M C^-1 within its parent. The order
"XYZ" rotates about x first: R = Rz Ry Rx. A unit of length is 1 / L inches, where L is
`length` in the section `units` (CMU: 0.45).
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from tfds_builders.damage import Damaged

METRES_PER_INCH = 0.0254
DOF = frozenset({"rx", "ry", "rz", "tx", "ty", "tz", "l"})
MAX_VALUE = 1e6  # of an angle or a length in a file; no recording has larger ones


class Bone(NamedTuple):
    """direction: unit vector [3]. length: in file units. axis: C, [3 3]. order: of the
    rotations, "XYZ". dof: names of the bone's values in the motion file, in order."""

    direction: np.ndarray
    length: float
    axis: np.ndarray
    order: str
    dof: tuple[str, ...]


class Skeleton(NamedTuple):
    """bones: all but the root. parents: {bone: parent}, parents first. position: [3] in
    file units; axis, order, dof: those of the root, as for a bone. scale: metres per
    file unit. radians: whether the angles are in radians, not degrees."""

    bones: dict[str, Bone]
    parents: dict[str, str]
    position: np.ndarray
    axis: np.ndarray
    order: str
    dof: tuple[str, ...]
    scale: float
    radians: bool


class Pose(NamedTuple):
    """start, end: {bone: [T 3]}, metres. rotation: {bone: [T 3 3]}, relative to rest.
    All include the root, whose start and end are the same."""

    start: dict[str, np.ndarray]
    end: dict[str, np.ndarray]
    rotation: dict[str, np.ndarray]


def rotation(angles: np.ndarray, order: str) -> np.ndarray:
    """Matrices [... 3 3] of angles [... 3] (x, y, z; radians), applied in `order`."""
    matrix = np.broadcast_to(np.eye(3), (*angles.shape[:-1], 3, 3))
    for letter in order.lower():
        axis = "xyz".index(letter)
        cos, sin = np.cos(angles[..., axis]), np.sin(angles[..., axis])
        one = np.zeros((*angles.shape[:-1], 3, 3))
        i, j = (axis + 1) % 3, (axis + 2) % 3
        one[..., axis, axis] = 1
        one[..., i, i], one[..., j, j] = cos, cos
        one[..., i, j], one[..., j, i] = -sin, sin
        matrix = one @ matrix
    return matrix


def _lines(text: str) -> Iterator[list[str]]:
    lines = (line.split("#")[0].split() for line in text.splitlines())
    return (line for line in lines if line)


def parse_skeleton(text: str) -> Skeleton:
    """Reads the text of an ASF file. Raises Damaged for malformed ones."""
    sections: dict[str, list[list[str]]] = {}
    current: list[list[str]] = []
    for line in _lines(text):
        if line[0].startswith(":"):
            current = sections.setdefault(line[0][1:].lower(), [])
            line = line[1:]
        if line:
            current.append(line)
    missing = {"units", "root", "bonedata", "hierarchy"} - sections.keys()
    if missing:
        raise Damaged(f"sections {sorted(missing)} are missing")
    units = {line[0].lower(): line[1:] for line in sections["units"]}
    radians = "".join(units.get("angle", ["deg"])).startswith("rad")
    root = {line[0].lower(): line[1:] for line in sections["root"]}
    bones = dict(_bones(sections["bonedata"], radians))
    orientation = _angles(_numbers(root, "orientation", 3, "root"), radians)
    order = _order("".join(root.get("axis", [])), "root")
    (unit,) = _numbers(units, "length", 1, "units")
    if not 1e-3 < unit < 1e3:
        raise Damaged(f"units: length {unit:g}, expected one such as 0.45")
    return Skeleton(
        bones=bones,
        parents=_parents(sections["hierarchy"], bones),
        position=_numbers(root, "position", 3, "root"),
        axis=rotation(orientation, order),
        order=order,
        dof=_dof(root.get("order", []), "root"),
        scale=METRES_PER_INCH / unit,
        radians=radians,
    )


def _parents(lines: list[list[str]], bones: dict[str, Bone]) -> dict[str, str]:
    """{bone: parent}, parents first."""
    parents, placed = {}, {"root"}
    for parent, *children in lines:
        if parent not in ("begin", "end"):
            parents |= dict.fromkeys(children, parent)
    for bone, parent in parents.items():
        if parent not in placed or bone not in bones:
            raise Damaged(f"the hierarchy has {bone} under unknown {parent}")
        placed.add(bone)
    return parents


def _numbers(entry: dict[str, list[str]], key: str, count: int, place: str):
    """float64 [count] of an entry's line; raises Damaged for huge ones too."""
    words = entry.get(key, [])[:count]
    try:
        values = np.array(words, float)
    except ValueError:
        values = np.array([])
    if values.shape != (count,) or not (np.abs(values) < MAX_VALUE).all():
        raise Damaged(
            f"{place}: {key} is {' '.join(words)!r}, expected {count} numbers"
        )
    return values


def _order(letters: str, place: str) -> str:
    if sorted(letters.lower()) != ["x", "y", "z"]:
        raise Damaged(f"{place}: axis order {letters!r}, expected one such as XYZ")
    return letters


def _dof(words: list[str], place: str) -> tuple[str, ...]:
    names = tuple(word.lower() for word in words)
    if not set(names) <= DOF or len(set(names)) < len(names):
        raise Damaged(
            f"{place}: degrees of freedom {' '.join(words)!r}, expected each at most "
            f"once of {', '.join(sorted(DOF))}"
        )
    return names


def _angles(values: np.ndarray, radians: bool) -> np.ndarray:
    return values if radians else np.deg2rad(values)


def _bones(lines, radians):
    entry: dict[str, list[str]] = {}
    for key, *values in lines:
        if key == "begin":
            entry = {}
        elif key == "end":
            name = "".join(entry.get("name", [])[:1])
            place = f"bone {name!r}"
            direction = _numbers(entry, "direction", 3, place)
            norm, (length,) = (
                np.linalg.norm(direction),
                _numbers(entry, "length", 1, place),
            )
            if norm < 1e-6 or length < 0:
                raise Damaged(f"{place} has no direction or a negative length")
            order = _order("".join(entry.get("axis", [])[3:]), place)
            angles = _numbers(entry, "axis", 3, place)
            yield (
                name,
                Bone(
                    direction=direction / norm,
                    length=length,
                    axis=rotation(_angles(angles, radians), order),
                    order=order,
                    dof=_dof(entry.get("dof", []), place),
                ),
            )
        else:
            entry[key.lower()] = values


def parse_motion(text: str, skeleton: Skeleton) -> dict[str, np.ndarray]:
    """Reads the text of an AMC file: {bone: [T D]} in the order of the bone's dof.

    Raises Damaged if a frame lacks a bone or has a wrong number of values for one, and
    for values that are not finite numbers of sensible size.
    """
    moving = {name: len(bone.dof) for name, bone in skeleton.bones.items() if bone.dof}
    sizes = {"root": len(skeleton.dof), **moving}
    values: dict[str, list[list[float]]] = {name: [] for name in sizes}
    frames = 0
    for line in _lines(text):
        if line[0].startswith(":"):
            continue
        if len(line) == 1 and line[0].isdecimal():
            frames += 1
            continue
        name = line[0]
        if name not in sizes:
            raise Damaged(f"frame {frames}: {name!r} is no moving bone of the skeleton")
        if len(line) - 1 != sizes[name]:
            raise Damaged(
                f"frame {frames}: {name} has {len(line) - 1} values, its skeleton "
                f"{sizes[name]} degrees of freedom"
            )
        try:
            values[name].append([float(word) for word in line[1:]])
        except ValueError as error:
            raise Damaged(f"frame {frames}: {name}: {error}") from error
    lengths = {name: len(rows) for name, rows in values.items()}
    if frames == 0 or set(lengths.values()) != {frames}:
        odd = {name: n for name, n in lengths.items() if n != frames}
        raise Damaged(f"{frames} frames, but rows per bone differ: {odd}")
    motion = {name: np.array(rows) for name, rows in values.items()}
    for name, rows in motion.items():
        wrong = ~(np.abs(rows) < MAX_VALUE).all(1)  # [T]
        if wrong.any():
            raise Damaged(
                f"frame {wrong.argmax() + 1}: {name} has values that are not finite or "
                f"not under {MAX_VALUE:,.0f}"
            )
    return motion


def pose(skeleton: Skeleton, motion: dict[str, np.ndarray]) -> Pose:
    """Forward kinematics of all frames."""
    angles, shift = _split(motion["root"], skeleton.dof, skeleton.radians)
    turn = rotation(angles, skeleton.order)  # [T 3 3]
    at = skeleton.scale * (skeleton.position + shift)  # [T 3]
    start, end = {"root": at}, {"root": at}
    rotations = {"root": skeleton.axis @ turn @ skeleton.axis.T}
    for name, parent in skeleton.parents.items():
        bone = skeleton.bones[name]
        turn = rotations[parent]
        if bone.dof:
            angles, _ = _split(motion[name], bone.dof, skeleton.radians)
            turn = turn @ bone.axis @ rotation(angles, bone.order) @ bone.axis.T
        rotations[name] = turn
        start[name] = end[parent]
        offset = skeleton.scale * bone.length * bone.direction
        end[name] = start[name] + turn @ offset
    return Pose(start, end, rotations)


def _split(values, dof, radians):
    """(rotation [T 3] radians, translation [T 3]) of values [T D] named by dof."""
    angles, shift = np.zeros((len(values), 3)), np.zeros((len(values), 3))
    for column, name in enumerate(dof):
        if name[0] == "r":
            angles[:, "xyz".index(name[1])] = values[:, column]
        elif name[0] == "t":
            shift[:, "xyz".index(name[1])] = values[:, column]
        # "l", a change of length, does not occur in CMU's files
    return (angles if radians else np.deg2rad(angles)), shift
