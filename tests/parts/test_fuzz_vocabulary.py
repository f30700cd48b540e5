"""Damaged and hostile vocabulary files: one sentence each, soon, in little memory."""

import gzip
import json

import pytest

from gaitjax.engine.guards import Damaged
from gaitjax.parts import clip_tokenizer
from gaitjax.parts.clip_tokenizer import CLIPTokenizer
from tests.mutants import mutants, read_all

START, END = clip_tokenizer.START, clip_tokenizer.END
LETTERS = [x + end for x in "abc" for end in ("", "</w>")]
VOCABULARY = {x: i for i, x in enumerate([*LETTERS, "ab", "abc</w>", START, END])}
TOKENIZER = {
    "model": {"type": "BPE", "vocab": VOCABULARY, "merges": ["a b", "ab c</w>"]},
    "added_tokens": [{"content": START, "id": 8}, {"content": END, "id": 9}],
}
OPENAI = ["#version", "a b", "ab c</w>", *["x y"] * (clip_tokenizer.OPENAI_MERGES - 2)]


def packed(name: str) -> bytes:
    if name == "tokenizer.json":
        return json.dumps(TOKENIZER).encode()
    if name == "vocab.json":
        return json.dumps(VOCABULARY).encode()
    if name == "merges.txt":
        return b"#version: 0.2\na b\nab c</w>\n"
    return gzip.compress("\n".join(OPENAI).encode())


NAMES = ("tokenizer.json", "vocab.json", "merges.txt", "bpe_simple_vocab_16e6.txt.gz")


def read(path) -> None:
    assert len(CLIPTokenizer.from_files(path).prompt("abc")) >= 3


@pytest.fixture
def folder(tmp_path):
    for name in NAMES:
        (tmp_path / name).write_bytes(packed(name))
    for name in NAMES:
        read(tmp_path / name)
    return tmp_path


@pytest.mark.parametrize("name", NAMES)
def test_mutants_end_in_a_documented_error(name, folder):
    content = mutants(packed(name), 60 if name.endswith("gz") else 300)
    messages = read_all(content, folder / name, read, ValueError, folder)
    assert len(messages) > 10


ODD = (None, True, "x", -1, 2**40, 1.5, [], {}, [[1]], ["a"], {"a": "b"}, "y" * 10**5)


@pytest.mark.parametrize("field", ["model", "vocab", "merges", "added_tokens", "all"])
def test_odd_values(field, folder):
    def changed():
        for odd in ODD:
            for value in (odd, [odd], {"a": odd}, [{"content": odd, "id": odd}]):
                content = json.loads(packed("tokenizer.json"))
                if field in ("vocab", "merges"):
                    content["model"][field] = value
                else:
                    content[field] = value
                whole = value if field == "all" else content
                yield json.dumps(whole).encode()

    file = folder / "tokenizer.json"
    assert len(read_all(changed(), file, read, ValueError)) > 30
    values = (json.dumps(odd).encode() for odd in ODD)
    file = folder / "vocab.json"
    assert len(read_all(values, file, read, ValueError)) == len(ODD)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("text", [
    b"[" * 200_000, b'{"a":' * 200_000, b"", b"\xff\xfe", b"9" * 5000, b" " * 2**25
])  # fmt: skip
def test_bombs(name, text, folder):
    content = gzip.compress(text) if name.endswith("gz") else text
    messages = read_all([content], folder / name, read, Damaged)
    assert len(messages) == (text != b"" or name != "merges.txt")


def test_a_token_that_is_missing_is_named_when_it_is_needed(folder):
    tokenizer = CLIPTokenizer.from_files(folder)
    with pytest.raises(Damaged, match=r"vocab\.json is damaged: it lacks the token 'd"):
        tokenizer.prompt("abc bad")


def test_folders_in_place_of_files_and_places_that_are_none(folder):
    for name in NAMES:
        (folder / name).unlink()
        (folder / name).mkdir()
    for source in (folder, "x" * 10**5, "~nobody-of-this-name/x", "a\0b"):
        with pytest.raises(FileNotFoundError, match="CLIP vocabulary"):
            CLIPTokenizer.from_files(source)
    (folder / "vocab.json").rmdir()
    (folder / "vocab.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match=r"lacks merges\.txt"):
        CLIPTokenizer.from_files(folder)
