"""Texts as ids on disk."""

import re

import numpy as np
import pytest
from texts import reference_tokens

from lmbench.data import _encoding as encoding
from lmbench.data._encoding import write_ids
from lmbench.data.text_files import SPLITS, read_blocks
from lmbench.data.tokenizer.words import WhiteSpace
from lmbench.errors import UserError

ODD_TEXTS = {
    "no final newline": "a b\nc",
    "only blank lines": "\n\n \n\t\n",
    "carriage returns": "a b\r\n\r\nc\rd\r\n",
    "null": "a\x00b \x00 c\n\x00\n",
    "byte order mark": "\ufeffa b\n\ufeffa\n",
    "eos in the text": "a <eos> b\n<eos>\n",
    "many bytes": "ä€😀 e\u0301 日本 語\n😀😀\n",
}


def encode(folder, *texts: str, **options):
    """Vocabulary, notes and ids of train, valid and test."""
    folder.mkdir(exist_ok=True)
    blocks = {split: [text.encode()] for split, text in zip(SPLITS, texts, strict=True)}
    vocabulary, notes = write_ids(folder, blocks, WhiteSpace(), source="here", **options)
    return vocabulary, notes, [np.fromfile(folder / f"{split}.bin", np.int32) for split in SPLITS]


@pytest.mark.parametrize("text", ODD_TEXTS.values(), ids=ODD_TEXTS.keys())
def test_odd_texts_at_every_block_size(tmp_path, text):
    path = tmp_path / "odd.txt"
    path.write_bytes(text.encode())
    expected = reference_tokens(text)
    for block_bytes in (*range(1, len(text.encode()) + 2), 2**20):
        blocks = {split: read_blocks(path, block_bytes=block_bytes) for split in SPLITS}
        vocabulary, _ = write_ids(tmp_path, blocks, WhiteSpace(), source="here", min_count=1)
        assert vocabulary.words == tuple(dict.fromkeys(expected))
        for split in SPLITS:
            assert vocabulary.decode(np.fromfile(tmp_path / f"{split}.bin", np.int32)) == expected


def test_a_long_text_is_renumbered_in_parts(tmp_path, monkeypatch):
    monkeypatch.setattr(encoding, "RENUMBERED_TOGETHER", 3)
    text = "rare a b a c b\nonce b a twice c twice\n"
    vocabulary, _, splits = encode(tmp_path, text, text, text, min_count=2)
    expected = reference_tokens(text.replace("rare", "<unk>").replace("once", "<unk>"))
    assert [vocabulary.decode(ids) for ids in splits] == [expected] * 3


@pytest.mark.parametrize(
    ("num_words", "valid", "expected"),
    [
        (998, "b" + 20 * " a" + "\n", []),
        (998, "b a a a\n", ["train has far fewer <unk>"]),
        (999, "b a a\n", ["so many <unk> are easy", "train has 1 line ends; "]),
    ],
)
def test_what_makes_a_perplexity_say_little_is_noted(tmp_path, num_words, valid, expected):
    """Many unknown words in valid, or many more than in train; more than 1,000 tokens a line."""
    _, (of_unk, *notes), _ = encode(tmp_path, "rare " + "a " * num_words, valid, "a", min_count=2)
    assert of_unk.startswith("<unk> stands for 1 words that are too rare")
    assert len(notes) == len(expected)
    assert all(map(str.startswith, notes, expected))


def test_unknown_words_without_unk(tmp_path):
    texts = "a a b b b\na a b\n", "a new b\nnew\n", "a b newer\na\na\n"
    message = r"^here: .*\(2, such as 'new', 'newer'\).*data=text.*data\.min_count=5 "
    with pytest.raises(UserError, match=message):
        encode(tmp_path, *texts, min_count=1)


@pytest.mark.parametrize(
    ("train", "min_count", "words", "rare", "share"),
    [  # with <eos>, train has 10 tokens, valid 4 and test 2
        ("a a b b c d e e e\n", None, "a b <unk> e <eos>", "2 words .*=2", "20.0%"),
        ("a a b b c <unk> e e e\n", None, "a b c <unk> e <eos>", "0 words .*=1", "10.0%"),
        ("a a b b c d e e e\n", 3, "<unk> e <eos>", "4 words .*=3", "60.0%"),
    ],
)
def test_what_becomes_unk_counted_by_hand(tmp_path, train, min_count, words, rare, share):
    vocabulary, (note, *_), splits = encode(
        tmp_path, train, "e new e\n", "new\n", min_count=min_count
    )
    assert vocabulary.words == tuple(words.split())
    assert re.search(f"{rare}.* 1 that .* {share} of train, 25.0% of valid, 50.0% of test$", note)
    assert vocabulary.decode(splits[1]) == ["e", "<unk>", "e", "<eos>"]


def test_nothing_is_noted_if_nothing_becomes_unk(tmp_path):
    assert encode(tmp_path, "a a <unk>\n", "a\n", "<unk>\n")[1] == []
