"""LMGait: language-guided, motion-aware gait recognition from RGB.

Papers: Wu et al., "Language-Guided and Motion-Aware Gait Representation for
Generalizable Recognition" (LMGait), section 3; its baseline Ye et al., "BigGait:
Learning Gait Representation You Want by Large Vision Models" (CVPR 2024). With
`text.enabled=False, mtcm.enabled=False` this model is BigGait.

frames -> DINOv2 tokens -> text attention -> representation extractor (decoder,
denoising and appearance branch) -> MTCM -> gait network -> embeddings.

Differences from the paper:
- The fusion formula is not printed there: a = sigmoid(tau cos(F, z)), F' = F (1 + a),
  one mask for the last layer and one for the middle layers, averaged over the prompts.
  `text.fusion` offers others.
- One MTCM per branch, with separate weights; see `mtcm.py` for its temporal padding.
- Frames are consecutive, which frame differences need (section 3.1: t random ones).
- `decoder.supervision="reconstruction"` is BigGait's unsupervised mask branch. BigGait
  trains it jointly for 500 steps and then freezes it; here `decoder.frozen` says
  whether it still learns after its warm-up.
- Batch norm statistics cover valid tokens and frames only (BigGait: ragged lists).
- Not in the paper: BigGait's `black_augmentation`, `decoder.target="coverage"` and
  `decoder.support="soft"` (for the small grid of the embedded default).
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from gaitjax.parts.clip_image import CLIP_IMAGE_MEAN, CLIP_IMAGE_STD, CLIPImage
from gaitjax.parts.clip_text import CLIPText
from gaitjax.parts.clip_tokenizer import token_ids
from gaitjax.parts.dinov2 import DINOv2
from gaitjax.parts.gait_network import GaitNetwork
from gaitjax.parts.layers import resize_bilinear
from gaitjax.parts.mtcm import MAM, MTCM
from gaitjax.parts.output import GaitOutput
from gaitjax.parts.representation import (
    Appearance,
    Decoder,
    Denoising,
    blacken,
    foreground_support,
    fuse_text,
    inside_columns,
    layer_norm,
    text_attention,
    unsquash,
)

# rows on which squashed frames get their aspect back, before the resize (BigGait)
CANVAS_HEIGHT = 256
IMAGENET = ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
# kind of visual encoder -> its module, and the colour mean and standard deviation it
# was trained with, on the 0..255 scale. The kinds of DINOv2 differ in how they resize
# the positional table (parts/dinov2.py): as the original repository and BigGait, as
# transformers, or as the variants with registers
VISUAL_ENCODERS = {
    "dinov2": (DINOv2, *IMAGENET),
    "dinov2_huggingface": (
        partial(DINOv2, position_interpolation="huggingface_torch"),
        *IMAGENET,
    ),
    "dinov2_registers": (
        partial(DINOv2, num_registers=4, position_interpolation="registers"),
        *IMAGENET,
    ),
    "dinov2_giant": (partial(DINOv2, swiglu=True), *IMAGENET),
    "clip_image": (CLIPImage, CLIP_IMAGE_MEAN, CLIP_IMAGE_STD),
}


class VisualEncoder(NamedTuple):
    """The image encoder. The defaults are DINOv2 ViT-S/14, as published."""

    kind: str = "dinov2"
    hidden_size: int = 384
    num_layers: int = 12
    num_heads: int = 6
    patch_size: int = 14
    table_size: int = 37
    blocks: tuple[int, ...] = (2, 5, 8, 11)
    frozen: bool = True
    frames_per_chunk: int = 0
    remat: bool = False


class Text(NamedTuple):
    """The language branch. The defaults are the text tower of CLIP ViT-B/16."""

    enabled: bool = True
    mam: bool = True
    token_ids: tuple[tuple[int, ...], ...] = ()
    fusion: str = "mask"
    pooling: str = "eot"
    positions: str = "learned"
    width: int = 512
    num_layers: int = 12
    num_heads: int = 8
    vocabulary_size: int = 49408
    context_length: int = 77
    adapter_size: int = 64
    tau_init: float = 10.0


class DecoderOptions(NamedTuple):
    """The mask branch; `frozen` keeps it in evaluation mode outside the warm-up.

    support: "binary", as published: the maps are cut out where foreground is likely;
    "soft": besides, they are weighted by its probability, which on a coarse grid says
    where within a token the outline runs (no gradient goes through it either way).
    """

    supervision: str = "silhouette"
    dropout: float = 0.5
    dilation: int = 3
    frozen: bool = False
    target: str = "binary"
    support: str = "binary"


class Representation(NamedTuple):
    """Widths of the denoising and appearance branches.

    remat: both, and the decoder, are computed again in the backward pass.
    """

    channels: int = 16
    hidden: int = 768
    remat: bool = False


class Motion(NamedTuple):
    """MTCM and its ablation rows."""

    enabled: bool = True
    kind: str = "mtcm"
    pte: bool = True
    difference: bool = True
    conv3d: bool = True
    residual: bool = False


class Gait(NamedTuple):
    """The gait network (GaitBase with two stems)."""

    stem: int = 64
    squeeze: int = 16
    channels: tuple[int, ...] = (128, 256, 512)
    strides: tuple[int, ...] = (2, 2, 1)
    num_strips: int = 16
    embedding_size: int = 256


class TextProjection(nn.Module):
    """z_text = H^(L) W_proj (eq. 7), made a unit vector times the temperature tau."""

    features: int
    tau_init: float

    @nn.compact
    def __call__(self, pooled: jax.Array) -> jax.Array:
        """pooled [P d] -> tau * unit text vectors, float32 [P features]."""
        vectors = nn.Dense(self.features, use_bias=False, name="dense")(
            pooled.astype(jnp.float32)
        )
        tau = self.param("tau", nn.initializers.constant(self.tau_init), ())
        squared = jnp.sum(jnp.square(vectors), axis=-1, keepdims=True)
        return tau * vectors * jax.lax.rsqrt(squared + 1e-12)


class LMGait(nn.Module):
    """The whole model; each *_options field groups what one part reads.

    Args:
      num_classes: training identities N.
      image_size: (height, width) given to the image encoder.
      feature_grid: (h, w) of the maps, at full size twice the token grid.
      black_augmentation: share of the training sequences that lose one of their maps.
      dtype: compute type of matmuls and convolutions; parameters, norms, softmax and
        distances are float32.
    """

    num_classes: int
    image_size: tuple[int, int] = (448, 224)
    feature_grid: tuple[int, int] = (64, 32)
    visual_options: VisualEncoder = VisualEncoder()
    text_options: Text = Text()
    decoder_options: DecoderOptions = DecoderOptions()
    representation_options: Representation = Representation()
    motion_options: Motion = Motion()
    gait_options: Gait = Gait()
    black_augmentation: float = 0.2
    dtype: Any = jnp.float32

    def setup(self):
        visual, text = self.visual_options, self.text_options
        self._check_options()
        self.visual_encoder = VISUAL_ENCODERS[visual.kind][0](
            hidden_size=visual.hidden_size,
            num_layers=visual.num_layers,
            num_heads=visual.num_heads,
            patch_size=visual.patch_size,
            table_size=visual.table_size,
            remat=visual.remat,
            # init needs every frame's shape, and computes none of them
            frames_per_chunk=0 if self.is_initializing() else visual.frames_per_chunk,
            dtype=self.dtype,
        )
        if text.enabled:
            self.text_encoder = CLIPText(
                width=text.width,
                num_layers=text.num_layers,
                num_heads=text.num_heads,
                vocabulary_size=text.vocabulary_size,
                context_length=text.context_length,
                positions=text.positions,
                dtype=self.dtype,
            )
            if text.mam:
                self.text_adapter = [
                    MAM(text.adapter_size, dtype=self.dtype)
                    for _ in range(text.num_layers)
                ]
            width = visual.hidden_size
            self.text_projection_last = TextProjection(width, text.tau_init)
            self.text_projection_mid = TextProjection(
                width * len(visual.blocks), text.tau_init
            )
        self.decoder = Decoder(
            self.decoder_options.supervision,
            self.decoder_options.dropout,
            dtype=self.dtype,
        )
        maps = self.representation_options
        self.denoising = Denoising(maps.channels, maps.hidden, dtype=self.dtype)
        self.appearance = Appearance(maps.channels, dtype=self.dtype)
        motion = self.motion_options
        if motion.enabled:
            switches = motion._asdict()
            del switches["enabled"]
            self.mtcm_denoised = MTCM(**switches, dtype=self.dtype)
            self.mtcm_appearance = MTCM(**switches, dtype=self.dtype)
        self.gait = GaitNetwork(
            self.num_classes, **self.gait_options._asdict(), dtype=self.dtype
        )

    @property
    def uses_text(self) -> bool:
        """Whether `text_vectors` exists and evaluation should compute it once."""
        return self.text_options.enabled

    def __call__(
        self,
        batch: dict[str, jax.Array],
        *,
        train: bool,
        text: dict[str, jax.Array] | None = None,
    ) -> GaitOutput:
        """Embed a batch of walks.

        Args:
          batch: frames uint8 [B T H W 3] (or float, already normalised), consecutive;
            ratios float32 [B T], width / height of the person crop; valid bool [B T];
            masks uint8 0/1 [B T H W], only where a silhouette loss follows. Frames that
            are not of `image_size`'s aspect are taken as squashed crops and get their
            aspect back from the ratios.
          train: dropout, black augmentation (rngs "dropout", "augment") and batch
            statistics.
          text: what `text_vectors` returned after training, to leave the language
            branch out; None runs it.

        Returns:
          embeddings [B S D], logits [B S N] and aux, each over the feature grid h x w:
          foreground_probability, token_valid (bool), text_mask, motion [B T h w];
          denoised, appearance [B T h w C]; silhouette_target [B T h w] with masks;
          reconstruction, reconstruction_target [B T h w d] with that supervision.
        """
        batch_size, frames = self._check_batch(batch)
        frozen = self.visual_options.frozen
        last, mid = self._encode(batch, frozen=frozen)  # [N h w d], [N h w 4d]
        vectors = self._vectors(text)
        fusion = self.text_options.fusion
        attention, tokens = None, last
        if vectors is not None:
            tokens = fuse_text(
                last, text_attention(last, vectors["last"], fusion), fusion
            )
            attention = text_attention(mid, vectors["mid"], fusion)
            mid = fuse_text(mid, attention, fusion)

        frozen = self.decoder_options.frozen
        probability, aux = self._decode(batch, tokens, last, train and not frozen)
        if frozen:
            aux = jax.lax.stop_gradient(aux)
        valid = batch["valid"]
        edge_rule = self.decoder_options.supervision == "reconstruction"
        support = foreground_support(
            probability, edge_rule=edge_rule, dilation=self.decoder_options.dilation
        )  # [N h w]
        support = support & valid.reshape(-1, 1, 1)

        def unfold(x):
            return x.reshape((batch_size, frames) + x.shape[1:])

        denoised = self._branch(self.denoising, mid, support, train=train)
        appearance = self._branch(self.appearance, mid, support, train=train)
        if self.decoder_options.support == "soft":
            weight = jax.lax.stop_gradient(probability[..., :1])  # [N h w 1]
            denoised, appearance = denoised * weight, appearance * weight
        denoised, appearance = unfold(denoised), unfold(appearance)  # [B T h w C]
        aux |= {"denoised": denoised, "appearance": appearance}
        if attention is not None:
            aux["text_mask"] = unfold(attention)  # [B T h w]
        if train and self.black_augmentation > 0:
            denoised, appearance = blacken(
                denoised, appearance, self.black_augmentation, self.make_rng("augment")
            )
        if self.motion_options.enabled:
            denoised = self.mtcm_denoised(denoised, valid, train=train)
            appearance = self.mtcm_appearance(appearance, valid, train=train)
            squared = jnp.square(denoised) + jnp.square(appearance)
            aux["motion"] = jnp.sqrt(jnp.sum(squared, axis=-1))  # [B T h w]
        embeddings, logits = self.gait(denoised, appearance, valid, train=train)
        return GaitOutput(embeddings, logits, aux)

    def warm_up(self, batch: dict[str, jax.Array], *, train: bool = True) -> GaitOutput:
        """The decoder alone, for the steps in which only its loss is trained.

        Same batch and aux (as far as the decoder makes it) as `__call__`; embeddings
        are empty [B 0 0]. The text vectors get no gradient here.
        """
        batch_size, _ = self._check_batch(batch)
        last, _ = self._encode(batch, frozen=False)
        tokens = last
        vectors = self._vectors(None)
        if vectors is not None:
            fusion = self.text_options.fusion
            vector = jax.lax.stop_gradient(vectors["last"])
            tokens = fuse_text(last, text_attention(last, vector, fusion), fusion)
        _, aux = self._decode(batch, tokens, last, train)
        return GaitOutput(jnp.zeros((batch_size, 0, 0), jnp.float32), None, aux)

    def text_vectors(self) -> dict[str, jax.Array]:
        """What the language branch comes to, a constant of the trained model (eq. 7).

        Returns {"last": [P d], "mid": [P 4d]}, float32; pass it as `text`.
        """
        options = self.text_options
        if not options.enabled:
            raise ValueError("text_vectors: this model has text.enabled=False.")
        ids = jnp.asarray(options.token_ids, jnp.int32)  # [P L]
        adapt = None
        if options.mam:

            def adapt(index, hidden):
                return self.text_adapter[index](hidden)

        tokens, pooled = self.text_encoder(ids, after_block=adapt)
        if options.pooling == "mean":
            end = jnp.argmax(ids, axis=1)[:, None]  # the end token has the largest id
            used = (jnp.arange(ids.shape[1])[None, :] <= end)[..., None]  # [P L 1]
            total = jnp.sum(jnp.where(used, tokens, 0.0), axis=1)  # [P d]
            pooled = total / jnp.sum(used, axis=1)
        return {
            "last": self.text_projection_last(pooled),
            "mid": self.text_projection_mid(pooled),
        }

    def _vectors(self, text):
        if not self.text_options.enabled:
            return None
        return self.text_vectors() if text is None else text

    def _encode(self, batch, *, frozen):
        """Last and middle features on the feature grid: [N h w d], [N h w 4d]."""
        images = self._prepare(batch["frames"], batch["ratios"])  # [N H W 3]
        patch = self.visual_options.patch_size
        grid = (self.image_size[0] // patch, self.image_size[1] // patch)
        final, middle = self.visual_encoder(images, blocks=self.visual_options.blocks)

        def as_map(tokens):
            tokens = tokens[:, -grid[0] * grid[1] :]  # without CLS and registers
            tokens = tokens.reshape((-1, *grid, tokens.shape[-1]))  # [N h' w' d]
            return resize_bilinear(tokens.astype(self.dtype), self.feature_grid)

        mid = layer_norm(jnp.concatenate(middle, axis=-1))  # [N 1+h'w' 4d]
        if frozen:
            final, mid = jax.lax.stop_gradient((final, mid))
        return as_map(final), as_map(mid)

    def _branch(self, module, features, where, *, train):
        """module(features [N h w d], where bool [N h w]), with `remat` if asked for."""

        def call(module, features, where):
            return module(features, where, train=train)

        call = nn.remat(call) if self.representation_options.remat else call
        return call(module, features, where)

    def _prepare(self, frames, ratios):
        """Frames [B T H W 3] as the encoder reads them: [B*T height width 3]."""
        frames = frames.reshape((-1,) + frames.shape[2:])  # [N H W 3]
        if jnp.issubdtype(frames.dtype, jnp.integer):
            _, mean, std = VISUAL_ENCODERS[self.visual_options.kind]
            mean, std = jnp.asarray([mean, std]).reshape(2, 1, 1, 1, 3)
            frames = (frames.astype(jnp.float32) - mean) / std
        frames = self._unsquash(frames, ratios)
        return resize_bilinear(frames, self.image_size)

    def _unsquash(self, images, ratios):
        """Images [N H W C] with `image_size`'s aspect."""
        height, width = self.image_size
        if images.shape[1] * width == images.shape[2] * height:
            return images
        size = (CANVAS_HEIGHT, CANVAS_HEIGHT * width // height)
        return unsquash(images, ratios.reshape(-1), *size)

    def _decode(self, batch, tokens, target, train):
        """Probabilities [N h w 2] of the decoder and its part of aux."""
        batch_size, frames = batch["valid"].shape
        height, width = self.feature_grid

        def unfold(x):
            return x.reshape((batch_size, frames) + x.shape[1:])

        inside = inside_columns(batch["ratios"].reshape(-1), height, width)  # [N w]
        inside = inside & batch["valid"].reshape(-1, 1)
        inside = jnp.broadcast_to(inside[:, None, :], tokens.shape[:3])  # [N h w]
        probability, rebuilt = self._branch(self.decoder, tokens, inside, train=train)
        aux = {
            "foreground_probability": unfold(probability[..., 0]),
            "token_valid": unfold(inside),
        }
        if rebuilt is not None:
            aux["reconstruction"] = unfold(rebuilt)
            aux["reconstruction_target"] = unfold(jax.lax.stop_gradient(target))
        if "masks" in batch:
            masks = batch["masks"].astype(jnp.float32)
            masks = masks.reshape((-1,) + masks.shape[2:] + (1,))  # [N H W 1]
            masks = self._unsquash(masks, batch["ratios"])
            masks = jax.image.resize(
                masks, (masks.shape[0], height, width, 1), "linear"
            )
            coverage = masks[..., 0]  # [N h w], antialiased, 0 to 1
            if self.decoder_options.target == "binary":
                coverage = (coverage > 0.5).astype(jnp.float32)
            aux["silhouette_target"] = unfold(coverage)
        return probability, aux

    def _check_options(self):
        visual, text = self.visual_options, self.text_options
        if visual.kind not in VISUAL_ENCODERS:
            raise ValueError(
                f"visual_encoder.kind must be one of {', '.join(VISUAL_ENCODERS)}; "
                f"got {visual.kind!r}."
            )
        if any(size % visual.patch_size for size in self.image_size):
            raise ValueError(
                f"image_size {self.image_size} is not a multiple of "
                f"visual_encoder.patch_size {visual.patch_size}."
            )
        if max(visual.blocks) >= visual.num_layers:
            raise ValueError(
                f"visual_encoder.blocks {visual.blocks} must lie below "
                f"visual_encoder.num_layers {visual.num_layers}."
            )
        for name, width, heads in (
            ("visual_encoder.hidden_size", visual.hidden_size, visual.num_heads),
            ("text.width", text.width, text.num_heads),
        ):
            if width % heads:
                raise ValueError(f"{name} {width} is not a multiple of {heads} heads.")
        if self.decoder_options.target not in ("binary", "coverage"):
            raise ValueError(
                "decoder.target must be binary or coverage; got "
                f"{self.decoder_options.target!r}."
            )
        if self.decoder_options.support not in ("binary", "soft"):
            raise ValueError(
                "decoder.support must be binary or soft; got "
                f"{self.decoder_options.support!r}."
            )
        if text.enabled and not text.token_ids:
            raise ValueError(
                "text.enabled needs text.token_ids, one tuple of CLIP token ids per "
                "prompt; got none. Set them, or text.enabled=False."
            )
        if text.pooling not in ("eot", "mean"):
            raise ValueError(f"text.pooling must be eot or mean; got {text.pooling!r}.")

    def _check_batch(self, batch):
        frames = batch["frames"]
        if frames.ndim != 5 or frames.shape[-1] != 3:
            raise ValueError(
                "LMGait needs batch['frames'] of shape [B T H W 3]; "
                f"got {frames.shape}."
            )
        expected = {"ratios": frames.shape[:2], "valid": frames.shape[:2]}
        if "masks" in batch:
            expected["masks"] = frames.shape[:4]
        for name, shape in expected.items():
            if name not in batch or batch[name].shape != shape:
                got = batch[name].shape if name in batch else "no such key"
                raise ValueError(
                    f"LMGait needs batch[{name!r}] of shape {shape} beside frames "
                    f"{frames.shape}; got {got}."
                )
        return frames.shape[:2]


_GROUPS = {
    "visual_encoder": ("visual_options", VisualEncoder),
    "text": ("text_options", Text),
    "decoder": ("decoder_options", DecoderOptions),
    "representation": ("representation_options", Representation),
    "mtcm": ("motion_options", Motion),
    "gait": ("gait_options", Gait),
}
PROMPT_FIELDS = ("prompts", "shipped", "vocabulary")  # what token_ids are made from


def create(config, num_classes: int) -> LMGait:
    """LMGait from config.model, in which every field is present:

    name; image_size; feature_grid; black_augmentation; dtype ("float32", "bfloat16");
    visual_encoder: kind (of VISUAL_ENCODERS), hidden_size, num_layers, num_heads,
      patch_size, table_size, blocks, frozen, frames_per_chunk (0: all at once), remat;
    text: enabled, mam, prompts, shipped (pairs of a prompt and its ids), vocabulary
      (file or folder, for any other prompt), fusion ("mask", "gate", "softmax"),
      pooling ("eot", "mean"), positions ("learned", "sinusoidal"), width, num_layers,
      num_heads, vocabulary_size, context_length, adapter_size, tau_init;
    decoder: supervision ("silhouette", "reconstruction"), target ("binary",
      "coverage"), dropout, support ("binary", "soft"), dilation (odd), frozen;
    representation: channels, hidden, remat;
    mtcm: enabled, kind ("mtcm", "cnn3d"), pte, difference, conv3d, residual;
    gait: stem, squeeze, channels, strides, num_strips, embedding_size.
    """
    model = config.model
    fields = {}
    for name, (field, group) in _GROUPS.items():
        given = dict(model[name])
        expected = group._fields
        if name == "representation":
            given.setdefault("remat", False)  # runs made before there was this field
        if name == "text":
            expected = PROMPT_FIELDS + tuple(f for f in expected if f != "token_ids")
        if set(given) != set(expected):
            raise ValueError(
                f"config.model.{name} must have exactly the fields "
                f"{', '.join(expected)}; got {', '.join(sorted(given))}."
            )
        if name == "text":
            given = _with_token_ids(given)
        fields[field] = group(**{key: _tuples(value) for key, value in given.items()})
    return LMGait(
        num_classes=num_classes,
        image_size=_tuples(model.image_size),
        feature_grid=_tuples(model.feature_grid),
        black_augmentation=model.black_augmentation,
        dtype=jnp.dtype(model.dtype),
        **fields,
    )


def _with_token_ids(text: dict[str, Any]) -> dict[str, Any]:
    """The text group with `token_ids` in place of what they are made from."""
    prompts = [text.pop(key) for key in PROMPT_FIELDS]
    ids = token_ids(prompts[0], dict(prompts[1]), prompts[2]) if text["enabled"] else ()
    return text | {"token_ids": tuple(tuple(int(i) for i in row) for row in ids)}


def _tuples(value):
    """Lists (a command line override) as tuples, which a hashable module needs."""
    if isinstance(value, list | tuple):
        return tuple(_tuples(item) for item in value)
    return value
