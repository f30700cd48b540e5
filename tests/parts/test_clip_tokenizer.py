"""CLIP's tokenizer against stored ids of the reference tokenizers.

`clip_sentences.json` holds 30 sentences, their ids from OpenAI's `SimpleTokenizer`
(clip-anytorch 2.6.0, ftfy 6) and transformers 4.57.6 CLIPTokenizer, which agree, and
the part of the vocabulary (real ids, real order of merges) that those sentences touch,
with 300 more merges. GAITJAX_CLIP_VOCABULARY=FILE repeats it with a whole vocabulary.
"""

import gzip
import json
import os
from pathlib import Path

import numpy as np
import pytest

from configs.prompts import PROMPTS, TOKEN_IDS
from gaitjax.parts import clip_tokenizer
from gaitjax.parts.clip_tokenizer import CLIPTokenizer, token_ids

DATA = json.loads((Path(__file__).parent / "clip_sentences.json").read_text())
CASES = list(zip(DATA["sentences"], DATA["ids"], strict=True))
START, END = 49406, 49407


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with vocab.json and merges.txt, as transformers writes them."""
    path = tmp_path_factory.mktemp("vocabulary")
    (path / "vocab.json").write_text(json.dumps(DATA["vocabulary"]))
    (path / "merges.txt").write_text(
        "\n".join(["#version: 0.2", *DATA["merges"], ""]), encoding="utf-8"
    )
    return path


def test_thirty_sentences_equal_the_reference(folder):
    assert len(CASES) == 30
    tokenizer = CLIPTokenizer.from_files(folder)
    for sentence, ids in CASES:
        assert tokenizer.prompt(sentence) == ids, sentence


def test_thirty_sentences_with_a_whole_vocabulary():
    source = os.environ.get("GAITJAX_CLIP_VOCABULARY")
    if not source:
        pytest.skip("GAITJAX_CLIP_VOCABULARY names no vocabulary")
    tokenizer = CLIPTokenizer.from_files(source)
    assert len(tokenizer.vocabulary) == 49408
    assert tokenizer.prompt("a photo of a cat") == [
        START, 320, 1125, 539, 320, 2368, END,
    ]  # fmt: skip
    for sentence, ids in CASES:
        assert tokenizer.prompt(sentence) == ids, sentence
    for prompt, ids in TOKEN_IDS.items():
        assert tokenizer.prompt(prompt) == list(ids), prompt


def test_every_layout_gives_the_same_tokenizer(folder, tmp_path):
    vocabulary, merges = DATA["vocabulary"], DATA["merges"]
    special = [
        {"content": t, "id": vocabulary[t]}
        for t in (clip_tokenizer.START, clip_tokenizer.END)
    ]
    for index, form in enumerate((merges, [pair.split() for pair in merges])):
        path = tmp_path / str(index) / "tokenizer.json"
        path.parent.mkdir()
        model = {"type": "BPE", "vocab": vocabulary, "merges": form}
        path.write_text(json.dumps({"model": model, "added_tokens": special}))
        for source in (path, path.parent):
            assert CLIPTokenizer.from_files(source).prompt(CASES[1][0]) == CASES[1][1]
    for name in ("vocab.json", "merges.txt"):
        tokenizer = CLIPTokenizer.from_files(folder / name)
        assert tokenizer.prompt(CASES[1][0]) == CASES[1][1]


def test_openai_file_implies_its_vocabulary(tmp_path):
    """512 letters, then one token per merge, then start and end."""
    count = clip_tokenizer.OPENAI_MERGES
    lines = ["#version", "a b", "ab c</w>", *(["x y"] * (count - 2)), "ignored line x"]
    path = tmp_path / "bpe_simple_vocab_16e6.txt.gz"
    path.write_bytes(gzip.compress("\n".join(lines).encode()))
    tokenizer = CLIPTokenizer.from_files(path)
    assert tokenizer.vocabulary["ab"] == 512
    assert tokenizer.prompt("abc") == [START, 513, END]
    assert tokenizer.encode("a") == [64 + 256]  # "a</w>", 65th printable byte
    path.write_bytes(gzip.compress(b"\n".join([b"a b"] * 7)))
    with pytest.raises(ValueError, match="must hold 48894 merges"):
        CLIPTokenizer.from_files(path)
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(ValueError, match="damaged"):
        CLIPTokenizer.from_files(path)


def test_over_length_prompts_keep_the_end_token(folder):
    ids = CLIPTokenizer.from_files(folder).prompt(DATA["sentences"][-1])
    assert len(ids) == 77 and ids[0] == START and ids[-1] == END


def test_words_split_as_the_reference_expression():
    text = "isn't  a1b22 !?x's<|endoftext|>"
    assert list(clip_tokenizer.words(text)) == [
        "isn", "'t", "a", "1", "b", "2", "2", "!?", "x", "'s", "<|endoftext|>",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "text, expected",
    [
        ("A &amp;amp; B", "a & b"),
        ("“It’s”\u3000ﬁne", '"it\'s" fine'),
        ("e\u0301\r\n x\x07", "é x"),
        ("\x1b[31mred\x1b[0m", "red"),
    ],
)
def test_cleaning(text, expected):
    assert clip_tokenizer.clean(text) == expected


def test_shipped_prompts_need_no_vocabulary():
    for prompts in PROMPTS.values():
        ids = token_ids(prompts, TOKEN_IDS)
        longest = max(len(TOKEN_IDS[prompt]) for prompt in prompts)
        assert ids.shape == (len(prompts), longest) and ids.dtype == np.int32
        assert (ids[:, 0] == START).all() and (ids.max(1) == END).all()
    for row, prompt in zip(ids, PROMPTS["random"], strict=True):
        padded = list(TOKEN_IDS[prompt]) + [0] * (longest - len(TOKEN_IDS[prompt]))
        assert row.tolist() == padded


def test_other_prompts_need_one(folder):
    with pytest.raises(ValueError, match="'a photo of a cat' is not shipped"):
        token_ids(["a photo of a cat"], TOKEN_IDS)
    wrong = PROMPTS["wrong"][0]
    ids = token_ids(["a photo of a cat", wrong], TOKEN_IDS, folder)
    assert ids[0, :7].tolist() == [START, 320, 1125, 539, 320, 2368, END]
    assert not ids[0, 7:].any()
    assert ids[1].tolist() == list(TOKEN_IDS[wrong])


def test_wrong_vocabularies_say_what_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"vocab\.json or tokenizer\.json"):
        CLIPTokenizer.from_files(tmp_path)
    with pytest.raises(FileNotFoundError, match="pip download"):
        CLIPTokenizer.from_files(tmp_path / "absent.gz")
    (tmp_path / "vocab.json").write_text('{"a": 0}')
    with pytest.raises(FileNotFoundError, match=r"lacks merges\.txt"):
        CLIPTokenizer.from_files(tmp_path)
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b\n")
    with pytest.raises(ValueError, match="not CLIP's"):
        CLIPTokenizer.from_files(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"model": {"type": "Unigram"}}')
    with pytest.raises(ValueError, match="no byte-pair model"):
        CLIPTokenizer.from_files(tmp_path / "tokenizer.json")
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(ValueError, match="is no CLIP vocabulary"):
        CLIPTokenizer.from_files(tmp_path / "notes.txt")
