"""How the training state is split over devices: the choices of config.sharding."""

# Where each leaf of the training state lives on a mesh of data x model devices:
# ordered (regex on the path "params/a/b", PartitionSpec entries | "fsdp"); the first
# match wins. "fsdp" splits the largest dimension over the data axis, the entry "model"
# a dimension over the model axis. Optimizer state has its parameter's path inside its
# own.
SHARDING_RULES = dict(
    # every device holds everything, the batch is split
    data_parallel=((".*", ()),),
    # parameters, frozen encoders and optimizer state are split over the data axis too
    fsdp=(("^step$|^batch_stats/|/count$", ()), (".*", "fsdp")),
    # Heads and hidden units are split over the model axis (Shoeybi et al., "Megatron-
    # LM", 2019): the first matrix by its outputs, the second by its inputs.
    tensor_parallel=(
        # DINOv2 and CLIP blocks: heads, then hidden units
        (r"/attention/attention/(query|key|value)/kernel$", (None, "model")),
        (r"/attention/attention/(query|key|value)/bias$", ("model",)),
        (r"/attention/output/dense/kernel$", ("model", None)),
        (r"/self_attn/[qkv]_proj/kernel$", (None, "model")),
        (r"/self_attn/[qkv]_proj/bias$", ("model",)),
        (r"/self_attn/out_proj/kernel$", ("model", None)),
        (r"/mlp/(fc1|weights_in)/kernel$", (None, "model")),
        (r"/mlp/(fc1|weights_in)/bias$", ("model",)),
        (r"/mlp/(fc2|weights_out)/kernel$", ("model", None)),
        (r"/token_embedding/embedding$", ("model", None)),
        # MTCM: channels of both branches, joined again by the fusion
        (r"/mtcm_\w+/pte/kernel$", (None, None, None, "model")),
        (r"/mtcm_\w+/rte/kernel$", (None, None, None, None, "model")),
        (r"/mtcm_\w+/(pte|rte)_norm/", ("model",)),
        (r"/mtcm_\w+/fuse/kernel$", ("model", None)),
        # CarGait: heads of the cross-attention, hidden units of its feed-forward layer
        (r"/project/(query|key|value)/kernel$", (None, "model")),
        (r"/project/(query|key|value)/bias$", ("model",)),
        (r"/update/(output|feedforward)/kernel$", ("model", None)),
        (r"/update/hidden/kernel$", (None, "model")),
        (r"/update/hidden/bias$", ("model",)),
        (".*", ()),
    ),
)
