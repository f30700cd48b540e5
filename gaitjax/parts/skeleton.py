"""Parts of the skeleton models: the COCO-17 joints, their graph and input features.

Keypoints are float32 [B T 17 3]: x and y in pixels and a confidence, in COCO's order
(0 nose, 1-2 eyes, 3-4 ears, 5-6 shoulders, 7-8 elbows, 9-10 wrists, 11-12 hips, 13-14
knees, 15-16 ankles; odd ones are left).
"""

import jax
import jax.numpy as jnp
import numpy as np

JOINTS = 17
CENTRE = 0  # the joint that coordinates are taken relative to
# joint -> the joint at the other end of its bone
PARENTS = (5, 0, 0, 1, 2, 0, 0, 5, 6, 7, 8, 5, 6, 11, 12, 13, 14)
# joint -> the same joint of the other side of the body
MIRROR = (0, 2, 1, 4, 3, 6, 5, 8, 7, 10, 9, 12, 11, 14, 13, 16, 15)
LINKS = (
    *((0, 1), (0, 2), (1, 3), (2, 4), (3, 5), (4, 6), (5, 6), (5, 7), (6, 8)),
    *((7, 9), (8, 10), (5, 11), (6, 12), (11, 12), (11, 13), (12, 14)),
    *((13, 15), (14, 16)),
)


def adjacency(max_hop: int) -> np.ndarray:
    """float32 [max_hop+1 V V]: which joints are 0, 1, ..., max_hop links apart.

    Each column is divided by the number of joints within max_hop links of its joint.
    """
    link = np.eye(JOINTS, dtype=bool)
    for a, b in LINKS:
        link[a, b] = link[b, a] = True
    reached = [np.linalg.matrix_power(link.astype(int), n) > 0 for n in range(max_hop)]
    reached.append(np.linalg.matrix_power(link.astype(int), max_hop) > 0)
    degree = reached[-1].sum(0)  # [V]
    rings = [reached[0]]
    rings += [far & ~near for near, far in zip(reached, reached[1:])]
    return (np.stack(rings) / degree).astype(np.float32)


def parts(keypoints: jax.Array, valid: jax.Array) -> dict[str, jax.Array]:
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
        "relative": xy - xy[:, :, CENTRE : CENTRE + 1],
        "velocity": velocity(1),
        "velocity2": velocity(2),
        "bone": xy - xy[:, :, PARENTS, :],
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
