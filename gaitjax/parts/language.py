"""LMGait's language branch: its options, its modules, and what models do with it.

The adapters of the text tower are in `adapters.py`.
"""

import math
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict

from gaitjax.engine.fields import Above, AtLeast, Natural, Positive, Share
from gaitjax.engine.guards import require
from gaitjax.parts import adapters
from gaitjax.parts.adapters import MAM, Vectors, adalora, lora
from gaitjax.parts.clip_text import CLIPText
from gaitjax.parts.clip_tokenizer import token_ids
from gaitjax.parts.model import TEXT_VECTORS, GaitModel
from gaitjax.parts.representation import mask_statistics, text_attention, text_gain
from gaitjax.parts.token_grid import Features
from gaitjax.parts.visual_encoder import check_heads

TAU_MAX = 100.0  # of the text mask, as CLIP limits its temperature


class Text(NamedTuple):
    """The language branch. The defaults are the text tower of CLIP ViT-B/16."""

    enabled: bool = True  # False: Table 4 and 6, without the text branch
    # MAM, one of its rivals, or the plain tower (Table 6, without MAM)
    adapter: Literal["mam", "lora", "adalora", "prompt", "none"] = "mam"
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
    rank: Positive = 8  # r of LoRA; of AdaLoRA's matrices, the mean that is left
    alpha: Annotated[float, Above(0)] = 8.0  # LoRA's update is alpha / rank times a b
    initial_rank: Positive = 12  # of AdaLoRA
    # AdaLoRA: shares of the steps with the initial and with the final rank
    budget: tuple[Share, Share] = (0.1, 0.5)
    orthogonality: Annotated[float, AtLeast(0)] = 0.1  # weight of AdaLoRA's penalty
    prompt_length: Positive = 16  # learned vectors of "prompt"
    tau_init: Annotated[float, Above(0)] = 10.0  # temperature of the text mask
    # "log": log tau is learned, tau at most 100, and weight decay spares it and MAM.
    # "plain": tau is learned and decayed, which takes it to 0 whatever the loss says;
    # for runs of version 0.1
    temperature: Literal["log", "plain"] = "log"


def text_modules(text: Text, widths: dict[str, int], dtype: str) -> dict[str, Any]:
    """{name in the parameter tree: module} of the language branch.

    widths: {name: width} of the features that text vectors are made for.
    """
    tower = CLIPText(
        width=text.width,
        num_layers=text.num_layers,
        num_heads=text.num_heads,
        vocabulary_size=text.vocabulary_size,
        context_length=text.context_length,
        positions=text.positions,
        dtype=dtype,
    )
    projections = {
        f"text_projection_{name}": TextProjection(
            width, text.tau_init, text.temperature
        )
        for name, width in widths.items()
    }
    adapters = _adapters(text, dtype)
    return {"text_encoder": tower, "text_adapter": adapters, **projections}


def _adapters(text: Text, dtype: str) -> list[nn.Module]:
    """The adapters of the tower, one for each block; of "prompt" a single one."""
    if text.adapter == "prompt":
        return [Vectors(text.prompt_length, text.width)]
    make = {
        "mam": lambda: MAM(text.adapter_size, dtype=dtype),
        "lora": lambda: lora(text.rank, text.alpha),
        "adalora": lambda: adalora(text.initial_rank),
    }
    blocks = text.num_layers if text.adapter in make else 0
    return [make[text.adapter]() for _ in range(blocks)]


def encoded_prompts(tower: CLIPText, adapters, text: Text) -> jax.Array:
    """The prompts as the adapted tower sees them, pooled over tokens: [P d]."""
    ids, options = jnp.asarray(text.token_ids, jnp.int32), {}  # [P L]
    if text.adapter == "mam":
        options["after_block"] = lambda index, x: adapters[index](x)
    elif text.adapter == "prompt":
        options["vectors"] = adapters[0]()
    elif text.adapter in ("lora", "adalora"):
        tower = _updated(tower, adapters, ids)
    tokens, pooled = tower(ids, **options)  # [P L d], [P d]
    if text.pooling == "mean":
        end = jnp.argmax(ids, axis=1)[:, None]  # the end token has the largest id
        end = end + tokens.shape[1] - ids.shape[1]
        used = (jnp.arange(tokens.shape[1])[None, :] <= end)[..., None]  # [P L 1]
        total = jnp.sum(jnp.where(used, tokens, 0.0), axis=1)  # [P d]
        pooled = total / jnp.sum(used, axis=1)
    return pooled


def _updated(tower, adapters, ids) -> CLIPText:
    """The tower with the adapters' updates in its matrices."""
    if tower.is_initializing():
        tower(ids)  # makes the parameters
    flat = flatten_dict(tower.variables["params"])
    for index, adapter in enumerate(adapters):
        path = ("text_model", "encoder", "layers", str(index))
        block = {k[len(path) :]: v for k, v in flat.items() if k[: len(path)] == path}
        changed = flatten_dict(adapter(unflatten_dict(block)))
        flat |= {(*path, *k): v for k, v in changed.items()}
    return tower.clone(parent=None).bind({"params": unflatten_dict(flat)})


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


class TextModel(GaitModel):
    """A model whose visual features are weighed by their cosine with prompts.

    projections: names of its text vectors. text_parts: the module, set up, that has
    the attributes of `text_modules`.
    """

    text_tower = ("text_encoder",)
    projections: ClassVar[tuple[str, ...]] = ()
    text = Text()  # a field of each subclass

    def __post_init__(self):
        super().__post_init__()
        text = self.text
        if text.enabled and text.prompts:
            ids = token_ids(text.prompts, dict(text.shipped), text.vocabulary)
            made = tuple(tuple(row) for row in ids.tolist())
            text = text._replace(token_ids=made, prompts=())
        # what the ids were made of would tell equal models apart
        object.__setattr__(self, "text", text._replace(shipped=(), vocabulary=""))

    @nn.nowrap
    def check_text(self) -> None:
        """`check` of the text's options."""
        check_heads("text.width", self.text.width, self.text.num_heads)
        if self.text.enabled:
            check_tokens(self.text)

    @property
    def text_parts(self) -> Any:
        return self

    @property
    def uses_text(self) -> bool:
        """Whether `text_vectors` exists and evaluation should compute it once."""
        return self.text.enabled

    @property
    def no_decay(self) -> tuple[str, ...]:
        decays = self.text.temperature == "plain"
        return () if decays else ("/log_tau$", f"^{adapters.SCOPE}", "^visual_prompts/")

    @nn.nowrap
    def optimizer(self, tx, steps):
        text = self.text
        if not text.enabled or text.adapter != "adalora":
            return tx
        return adapters.shrinking(
            tx,
            steps=steps,
            ranks=(text.initial_rank, text.rank),
            hold=text.budget,
            orthogonality=text.orthogonality,
        )

    def text_vectors(self) -> dict[str, jax.Array]:
        """The result of the language branch, a constant of the trained model (eq. 7).

        Returns {name: [P width]} of `projections`, float32; pass it as `text`. Needs
        text.enabled. If a checkpoint's vectors stand in place of the text tower, these
        are the result.
        """
        if self.has_variable("params", TEXT_VECTORS):
            return self.get_variable("params", TEXT_VECTORS)
        parts = self.text_parts
        pooled = encoded_prompts(parts.text_encoder, parts.text_adapter, self.text)
        return {
            name: getattr(parts, f"text_projection_{name}")(pooled)
            for name in self.projections
        }

    def vectors_or(self, text: dict[str, jax.Array] | None):
        """The text vectors `text`, or if None those of the language branch, if any."""
        if not self.text.enabled:
            return None
        return self.text_vectors() if text is None else text

    def gain(self, features: Features, vectors, name: str, inside: jax.Array):
        """The text's factor of the features and its mask: [N h w] each, or None."""
        if vectors is None:
            return None, None
        fusion = self.text.fusion
        attention = text_attention(features, vectors[name], inside, fusion)
        return text_gain(attention, fusion), attention

    def text_log(self, vectors, attention, person, inside, train: bool):
        """What training logs: of the mask (`mask_statistics`), tau and an AdaLoRA."""
        found = mask_statistics(attention, person, inside)
        for name, rows in vectors.items():
            found[f"tau/{name}"] = jnp.linalg.norm(rows[0])
        if self.text.adapter == "adalora" and train:
            found |= adapters.logged(self.variables["params"])
        return found


def check_tokens(text: Text) -> None:
    """There must be prompts, which fit the text encoder."""
    require(
        text.token_ids,
        "config.model.text.prompts must hold at least one text; got none. Set them, or "
        "config.model.text.enabled=False.",
    )
    length, largest = len(text.token_ids[0]), max(map(max, text.token_ids))
    learned = text.prompt_length if text.adapter == "prompt" else 0
    require(
        length + learned <= text.context_length,
        f"A prompt has {length} tokens"
        + (f" and {learned} learned vectors (text.prompt_length)" if learned else "")
        + f", config.model.text.context_length is {text.context_length}.",
    )
    require(
        largest < text.vocabulary_size,
        f"A prompt has the token {largest}, config.model.text.vocabulary_size is "
        f"{text.vocabulary_size}.",
    )
    require(
        text.adapter != "adalora"
        or (text.rank <= text.initial_rank and sum(text.budget) < 1),
        "With config.model.text.adapter='adalora' text.initial_rank must be text.rank "
        "or more, and the shares in text.budget must sum to less than 1; got "
        f"{text.initial_rank}, {text.rank} and {text.budget}.",
    )
