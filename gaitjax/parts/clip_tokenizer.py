"""CLIP's tokenizer: prompts -> token ids, from its published vocabulary files.

Source: OpenAI's CLIP (Radford et al., arXiv 2103.00020): lower-cased byte-pair encoding
with 49,408 tokens and 77 positions. Ids equal those of OpenAI's `clip.tokenize` (and of
transformers' slow CLIPTokenizer if ftfy is installed) on the sentences of
tests/parts/test_clip_tokenizer.py.

Text is cleaned as OpenAI does: HTML entities are unescaped, white space is collapsed,
letters become lower case. OpenAI first runs the library ftfy; this file does what ftfy
does to single characters: ligatures, full-width forms, curly quotes, control
characters, NFC.
Difference from the original: text with a mangled encoding ("schÃ¶n") is not repaired.

It reads `bpe_simple_vocab_16e6.txt.gz` (inside the PyPI wheels of
open_clip_torch and clip-anytorch), `vocab.json` with `merges.txt`, `tokenizer.json`.
"""

import gzip
import html
import json
import os
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gaitjax.engine.guards import reading, require, require_whole

CONTEXT_LENGTH = 77
START, END = "<|startoftext|>", "<|endoftext|>"
CONTRACTIONS = ("'s", "'t", "'re", "'ve", "'m", "'ll", "'d")
OPENAI_MERGES = 49_152 - 256 - 2  # lines used of bpe_simple_vocab_16e6.txt.gz
FILES = ("vocab.json", "tokenizer.json", "bpe_simple_vocab_16e6.txt.gz")
LARGEST = 2**24  # bytes of a file, unpacked; CLIP's have 4 MB at most


def _characters() -> dict[int, str | None]:
    """ftfy's replacements of single characters."""
    table: dict[int, str | None] = {}
    ligatures = "ĲĳŉǱǲǳǄǅǆǇǈǉǊǋǌﬀﬁﬂﬃﬄﬆ"
    wide = map(chr, range(0xFF01, 0xFFF0))
    for character in (*ligatures, *wide):
        table[ord(character)] = unicodedata.normalize("NFKC", character)
    table |= {ord("ﬅ"): "ſt", 0x3000: " ", ord("ŉ"): "'n"}
    table |= dict.fromkeys((0x02BC, *range(0x2018, 0x201C)), "'")
    table |= dict.fromkeys(range(0x201C, 0x2020), '"')
    control = (*range(9), 0x0B, *range(0x0E, 0x20), 0x7F, *range(0x206A, 0x2070))
    return table | dict.fromkeys((*control, 0xFEFF, *range(0xFFF9, 0xFFFD)))


CHARACTERS = _characters()


def clean(text: str) -> str:
    """The text as the encoder sees it; see the module docstring."""
    if "<" not in text:
        text = re.sub(r"&#?[0-9A-Za-z]{1,24};", lambda m: html.unescape(m[0]), text)
    text = re.sub(r"\x1b\[[\d;]*[a-zA-Z]", "", text)  # colours of a terminal
    text = unicodedata.normalize("NFC", text.translate(CHARACTERS))
    text = html.unescape(html.unescape(text))
    return " ".join(text.split()).lower()


def words(text: str) -> Iterator[str]:
    """Special tokens, contractions, runs of letters, digits one by one, other runs."""

    def kind(character: str) -> str:
        if character.isspace():
            return " "
        major = unicodedata.category(character)[0]
        return major if major in "LN" else "other"

    start = 0
    while start < len(text):
        for fixed in (START, END, *CONTRACTIONS):
            if text.startswith(fixed, start):
                end = start + len(fixed)
                break
        else:
            first, end = kind(text[start]), start + 1
            while first in ("L", "other") and end < len(text):
                if kind(text[end]) != first:
                    break
                end += 1
        if not text[start:end].isspace():
            yield text[start:end]
        start = end


def byte_letters() -> dict[int, str]:
    """GPT-2's printable character for each byte, in the vocabulary's order."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in printable]
    letters = [chr(byte) for byte in printable]
    letters += [chr(256 + index) for index in range(len(rest))]
    return dict(zip(printable + rest, letters))


class CLIPTokenizer:
    """Byte-pair encoding over a vocabulary.

    Args:
      vocabulary: {token: id}, word-final tokens end in "</w>".
      merges: pairs of tokens in the order in which they merge.
      origin: the file they come from, for errors.
    """

    def __init__(
        self,
        vocabulary: Mapping[str, int],
        merges: Sequence[tuple[str, str]],
        origin: str | Path = "The vocabulary",
    ):
        self.vocabulary = dict(vocabulary)
        self.ranks = {pair: rank for rank, pair in enumerate(merges)}
        self.origin = origin
        self.letters = byte_letters()
        self.known = {token: [self.vocabulary[token]] for token in (START, END)}

    @classmethod
    def from_files(cls, source: str | Path) -> "CLIPTokenizer":
        """Reads a vocabulary file, or the folder that holds one.

        Raises:
          FileNotFoundError: nothing there; names the files looked for.
          ValueError: a damaged file, or one of another kind.
        """
        path = _locate(source)
        if path.name.endswith(".gz"):
            vocabulary, merges = _read_openai(path)
        elif path.name == "tokenizer.json":
            vocabulary, merges = _read_tokenizer(path)
        else:
            vocabulary, merges = _read_pair(path.parent)
        missing = [token for token in (START, END) if token not in vocabulary]
        require(
            not missing,
            f"{path}: the vocabulary of {len(vocabulary)} tokens lacks "
            f"{' and '.join(missing)}: it is not CLIP's.",
        )
        return cls(vocabulary, merges, path)

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, without start and end token."""
        return [token for word in words(clean(text)) for token in self._word(word)]

    def prompt(self, text: str, context_length: int = CONTEXT_LENGTH) -> list[int]:
        """Ids with start and end token, truncated so that the end token stays."""
        inside = self.encode(text)[: context_length - 2]
        return [self.vocabulary[START], *inside, self.vocabulary[END]]

    def _word(self, word: str) -> list[int]:
        if word not in self.known:
            parts = [self.letters[byte] for byte in word.encode()]
            parts[-1] += "</w>"
            tokens = self._merge(parts)
            missing = [token for token in tokens if token not in self.vocabulary]
            fault = f"it lacks the token {''.join(missing[:1])!r}"
            require_whole(not missing, self.origin, fault)
            self.known[word] = [self.vocabulary[token] for token in tokens]
        return self.known[word]

    def _merge(self, parts: list[str]) -> list[str]:
        """Merges the earliest-ranked pair, everywhere, until none is left."""
        while len(parts) > 1:
            pairs = zip(parts, parts[1:])
            best = min(pairs, key=lambda pair: self.ranks.get(pair, np.inf))
            if best not in self.ranks:
                break
            merged, index = [], 0
            while index < len(parts):
                if tuple(parts[index : index + 2]) == best:
                    merged.append("".join(best))
                    index += 2
                else:
                    merged.append(parts[index])
                    index += 1
            parts = merged
        return parts


def _locate(source: str | Path) -> Path:
    """The vocabulary file of a file or folder."""
    path = Path(os.path.expanduser(source))
    if os.path.isdir(path):
        found = [path / name for name in FILES if os.path.isfile(path / name)]
        require(
            found,
            f"{path} holds no CLIP vocabulary; expected {' or '.join(FILES)} "
            "(vocab.json with merges.txt beside it).",
            FileNotFoundError,
        )
        return found[0]
    require(
        os.path.isfile(path),
        f"No CLIP vocabulary at {path}. Without the hub: `pip download --no-deps "
        "clip-anytorch` and unzip bpe_simple_vocab_16e6.txt.gz from the wheel, "
        "then give that file.",
        FileNotFoundError,
    )
    require(
        path.name.endswith(".gz") or path.name in (*FILES, "merges.txt"),
        f"{path} is no CLIP vocabulary; expected {', '.join(FILES)}.",
    )
    return path


def _text(path: Path) -> str:
    """The content of a file, unpacked if it is a .gz; never more than LARGEST bytes."""
    unpacked = gzip.open if path.name.endswith(".gz") else open
    with reading(path, "it is no whole text file"), unpacked(path, "rb") as file:
        content = file.read(LARGEST + 1)
        fault = f"it has more than {LARGEST:,} bytes"
        require_whole(len(content) <= LARGEST, path, fault)
        return content.decode()


def _json(path: Path) -> Any:
    text = _text(path)
    with reading(path, "it is no JSON"):
        return json.loads(text)


def _read_openai(path: Path):
    """The merges of OpenAI's file; its vocabulary is implied by them."""
    lines = _text(path).split("\n")
    merges = [tuple(line.split()) for line in lines[1 : OPENAI_MERGES + 1]]
    require_whole(
        len(merges) == OPENAI_MERGES and all(len(pair) == 2 for pair in merges),
        path,
        f"it must hold {OPENAI_MERGES} merges after its first line, got "
        f"{len(merges)} lines",
    )
    letters = list(byte_letters().values())
    tokens = letters + [letter + "</w>" for letter in letters]
    tokens += ["".join(pair) for pair in merges] + [START, END]
    return {token: index for index, token in enumerate(tokens)}, merges


def _read_pair(folder: Path):
    """`vocab.json` and `merges.txt` of transformers."""
    files = [folder / name for name in ("vocab.json", "merges.txt")]
    absent = [file.name for file in files if not os.path.isfile(file)]
    require(not absent, f"{folder} lacks {' and '.join(absent)}.", FileNotFoundError)
    lines = _text(files[1]).split("\n")
    pairs = [tuple(line.split()) for line in lines if not line.startswith("#version")]
    merges = _pairs(files[1], [pair for pair in pairs if pair])
    return _numbered(files[0], _json(files[0])), merges


def _read_tokenizer(path: Path):
    """`tokenizer.json` of the library tokenizers (merges as strings or pairs)."""
    content, fault = _json(path), "it has no {model: vocab, merges} and added_tokens"
    with reading(path, fault):
        model, added = content["model"], content.get("added_tokens", ())
        bytewise = model.get("type", "BPE") == "BPE" and "merges" in model
    require(bytewise, f"{path} holds no byte-pair model, so it is not CLIP's.")
    with reading(path, fault):
        vocabulary = model["vocab"] | {x["content"]: x["id"] for x in added}
        merges = (x.split() if isinstance(x, str) else x for x in model["merges"])
        merges = [tuple(pair) for pair in merges]
    return _numbered(path, vocabulary), _pairs(path, merges)


def _numbered(path: Path, vocabulary) -> dict[str, int]:
    """`vocabulary`, if it is one: {token: number}, as JSON could hold anything."""
    whole = isinstance(vocabulary, dict) and all(
        type(number) is int and 0 <= number < 2**31 for number in vocabulary.values()
    )
    require_whole(whole, path, "its vocabulary must be {token: number}")
    return vocabulary


def _pairs(path: Path, merges: list[tuple]) -> list[tuple[str, str]]:
    strange = [pair for pair in merges if list(map(type, pair)) != [str, str]]
    fault = f"a merge must be a pair of tokens, got {strange[:1]}"
    require_whole(not strange, path, fault)
    return merges


def token_ids(
    prompts: Sequence[str],
    shipped: Mapping[str, Sequence[int]],
    vocabulary: str | Path = "",
) -> np.ndarray:
    """Token ids of prompts, padded with 0 to the longest, as OpenAI does.

    Args:
      prompts: P texts.
      shipped: {prompt: ids with start and end token}, prompts that need no vocabulary
        (configs/prompts.py).
      vocabulary: a vocabulary file or folder for any other prompt; "" = none.

    Returns:
      int32 [P L].

    Raises:
      ValueError: a prompt that is not shipped and no vocabulary.
    """
    others = [prompt for prompt in prompts if prompt not in shipped]
    require(
        vocabulary or not others,
        f"The prompt {''.join(others[:1])!r} is not shipped with its token ids and no "
        f"vocabulary was given. Shipped: {'; '.join(shipped) or 'none'}. Give the "
        "vocabulary (a CLIP folder with vocab.json and merges.txt, or "
        "bpe_simple_vocab_16e6.txt.gz).",
    )
    tokenizer = CLIPTokenizer.from_files(vocabulary) if others else None
    rows = [
        list(shipped[prompt]) if prompt in shipped else tokenizer.prompt(prompt)
        for prompt in prompts
    ]
    out = np.zeros((len(rows), max(map(len, rows))), np.int32)
    for index, row in enumerate(rows):
        out[index, : len(row)] = row
    return out  # [P L]
