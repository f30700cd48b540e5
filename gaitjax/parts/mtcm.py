"""MTCM, LMGait's motion module over feature maps.

Paper: Wu et al., "Language-Guided and Motion-Aware Gait Representation for
Generalizable Recognition" (LMGait), section 3.3, eq. 8-12.
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from gaitjax.parts.convolution import Conv3D, TemporalConv
from gaitjax.parts.layers import BatchNorm


def frame_differences(features: jax.Array, valid: jax.Array) -> jax.Array:
    """F(t+1) - F(t) with the last one zero, eq. 10: [B T ...] -> [B T ...].

    valid: bool [B T]. A difference that touches an invalid frame is zero.
    """
    following = jnp.concatenate(
        [features[:, 1:], jnp.zeros_like(features[:, :1])], axis=1
    )  # [B T ...]
    both = valid & jnp.pad(valid[:, 1:], ((0, 0), (0, 1)))  # [B T]
    return jnp.where(_as_prefix(both, features), following - features, 0)


def zero_invalid(features: jax.Array, valid: jax.Array) -> jax.Array:
    """features [B T ...] with the frames outside valid [B T] set to zero."""
    return jnp.where(_as_prefix(valid, features), features, 0)


def _as_prefix(mask, features):
    return mask.reshape(mask.shape + (1,) * (features.ndim - mask.ndim))


class MTCM(nn.Module):
    """Motion Temporal Capture Module: pixel-wise and region-wise motion, fused.

    - PTE (eq. 8-9): at every pixel a temporal convolution of kernel 3, BN, ReLU.
    - RTE (eq. 10-11): frame differences, 3x3x3 convolution, BN, ReLU.
    - eq. 12: both concatenated over channels, 1x1 convolution.

    Args:
      kind: "mtcm", or "cnn3d" for the 3D-CNN row of Table 4: one 3x3x3 convolution,
        BN and ReLU in place of the whole module.
      pte: False drops PTE ("w.o. PTE-TPConv1D", Table 5).
      difference: False feeds RTE the features instead of their differences.
      conv3d: False hands the differences to the fusion as they are.
      residual: adds the input to the output.

    Differences from the paper: T' = T (same padding, the last difference is zero) and
    the fusion works frame by frame, so that temporal pooling follows as in the
    baseline; frames marked invalid are zero before each temporal operation and do not
    count in batch statistics.
    """

    kind: str = "mtcm"
    pte: bool = True
    difference: bool = True
    conv3d: bool = True
    residual: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, features: jax.Array, valid: jax.Array, *, train: bool):
        """features [B T H W C], consecutive frames; valid bool [B T] -> [B T H W C]."""
        channels = features.shape[-1]
        features = zero_invalid(features, valid)  # [B T H W C]
        if self.kind == "cnn3d":
            motion = self._conv3d(features, valid, train, "conv3d")  # [B T H W C]
        else:
            branches = []
            if self.pte:
                pixel = TemporalConv(channels, dtype=self.dtype, name="pte")(features)
                pixel = BatchNorm(name="pte_norm")(pixel, train=train, valid=valid)
                branches.append(nn.relu(pixel))
            region = frame_differences(features, valid) if self.difference else features
            if self.conv3d:
                region = self._conv3d(region, valid, train, "rte")
            branches.append(region)
            both = jnp.concatenate(branches, axis=-1)  # [B T H W 2C]
            motion = nn.Dense(channels, dtype=self.dtype, name="fuse")(both)
        if self.residual:
            motion = motion + features.astype(motion.dtype)
        return motion.astype(jnp.float32)  # [B T H W C]

    def _conv3d(self, features, valid, train, name):
        convolved = Conv3D(features.shape[-1], dtype=self.dtype, name=name)(features)
        convolved = BatchNorm(name=f"{name}_norm")(convolved, train=train, valid=valid)
        return nn.relu(convolved)  # [B T H W C]


class Motion(NamedTuple):
    """The options of `MTCM`, and whether there is one."""

    enabled: bool = True  # False: Table 4, without MTM
    kind: Literal["mtcm", "cnn3d"] = "mtcm"  # "cnn3d": Table 4
    pte: bool = True  # False: Table 5, first row
    difference: bool = True  # False: Table 5, second row
    conv3d: bool = True  # False: Table 5, third row
    residual: bool = False

    def module(self, dtype, name: str | None = None) -> MTCM:
        """The module that the options describe."""
        switches = {k: v for k, v in self._asdict().items() if k != "enabled"}
        return MTCM(**switches, dtype=dtype, name=name)
