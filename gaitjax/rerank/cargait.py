"""CarGait: re-ranks a shortlist by cross-attention between the strips of two sequences.

Habib et al., "CarGait: Cross-Attention based Re-ranking for Gait Recognition", ICCV
2025 (arXiv 2503.03501). The strips F [S D] of any frozen single-stage model become
E_p = F_p + Attn(Q=F_p, KV=F_c) and E_c = F_c + Attn(Q=F_c, KV=F_p); the new distance is
the mean over corresponding strips of ||E_p - E_c||_2. If the base model is evaluated by
cosine (none in the paper is), it is the mean of 1 - cos(E_p, E_c).

The paper leaves these open; our choices: LayerNorm on the attention's inputs; one
module for both directions, so the distance is symmetric; no feed-forward layer; the
output projection starts at zero, so an untrained re-ranker ranks as the base model
does; the classifier is flatten -> 512 -> ReLU -> identities. `shared`, `num_blocks`,
`feedforward_size` and `dropout` are options beyond the paper; `cross_attention=False`
is its ablation with an MLP in place of the attention.

`prepare` computes what depends on one sequence only (LayerNorm and projections of the
first block), so that it is computed once per sequence and not once per pair.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from gaitjax.engine.fields import Natural, Positive, Share
from gaitjax.parts.heads import normalise
from gaitjax.parts.model import Dtype
from gaitjax.parts.transformer import DenseParameters, LayerNorm, dense, gelu

NORM_EPSILON = 1e-6
DISTANCE_EPSILON = 1e-12  # inside the root: its gradient is finite for equal strips


def pair_distance(probe: Array, candidate: Array, metric: str = "euclidean") -> Array:
    """d^r: mean over strips of ||E_p - E_c||_2; two [... S D] -> f32 [...].

    metric "cosine": mean of 1 - cos(E_p, E_c); a strip of zeros has cosine 0. Either
    equals the base model's distance if E = F. If the two are identical, the gradient is
    zero.
    """
    probe, candidate = probe.astype(jnp.float32), candidate.astype(jnp.float32)
    if metric == "cosine":
        probe, candidate = normalise(probe), normalise(candidate)
        return 1 - jnp.mean(jnp.sum(probe * candidate, axis=-1), axis=-1)
    squares = jnp.sum((probe - candidate) ** 2, axis=-1)  # [... S]
    return jnp.mean(jnp.sqrt(squares + DISTANCE_EPSILON), axis=-1)


class StripProjections(nn.Module):
    """LayerNorm, then the named projections in one matmul: [... S D] -> [... S n*h]."""

    names: tuple[str, ...]
    hidden_size: int
    dtype: str

    @nn.compact
    def __call__(self, strips: Array) -> Array:
        width = strips.shape[-1]
        normal = LayerNorm(NORM_EPSILON, name="norm")(strips).astype(self.dtype)
        parameters = [
            DenseParameters(width, self.hidden_size, name=name)() for name in self.names
        ]
        kernel = jnp.concatenate([kernel for kernel, _ in parameters], axis=1)  # [D nh]
        bias = jnp.concatenate([bias for _, bias in parameters])  # [n*h]
        return dense(normal, kernel, bias)  # [... S n*h]


class ResidualUpdate(nn.Module):
    """strips + W attended (+ MLP) in float32; W and the MLP's last layer start at 0.

    strips [B K S D], attended [B K S h] -> [B K S D].
    """

    feedforward_size: int
    dropout: float

    @nn.compact
    def __call__(self, strips: Array, attended: Array, *, train: bool) -> Array:
        width, dtype = strips.shape[-1], attended.dtype

        def add(strips: Array, hidden: Array, name: str) -> Array:
            zero = nn.initializers.zeros
            update = nn.Dense(width, kernel_init=zero, dtype=dtype, name=name)(hidden)
            update = nn.Dropout(self.dropout)(update, deterministic=not train)
            return strips + update.astype(jnp.float32)

        strips = add(strips, attended, "output")
        if self.feedforward_size:
            normal = LayerNorm(NORM_EPSILON, name="norm")(strips).astype(dtype)
            hidden = nn.Dense(self.feedforward_size, dtype=dtype, name="hidden")(normal)
            strips = add(strips, gelu(hidden), "feedforward")
        return strips


class Direction(nn.Module):
    """The strips of one sequence look at those of another; fields as in `CarGait`."""

    num_heads: int
    hidden_size: int
    cross_attention: bool
    feedforward_size: int
    dropout: float
    dtype: str

    def setup(self):
        names = ("query", "key", "value") if self.cross_attention else ("value",)
        self.project = StripProjections(names, self.hidden_size, self.dtype)
        self.update = ResidualUpdate(self.feedforward_size, self.dropout)

    def __call__(self, strips, own, other, *, train: bool) -> Array:
        """strips [B K S D], projections of both [B K S W] -> [B K S D]; K may be 1."""
        if not self.cross_attention:
            return self.update(strips, gelu(own), train=train)
        value = self._heads(other, 2)  # [B K H S d]
        attended = self.weights(own, other).astype(value.dtype) @ value  # [B K H S d]
        attended = attended.swapaxes(-3, -2)  # [B K S H d]
        attended = attended.reshape(*attended.shape[:-2], -1)  # [B K S h]
        return self.update(strips, attended, train=train)

    def weights(self, own: Array, other: Array) -> Array:
        """Attention of each own strip over the other's: f32 [B K H S S]."""
        query, key = self._heads(own, 0), self._heads(other, 1)  # [B K H S d]
        scores = query * query.shape[-1] ** -0.5 @ key.swapaxes(-1, -2)  # [B K H S S]
        return jax.nn.softmax(scores.astype(jnp.float32))

    def _heads(self, projected: Array, which: int) -> Array:
        size = self.hidden_size
        part = projected[..., which * size : (which + 1) * size]  # [B K S h]
        part = part.reshape(*part.shape[:-1], self.num_heads, -1)  # [B K S H d]
        return part.swapaxes(-3, -2)  # [B K H S d]


class CarGait(nn.Module):
    """Cross-attention re-ranker over strip embeddings of any base model."""

    num_classes: Positive  # N, identities that the classifier tells apart in training
    num_heads: Positive  # H, divides hidden_size
    hidden_size: Positive  # width of queries, keys and values, all heads together
    num_blocks: Positive  # cross-attention layers
    shared: bool  # one module for both directions, so that d(p, c) = d(c, p)
    cross_attention: bool  # False: an MLP that does not see the other sequence
    feedforward_size: Natural  # hidden width of an MLP after the attention; 0: no MLP
    dropout: Share  # rate on every residual update, in training
    classifier_size: Positive  # hidden width of the classifier
    dtype: Dtype  # of the attention's matmuls; residuals and distances are float32
    metric: str = "euclidean"  # of the base model: "euclidean" or "cosine"

    def setup(self):
        names = ("both",) if self.shared else ("probe", "candidate")
        self.directions = [
            {
                name: Direction(
                    self.num_heads, self.hidden_size, self.cross_attention,
                    self.feedforward_size, self.dropout, self.dtype,
                )
                for name in names
            }
            for _ in range(self.num_blocks)
        ]  # fmt: skip
        self.hidden = nn.Dense(self.classifier_size)
        self.logits = nn.Dense(self.num_classes)

    def __call__(
        self, probe: Array, candidates: Array, *, train: bool
    ) -> tuple[Array, Array]:
        """Pair embeddings (E_p, E_c) of each probe with each of its candidates.

        Args:
          probe: f32 [B S D].
          candidates: f32 [B K S D], K for each probe.
          train: applies dropout.

        Returns:
          Two f32 [B K S D]; `pair_distance` of them is the new distance.
        """
        return self._pair(self.prepare(probe), self.prepare(candidates), train=train)

    def prepare(self, strips: Array) -> tuple[Array, Array]:
        """The part of a pair that one sequence decides: strips f32, projections.

        [... S D] -> ([... S D], [... S W]).
        """
        strips = strips.astype(jnp.float32)
        return strips, self._project(0, strips)

    def prepared_distance(self, probe, candidates) -> Array:
        """d^r f32 [B K] of prepared probes [B ...] and candidates [B K ...]."""
        return self.pair_distance(*self._pair(probe, candidates, train=False))

    def pair_distance(self, probe: Array, candidates: Array) -> Array:
        """d^r f32 [B K] of pair embeddings, under the base model's metric."""
        return pair_distance(probe, candidates, self.metric)

    def distance(self, probe: Array, candidates: Array) -> Array:
        """d^r f32 [B K] of probes [B S D] and candidates [B K S D]."""
        return self.prepared_distance(self.prepare(probe), self.prepare(candidates))

    def attention(self, probe: Array, candidates: Array) -> tuple[Array, Array]:
        """Weights of the first block: probe -> candidate strips, candidate -> probe.

        probe [B S D], candidates [B K S D] -> two f32 [B K H S S], rows sum to one.
        Needs cross_attention=True.
        """
        toward_probe, toward_candidate = self._ends(0)
        probe = self._project(0, probe)[:, None]  # [B 1 S W]
        candidates = self._project(0, candidates)  # [B K S W]
        return (
            toward_probe.weights(*self._views(0, probe, candidates)),
            toward_candidate.weights(*self._views(-1, candidates, probe)),
        )

    def classify(self, embeddings: Array) -> Array:
        """Pair embeddings [... S D] -> logits f32 [... N], for training only."""
        flat = embeddings.reshape(*embeddings.shape[:-2], -1)  # [... S*D]
        return self.logits(nn.relu(self.hidden(flat)))

    def pairs_and_logits(self, probe: Array, candidates: Array, *, train: bool):
        """For the losses: (E_p, E_c, logits of E_p, logits of E_c)."""
        pair = self(probe, candidates, train=train)
        return *pair, *(self.classify(embeddings) for embeddings in pair)

    def _pair(self, probe, candidates, *, train: bool) -> tuple[Array, Array]:
        probe = jax.tree.map(lambda x: x[:, None], probe)
        (probe, own), (candidates, other) = probe, candidates  # [B 1 S .], [B K S .]
        for block in range(self.num_blocks):
            if block:
                own, other = (self._project(block, x) for x in (probe, candidates))
            toward_probe, toward_candidate = self._ends(block)
            probe, candidates = (
                toward_probe(probe, *self._views(0, own, other), train=train),
                toward_candidate(candidates, *self._views(-1, other, own), train=train),
            )
        return jnp.broadcast_to(probe, candidates.shape), candidates  # [B K S D]

    def _ends(self, block: int) -> tuple[Direction, Direction]:
        """Direction toward the probe and toward the candidate; one module if shared."""
        directions = list(self.directions[block].values())
        return directions[0], directions[-1]

    def _project(self, block: int, strips: Array) -> Array:
        """Projections of every direction side by side: [... S D] -> [... S W]."""
        directions = self.directions[block].values()
        return jnp.concatenate([d.project(strips) for d in directions], axis=-1)

    def _views(self, which: int, *projected: Array) -> list[Array]:
        """The part of each projection that belongs to direction 0 or -1."""
        count = len(self.directions[0])
        return [jnp.split(x, count, axis=-1)[which] for x in projected]
