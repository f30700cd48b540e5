"""Adapters: small trained parts of LMGait's frozen text tower. MAM and its rivals.

- MAM: Wu et al., "Language-Guided and Motion-Aware Gait Representation for
  Generalizable Recognition" (LMGait), section 3.2, eq. 5-6.
- LoRA: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models" (ICLR 2022),
  section 4.1.
- AdaLoRA: Zhang et al., "Adaptive Budget Allocation for Parameter-Efficient
  Fine-Tuning" (ICLR 2023), sections 3.1 to 3.3.
- Prompts: Lester et al., "The Power of Scale for Parameter-Efficient Prompt Tuning"
  (EMNLP 2021), section 2; visual ones: Xing et al., "Dual Modality Prompt Tuning for
  Vision-Language Pre-Trained Model" (DPT, 2023).

MAM, LoRA and AdaLoRA start as the plain tower; prompts do not. None of them reads an
image, so the text vectors are constants of the trained model with each.

Differences from the papers:
- LoRA and AdaLoRA are added to the matrices, which rounds the sum to `dtype` as any
  weight. Biases, norms and embeddings stay as they are.
- AdaLoRA's budget shrinks at every step (the authors': every 10 to 100 steps), and its
  update is not scaled. The gradient of its orthogonality penalty goes to the optimizer
  directly, so the penalty is no term of the logged loss.
- Learned vectors stand after the start token, where CLIP's words are (Lester et al.:
  before all tokens); they are drawn from a normal distribution, not from words.
- DPT: vectors enter before the first block only, and none of them depends on the class.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict

SCOPE = "text_adapter_"  # how the names of all adapters of the text tower begin
ATTENTION = tuple(("self_attn", f"{name}_proj") for name in ("q", "k", "v", "out"))
MATRICES = (*ATTENTION, ("mlp", "fc1"), ("mlp", "fc2"))  # of a block of the tower
QUERY_AND_VALUE = (ATTENTION[0], ATTENTION[2])  # which LoRA adapts
SMOOTHING = 0.85  # of AdaLoRA's moving averages: beta_1 and beta_2


class MAM(nn.Module):
    """Motion Awareness Module: a residual adapter after one frozen text layer.

    MAM(h) = h + gelu(h W_d) W_u, eq. 6, with W_d [d r] and W_u [r d].

    Differences from the paper: r = `adapter_size` and GELU are our choice, and W_u
    starts at zero, so that step 0 is the plain text encoder.
    """

    adapter_size: int = 64
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, hidden: jax.Array) -> jax.Array:
        """hidden [... d] -> refined hidden [... d]."""
        down = nn.Dense(
            self.adapter_size, use_bias=False, dtype=self.dtype, name="down"
        )(hidden)
        up = nn.Dense(
            hidden.shape[-1],
            use_bias=False,
            kernel_init=nn.initializers.zeros_init(),
            dtype=self.dtype,
            name="up",
        )(nn.gelu(down, approximate=False))
        return hidden + up.astype(hidden.dtype)


class Vectors(nn.Module):
    """Learned vectors that stand among the tokens of a transformer: [k d]."""

    count: int
    features: int

    @nn.compact
    def __call__(self) -> jax.Array:
        shape = (self.count, self.features)
        return self.param("vectors", nn.initializers.normal(0.02), shape)


class Product(nn.Module):
    """LoRA's update of a matrix [I O]: alpha / r times a b, a [I r] and b [r O]."""

    rank: int
    alpha: float

    @nn.compact
    def __call__(self, shape: tuple[int, int]) -> jax.Array:
        rows, columns = shape
        a = self.param("a", nn.initializers.lecun_normal(), (rows, self.rank))
        b = self.param("b", nn.initializers.zeros, (self.rank, columns))
        return self.alpha / self.rank * jnp.matmul(a, b, precision="highest")


class Triplets(nn.Module):
    """AdaLoRA's update of a matrix [I O]: p diag(lambda) q, p [I r] and q [r O].

    `shrinking` drives p and q towards orthogonality and sets entries of lambda to 0.
    """

    rank: int

    @nn.compact
    def __call__(self, shape: tuple[int, int]) -> jax.Array:
        (rows, columns), normal = shape, nn.initializers.normal(0.02)
        p = self.param("p", normal, (rows, self.rank))
        values = self.param("lambda", nn.initializers.zeros, (self.rank,))
        q = self.param("q", normal, (self.rank, columns))
        return jnp.matmul(p * values[None, :], q, precision="highest")


class Updates(nn.Module):
    """The parameters of one block of the tower with an update of some matrices.

    update: makes the module of a matrix's update, by its name. matrices: their paths.
    """

    update: Callable[..., nn.Module]
    matrices: Sequence[tuple[str, str]]

    @nn.compact
    def __call__(self, block: dict[str, Any]) -> dict[str, Any]:
        flat = flatten_dict(block)
        for path in self.matrices:
            kernel = flat[*path, "kernel"]
            flat[*path, "kernel"] = kernel + self.update(name=path[1])(kernel.shape)
        return unflatten_dict(flat)


def lora(rank: int, alpha: float) -> Updates:
    """LoRA of the query and value projections of one block."""
    return Updates(partial(Product, rank, alpha), QUERY_AND_VALUE)


def adalora(rank: int) -> Updates:
    """AdaLoRA of all six matrices of one block; `rank` is that of the beginning."""
    return Updates(partial(Triplets, rank), MATRICES)


# --- AdaLoRA's optimizer ------------------------------------------------------------


class Importance(NamedTuple):
    """Moving averages over the steps, for each parameter of an AdaLoRA."""

    step: jax.Array
    sensitivity: Any  # of |parameter x gradient|, eq. 8 and 9
    uncertainty: Any  # of its distance from that average, eq. 10
    inner: Any  # the state of the optimizer itself


def shrinking(
    tx: optax.GradientTransformation,
    *,
    steps: int,
    ranks: tuple[int, int],
    hold: tuple[float, float],
    orthogonality: float,
) -> optax.GradientTransformation:
    """The optimizer `tx`, with AdaLoRA's penalty and budget for the `Triplets` in it.

    ranks: how many entries of lambda a matrix has at first, and keeps on average at the
    end. Which ones is decided anew at each step, over all matrices together: those of
    the largest importance (eq. 7 and 11) stay, the others become 0. hold: the shares of
    the steps at the beginning with all, and at the end with the final number; between
    them the number falls as a cubic (eq. 12). orthogonality: weight of the penalty.
    """

    def init(params):
        zeros = jax.tree.map(jnp.zeros_like, unflatten_dict(_triplets(params)))
        return Importance(jnp.zeros((), jnp.int32), zeros, zeros, tx.init(params))

    def update(gradients, state, params):
        own = _triplets(params)
        if not own:  # they are frozen
            updates, inner = tx.update(gradients, state.inner, params)
            return updates, state._replace(inner=inner)
        flat, penalty = flatten_dict(gradients), jax.grad(not_orthogonal)(own)
        flat |= {k: flat[k] + orthogonality * penalty[k] for k in own}
        found = unflatten_dict({k: jnp.abs(own[k] * flat[k]) for k in own})
        sensitivity = _average(state.sensitivity, found)
        distance = jax.tree.map(lambda a, b: jnp.abs(a - b), found, sensitivity)
        uncertainty = _average(state.uncertainty, distance)
        updates, inner = tx.update(unflatten_dict(flat), state.inner, params)
        scores = jax.tree.map(jnp.multiply, sensitivity, uncertainty)
        kept = _most_important(flatten_dict(scores), budget(state.step))
        changed = flatten_dict(updates)
        changed |= {k: jnp.where(kept[k], changed[k], -own[k]) for k in kept}
        state = Importance(state.step + 1, sensitivity, uncertainty, inner)
        return unflatten_dict(changed), state

    def budget(step):
        first, last = hold[0] * steps, hold[1] * steps
        left = 1 - (step - first) / max(steps - first - last, 1)
        return ranks[1] + (ranks[0] - ranks[1]) * jnp.clip(left, 0, 1) ** 3

    return optax.GradientTransformation(init, update)


def _triplets(tree) -> dict[tuple, jax.Array]:
    """The flat part of a tree of parameters that belongs to the text's adapters."""
    return {k: v for k, v in flatten_dict(tree).items() if k[0].startswith(SCOPE)}


def _average(old, new):
    return jax.tree.map(lambda a, b: SMOOTHING * a + (1 - SMOOTHING) * b, old, new)


def _most_important(scores, rank) -> dict[tuple, jax.Array]:
    """{path of a lambda: bool [r]}: the `rank` best entries a matrix on average.

    scores: flat, of each parameter. A triplet's importance is the score of its lambda
    and the means of those of its column of p and its row of q.
    """
    whole = {
        path: score
        + jnp.mean(scores[*path[:-1], "p"], axis=0)
        + jnp.mean(scores[*path[:-1], "q"], axis=1)
        for path, score in scores.items()
        if path[-1] == "lambda"
    }
    values = jnp.concatenate(list(whole.values()))  # [matrices * r]
    place = jnp.argsort(jnp.argsort(-values)).reshape(len(whole), -1)  # 0: the best
    kept = place < jnp.round(rank * len(whole))
    return dict(zip(whole, kept))


def not_orthogonal(triplets: dict[tuple, jax.Array]) -> jax.Array:
    """Sum of |p'p - 1|^2 + |qq' - 1|^2 (eq. 4) over flat `Triplets`."""

    def of(x):
        product = jnp.matmul(x.T, x, precision="highest")
        return jnp.sum(jnp.square(product - jnp.eye(len(product))))

    factors = (kv for kv in triplets.items() if kv[0][-1] != "lambda")
    return sum(of(x if path[-1] == "p" else x.T) for path, x in factors)


def logged(params) -> dict[str, jax.Array]:
    """For a training's log: the mean rank that AdaLoRA has left, and its penalty."""
    own = _triplets(params)
    ranks = [jnp.sum(x != 0) for k, x in own.items() if k[-1] == "lambda"]
    rank = sum(ranks) / len(ranks)
    return {"adapter/rank": rank, "adapter/not_orthogonal": not_orthogonal(own)}
