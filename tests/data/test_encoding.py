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


def encode_file(path, folder, block_bytes: int):
    """Vocabulary and ids of a corpus whose three splits are the same file."""
    folder.mkdir()
    blocks = {
        split: read_blocks(path, block_bytes=block_bytes) for split in ("train", "valid", "test")
    }
    vocabulary, _ = write_ids(folder, blocks, WhiteSpace(), source="here", min_count=1)
    return vocabulary, [np.fromfile(folder / f"{split}.bin", np.int32) for split in blocks]


@pytest.mark.parametrize("text", ODD_TEXTS.values(), ids=ODD_TEXTS.keys())
def test_odd_texts_at_every_block_size(tmp_path, text):
    path = tmp_path / "odd.txt"
    path.write_bytes(text.encode())
    expected = reference_tokens(text)
    for block_bytes in (*range(1, len(text.encode()) + 2), 2**20):
        vocabulary, splits = encode_file(path, tmp_path / str(block_bytes), block_bytes)
        assert vocabulary.words == tuple(dict.fromkeys(expected))
        for ids in splits:
            assert vocabulary.decode(ids) == expected


def test_a_long_text_is_renumbered_in_parts(tmp_path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(encoding, "RENUMBERED_TOGETHER", 3)
    text = "rare a b a c b\nonce b a twice c twice\n"
    blocks = {split: [text.encode()] for split in SPLITS}
    vocabulary, _ = write_ids(tmp_path, blocks, WhiteSpace(), source="here", min_count=2)
    expected = reference_tokens(text.replace("rare", "<unk>").replace("once", "<unk>"))
    for split in SPLITS:
        ids = np.fromfile(tmp_path / f"{split}.bin", np.int32)
        assert vocabulary.decode(ids) == expected


def test_what_makes_a_perplexity_say_little_is_noted(tmp_path):
    """Many unknown words in valid, or many more than in train; more than 1,000 tokens a line."""
    for name, num_words, valid, expected in (
        ("good", 998, "b" + 20 * " a" + "\n", []),
        ("uneven", 998, "b a a a\n", ["train has far fewer <unk>"]),
        ("bad", 999, "b a a\n", ["so many <unk> are easy", "train has 1 line ends; "]),
    ):
        folder = tmp_path / name
        folder.mkdir()
        texts = {"train": "rare " + "a " * num_words, "valid": valid, "test": "a"}
        blocks = {split: [text.encode()] for split, text in texts.items()}
        _, (of_unk, *notes) = write_ids(folder, blocks, WhiteSpace(), source="here", min_count=2)
        assert of_unk.startswith("<unk> stands for 1 words that are too rare")
        assert len(notes) == len(expected)
        assert all(map(str.startswith, notes, expected))


def test_unknown_words_without_unk(tmp_path):
    blocks = {
        "train": [b"a a b b b\na a b\n"],
        "valid": [b"a new b\n", b"new\n"],
        "test": [b"a b newer\n" + b"a\n" * 2],
    }
    with pytest.raises(UserError) as caught:
        write_ids(tmp_path, blocks, WhiteSpace(), source="here", min_count=1)
    for part in ("here: ", "(2, such as 'new', 'newer')", "data=text", "data.min_count=5 "):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("train", "min_count", "words", "rare", "share"),
    [  # with <eos>, train has 10 tokens, valid 4 and test 2
        ("a a b b c d e e e\n", None, "a b <unk> e <eos>", "2 words .*=2", "20.0%"),
        ("a a b b c <unk> e e e\n", None, "a b c <unk> e <eos>", "0 words .*=1", "10.0%"),
        ("a a b b c d e e e\n", 3, "<unk> e <eos>", "4 words .*=3", "60.0%"),
    ],
)
def test_what_becomes_unk_counted_by_hand(tmp_path, train, min_count, words, rare, share):
    blocks = {"train": [train.encode()], "valid": [b"e new e\n"], "test": [b"new\n"]}
    vocabulary, (note, *_) = write_ids(
        tmp_path, blocks, WhiteSpace(), source="here", min_count=min_count
    )
    assert vocabulary.words == tuple(words.split())
    assert re.search(f"{rare}.* 1 that .* {share} of train, 25.0% of valid, 50.0% of test$", note)
    valid = np.fromfile(tmp_path / "valid.bin", np.int32)
    assert vocabulary.decode(valid) == ["e", "<unk>", "e", "<eos>"]


def test_nothing_is_noted_if_nothing_becomes_unk(tmp_path):
    blocks = {"train": [b"a a <unk>\n"], "valid": [b"a\n"], "test": [b"<unk>\n"]}
    assert write_ids(tmp_path, blocks, WhiteSpace(), source="here")[1] == []
