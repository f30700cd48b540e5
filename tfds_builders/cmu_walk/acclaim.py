"""Reads Acclaim ASF/AMC motion capture: skeleton and motion files to joint positions.

Format: J. Lander, "Working with Motion Capture File Formats", Game Developer, January
1998. A bone has a direction (at rest, in the axes of the whole figure), a length, an
axis C (the rotation of its own coordinate system), and degrees of freedom. If M is the
rotation by a frame's angles, a bone turns by C M C^-1 within its parent. The order
"XYZ" rotates about x first: R = Rz Ry Rx. A unit of length is 1 / L inches, where L is
`length` in the section `units` (CMU: 0.45).
"""

from typing import NamedTuple

import numpy as np

METRES_PER_INCH = 0.0254


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


def _lines(text: str) -> list[list[str]]:
    lines = (line.split("#")[0].split() for line in text.splitlines())
    return [line for line in lines if line]


def parse_skeleton(text: str) -> Skeleton:
    """Reads the text of an ASF file. Raises ValueError for malformed ones."""
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
        raise ValueError(f"ASF: sections {sorted(missing)} are missing.")
    try:
        units = {line[0]: line[1] for line in sections["units"]}
        radians = units.get("angle", "deg").startswith("rad")
        root = {line[0].lower(): line[1:] for line in sections["root"]}
        bones = dict(_bones(sections["bonedata"], radians))
        parents = {}
        for parent, *children in sections["hierarchy"]:
            if parent not in ("begin", "end"):
                parents |= dict.fromkeys(children, parent)
        order = "".join(root["axis"])
        orientation = _angles(root["orientation"], radians)
        skeleton = Skeleton(
            bones=bones,
            parents=parents,
            position=np.array(root["position"], float),
            axis=rotation(orientation, order),
            order=order,
            dof=tuple(name.lower() for name in root["order"]),
            scale=METRES_PER_INCH / float(units["length"]),
            radians=radians,
        )
    except (KeyError, IndexError) as error:
        raise ValueError(f"ASF: an entry is missing ({error}).") from error
    placed = {"root"}
    for bone, parent in parents.items():
        if parent not in placed or bone not in bones:
            raise ValueError(f"ASF: hierarchy names {bone} under unknown {parent}.")
        placed.add(bone)
    return skeleton


def _angles(words, radians) -> np.ndarray:
    values = np.array(words, float)
    return values if radians else np.deg2rad(values)


def _bones(lines, radians):
    entry: dict[str, list[str]] = {}
    for key, *values in lines:
        if key == "begin":
            entry = {}
        elif key == "end":
            direction = np.array(entry["direction"], float)
            *angles, order = entry["axis"]
            yield (
                entry["name"][0],
                Bone(
                    direction=direction / np.linalg.norm(direction),
                    length=float(entry["length"][0]),
                    axis=rotation(_angles(angles, radians), order),
                    order=order,
                    dof=tuple(name.lower() for name in entry.get("dof", [])),
                ),
            )
        else:
            entry[key.lower()] = values


def parse_motion(text: str, skeleton: Skeleton) -> dict[str, np.ndarray]:
    """Reads the text of an AMC file: {bone: [T D]} in the order of the bone's dof.

    Raises ValueError if a frame lacks a bone or has a wrong number of values for one,
    and for values that are not finite numbers.
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
            raise ValueError(f"AMC: bone {name!r} is not in the skeleton.")
        if len(line) - 1 != sizes[name]:
            raise ValueError(
                f"AMC frame {frames}: {name} has {len(line) - 1} values, its skeleton "
                f"{sizes[name]} degrees of freedom."
            )
        values[name].append([float(word) for word in line[1:]])
    lengths = {name: len(rows) for name, rows in values.items()}
    if frames == 0 or set(lengths.values()) != {frames}:
        odd = {name: n for name, n in lengths.items() if n != frames}
        raise ValueError(f"AMC: {frames} frames, but rows per bone differ: {odd}.")
    motion = {name: np.array(rows) for name, rows in values.items()}
    for name, rows in motion.items():
        if not np.isfinite(rows).all():
            raise ValueError(f"AMC: {name} has values that are not finite.")
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
