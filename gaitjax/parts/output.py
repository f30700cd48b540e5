"""The one output type of every gait model."""

from typing import NamedTuple

import jax


class GaitOutput(NamedTuple):
    """What a model returns; losses, retrieval and re-rankers see nothing else.

    embeddings: float32 [B S D], the retrieval embedding: S strips (parts) of size D.
    logits: float32 [B S N] over the N training identities, or None.
    aux: further arrays by name: loss inputs and what pictures show.
    """

    embeddings: jax.Array
    logits: jax.Array | None
    aux: dict[str, jax.Array]
