"""The embedded LMGait, as small as it gets, and a batch for it."""

import jax
import jax.numpy as jnp
import numpy as np

from configs import lmgait
from gaitjax import state


def tiny_config():
    config = lmgait.get_config()
    config.data.update(ids_per_batch=2, seqs_per_id=2, num_frames=3, num_classes=3)
    config.data.image_size = (32, 16)
    config.pretrained = {part: "" for part in config.pretrained}
    # an encoder that learns in the warm-up and is then held
    config.frozen = ("^text_encoder/",)
    config.train.trainable = "^(?!visual_encoder/)"
    config.warmup.trainable = "^(decoder|visual_encoder)/"
    config.optimizer.rates = ()
    model = config.model
    model.image_size, model.feature_grid = (32, 16), (8, 4)
    model.visual_encoder.update(
        hidden_size=8,
        num_layers=1,
        blocks=(0,),
        patch_size=4,
        num_heads=1,
        table_size=8,
    )
    model.text.update(width=8, num_layers=1, num_heads=1, adapter_size=2)
    model.text.vocabulary_size = 49_408
    model.representation.update(channels=4, hidden=8)
    model.gait.update(
        stem=4, channels=(4,), strides=(1,), num_strips=2, embedding_size=4
    )
    return config


def tiny_batch(config):
    rng = np.random.default_rng(0)
    arrays = {
        name: rng.integers(0, 2, shape.shape).astype(shape.dtype)
        for name, shape in state.example_batch(config).items()
    }
    arrays["frames"] = rng.integers(0, 255, arrays["frames"].shape).astype(np.uint8)
    arrays["valid"][:] = True
    arrays["ratios"][:] = 0.4
    arrays["labels"] = np.array([0, 0, 2, 2], np.int32)
    return jax.tree.map(jnp.asarray, arrays)
