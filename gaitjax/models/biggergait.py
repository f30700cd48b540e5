"""BiggerGait: every layer of a frozen vision model, with a recognition head each.

Paper: Ye et al., "BiggerGait: Unlocking Gait Recognition with Layer-wise
Representations from Large Vision Models" (NeurIPS 2025), section 3. The frozen mask
branch is BigGait's (Ye et al., CVPR 2024).

With `text` and `mtcm` it is a model of our own: LMGait's text mask (Wu et al., AAAI
2026, section 3.2) weighs the features of every layer, and an MTCM (section 3.3) follows
each map. Choices: one mask for all layers, from the last layer's tokens after its final
norm; the frozen mask branch is left as it is; every map has an MTCM with its own
weights.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn

from gaitjax.engine.fields import Natural, Positive, Some
from gaitjax.engine.guards import require
from gaitjax.parts.convolution import Conv
from gaitjax.parts.dinov2 import DINOv2
from gaitjax.parts.heads import StripHead
from gaitjax.parts.language import Text, TextModel, text_modules
from gaitjax.parts.layers import (
    BatchNorm,
    fold_frames,
    lean,
    normalise_colours,
    resize_bilinear,
)
from gaitjax.parts.model import (
    Dtype,
    Retrieve,
    Size,
    check_patches,
    check_stages,
    check_strips,
)
from gaitjax.parts.mtcm import Motion
from gaitjax.parts.output import GaitOutput
from gaitjax.parts.representation import Decoder, layer_norm
from gaitjax.parts.resnet import Stem, residual_stages
from gaitjax.parts.token_grid import Features, weigh

FOREGROUND = 1  # channel of the mask branch


class Projection(nn.Module):
    """Layer features -> maps of few channels: [N h' w' d] -> float32 [N h w C].

    BN -> 1x1 to `hidden` -> BN -> GELU -> 1x1 -> resize -> BN -> sigmoid.
    """

    hidden: int
    channels: int
    size: tuple[int, int]
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        before: jax.Array | None = None,
        after: jax.Array | None = None,
        *,
        train: bool,
        valid: jax.Array,
    ) -> jax.Array:
        """before, after: gain [N h' w'] of x, and of what its first norm gives."""

        def norm(x, name):
            return BatchNorm(affine=False, name=name)(x, train=train, valid=valid)

        def conv(x, features, name):
            return Conv(features, 1, use_bias=True, dtype=self.dtype, name=name)(x)

        def project(module, x, before, after):
            x = weigh(norm(weigh(x, before), "norm"), after)
            x = conv(x, self.hidden, "reduce")
            x = nn.gelu(norm(x, "reduce_norm"), approximate=False)
            return conv(x, self.channels, "project")

        x = resize_bilinear(lean(project, train)(self, x, before, after), self.size)
        return nn.sigmoid(norm(x, "project_norm").astype(jnp.float32))


class Recogniser(nn.Module):
    """GaitBase on the maps of a group of layers: stem, residual stages, strip head."""

    num_classes: int
    channels: Sequence[int]
    layers: Sequence[int]
    strides: Sequence[int]
    num_strips: int
    embedding_size: int
    retrieve: str
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, valid: jax.Array, *, train: bool):
        """x [B T h w C], valid bool [B T] -> float32 [B S D] and [B S N]."""
        x = Stem(self.channels[0], self.dtype, name="stem")(x, train=train, valid=valid)
        kinds = ("2d",) * len(self.channels)
        shape = (self.channels, self.layers, self.strides)
        x = residual_stages(
            self, x, kinds, *shape, self.dtype, train=train, valid=valid
        )
        head = (self.num_classes, self.num_strips, self.embedding_size, self.retrieve)
        return StripHead(*head, name="head")(x, valid, train=train)


class BiggerGait(TextModel):
    """Frames -> hidden states of all DINOv2 layers -> a map each -> a GaitBase each.

    Phases: with published weights, encoder and mask branch are already trained, and
    config.frozen names "^visual_encoder/" and "^decoder/". Without them, `warm_up`
    trains both on silhouettes (loss "silhouette"). In the main phase neither gets a
    gradient. There the mask branch normalises by batch statistics, as in the published
    training; its dropout is left out.

    Differences from the paper: the warm-up on silhouettes, for encoders that start at
    random; the published mask branch is BigGait's unsupervised one.
    """

    reads = ("frames",)
    optional = ("text_encoder", "text_projection_last")
    projections = ("last",)
    image_size: Size = (448, 224)  # every frame is resized to it for the encoder
    map_size: Size = (64, 32)
    hidden_size: Positive = 384  # of the frozen DINOv2, as the next four
    num_layers: Positive = 12
    num_heads: Positive = 6
    patch_size: Positive = 14
    table_size: Positive = 37  # side of the positional table
    layers_per_group: Positive = 1  # consecutive layers that share one map
    num_recognisers: Positive = 12  # shared by consecutive groups
    map_channels: Positive = 16  # channels of each group's map
    # sizes of each recogniser: this field and the next four
    channels: Some[Positive] = (64, 128, 256, 512)
    layers: Some[Positive] = (1, 1, 1, 1)
    strides: Some[Positive] = (1, 2, 1, 1)
    num_strips: Positive = 32
    embedding_size: Positive = 256
    retrieve: Retrieve = "before_neck"
    frames_per_chunk: Natural = 0  # frames that are encoded at a time; 0: all
    # image_size need be no multiple of patch_size: rows and columns beyond the last
    # whole patch are not seen
    cut_to_patches: bool = False
    swiglu: bool = False  # the encoder's MLPs are gated, as those of ViT-g
    dtype: Dtype = "float32"
    text: Text = Text(enabled=False)  # of LMGait, as the next
    mtcm: Motion = Motion(enabled=False)

    @nn.nowrap
    def check(self, config) -> None:
        check_stages(len(self.channels), layers=self.layers, strides=self.strides)
        check_strips(self.num_strips, self.map_size[0], self.strides)
        groups, rest = divmod(self.num_layers, self.layers_per_group)
        require(
            not rest and groups % self.num_recognisers == 0,
            "config.model.layers_per_group must divide num_layers, and num_recognisers "
            f"the number of groups; got {self.layers_per_group}, {self.num_layers} and "
            f"{self.num_recognisers}.",
        )
        check_patches(self.image_size, self.patch_size, self.cut_to_patches)
        require(
            self.hidden_size % self.num_heads == 0,
            f"config.model.hidden_size {self.hidden_size} is not a multiple of "
            f"config.model.num_heads {self.num_heads}.",
        )
        require(
            not config.get("warmup", {}).get("steps")
            or "masks" in config.data.modalities,
            "BiggerGait's warm-up reads 'masks'; add them to config.data.modalities or "
            "set config.warmup.steps=0.",
        )
        self.check_text()

    def setup(self):
        self.visual_encoder = DINOv2(
            hidden_size=self.hidden_size,
            num_layers=self.num_layers,
            num_heads=self.num_heads,
            patch_size=self.patch_size,
            table_size=self.table_size,
            swiglu=self.swiglu,
            position_interpolation="huggingface_torch",
            frames_per_chunk=0 if self.is_initializing() else self.frames_per_chunk,
            dtype=self.dtype,
        )
        self.decoder = Decoder("reconstruction", 0.0, self.dtype)
        if self.text.enabled:
            widths = {"last": self.hidden_size}
            for name, part in text_modules(self.text, widths, self.dtype).items():
                setattr(self, name, part)

    @nn.compact
    def __call__(
        self,
        batch: dict[str, jax.Array],
        *,
        train: bool,
        text: dict[str, jax.Array] | None = None,
    ) -> GaitOutput:
        """batch: frames uint8 [B T H W 3] (or float, already normalised), valid bool
        [B T], and masks 0/1 [B T H W] for training the mask branch on silhouettes.
        text: what `text_vectors` returned, to leave the language branch out.

        Returns embeddings [B G*S D] and logits [B G*S N] of G groups of layers with S
        strips each; aux: foreground float32 0/1 [B T h w]; per token [B T h' w']
        foreground_probability, token_valid and, given masks, silhouette_target (the
        mask's coverage of the token, 0 to 1); with text text_mask per token and logged,
        scalars; with MTCM motion [B T h w].
        """
        groups = self.num_layers // self.layers_per_group
        valid = batch["valid"]
        flat = valid.reshape(-1)  # [N]
        final, states = jax.lax.stop_gradient(self._states(batch))
        aux = self._decode(batch, states[-1], train)
        mask = self._foreground(fold_frames(aux["foreground_probability"]))  # [N h w]
        together = layer_norm(jnp.concatenate(states, axis=-1)).astype(self.dtype)
        together = self._as_map(together)  # [N h' w' layers*d]
        gain, of_text = self._text_gain(final, aux, self.vectors_or(text), train)
        aux |= of_text
        places = {self.text.place: gain}  # [N h' w'] or None
        gains = places.get("before_extractor"), places.get("after_norm")
        weight = mask  # of the maps
        if gain is not None and self.text.place == "before_mtcm":
            weight = weight * resize_bilinear(gain[..., None], self.map_size)[..., 0]
        recognisers = [
            Recogniser(
                self.num_classes,
                self.channels,
                self.layers,
                self.strides,
                self.num_strips,
                self.embedding_size,
                self.retrieve,
                self.dtype,
                name=f"gait{index}",
            )
            for index in range(self.num_recognisers)
        ]
        outputs, squared = [], 0.0
        for index, features in enumerate(jnp.split(together, groups, axis=-1)):
            x = Projection(
                self.hidden_size // 2,
                self.map_channels,
                self.map_size,
                self.dtype,
                name=f"layer{index}",
            )(features, *gains, train=train, valid=flat)
            x = (x * weight[..., None]).reshape(valid.shape + x.shape[1:])
            if self.mtcm.enabled:
                x = self._move(f"mtcm_{index}", x, valid, train)
                squared = squared + jnp.sum(jnp.square(x), axis=-1)  # [B T h w]
            recognise = recognisers[index * self.num_recognisers // groups]
            outputs.append(recognise(x, valid, train=train))
        if self.mtcm.enabled:
            aux["motion"] = jnp.sqrt(squared)
        embeddings, logits = (jnp.concatenate(x, axis=1) for x in zip(*outputs))
        foreground = mask.reshape(valid.shape + mask.shape[1:])
        return GaitOutput(embeddings, logits, aux | {"foreground": foreground})

    def warm_up(self, batch: dict[str, jax.Array], *, train: bool = True) -> GaitOutput:
        """Encoder and mask branch alone, for training them on silhouettes.

        batch: as `__call__`, and masks 0/1 [B T H W] registered with the frames.

        Returns empty embeddings [B 0 0]; aux as of `__call__`, without foreground.
        """
        aux = self._decode(batch, self._states(batch)[1][-1], train)
        return GaitOutput(jnp.zeros((len(batch["valid"]), 0, 0)), None, aux)

    def _states(self, batch):
        """Tokens [N 1+h'*w' d] after the final norm, and of every layer without it."""
        images = normalise_colours(fold_frames(batch["frames"]))  # [N H W 3]
        images = resize_bilinear(images, self.image_size)
        return self.visual_encoder(images, blocks=range(self.num_layers))

    def _text_gain(self, final, aux, vectors, train):
        """The text's gain per token [N h' w'] or None, and its part of aux."""
        tokens = self._as_map(final)  # [N h' w' d]
        inside = fold_frames(aux["token_valid"])
        features = Features(tokens, size=tokens.shape[1:3])
        gain, attention = self.gain(features, vectors, "last", inside)
        if attention is None:
            return None, {}
        person = fold_frames(jax.lax.stop_gradient(aux["foreground_probability"]) > 0.5)
        logged = self.text_log(vectors, attention, person, inside, train)
        mask = attention.reshape(aux["token_valid"].shape)
        return gain, {"text_mask": mask, "logged": logged}

    def _move(self, name, x, valid, train):
        """MTCM `name` of a map [B T h w C]."""

        def call(module, x):
            return module(x, valid, train=train)

        return lean(call, train)(self.mtcm.module(self.dtype, name), x)

    def _as_map(self, tokens):
        """[N 1+h'*w' d] -> [N h' w' d]."""
        grid = (size // self.patch_size for size in self.image_size)
        return tokens[:, 1:].reshape(-1, *grid, tokens.shape[-1])

    def _decode(self, batch, state, train):
        """Last hidden state [N 1+h'*w' d] -> the mask branch's part of aux."""
        valid = batch["valid"]  # [B T]
        tokens = self._as_map(layer_norm(state))  # [N h' w' d]
        inside = jnp.broadcast_to(valid.reshape(-1, 1, 1), tokens.shape[:3])
        features = Features(tokens, size=tokens.shape[1:3], direct=True)
        probabilities, _ = self.decoder(features, inside, train=train)
        shape = valid.shape + tokens.shape[1:3]
        aux = {
            "foreground_probability": probabilities[..., FOREGROUND].reshape(shape),
            "token_valid": inside.reshape(shape),
        }
        if "masks" in batch:
            masks = batch["masks"].astype(jnp.float32)
            aux["silhouette_target"] = jax.image.resize(masks, shape, "linear")
        return aux

    def _foreground(self, probability):
        """Float32 [N h' w'] -> 0/1 on the maps' grid [N h w], without a gradient."""
        chosen = (probability[..., None] > 0.5).astype(jnp.float32)
        chosen = resize_bilinear(jax.lax.stop_gradient(chosen), self.map_size)
        return (chosen[..., 0] > 0.5).astype(jnp.float32)
