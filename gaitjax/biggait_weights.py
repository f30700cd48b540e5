"""Published BigGait checkpoints -> the variables of an LMGait built as BigGait.

The model they fit: `models.lmgait.LMGait` with text and MTCM off and
decoder.supervision="reconstruction". Names on the left are those of the state dict,
nested under "model" in the published file; arrays are in PyTorch's layout.
"""

import re
from collections.abc import Mapping

import numpy as np
from flax import traverse_util

from gaitjax import weight_names

# Present in every checkpoint, read by nothing: counters, and the norms that a softmax
# branch does not use.
UNUSED = re.compile(r"num_batches_tracked$|^(Mask|Denoising)_Branch\.bn_t\.")

# ordered (pattern, replacement); every pattern that matches is applied
RENAMES = (
    (r"^Mask_Branch\.bn_s\.", "decoder/norm/"),
    (r"^Mask_Branch\.down_sampling\.", "decoder/classify/"),
    (r"^Mask_Branch\.up_sampling\.", "decoder/reconstruct/"),
    (r"^Denoising_Branch\.bn_s\.", "denoising/norm/"),
    (r"^Denoising_Branch\.down_sampling\.0\.", "denoising/expand/"),
    (r"^Denoising_Branch\.down_sampling\.1\.", "denoising/hidden_norm/"),
    (r"^Denoising_Branch\.down_sampling\.3\.", "denoising/project/"),
    (r"^Appearance_Branch\.bn_s\.", "appearance/norm/"),
    (r"^Appearance_Branch\.down_sampling\.", "appearance/project/"),
    (r"^Appearance_Branch\.bn_t\.", "appearance/project_norm/"),
    (r"^gait_net\.pre_part\.forward_block\.", "gait/stem_denoised/"),
    (r"^gait_net\.pre_rgb\.forward_block\.", "gait/stem_appearance/"),
    (r"/conv1\.conv\.", "/conv/"),
    (r"(stem_\w+)/bn1\.", r"\1/norm/"),
    (r"/layer1\.0\.", "/block/"),
    (r"^gait_net\.post_backbone\.forward_block\.layer2\.0\.", "gait/block1/"),
    (r"^gait_net\.post_backbone\.forward_block\.layer3\.0\.", "gait/block2/"),
    (r"^gait_net\.post_backbone\.forward_block\.layer4\.0\.", "gait/block3/"),
    (r"/bn(\d)\.", r"/norm\1/"),
    (r"/conv(\d)\.", r"/conv\1/"),
    (r"/downsample\.0\.", "/shortcut/conv/"),
    (r"/downsample\.1\.", "/shortcut/norm/"),
    (r"^gait_net\.fusion\.conv\.forward_block\.0\.", "gait/fusion/reduce/"),
    (r"^gait_net\.fusion\.conv\.forward_block\.1\.", "gait/fusion/reduce_norm/"),
    (r"^gait_net\.fusion\.conv\.forward_block\.3\.", "gait/fusion/mix/"),
    (r"^gait_net\.fusion\.conv\.forward_block\.4\.", "gait/fusion/mix_norm/"),
    (r"^gait_net\.fusion\.conv\.forward_block\.6\.", "gait/fusion/expand/"),
    (r"^gait_net\.FCs\.fc_bin$", "gait/head/dense/kernel"),
    (r"^gait_net\.BNNecks\.fc_bin$", "gait/head/neck/kernel"),
    (r"^gait_net\.BNNecks\.bn1d\.", "gait/head/neck/norm/"),
)
BACKBONE = "backbone."
LEAVES = {"running_mean": "mean", "running_var": "var"}  # batch_stats


def path_of(name: str) -> str:
    """Our "a/b/c" of a name outside the backbone; the leaf keeps its torch name."""
    return weight_names.rename(name, RENAMES)


def from_torch(tensors: Mapping[str, np.ndarray]) -> dict[str, dict]:
    """{"params", "batch_stats"} of LMGait from BigGait's tensors {torch name: array}.

    Raises ValueError naming the entries that are not of BigGait.
    """
    backbone = {
        name.removeprefix(BACKBONE): value
        for name, value in tensors.items()
        if name.startswith(BACKBONE)
    }
    params = {
        f"visual_encoder/{name}": value
        for name, value in weight_names.to_paths(backbone).items()
    }
    strips = tensors["gait_net.FCs.fc_bin"].shape[0]
    stats, unknown = {}, []
    for name, value in tensors.items():
        if name.startswith(BACKBONE) or UNUSED.search(name):
            continue
        path = path_of(name)
        if path == name:
            unknown.append(name)
            continue
        scope, _, leaf = path.rpartition("/")
        if scope == "gait/head/neck/norm":  # torch counts dim-major, we strip-major
            value = value.reshape(-1, strips).T.reshape(-1)  # [S*D]
        if leaf in LEAVES:
            stats[f"{scope}/{LEAVES[leaf]}"] = value
        elif leaf == "weight":
            leaf, value = _weight(value)
            params[f"{scope}/{leaf}"] = value
        else:
            params[path] = value
    if unknown:
        raise ValueError(
            f"{len(unknown)} tensors are not of BigGait: {', '.join(unknown[:20])}. "
            "Give the state dict of a BigGait checkpoint (its 'model' entry)."
        )
    return {
        name: traverse_util.unflatten_dict(
            {k: np.ascontiguousarray(v, np.float32) for k, v in flat.items()}, sep="/"
        )
        for name, flat in (("params", params), ("batch_stats", stats))
    }


def _weight(value: np.ndarray) -> tuple[str, np.ndarray]:
    """A torch `weight` as our leaf: (name, array in our layout)."""
    if value.ndim == 1:
        return "scale", value
    if value.ndim == 2:
        return "kernel", value.T  # [in out]
    return "kernel", value.transpose(2, 3, 1, 0)  # [h w in out]
