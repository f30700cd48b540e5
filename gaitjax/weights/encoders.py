"""Published encoder weights -> our parameter trees, from every form they exist in.

    parameters = load_dinov2("facebook/dinov2-small", DINOv2(**DINOV2_SIZES["s"]))
    variables = {"params": parameters}

A source is a file, a folder or a Hugging Face hub id ("owner/name", downloaded once and
then read from its cache). Files may be Flax msgpack, safetensors (one file or shards
with an index, Hugging Face's names or our own), or original `.pth` / `.pt` / `.bin`
files where torch is installed (read with `weights_only=True`; OpenAI's CLIP `.pt` are
TorchScript archives, which torch runs: load those from OpenAI only).

Every weight of the model must be in the file with its exact shape, and every weight of
the file must be used: anything else raises ValueError with the names. Of a CLIP file
the other tower and `logit_scale` are not read, nor are a projection or a position table
that the model was built without.

The source "pocket/NAME" is a file of this package (gaitjax/weights/pocket/), trained on
rendered walkers: small encoders for small machines.
"""

import os
import re
from collections.abc import Collection, Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from flax import traverse_util

from gaitjax.engine.atomic import replacing
from gaitjax.engine.guards import Damaged, require
from gaitjax.weights import encoder_names, files
from gaitjax.weights.files import LISTED, SUFFIXES

# what a folder or a hub repository is searched for, in this order
FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "flax_model.msgpack",
    "pytorch_model.bin",
)
POCKET = Path(__file__).parent / "pocket"
# in a file whose table has the rows of these tokens only; other rows are zero
TOKEN_IDS = "token_ids"
TABLE = "text_model/embeddings/token_embedding/embedding"
# size of model.safetensors on the hub: 4 bytes per parameter (CLIP: both towers)
HUB_MEGABYTES = {
    "facebook/dinov2-small": 88,
    "facebook/dinov2-base": 346,
    "facebook/dinov2-large": 1_217,
    "facebook/dinov2-giant": 4_546,
    "openai/clip-vit-base-patch32": 605,
    "openai/clip-vit-base-patch16": 599,
    "openai/clip-vit-large-patch14": 1_711,
}


def load_dinov2(source: str | Path, model) -> dict:
    """The parameters of `model` (a parts.dinov2.DINOv2) from `source`.

    Returns:
      A nested dict of float32 numpy arrays, `variables["params"]` of the model.

    Raises:
      FileNotFoundError: no such file, folder or cached hub file; says how to get it.
      ValueError: damaged file; missing, extra or mis-shaped weights.
    """
    images = jnp.zeros((1, model.patch_size, model.patch_size, 3))
    return load(source, abstract_parameters(model, images))


def load_clip_text(source: str | Path, model) -> dict:
    """The parameters of `model` (a parts.clip_text.CLIPText); as `load_dinov2`."""
    return load(source, abstract_parameters(model, jnp.zeros((1, 1), jnp.int32)))


def load_clip_image(source: str | Path, model) -> dict:
    """The parameters of `model` (a parts.clip_image.CLIPImage); as `load_dinov2`."""
    return load_dinov2(source, model)


def load_pretrained(config, parameters: Mapping, frozen: Collection[str]) -> dict:
    """Parameters with those parts read from files that config names a source for.

    Args:
      config: `config.pretrained` maps a part of the model's parameters (for instance
        "visual_encoder") to a source; "" or no entry keeps its values.
      parameters: {part: nested dict of arrays}. Sources of other parts are not read.
      frozen: parts of which the log says so if they have no source.
    """
    sources = config.get("pretrained") or {}
    sources = {part: sources[part] for part in parameters if sources.get(part)}
    for part in sorted(set(parameters) & set(frozen) - set(sources)):
        logging.warning("Frozen %s keeps its random initial values.", part)
    loaded = {part: load(source, parameters[part]) for part, source in sources.items()}
    return dict(parameters) | loaded


def abstract_parameters(model, *inputs) -> dict:
    """Shapes of a model's parameters, without computing anything."""
    return jax.eval_shape(model.init, jax.random.key(0), *inputs)["params"]


def load(source: str | Path, expected: Mapping) -> dict:
    """Weights from `source` for a tree of arrays or shapes named as our encoders'."""
    count = sum(np.prod(leaf.shape, dtype=int) for leaf in jax.tree.leaves(expected))
    file = locate(source, int(count))
    try:
        tensors = files.read(file)
    except Damaged as error:
        leaves = traverse_util.flatten_dict(expected, sep="/")
        first = min(leaves)
        raise ValueError(
            f"{error} Expected: the {len(leaves)} weights of this model, {4 * count} "
            f"bytes in float32, the first {first} {tuple(leaves[first].shape)}; found: "
            f"a file of {file.stat().st_size} bytes."
        ) from error
    if TOKEN_IDS in tensors:
        tensors = _whole_table(dict(tensors), expected)
    return to_parameters(tensors, expected, str(file))


def _whole_table(tensors: dict, expected: Mapping) -> dict:
    """The tensors with a row of the embedding table for every token."""
    ids, rows = tensors.pop(TOKEN_IDS), tensors[TABLE]
    wanted = traverse_util.flatten_dict(expected, sep="/").get(TABLE, rows)
    size = max(wanted.shape[0], int(ids.max()) + 1)
    tensors[TABLE] = np.zeros((size, rows.shape[1]), np.float32)
    tensors[TABLE][ids] = rows
    return tensors


def to_parameters(
    tensors: Mapping[str, np.ndarray], expected: Mapping, origin: str = "The tensors"
) -> dict:
    """Flat tensors in any published naming -> a tree with exactly `expected`'s leaves.

    Args:
      tensors: {name: array}, names as in encoder_names.
      expected: nested dict of arrays or shapes, our parameter tree.
      origin: where the tensors come from, for the error.

    Returns:
      Nested dict of float32 numpy arrays.

    Raises:
      ValueError: lists missing, extra, mis-shaped and non-finite weights by name.
    """
    wanted = traverse_util.flatten_dict(expected, sep="/")
    found = _of_tower(encoder_names.to_paths(tensors), wanted)
    faults = {
        "missing": sorted(set(wanted) - set(found)),
        "extra": [f"{k} {found[k].shape}" for k in sorted(set(found) - set(wanted))],
        "mis-shaped": [
            f"{name}: expected {tuple(leaf.shape)}, found {found[name].shape}"
            for name, leaf in sorted(wanted.items())
            if name in found and found[name].shape != tuple(leaf.shape)
        ],
    }
    faults["missing"] = [f"{k} {tuple(wanted[k].shape)}" for k in faults["missing"]]
    out = {
        name: np.asarray(value, dtype=np.float32, order="C")
        for name, value in found.items()
        if name in wanted
    }
    faults["not finite"] = [
        k for k, v in sorted(out.items()) if not np.isfinite(v).all()
    ]
    lines = [
        f"{len(names)} {kind}: " + "; ".join(name[:200] for name in names[:LISTED])
        + (f"; and {len(names) - LISTED} more" if len(names) > LISTED else "")
        for kind, names in faults.items()
        if names
    ]  # fmt: skip
    require(
        not lines,
        f"{origin} does not hold the weights of this model ({len(found)} found, "
        f"{len(wanted)} expected). {' | '.join(lines)}. Check that the file is whole "
        "and that the model's size fields are those of the file.",
    )
    return traverse_util.unflatten_dict(out, sep="/")


def _of_tower(found: dict, wanted: Mapping) -> dict:
    """Without the other CLIP tower and what a CLIP model was built without."""
    for own, other in (
        (encoder_names.TEXT, encoder_names.IMAGE),
        (encoder_names.IMAGE, encoder_names.TEXT),
    ):
        if any(own.search(name) for name in wanted):
            found = {k: v for k, v in found.items() if not other.search(k)}
    optional = r"^(text|visual)_projection/|^text_model/embeddings/position_embedding/"
    return {k: v for k, v in found.items() if k in wanted or not re.search(optional, k)}


def save(path: str | Path, parameters: Mapping) -> None:
    """Writes a parameter tree as safetensors under our own names, atomically."""
    from safetensors.numpy import save as to_bytes

    flat = traverse_util.flatten_dict(parameters, sep="/")
    flat = {name: np.asarray(value, order="C") for name, value in flat.items()}
    with replacing(path, "wb") as file:
        file.write(to_bytes(flat, metadata={"format": "gaitjax"}))


def to_huggingface(parameters: Mapping) -> dict[str, np.ndarray]:
    """A parameter tree -> {Hugging Face PyTorch name: array in PyTorch's layout}."""
    return encoder_names.to_huggingface(traverse_util.flatten_dict(parameters, sep="/"))


def locate(source: str | Path, count: int = 0) -> Path:
    """The file that holds the weights of a file, folder or hub id.

    `count` is the model's number of parameters, for the error's estimate of the size.
    """
    path = Path(os.path.expanduser(source))
    if str(source).startswith("pocket/") and not path.exists():
        path = (POCKET / path.name).with_suffix(".safetensors")
        there = sorted(file.stem for file in POCKET.glob("*.safetensors"))
        require(
            path.is_file(),
            f"No pocket weights {path.stem!r} in {POCKET}; there: {there or 'none'}. "
            "Install the package again, or name DINOv2 and CLIP in config.pretrained.",
            FileNotFoundError,
        )
    if os.path.isfile(path):
        return path
    if os.path.isdir(path):
        there = [file for file in sorted(path.iterdir()) if os.path.isfile(file)]
        named = [path / name for name in FILES if path / name in there]
        others = [file for file in there if file.suffix in SUFFIXES]
        listing = ", ".join(file.name for file in others) or "none of them"
        require(
            named or len(others) == 1,
            f"{path} must hold one of {', '.join(FILES)} or a single weights file "
            f"({', '.join(SUFFIXES)}); it holds {listing}. Name the file itself.",
            FileNotFoundError,
        )
        return (named or others)[0]
    require(
        re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", str(source)),
        f"No weights at {path}: not a file, a folder or a hub id (owner/name).",
        FileNotFoundError,
    )
    return _from_hub(str(source), count)


def _from_hub(repository: str, count: int) -> Path:
    """The file of a hub id, from the cache or downloaded; with an index, its shards."""
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    def cached(name: str) -> bool:
        return isinstance(try_to_load_from_cache(repository, name), str)

    def fetch(name: str) -> Path:
        found = try_to_load_from_cache(repository, name)
        if isinstance(found, str):
            return Path(found)
        try:
            return Path(hf_hub_download(repository, name))
        except EntryNotFoundError as error:
            if not isinstance(error, LocalEntryNotFoundError):
                raise  # the hub answers that there is no such file
            reason = error
        except (OSError, ValueError) as error:
            reason = error
        estimate = f"{4 * count / 1e6:.3g} MB in float32, by this model's size"
        size = HUB_MEGABYTES.get(repository.removesuffix("-with-registers"))
        raise FileNotFoundError(
            f"{name} of {repository} ({f'{size:,} MB' if size else estimate}) is not "
            "in the local cache and could not be fetched ("
            f"{type(reason).__name__}: {str(reason).splitlines()[0]}). Where there is "
            f'a network run: hf download {repository} --include "model*safetensors*" '
            f"--local-dir weights/{repository.split('/')[1]}  and give that folder as "
            "the source."
        ) from reason

    for name in sorted(FILES, key=lambda name: not cached(name)):
        try:
            file = fetch(name)
        except EntryNotFoundError:
            continue
        if name.endswith(".index.json"):
            for shard in sorted(set(files.shards(file).values())):
                fetch(shard)
        return file
    raise FileNotFoundError(
        f"{repository} on the hub holds none of {', '.join(FILES)}. "
        f"Look at https://huggingface.co/{repository}/tree/main and give the file."
    )
