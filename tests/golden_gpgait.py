"""Golden files of GPGait's input: straightening, scaling, descriptors, swaps."""

import jax.numpy as jnp
from golden_files import GoldenFile

from gaitjax.parts import human_oriented as human
from gaitjax.parts.skeleton import SKELETONS

# no published config reads 18 joints, so no model has their angles
ANGLES = {
    17: human.COCO_ANGLES,
    18: (
        *((0, 15, 14), (15, 0, 17), (14, 16, 0), (17, 15), (16, 14), (5, 6, 11)),
        *((2, 3, 8), (6, 3, 8), (3, 4, 2), (7, 6), (4, 3), (11, 5, 12), (8, 2, 9)),
        *((12, 11, 13), (9, 8, 10), (13, 12), (10, 9)),
    ),
}
CENTRES = {"neck": human.NECK, "head": human.HEAD, "hip": human.HIP}


def check_transforms(golden: GoldenFile) -> None:
    for case, settings in golden.meta["cfg"].items():
        x = jnp.asarray(golden.arrays[f"{case}/in/keypoints"], jnp.float32)
        for step in settings["steps"]:
            x = apply(x, **step)
        golden.check(f"{case}/out", x)
        if f"{case}/angles" in golden.names():
            described = x[4, ..., 0] if x.ndim == 4 else x[..., 4]
            golden.check(f"{case}/angles", described)
    assert not [key for key in golden.unchecked() if "/in/" not in key]


def apply(x, type, center="neck", scale=225, joint_format="coco", probability=None):
    """One of the reference's steps: [T V 3] -> [T V 3], or what ends the pipeline."""
    points, confidence = x[..., :2], x[..., 2:]
    body = SKELETONS["coco" if joint_format == "coco" else "alphapose"]
    if type == "SkeletonInput":
        return jnp.moveaxis(x, -1, 0)[..., None]  # [C T V 1]
    if type == "OUMVLP 18 joints to COCO 17":
        return x[:, human.FROM_ALPHAPOSE]
    if type == "InversePosesPre":
        assert probability == 1
        return x[:, body.mirror]
    if type == "HOD_MultiInput":
        described = human.descriptors(points, body, ANGLES[body.joints])
        return jnp.pad(described, ((0, 0), (0, 0), (0, 1)))  # the sixth is unused
    if type == "Affine":
        points = human.straighten(points, "sheared")
    elif type == "RescaleCenter" and center != "None":
        points = human.rescale(points, CENTRES[center], scale)
    else:
        assert type == "RescaleCenter"
    return jnp.concatenate([points, confidence], axis=-1)


KINDS = {"gpgait_transforms": check_transforms}
