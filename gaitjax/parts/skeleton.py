"""Parts of the skeleton models: joints, their graph and input features.

Keypoints are float32 [B T V 3]: x and y in pixels and a confidence. The formats:

coco       17 joints in COCO's order (0 nose, 1-2 eyes, 3-4 ears, 5-6 shoulders, 7-8
           elbows, 9-10 wrists, 11-12 hips, 13-14 knees, 15-16 ankles; odd ones are
           left)
alphapose  18 joints in the order of OpenPose (0 nose, 1 neck, 2-4 right shoulder, elbow
           and wrist, 5-7 left, 8-10 right hip, knee and ankle, 11-13 left, 14-15 right
           and left eye, 16-17 ears)
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

JointFormat = Literal["coco", "alphapose"]


class Skeleton(NamedTuple):
    """centre: the joint that coordinates are taken relative to. parents: joint -> the
    joint at the other end of its bone. mirror: joint -> the same joint of the other
    side of the body. links: of the graph."""

    centre: int
    parents: tuple[int, ...]
    mirror: tuple[int, ...]
    links: tuple[tuple[int, int], ...]

    @property
    def joints(self) -> int:
        return len(self.parents)


SKELETONS: dict[str, Skeleton] = {
    "coco": Skeleton(
        centre=0,
        parents=(5, 0, 0, 1, 2, 0, 0, 5, 6, 7, 8, 5, 6, 11, 12, 13, 14),
        mirror=(0, 2, 1, 4, 3, 6, 5, 8, 7, 10, 9, 12, 11, 14, 13, 16, 15),
        links=(
            *((0, 1), (0, 2), (1, 3), (2, 4), (3, 5), (4, 6), (5, 6), (5, 7), (6, 8)),
            *((7, 9), (8, 10), (5, 11), (6, 12), (11, 12), (11, 13), (12, 14)),
            *((13, 15), (14, 16)),
        ),
    ),
    "alphapose": Skeleton(
        centre=1,
        parents=(1, 1, 1, 2, 3, 1, 5, 6, 2, 8, 9, 5, 11, 12, 0, 0, 14, 15),
        mirror=(0, 1, 5, 6, 7, 2, 3, 4, 11, 12, 13, 8, 9, 10, 15, 14, 17, 16),
        links=(
            *((0, 1), (1, 2), (2, 3), (3, 4), (1, 5), (5, 6), (6, 7), (1, 8), (8, 9)),
            *((9, 10), (1, 11), (11, 12), (12, 13), (0, 14), (0, 15), (14, 16)),
            *((15, 17),),
        ),
    ),
}
COCO = SKELETONS["coco"]


def adjacency(max_hop: int, links=COCO.links, joints: int = COCO.joints) -> np.ndarray:
    """float32 [max_hop+1 V V]: which joints are 0, 1, ..., max_hop links apart.

    Each column is divided by the number of joints within max_hop links of its joint.
    """
    link = np.eye(joints, dtype=bool)
    for a, b in links:
        link[a, b] = link[b, a] = True
    reached = [np.linalg.matrix_power(link.astype(int), n) > 0 for n in range(max_hop)]
    reached.append(np.linalg.matrix_power(link.astype(int), max_hop) > 0)
    degree = reached[-1].sum(0)  # [V]
    rings = [reached[0]]
    rings += [far & ~near for near, far in zip(reached, reached[1:])]
    return (np.stack(rings) / degree).astype(np.float32)


def parts(
    keypoints: jax.Array, valid: jax.Array, skeleton: Skeleton = COCO
) -> dict[str, jax.Array]:
    """Positions and their differences: each [B T V 2], confidence [B T V 1].

    relative: to the centre joint. velocity, velocity2: to the next frame and the one
    after it, both zero in a sequence's last two frames. bone: to the parent joint.
    """
    xy, confidence = keypoints[..., :2], keypoints[..., 2:]
    later = jnp.pad(valid[:, 2:], ((0, 0), (0, 2)))[:, : valid.shape[1]]  # t + 2 exists

    def velocity(steps):
        ahead = jnp.pad(xy, ((0, 0), (0, steps), (0, 0), (0, 0)))[:, steps:]
        return jnp.where(later[:, :, None, None], ahead - xy, 0)

    return {
        "xy": xy,
        "confidence": confidence,
        "relative": xy - xy[:, :, skeleton.centre, None],
        "velocity": velocity(1),
        "velocity2": velocity(2),
        "bone": xy - xy[:, :, skeleton.parents, :],
    }


def reverse_time(keypoints: jax.Array, valid: jax.Array) -> jax.Array:
    """The valid frames of each sequence in opposite order; padding stays at the end."""
    time = jnp.arange(valid.shape[1])[None]  # [1 T]
    last = jnp.sum(valid, axis=1, keepdims=True) - 1  # [B 1]
    source = jnp.where(time <= last, last - time, time)  # [B T]
    return jnp.take_along_axis(keypoints, source[:, :, None, None], axis=1)


def mean_over_body(x: jax.Array, valid: jax.Array) -> jax.Array:
    """Float32 mean over valid frames and joints: [B T V C], bool [B T] -> [B C]."""
    x = jnp.where(valid[:, :, None, None], x.astype(jnp.float32), 0)
    count = jnp.maximum(jnp.sum(valid, axis=1), 1) * x.shape[2]  # [B]
    return jnp.sum(x, axis=(1, 2)) / count[:, None]
