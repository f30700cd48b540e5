"""LMGait: language-guided, motion-aware gait recognition from RGB.

Papers: Wu et al., "Language-Guided and Motion-Aware Gait Representation for
Generalizable Recognition" (LMGait), section 3; its baseline Ye et al., "BigGait:
Learning Gait Representation You Want by Large Vision Models" (CVPR 2024). With
`text.enabled=False, mtcm.enabled=False` this model is BigGait.

frames -> DINOv2 tokens -> text attention -> representation extractor (decoder,
denoising and appearance branch) -> MTCM -> gait network -> embeddings.

Differences from the paper:
- The paper does not print the fusion formula. Here a = sigmoid(tau cos(F, z)) and
  F' = F (1 + a), with one mask for the last layer and one for the middle layers, each
  averaged over the prompts. `text.fusion` offers others, and `text.place` other places
  than the paper's "visual feature map", where an affine-free batch norm follows.
- `text.temperature="log"`: as CLIP, log tau is learned, and neither it nor an adapter
  decays.
- `text.adapter` has rivals of MAM that the paper names, and `visual_prompts` those of
  DPT (parts/adapters.py).
- Each branch has an MTCM with its own weights; see `mtcm.py` for its padding in time.
- Frames are consecutive, which frame differences need (section 3.1 draws t at random).
- `decoder.supervision="reconstruction"` is BigGait's unsupervised mask branch. BigGait
  trains it together with the rest for 500 steps and then freezes it; here
  `decoder.frozen` says whether it still learns after its warm-up.
- Batch norm statistics cover valid tokens and frames only (BigGait: ragged lists).
- Not in the paper: BigGait's `black_augmentation`, `decoder.target="coverage"` and
  `decoder.support="soft"`, which the small grid of the embedded default needs.
"""

import re
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from gaitjax.engine.fields import Natural, Odd, Positive, Share, Some
from gaitjax.engine.guards import require
from gaitjax.parts.adapters import Vectors
from gaitjax.parts.gait_network import GaitNetwork
from gaitjax.parts.language import Text, TextModel, text_modules
from gaitjax.parts.layers import resize_bilinear
from gaitjax.parts.model import (
    Dtype,
    Retrieve,
    Size,
    check_stages,
    check_strips,
)
from gaitjax.parts.mtcm import Motion
from gaitjax.parts.output import GaitOutput
from gaitjax.parts.representation import (
    Appearance,
    Decoder,
    Denoising,
    background_first,
    blacken,
    foreground_support,
    inside_columns,
    layer_norm,
    unsquash,
)
from gaitjax.parts.token_grid import Features
from gaitjax.parts.visual_encoder import (
    VisualEncoder,
    check_encoder,
    normalised,
    visual_encoder,
)

# squashed frames are brought back to this height and their own aspect before the
# resize to image_size, as BigGait does
CANVAS_HEIGHT = 256


class DecoderOptions(NamedTuple):
    """The mask branch."""

    # of silhouettes, or by an autoencoder of the tokens (BigGait)
    supervision: Literal["silhouette", "reconstruction"] = "silhouette"
    dropout: Share = 0.5
    dilation: Odd = 3  # of the foreground, in pixels of the feature grid
    frozen: bool = False  # in evaluation mode after its warm-up (BigGait: True)
    # the silhouette, or the share of each token that it covers, for coarse grids
    target: Literal["binary", "coverage"] = "binary"
    # "binary", as published: the maps are cut out where foreground is likely. "soft":
    # they are also weighted by its probability, which on a coarse grid says where
    # within a token the outline runs. No gradient goes through either
    support: Literal["binary", "soft"] = "binary"
    # "reconstruction": which channel is the person (parts/representation.py); "valid"
    # counts in the person's columns, "published" in all, as published weights want it
    edge_rule: Literal["valid", "published"] = "valid"


class Representation(NamedTuple):
    """The denoising and the appearance branch."""

    channels: Positive = 16  # of each branch's map
    appearance_channels: Natural = 0  # of the appearance branch, if another number
    hidden: Positive = 768  # of the denoising branch
    remat: bool = False  # compute both, and the decoder, again in the backward pass
    # True: the features are interpolated first, the plain way. False: matmuls and norms
    # run on the tokens' own grid (parts/token_grid.py), with the same results
    direct: bool = False


class Gait(NamedTuple):
    """The gait network, GaitBase with two stems."""

    stem: Positive = 64  # width of both stems
    squeeze: Positive = 16  # the fusion's bottleneck has stem / squeeze channels
    channels: Some[Positive] = (128, 256, 512)  # of the blocks
    strides: Some[Positive] = (2, 2, 1)
    num_strips: Positive = 16
    embedding_size: Positive = 256


class Networks(nn.Module):
    """The networks of an LMGait, by their names in the parameter tree.

    Some of these names are also names of LMGait's option groups, and linen allows a
    name once per module. So they have a module of their own, which shares its scope.
    """

    num_classes: int
    visual: VisualEncoder
    prompts: int
    language: Text
    mask: DecoderOptions
    maps: Representation
    motion: Motion
    recognition: Gait
    retrieve: str
    dtype: str

    def setup(self):
        visual, mask, maps, dtype = self.visual, self.mask, self.maps, self.dtype
        self.visual_encoder = visual_encoder(visual, dtype, self.is_initializing())
        if self.prompts:
            self.visual_prompts = Vectors(self.prompts, visual.hidden_size)
        if self.language.enabled:
            width = visual.hidden_size
            widths = {"last": width, "mid": width * len(visual.blocks)}
            for name, module in text_modules(self.language, widths, dtype).items():
                setattr(self, name, module)
        self.decoder = Decoder(mask.supervision, mask.dropout, dtype=dtype)
        self.denoising = Denoising(maps.channels, maps.hidden, dtype=dtype)
        self.appearance = Appearance(
            maps.appearance_channels or maps.channels, dtype=dtype
        )
        if self.motion.enabled:
            self.mtcm_denoised = self.motion.module(dtype)
            self.mtcm_appearance = self.motion.module(dtype)
        self.gait = GaitNetwork(
            self.num_classes,
            **self.recognition._asdict(),
            retrieve=self.retrieve,
            dtype=dtype,
        )


class LMGait(TextModel):
    """The whole model.

    Parameters, norms, softmax and distances are float32, whatever `dtype` is.
    """

    reads = ("frames",)
    # configs freeze them and name their weights, text or not
    optional = ("text_encoder", "text_projection_last", "text_projection_mid")
    projections = ("last", "mid")
    image_size: Size = (448, 224)  # as the image encoder sees a frame
    feature_grid: Size = (64, 32)  # of the maps; at full size twice the token grid
    visual_encoder: VisualEncoder = VisualEncoder()
    # DPT: learned vectors among the image's tokens, which the gradient reaches through
    # the frozen encoder
    visual_prompts: Natural = 0
    text: Text = Text()
    decoder: DecoderOptions = DecoderOptions()
    representation: Representation = Representation()
    mtcm: Motion = Motion()
    gait: Gait = Gait()
    black_augmentation: Share = 0.2  # of the sequences lose one of their two maps
    retrieve: Retrieve = "before_neck"
    dtype: Dtype = "float32"

    @nn.nowrap
    def check(self, config) -> None:
        visual, gait = self.visual_encoder, self.gait
        check_encoder(visual, self.image_size)
        moves = config.mode == "train" and re.search(
            config.train.trainable, "visual_encoder/"
        )
        held = any(re.search(pattern, "visual_encoder/") for pattern in config.frozen)
        require(
            not visual.frozen or held or not moves,
            "With config.model.visual_encoder.frozen=True the visual encoder gets no "
            "gradient, and weight decay alone would move it. To train it, set that "
            "field to False; to keep it, name '^visual_encoder/' in config.frozen.",
        )
        require(
            not self.visual_prompts or held or config.mode != "train",
            "config.model.visual_prompts are learned instead of the encoder's weights: "
            "name '^visual_encoder/' in config.frozen, or set visual_prompts=0.",
        )
        self.check_text()
        check_stages(len(gait.channels), **{"gait.strides": gait.strides})
        check_strips(
            gait.num_strips, self.feature_grid[0], gait.strides, "gait.num_strips"
        )

    def setup(self):
        self.networks = Networks(
            self.num_classes,
            self.visual_encoder,
            self.visual_prompts,
            self.text,
            self.decoder,
            self.representation,
            self.mtcm,
            self.gait,
            self.retrieve,
            self.dtype,
        )
        nn.share_scope(self, self.networks)

    @property
    def text_parts(self):
        return self.networks

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
          reconstruction, reconstruction_target [B T h w d] with that supervision;
          logged, scalars.
        """
        valid, frozen = batch["valid"], self.decoder.frozen
        last, mid = self._encode(batch, frozen=self.visual_encoder.frozen)
        inside = self._inside(batch)  # [N h w]
        vectors = self.vectors_or(text)
        gain, _ = self.gain(last, vectors, "last", inside)  # [N h w]
        probability, aux = self._decode(batch, last, gain, inside, train and not frozen)
        if frozen:
            aux = jax.lax.stop_gradient(aux)
        person, logged = self._person(probability, valid)
        gain, attention = self.gain(mid, vectors, "mid", inside)
        denoised, appearance = self._maps(mid, gain, person, valid, train)
        aux |= {"denoised": denoised, "appearance": appearance, "logged": logged}
        if attention is not None:
            aux["text_mask"] = unfold(attention, valid)  # [B T h w]
            logged |= self.text_log(vectors, attention, person > 0.5, inside, train)
        if train and self.black_augmentation > 0:
            denoised, appearance = blacken(
                denoised, appearance, self.black_augmentation, self.make_rng("augment")
            )
        if gain is not None and self.text.place == "before_mtcm":
            rows = unfold(gain, valid)[..., None]  # [B T h w 1]
            denoised, appearance = denoised * rows, appearance * rows
        if self.mtcm.enabled:
            denoised = self.networks.mtcm_denoised(denoised, valid, train=train)
            appearance = self.networks.mtcm_appearance(appearance, valid, train=train)
            squared = [jnp.sum(jnp.square(x), -1) for x in (denoised, appearance)]
            aux["motion"] = jnp.sqrt(sum(squared))  # [B T h w]
        embeddings, logits = self.networks.gait(
            denoised, appearance, valid, train=train
        )
        return GaitOutput(embeddings, logits, aux)

    def warm_up(self, batch: dict[str, jax.Array], *, train: bool = True) -> GaitOutput:
        """The decoder alone, for the steps in which only its loss is trained.

        Same batch and aux (as far as the decoder makes it) as `__call__`; embeddings
        are empty [B 0 0]. The text vectors get no gradient here.
        """
        last, _ = self._encode(batch, frozen=False)
        vectors = jax.lax.stop_gradient(self.vectors_or(None))
        inside = self._inside(batch)
        gain, _ = self.gain(last, vectors, "last", inside)
        _, aux = self._decode(batch, last, gain, inside, train)
        empty = jnp.zeros((len(batch["valid"]), 0, 0), jnp.float32)
        return GaitOutput(empty, None, aux)

    def _inside(self, batch):
        """The valid columns of valid frames: bool [N h w]."""
        height, width = self.feature_grid
        inside = inside_columns(batch["ratios"].reshape(-1), height, width)  # [N w]
        inside = inside & batch["valid"].reshape(-1, 1)
        return jnp.broadcast_to(inside[:, None, :], (inside.shape[0], height, width))

    def _encode(self, batch, *, frozen):
        """Last and middle features: tokens [N h' w' d] and [N h' w' 4d]."""
        images = self._prepare(batch["frames"], batch["ratios"])  # [N H W 3]
        visual = self.visual_encoder
        grid = tuple(size // visual.patch_size for size in self.image_size)
        prompts = self.networks.visual_prompts() if self.visual_prompts else None
        final, middle = self.networks.visual_encoder(images, visual.blocks, prompts)

        def features(tokens):
            tokens = tokens[:, -grid[0] * grid[1] :]  # without CLS and registers
            tokens = tokens.reshape((-1, *grid, tokens.shape[-1]))  # [N h' w' d]
            return Features(
                tokens.astype(self.dtype),
                size=self.feature_grid,
                direct=self.representation.direct,
                chunk=0 if self.is_initializing() else visual.frames_per_chunk,
            )

        mid = layer_norm(jnp.concatenate(middle, axis=-1))  # [N 1+h'w' 4d]
        if frozen and prompts is None:
            final, mid = jax.lax.stop_gradient((final, mid))
        return features(final), features(mid)

    def _person(self, probability, valid):
        """Probability [N h w] of the person, of the decoder's two, and what is logged.

        No gradient goes through it.
        """
        probability = jax.lax.stop_gradient(probability)  # [N h w 2]
        if self.decoder.supervision == "silhouette":
            return probability[..., 0], {}
        flipped = background_first(probability, self.decoder.edge_rule)  # [N]
        person = jnp.where(
            flipped[:, None, None], probability[..., 1], probability[..., 0]
        )
        share = jnp.sum(flipped & valid.reshape(-1)) / jnp.maximum(jnp.sum(valid), 1)
        return person, {"flipped_frames": share}

    def _maps(self, features, gain, person, valid, train):
        """Both maps [B T h w C] of the features, zero off the person [N h w]."""
        support = foreground_support(person, self.decoder.dilation)  # [N h w]
        support = support & valid.reshape(-1, 1, 1)
        maps = [
            self._branch(branch, features, support, gain, train=train)
            for branch in (self.networks.denoising, self.networks.appearance)
        ]
        if self.decoder.support == "soft":
            maps = [x * person[..., None] for x in maps]
        return [unfold(x, valid) for x in maps]

    def _branch(self, module, features, where, gain, *, train):
        """module(features, where bool [N h w]), with `remat` if asked for.

        gain: [N h w] or None, of the features or of what the module normalises.
        """

        def call(module, features, where):
            return module(features, where, train=train)

        if self.text.place == "before_extractor":
            features = features.replace(before=gain)
        elif self.text.place == "after_norm":
            features = features.replace(after=gain)
        call = nn.remat(call) if self.representation.remat else call
        return call(module, features, where)

    def _prepare(self, frames, ratios):
        """Frames [B T H W 3] as the encoder reads them: [B*T height width 3]."""
        frames = frames.reshape((-1,) + frames.shape[2:])  # [N H W 3]
        if jnp.issubdtype(frames.dtype, jnp.integer):
            frames = normalised(frames, self.visual_encoder.kind)
        frames = self._unsquash(frames, ratios)
        return resize_bilinear(frames, self.image_size)

    def _unsquash(self, images, ratios):
        """Images [N H W C] with `image_size`'s aspect."""
        height, width = self.image_size
        if images.shape[1] * width == images.shape[2] * height:
            return images
        size = (CANVAS_HEIGHT, CANVAS_HEIGHT * width // height)
        return unsquash(images, ratios.reshape(-1), *size)

    def _decode(self, batch, features, gain, inside, train):
        """Probabilities [N h w 2] of the decoder and its part of aux."""
        valid, (height, width) = batch["valid"], self.feature_grid
        probability, rebuilt = self._branch(
            self.networks.decoder, features, inside, gain, train=train
        )
        aux = {
            "foreground_probability": unfold(probability[..., 0], valid),
            "token_valid": unfold(inside, valid),
        }
        if rebuilt is not None:
            aux["reconstruction"] = unfold(rebuilt, valid)
            target = jax.lax.stop_gradient(features.interpolated())
            aux["reconstruction_target"] = unfold(target, valid)
        if "masks" in batch:
            masks = batch["masks"].astype(jnp.float32)
            masks = masks.reshape((-1,) + masks.shape[2:] + (1,))  # [N H W 1]
            masks = self._unsquash(masks, batch["ratios"])
            masks = jax.image.resize(
                masks, (masks.shape[0], height, width, 1), "linear"
            )
            coverage = masks[..., 0]  # [N h w], antialiased, 0 to 1
            if self.decoder.target == "binary":
                coverage = (coverage > 0.5).astype(jnp.float32)
            aux["silhouette_target"] = unfold(coverage, valid)
        return probability, aux


def unfold(x: jax.Array, valid: jax.Array) -> jax.Array:
    """[B*T *rest] -> [B T *rest], for valid [B T]."""
    return x.reshape(valid.shape + x.shape[1:])
