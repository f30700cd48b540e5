"""Skeleton maps: key points -> images of joints and limbs, what SkeletonGait reads.

Fan et al., "SkeletonGait: Gait Recognition Using Skeleton Maps", AAAI 2024, section
"Skeleton Map"; sizes are those of its released code. A few milliseconds a frame.
"""

import numpy as np

SIZE, CANVAS, SIGMA = 64, 128, 8.0  # pixels
HEIGHT = int(CANVAS / 1.5)  # of the person on the canvas: 85 pixels
REACH = int(np.sqrt(2 * SIGMA**2 * np.log(255))) + 1  # beyond it a map is 0 in 8 bits
NEIGHBOURS = 4
LEFT_HIP, RIGHT_HIP = 11, 12
# Pairs of COCO-17 key points, PoseC3D's list (Duan et al., CVPR 2022)
LIMBS = (
    (0, 5), (0, 6), (5, 7), (7, 9), (6, 8), (8, 10), (5, 11), (11, 13), (13, 15),
    (6, 12), (12, 14), (14, 16), (0, 1), (0, 2), (1, 3), (2, 4), (11, 12),
)  # fmt: skip


def skeleton_maps(keypoints: np.ndarray) -> np.ndarray:
    """float [T 17 3] (x, y, confidence) -> uint8 [T 64 64 2]: limbs, joints.

    Key points that are missing should have been filled in (`impute`). A frame whose
    joints have no height gives an empty map. The centre is the middle of the hips.
    If one hip is missing, (0, 0, 0), the other is the centre; if both are, the
    middle of the joints. The paper leaves this open; averaging the (0, 0) in would
    move the map by many columns.
    """
    return np.stack([_map(points) for points in np.asarray(keypoints, np.float32)])


def impute(keypoints: np.ndarray) -> np.ndarray:
    """Missing key points (0, 0, 0) from the four most similar frames of the sequence.

    Mean of the four nearest frames that have the key point, weighted by the inverse of
    their distance over the key points that both frames have. One that no frame has
    stays missing (confidence 0).
    """
    points = np.array(keypoints, np.float32)  # [T 17 3]
    present = (points != 0).any(-1)  # [T 17]
    for t in np.flatnonzero(~present.all(1)):
        shared = present & present[t]  # [T 17]
        squares = ((keypoints[..., :2] - keypoints[t, :, :2]) ** 2).sum(-1) * shared
        count = shared.sum(1)
        distance = np.sqrt(squares.sum(1) / np.maximum(count, 1))  # [T]
        distance[count == 0] = np.inf
        for joint in np.flatnonzero(~present[t]):
            donors = np.flatnonzero(present[:, joint] & np.isfinite(distance))
            nearest = donors[np.argsort(distance[donors], kind="stable")][:NEIGHBOURS]
            if len(nearest):
                weight = 1 / np.maximum(distance[nearest], 1e-6)
                values = keypoints[nearest, joint]
                points[t, joint] = weight @ values / weight.sum()
    return points


def _map(points: np.ndarray) -> np.ndarray:
    """One frame: float [17 3] -> uint8 [64 64 2]."""
    import cv2

    seen = points[:, 2] > 0
    empty = np.zeros((SIZE, SIZE, 2), np.uint8)
    if not seen.any():
        return empty
    xy, confidence = points[:, :2], points[:, 2]
    height = np.ptp(xy[seen, 1])
    if height <= 0:
        return empty
    hips = [hip for hip in (LEFT_HIP, RIGHT_HIP) if points[hip].any()]
    ends = xy[seen].min(0), xy[seen].max(0)
    middle = xy[hips].mean(0) if hips else np.mean(ends, 0)
    xy = (xy - middle) * (HEIGHT / height) + CANVAS / 2
    canvas = np.zeros((CANVAS, CANVAS, 2), np.float32)
    for one, two in LIMBS:
        strength = min(confidence[one], confidence[two])
        _draw(canvas[..., 0], xy[one], xy[two], strength)
    for joint in range(len(xy)):
        _draw(canvas[..., 1], xy[joint], xy[joint], confidence[joint])
    image = np.minimum(255 * canvas, 255).astype(np.uint8)
    rows = np.flatnonzero(image.any((1, 2)))
    if not len(rows):
        return empty
    top, low = int(rows[0]), int(rows[-1]) + 1
    half = (low - top) / 2
    left, right = round(CANVAS / 2 - half), round(CANVAS / 2 + half)
    person = image[top:low, max(left, 0) : min(right, CANVAS)]
    sides = (max(-left, 0), max(right - CANVAS, 0))
    person = np.pad(person, ((0, 0), sides, (0, 0)))
    smooth = cv2.INTER_AREA if len(person) >= SIZE else cv2.INTER_LINEAR
    return cv2.resize(person, (SIZE, SIZE), interpolation=smooth)


def _draw(canvas, start, end, strength: float) -> None:
    """Maximum of `canvas` [128 128] and a Gaussian around the segment start - end."""
    if strength <= 0:
        return
    low = np.maximum(np.floor(np.minimum(start, end)).astype(int) - REACH, 0)
    high = np.minimum(np.ceil(np.maximum(start, end)).astype(int) + REACH + 1, CANVAS)
    if (high <= low).any():
        return  # outside
    x = np.arange(low[0], high[0], dtype=np.float32)[None] - start[0]
    y = np.arange(low[1], high[1], dtype=np.float32)[:, None] - start[1]
    along = end - start
    length = float(along @ along)
    share = (x * along[0] + y * along[1]) / length if length > 0 else np.zeros_like(y)
    share = np.clip(share, 0, 1)
    squares = (x - share * along[0]) ** 2 + (y - share * along[1]) ** 2
    part = canvas[low[1] : high[1], low[0] : high[0]]
    np.maximum(part, strength * np.exp(squares / (-2 * SIGMA**2)), out=part)
