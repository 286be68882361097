"""Tokenizers chosen by a text or a vocabulary."""

import pytest

from lmbench.data.tokenizer.auto import Auto
from lmbench.data.tokenizer.choice import make_tokenizer
from lmbench.data.tokenizer.moses import Moses
from lmbench.data.tokenizer.words import WhiteSpace
from lmbench.data.vocabulary import Vocabulary


def test_a_text_with_unk_is_prepared_already():
    assert Auto().fit([b"a, b\n", b"<unk> c\n"]) == WhiteSpace()
    assert Auto().fit([b"a, b\n", b"c\n"]) == Moses()


@pytest.mark.parametrize(
    ("words", "tokenizer", "expected"),
    [
        (("isn", "'t", ".", "A"), "none", "moses"),
        (("isn", "'t", "n't", ".", "A"), "none", "moses"),
        (("is", "n't", ".", "A"), "none", "penn"),
        (("is", "n't", "N"), "none", "penn, lower case, without unknown punctuation"),
        (("isn't", "dog."), "none", "none, lower case"),
        (("isn't", "Dog."), "none", "none"),
        (("is", "n't", ".", "A"), "moses-de", "moses-de"),
    ],
)
def test_a_vocabulary_shows_how_words_are_separated(
    words: tuple[str, ...], tokenizer: str, expected: str
):
    vocabulary = Vocabulary(words, make_tokenizer(tokenizer))
    assert Auto().fit_vocabulary(vocabulary).name == expected


def test_raw_text_becomes_like_the_penn_treebank():
    """Words as in ptb.train.txt, which has no punctuation except what stands for words."""
    words = "<eos> <unk> mr. vinken is n't 's $ N hydro-quebec high-speed"
    tokenizer = Auto().fit_vocabulary(Vocabulary(tuple(words.split())))
    text = "He ISN'T. Mr. Vinken isn't \"Hydro-Quebec's\" (high-speed), $ N <unk>.\n"
    expected = "he is n't mr. vinken is n't hydro-quebec 's high-speed $ N <unk> <eos>"
    assert tokenizer.cut(text) == expected.split()
