import io
import sys
from contextlib import redirect_stdout
from types import SimpleNamespace

import pytest

from lmbench.data.vocabulary import Vocabulary
from lmbench.errors import UserError
from lmbench.evaluation.text import (
    encode_prompt,
    pieces,
    read_prompt,
    set_up_stdout,
    shown,
    with_progress,
    write_words,
)

VOCABULARY = Vocabulary(("<eos>", "<unk>", "the", "cat"))


@pytest.mark.parametrize(
    ("prompt", "words", "unknown"),
    [
        ("", "<eos>", ()),
        ("the cat", "<eos> the cat", ()),
        ("  the\tcat \r\n\n", "<eos> the cat <eos> <eos>", ()),
        ("the <eos> cat\nthe", "<eos> the <eos> cat <eos> the", ()),
        ("the <unk>", "<eos> the <unk>", ()),
        ("The cat the dog The", "<eos> <unk> cat the <unk> <unk>", ("The", "dog")),
        ("a\u2028the\xa0cat", "<eos> <unk> the cat", ("a",)),
    ],
)
def test_a_prompt_is_split_as_corpora_are(prompt: str, words: str, unknown: tuple[str, ...]):
    ids, found = encode_prompt(prompt, VOCABULARY)
    assert VOCABULARY.decode(ids) == words.split()
    assert found == unknown


def test_unknown_words_without_a_word_for_them():
    with pytest.raises(UserError, match=r"^'dog': not among the 2 words"):
        encode_prompt("the dog", Vocabulary(("<eos>", "the")))
    with pytest.raises(UserError, match=r"^'<eos>': not among the 1 words"):
        encode_prompt("the", Vocabulary(("the",)))


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("", ""),
        ("a b", "a b\n"),
        ("a b <eos>", "a b\n"),
        ("<eos> <eos> a <eos> <eos> b", "\n\na\n\nb\n"),
    ],
)
def test_text_is_the_inverse_of_a_prompt(words: str, text: str):
    assert "".join(pieces(words.split())) == text
    assert encode_prompt(text, Vocabulary(("<eos>", "a", "b")))[1] == ()


def test_a_word_is_there_as_soon_as_it_is_drawn():
    seen = pieces(iter(["a", "b"]))
    assert next(seen) == "a"


def test_words_are_utf8_whatever_the_locale_says():
    written = io.BytesIO()
    with io.TextIOWrapper(written, "ascii") as stdout, redirect_stdout(stdout):
        set_up_stdout()
        write_words(["猫"])
        assert written.getvalue() == "猫\n".encode()


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("naïve", "naïve"),
        ("x" * 40, "x" * 40),
        ("x" * 41, "x" * 39 + "…"),
        ("x" * 10**6, "x" * 39 + "…"),
        ("\x1b[31mred", "\\x1b[31mred"),
        ("\x00" * 41, "\\x00" * 9 + "\\x0…"),
        ("\udcff", "\\udcff"),
    ],
)
def test_words_for_people(word: str, expected: str):
    assert shown(word) == expected


class Stdin(SimpleNamespace):
    def __init__(self, data: bytes, *, isatty: bool = False) -> None:
        super().__init__(buffer=io.BytesIO(data), isatty=lambda: isatty)


def test_where_a_prompt_comes_from(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "stdin", Stdin("on stdin é\n".encode()))
    assert read_prompt("given") == "given"
    assert read_prompt("") == ""
    assert read_prompt(None) == "on stdin é\n"
    monkeypatch.setattr(sys, "stdin", Stdin(b"typed", isatty=True))
    assert read_prompt(None) == ""
    monkeypatch.setattr(sys, "stdin", Stdin(b"abc\xff"))
    with pytest.raises(UserError, match=r"stdin is not UTF-8: byte 0xff at byte offset 3\."):
        read_prompt(None)


@pytest.mark.parametrize("size_bytes", [None, 5])
def test_progress_is_for_terminals_only(size_bytes: int | None, capsys: pytest.CaptureFixture):
    assert list(with_progress([b"abc", b"de"], size_bytes)) == [b"abc", b"de"]
    assert capsys.readouterr() == ("", "")
