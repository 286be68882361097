"""Texts as words."""

from pathlib import Path

import pytest

from lmbench.data.corpus import load_text
from lmbench.data.tokenizer.choice import make_tokenizer
from lmbench.data.vocabulary import Vocabulary
from lmbench.evaluation.text import encode_text, shown

VOCABULARY = Vocabulary(("<eos>", "a", "b", "<unk>", "c", "d", "é"))


@pytest.mark.parametrize(
    ("prompt", "words", "unknown"),
    [
        ("", "<eos>", ()),
        ("a b", "<eos> a b", ()),
        ("  a\tb \r\n\n", "<eos> a b <eos> <eos>", ()),
        ("a <eos> b\na", "<eos> a <eos> b <eos> a", ()),
        ("A b a dog A", "<eos> <unk> b a <unk> <unk>", ("A", "dog")),
        ("x\u2028a\xa0b", "<eos> <unk> a b", ("x",)),
    ],
)
def test_a_prompt_is_split_as_corpora_are(prompt: str, words: str, unknown: tuple[str, ...]):
    ids, found = encode_text(prompt, VOCABULARY)
    assert VOCABULARY.decode(ids) == words.split()
    assert tuple(found) == unknown


@pytest.mark.parametrize("tokenizer", ["none", "moses", "moses-fr"])
def test_a_prompt_and_the_training_text_give_the_same_ids(tmp_path: Path, tokenizer: str):
    lines = [f"It's the {n}th \u201cred-hot\u201d line, isn't it?\t1,0{n:02}!" for n in range(100)]
    (tmp_path / "text.txt").write_text("\n".join(lines), "utf-8")
    corpus = load_text(
        tmp_path / "text.txt", cache_dir=tmp_path / "cache", tokenizer=make_tokenizer(tokenizer)
    )
    ids, _ = encode_text("\n".join([*lines[:50], ""]), corpus.vocabulary)
    assert ids[1:].tolist() == corpus.train[: len(ids) - 1].tolist()


def test_words_for_people():
    assert shown("x" * 40) == "x" * 40
    assert shown("x" * 41) == "x" * 39 + "…"
    assert shown("\x00" * 41) == "\\x00" * 9 + "\\x0…"
