"""The pocket encoders: a small image encoder and a small text tower, trained together.

They take the places of DINOv2 and CLIP where neither is at hand. The renderer of
`synthetic_gait` knows what every pixel shows, so words and patches are matched exactly:

- words: for a phrase ("the swinging arms and the grey floor") the patches that show
  what it names, by the text mask of LMGait, sigmoid(tau cos(F, z)), on the last layer
  and on the middle layers. So LMGait finds aligned features and projections.
- parts: the body parts in cells within each patch, from its token alone.
- joints: the 17 key points, seen or hidden, from all tokens.
- captions: image and sentence, as CLIP (Radford et al. 2021, section 2.3), where equal
  sentences are all right.

Architectures and parameter names are DINOv2's and CLIP's (parts/dinov2.py,
parts/clip_text.py). No weights and no images of either were used.
"""

from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from gaitjax.engine.fields import Above, Natural, Positive, Some
from gaitjax.engine.guards import require
from gaitjax.parts.clip_text import CLIPText
from gaitjax.parts.language import TextProjection
from gaitjax.parts.model import GaitModel, Size
from gaitjax.parts.output import GaitOutput
from gaitjax.parts.representation import layer_norm
from gaitjax.parts.visual_encoder import (
    VisualEncoder,
    check_encoder,
    check_heads,
    normalised,
    visual_encoder,
)

NUM_PARTS = 10  # of the renderer, the first one is what surrounds the person
MATERIALS_PER_PART = 8  # a region is 8 * part + material
NUM_REGIONS = NUM_PARTS * MATERIALS_PER_PART
NUM_JOINTS = 17  # COCO


class TextTower(NamedTuple):
    """CLIP's text tower, small. Its table has rows for `words` only."""

    width: Positive = 96
    num_layers: Positive = 3
    num_heads: Positive = 3
    context_length: Positive = 77
    tau_init: Annotated[float, Above(0)] = 10.0  # of the text masks


class PocketEncoders(GaitModel):
    """Both encoders and what they are trained with.

    words: the ids that the table has rows for, in order. phrases: token ids; meanings:
    the regions that each phrase names.
    """

    reads = ("frames",)  # the losses need regions, captions and keypoints too
    image_size: Size = (128, 64)
    visual_encoder: VisualEncoder = VisualEncoder(frozen=False)
    text: TextTower = TextTower()
    words: Some[Natural] = (0,)
    phrases: Some[tuple[Natural, ...]] = ((0,),)
    meanings: Some[tuple[Natural, ...]] = ((),)
    phrases_per_step: Positive = 32  # drawn at random
    cells: Positive = 4  # a patch has cells x cells cells
    caption_size: Positive = 64

    @nn.nowrap
    def check(self, config) -> None:
        visual = self.visual_encoder
        require(
            len(self.phrases) == len(self.meanings),
            f"config.model.phrases has {len(self.phrases)} entries, config.model."
            f"meanings {len(self.meanings)}; each phrase needs one meaning.",
        )
        unknown = {number for row in self.phrases for number in row} - {*self.words}
        require(
            not unknown,
            f"config.model.phrases has the tokens {sorted(unknown)[:5]}, which are not "
            "in config.model.words.",
        )
        largest = max((max(row, default=0) for row in self.meanings), default=0)
        require(
            largest < NUM_REGIONS,
            f"config.model.meanings has the region {largest}; there are {NUM_REGIONS}.",
        )
        check_encoder(visual, self.image_size)
        check_heads("text.width", self.text.width, self.text.num_heads)
        require(
            visual.patch_size % self.cells == 0,
            f"config.model.cells={self.cells} does not divide "
            f"config.model.visual_encoder.patch_size={visual.patch_size}.",
        )
        require(
            not visual.frozen,
            "config.model.visual_encoder.frozen=True: nothing would be learned. Set it "
            "to False.",
        )

    def setup(self):
        self.encoders = Encoders(self.visual_encoder, self.text, len(self.words))
        nn.share_scope(self, self.encoders)
        self.part_head = nn.Dense(self.cells**2 * NUM_PARTS)
        self.joint_head = nn.Dense(3 * NUM_JOINTS)
        self.image_head = nn.Dense(self.caption_size)
        self.caption_head = nn.Dense(self.caption_size)

    def __call__(self, batch: dict[str, jax.Array], *, train: bool) -> GaitOutput:
        """Embed and compare frames and words.

        Args:
          batch: frames uint8 [B T H W 3]; valid bool [B T]; for the losses regions
            uint8 [B T H W], captions int32 [B T L], keypoints float32 [B T 17 3].
          train: a random part of the phrases (rng "augment"), else all of them.

        Returns:
          embeddings [B 1 D], the class tokens' mean over the frames (of no use for
          recognition), no logits, and aux, with P patches and K phrases:
          word_scores_last, word_scores_mid [B T P K], tau cos; where the batch has
          regions word_share [B T P K], the share of the patch that shows what the
          phrase names; part_logits, part_share [B T P cells^2 NUM_PARTS]; joint_logits
          [B T P 17]; joint_patches, joint_seen [B T 17]; joint_places, joint_targets
          [B T 17 2] in image heights; image_vectors, caption_vectors [B D], unit
          length; caption_ids [B L].
        """
        valid = batch["valid"]
        images = normalised(
            batch["frames"].reshape((-1,) + batch["frames"].shape[2:]),
            self.visual_encoder.kind,
        )
        final, mid = self.encoders.see(images)
        tokens = final[:, 1:]
        vectors = unit(self.image_head(final[:, 0]))  # [N D]
        seen = jnp.where(valid[..., None], vectors.reshape(*valid.shape, -1), 0)
        embeddings = jnp.sum(seen, 1) / jnp.maximum(jnp.sum(valid, 1), 1)[:, None]
        if "regions" not in batch:
            return GaitOutput(embeddings[:, None], None, {})
        phrases = padded(self.phrases)  # [K L]
        meanings = np.zeros((len(phrases), NUM_REGIONS), np.float32)
        for row, meaning in zip(meanings, self.meanings):
            row[list(meaning)] = 1
        chosen = jnp.arange(len(phrases))
        if train:
            chosen = jax.random.choice(
                self.make_rng("augment"), len(phrases),
                (min(self.phrases_per_step, len(phrases)),), replace=False,
            )  # fmt: skip
        texts = self.read(jnp.asarray(phrases)[chosen])
        captions = batch["captions"][:, 0]  # [B L]; a walk has one
        caption_vectors = self.caption_head(self.read(captions))
        patch = self.visual_encoder.patch_size
        shares = region_shares(batch["regions"], patch)
        aux = self._joints(tokens, batch["keypoints"]) | {
            "word_scores_last": scores(
                tokens, self.encoders.text_projection_last(texts)
            ),
            "word_scores_mid": scores(
                mid[:, 1:], self.encoders.text_projection_mid(texts)
            ),
            "word_share": shares @ jnp.asarray(meanings)[chosen].T,
            "part_logits": self._cells(self.part_head(tokens)),
            "part_share": part_shares(batch["regions"], patch, self.cells),
        }
        aux = {name: x.reshape(valid.shape + x.shape[1:]) for name, x in aux.items()}
        aux |= {
            "image_vectors": unit(embeddings),
            "caption_vectors": unit(caption_vectors),
            "caption_ids": captions,
        }
        return GaitOutput(embeddings[:, None], None, aux)

    def read(self, ids: jax.Array) -> jax.Array:
        """CLIP's token ids [K L], all among `words` -> end tokens [K d]."""
        rows = jnp.searchsorted(jnp.asarray(self.words), ids)  # keeps the order of ids
        return self.encoders.text_encoder(rows)[1]

    def _cells(self, x):
        return x.reshape(*x.shape[:-1], self.cells**2, NUM_PARTS)

    def _joints(self, tokens, keypoints):
        height, width = self.image_size
        patch = self.visual_encoder.patch_size
        out = self.joint_head(tokens).reshape(*tokens.shape[:2], NUM_JOINTS, 3)
        y, x = np.mgrid[: height // patch, : width // patch]
        centres = (np.stack([x, y], -1).reshape(-1, 2) + 0.5) * (patch / height)
        weights = jax.nn.softmax(out[..., 0], axis=1)[..., None]  # [N P 17 1]
        places = jnp.asarray(centres, jnp.float32)[None, :, None] + out[..., 1:] * 0.1
        points = keypoints.reshape(-1, NUM_JOINTS, 3)
        column, row = jnp.moveaxis(points[..., :2] // patch, -1, 0).astype(jnp.int32)
        row = jnp.clip(row, 0, height // patch - 1)
        column = jnp.clip(column, 0, width // patch - 1)
        return {
            "joint_patches": row * (width // patch) + column,  # [N 17]
            "joint_logits": out[..., 0],
            "joint_places": jnp.sum(weights * places, axis=1),  # [N 17 2]
            "joint_targets": points[..., :2] / height,
            "joint_seen": points[..., 2] > 0,
        }


class Encoders(nn.Module):
    """The parts that are kept, named as LMGait names them."""

    visual: VisualEncoder
    text: TextTower
    num_words: int

    def setup(self):
        self.visual_encoder = visual_encoder(self.visual, "float32", False)
        self.text_encoder = CLIPText(
            width=self.text.width,
            num_layers=self.text.num_layers,
            num_heads=self.text.num_heads,
            vocabulary_size=self.num_words,
            context_length=self.text.context_length,
        )
        width, tau = self.visual.hidden_size, self.text.tau_init
        self.text_projection_last = TextProjection(width, tau, "log")
        width *= len(self.visual.blocks)
        self.text_projection_mid = TextProjection(width, tau, "log")

    def see(self, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Last and middle features as in LMGait, [N 1+P d] and [N 1+P blocks * d]."""
        final, middle = self.visual_encoder(images, blocks=self.visual.blocks)
        return final, layer_norm(jnp.concatenate(middle, axis=-1))


def unit(x: jax.Array) -> jax.Array:
    return x * jax.lax.rsqrt(jnp.sum(jnp.square(x), -1, keepdims=True) + 1e-12)


def scores(tokens: jax.Array, vectors: jax.Array) -> jax.Array:
    """tau cos: tokens [N P d], vectors [K d] (tau times unit) -> [N P K]."""
    return unit(tokens) @ vectors.T


def padded(rows: tuple[tuple[int, ...], ...]) -> np.ndarray:
    """int32 [K L], padded with 0."""
    out = np.zeros((len(rows), max(map(len, rows))), np.int32)
    for place, row in zip(out, rows):
        place[: len(row)] = row
    return out


def region_shares(regions: jax.Array, patch: int) -> jax.Array:
    """uint8 [B T H W] -> float32 [N P NUM_REGIONS], shares of each patch."""
    return _shares(_patches(regions, patch), NUM_REGIONS)


def part_shares(regions: jax.Array, patch: int, cells: int) -> jax.Array:
    """uint8 [B T H W] -> float32 [N P cells^2 NUM_PARTS], shares of each cell."""
    parts = _patches(regions // MATERIALS_PER_PART, patch)  # [N P patch patch]
    frames, count = parts.shape[:2]
    side = patch // cells
    parts = parts.reshape(frames, count, cells, side, cells, side)
    parts = parts.transpose(0, 1, 2, 4, 3, 5)
    return _shares(parts.reshape(frames, count, cells**2, side, side), NUM_PARTS)


def _patches(regions, patch):
    height, width = regions.shape[-2:]
    x = regions.reshape(-1, height // patch, patch, width // patch, patch)
    x = x.transpose(0, 1, 3, 2, 4)
    return x.reshape(x.shape[0], -1, patch, patch)  # [N P patch patch]


def _shares(x, kinds: int):
    """uint8 [*lead h w] -> float32 [*lead kinds], how much of each kind there is."""
    lead, area = x.shape[:-2], x.shape[-2] * x.shape[-1]
    x = x.reshape(-1, area).astype(jnp.int32)
    rows = jnp.arange(len(x))[:, None] * kinds
    flat = jnp.zeros(len(x) * kinds, jnp.float32).at[(rows + x).ravel()].add(1 / area)
    return flat.reshape(*lead, kinds)
