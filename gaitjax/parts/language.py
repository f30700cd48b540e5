"""LMGait's language branch: its options and the projection of its result."""

import math
from typing import Annotated, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from gaitjax.engine.fields import Above, Natural, Positive
from gaitjax.engine.guards import require

TAU_MAX = 100.0  # of the text mask, as CLIP limits its temperature


class Text(NamedTuple):
    """The language branch. The defaults are the text tower of CLIP ViT-B/16."""

    enabled: bool = True  # False: Table 4 and 6, without the text branch
    mam: bool = True  # False: Table 6, without MAM
    prompts: tuple[str, ...] = ()
    # (prompt, its token ids): these prompts need no vocabulary
    shipped: tuple[tuple[str, tuple[Natural, ...]], ...] = ()
    vocabulary: str = ""  # CLIP's vocabulary file or folder, for any other prompt
    token_ids: tuple[tuple[Natural, ...], ...] = ()  # made of the three above
    # F (1 + a), F a, or F (1 + a) with a softmax over positions as a
    fusion: Literal["mask", "gate", "softmax"] = "mask"
    # what is weighted: the features; the features that each branch has normalised; the
    # two maps that enter MTCM
    place: Literal["before_extractor", "after_norm", "before_mtcm"] = "before_extractor"
    pooling: Literal["eot", "mean"] = "eot"  # the end token, or the mean over tokens
    # CLIP's table, or eq. 3 to the letter
    positions: Literal["learned", "sinusoidal"] = "learned"
    width: Positive = 512
    num_layers: Positive = 12
    num_heads: Positive = 8
    vocabulary_size: Positive = 49408
    context_length: Positive = 77
    adapter_size: Positive = 64  # r of MAM
    tau_init: Annotated[float, Above(0)] = 10.0  # temperature of the text mask
    # "log": log tau is learned, tau at most 100, and weight decay spares it and MAM.
    # "plain": tau is learned and decayed, which takes it to 0 whatever the loss says;
    # for runs of version 0.1
    temperature: Literal["log", "plain"] = "log"


class TextProjection(nn.Module):
    """z_text = H^(L) W_proj (eq. 7), made a unit vector times the temperature tau."""

    features: int
    tau_init: float
    temperature: str

    @nn.compact
    def __call__(self, pooled: jax.Array) -> jax.Array:
        """pooled [P d] -> tau * unit text vectors, float32 [P features]."""
        vectors = nn.Dense(self.features, use_bias=False, name="dense")(
            pooled.astype(jnp.float32)
        )
        tau = self._tau()
        squared = jnp.sum(jnp.square(vectors), axis=-1, keepdims=True)
        return tau * vectors * jax.lax.rsqrt(squared + 1e-12)

    def _tau(self):
        if self.temperature == "plain":
            return self.param("tau", nn.initializers.constant(self.tau_init), ())
        init = nn.initializers.constant(math.log(self.tau_init))
        log_tau = self.param("log_tau", init, ())
        # no gradient beyond the limit would hold it there for ever
        limited = jnp.minimum(log_tau, math.log(TAU_MAX))
        return jnp.exp(log_tau + jax.lax.stop_gradient(limited - log_tau))


def check_tokens(text: Text) -> None:
    """There must be prompts, which fit the text encoder."""
    require(
        text.token_ids,
        "config.model.text.prompts must hold at least one text; got none. Set them, or "
        "config.model.text.enabled=False.",
    )
    length, largest = len(text.token_ids[0]), max(map(max, text.token_ids))
    require(
        length <= text.context_length,
        f"A prompt has {length} tokens, config.model.text.context_length is "
        f"{text.context_length}.",
    )
    require(
        largest < text.vocabulary_size,
        f"A prompt has the token {largest}, config.model.text.vocabulary_size is "
        f"{text.vocabulary_size}.",
    )
