"""Texts as words, and their scores against the whole of a text read at once in float64."""

import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from small import exact_log_probs

from lmbench.data.corpus import load_text
from lmbench.data.vocabulary import Vocabulary
from lmbench.errors import UserError
from lmbench.evaluation.text import WINDOW, describe, encode_text, pieces, read_text, shown
from lmbench.model import LanguageModel
from lmbench.score import Score

MakeModel = Callable[..., LanguageModel]
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


def test_a_prompt_is_separated_as_the_training_text_was():
    vocabulary = Vocabulary(("<eos>", "<unk>", "It", "'s", ",", "a"), "moses")
    ids, found = encode_text("It's a,\nb <unk>", vocabulary)
    assert " ".join(vocabulary.decode(ids)) == "<eos> It 's a , <eos> <unk> <unk>"
    assert tuple(found) == ("b",)


@pytest.mark.parametrize("tokenizer", ["none", "moses", "moses-fr"])
def test_a_prompt_and_the_training_text_give_the_same_ids(tmp_path: Path, tokenizer: str):
    lines = [f"It's the {n}th \u201cred-hot\u201d line, isn't it?\t1,0{n:02}!" for n in range(100)]
    (tmp_path / "text.txt").write_text("\n".join(lines), "utf-8")
    corpus = load_text(tmp_path / "text.txt", cache_dir=tmp_path / "cache", tokenizer=tokenizer)
    ids, _ = encode_text("\n".join([*lines[:50], ""]), corpus.vocabulary)
    assert ids[1:].tolist() == corpus.train[: len(ids) - 1].tolist()


def test_text_is_the_inverse_of_a_prompt():
    for words, text in (("", ""), ("a b", "a b\n"), ("<eos> a <eos> <eos> b", "\na\n\nb\n")):
        assert "".join(pieces(words.split())) == text
        assert encode_text(text, VOCABULARY)[1] == {}
    seen = pieces(iter(["a", "b"]))
    assert next(seen) == "a"  # as soon as it is drawn


def test_words_for_people():
    assert shown("x" * 40) == "x" * 40
    assert shown("x" * 41) == "x" * 39 + "…"
    assert shown("\x00" * 41) == "\\x00" * 9 + "\\x0…"


def expected_nats(model: LanguageModel, text: str) -> tuple[float, int]:
    words = ["<eos>"]
    for line in text.removesuffix("\n").split("\n"):
        words += [*line.split(), "<eos>"]
    log_probs = exact_log_probs(model, VOCABULARY.encode(words))
    return -float(log_probs.sum()), len(log_probs)


def score(model: LanguageModel, text: str) -> tuple[Score | None, Counter[str]]:
    reading, unknown = read_text(model, VOCABULARY, text)
    return reading and reading.score, unknown


@pytest.mark.parametrize("head", ["softmax", "adaptive_softmax"])
@pytest.mark.parametrize(
    "text",
    [
        "a",
        "a b c\nd d\n",
        "\n\n a \n",
        "é é a\tb \xa0 c  é\n <unk> <eos> a",
        "dog cat a dog\n",
        " ".join("abcd"[i * i % 4] for i in range(2 * WINDOW + 100)),
    ],
)
def test_each_token_is_scored_once(make_model: MakeModel, head: str, text: str):
    model = make_model(f"lstm-{head}", len(VOCABULARY))
    nats, num_tokens = expected_nats(model, text)
    found, _ = score(model, text)
    assert found is not None
    assert found.num_tokens == num_tokens
    assert math.isclose(found.nats, nats, rel_tol=1e-6)
    assert math.isclose(found.nll, nats / num_tokens, rel_tol=1e-6)


@pytest.mark.usefixtures("no_float64")
def test_a_device_without_float64_can_score(make_model: MakeModel):
    assert score(make_model(num_words=len(VOCABULARY)), "a b\n")[0] is not None


def test_unknown_words_are_counted(make_model: MakeModel):
    model = make_model(num_words=len(VOCABULARY))
    found, unknown = score(model, "dog a <unk> dog\ncat dogs b \x1b[31mred")
    assert found is not None
    assert unknown == {"dog": 2, "cat": 1, "dogs": 1, "\x1b[31mred": 1}
    assert found.num_tokens == 10
    *_, line = describe(found, unknown).splitlines()
    expected = "50.00% unknown words, read as <unk>: dog (2), cat (1), dogs (1), \\x1b[31mred (1)"
    assert line.strip() == expected


def test_unknown_words_without_a_word_for_them(make_model: MakeModel):
    known = Vocabulary(("<eos>", "a"))
    with pytest.raises(UserError, match=r"^'dog', 'cat': not among the 2 words"):
        read_text(make_model(), known, "a dog a cat\n")
    with pytest.raises(UserError, match=r"^'dog': not among the 2 words"):
        encode_text("a dog", known)


def test_an_empty_text_has_no_score(make_model: MakeModel):
    assert score(make_model(), "") == (None, {})


def test_a_score_for_people():
    text = describe(Score(1400.0, 200), Counter())
    figures = [line.split()[0] for line in text.splitlines()]
    assert figures == ["200", "1,400.00", "7.0000", "1,096.63", "0.00%"]
