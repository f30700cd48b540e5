"""The one output type of every gait model."""

from typing import Any, NamedTuple

import jax


class GaitOutput(NamedTuple):
    """What a model returns; losses, retrieval and re-rankers see nothing else.

    embeddings: float32 [B S D], the retrieval embedding: S strips (parts) of size D.
    logits: float32 [B S N] over the N training identities, or None.
    aux: further arrays by name: loss inputs and what pictures show. "logged", where it
      is given, is a dict {name: f32 scalar} that training logs beside its losses; names
      "part/..." with the same first part share a picture.
    """

    embeddings: jax.Array
    logits: jax.Array | None
    aux: dict[str, Any]
