"""Scores of a text, against the whole of it read at once in float64."""

import copy
import io
import math
from collections import Counter

import pytest
import torch

from lmbench.data.tokenization import read_parts
from lmbench.data.vocabulary import Vocabulary
from lmbench.errors import UserError
from lmbench.evaluation.text_score import WINDOW, TextScore, describe, score_text
from lmbench.model import LSTM, AdaptiveSoftmax, Embedding, LanguageModel, Softmax

VOCABULARY = Vocabulary(("<eos>", "a", "b", "<unk>", "c", "d", "é"))


def make_model(head: str = "softmax") -> LanguageModel:
    torch.manual_seed(0)
    heads = {"softmax": Softmax, "adaptive": AdaptiveSoftmax}
    head_of = heads[head](8, len(VOCABULARY))
    model = LanguageModel(Embedding(len(VOCABULARY), 8), LSTM(8, 12, 8, 2), head_of, tied=True)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(4)
    return model.eval()


def expected_nats(model: LanguageModel, text: str) -> tuple[float, int]:
    words = ["<eos>"]
    for line in text.split("\n") if not text.endswith("\n") else text[:-1].split("\n"):
        words += [*line.split(), "<eos>"]
    ids = torch.from_numpy(VOCABULARY.encode(words)).long()
    exact = copy.deepcopy(model).double()
    with torch.no_grad():
        log_probs = exact.head.log_probs(exact(ids[:-1, None]).output)[:, 0]
    return -float(log_probs.gather(1, ids[1:, None]).sum()), len(ids) - 1


def score(model: LanguageModel, text: str, part_bytes: int = 7) -> TextScore | None:
    return score_text(model, VOCABULARY, read_parts(io.BytesIO(text.encode()), "it", part_bytes))


@pytest.mark.parametrize("head", ["softmax", "adaptive"])
@pytest.mark.parametrize(
    "text",
    [
        "a",
        "a b c\nd d\n",
        "a b c\nd d",
        "\n",
        "\n\n a \n",
        "é é a\tb \xa0 c  é\n <unk> <eos> a",
        "dog cat a dog\n",
        " ".join("abcd"[i * i % 4] for i in range(2 * WINDOW + 100)),
        "a " * 3 * WINDOW + "\n",
    ],
)
def test_each_token_is_scored_once(head: str, text: str):
    model = make_model(head)
    nats, num_tokens = expected_nats(model, text)
    for part_bytes in (1, 7, 2**16) if len(text) < 100 else (999, 2**16):
        found = score(model, text, part_bytes)
        assert found is not None
        assert found.num_tokens == num_tokens
        assert math.isclose(found.nats, nats, rel_tol=1e-6)
        assert math.isclose(found.nll, nats / num_tokens, rel_tol=1e-6)


@pytest.mark.usefixtures("no_float64")
def test_a_device_without_float64_can_score():
    assert score(make_model(), "a b\n") is not None


def test_unknown_words_are_counted():
    found = score(make_model(), "dog a <unk> dog\ncat dogs b")
    assert found is not None
    assert found.unknown == {"dog": 2, "cat": 1, "dogs": 1}
    assert found.num_tokens == 9
    lines = describe(found).splitlines()
    assert "9 tokens" in lines[0]
    assert "44.44% unknown words, read as <unk>: dog (2), cat (1), dogs (1)" in lines[-1]


def test_unknown_words_without_a_word_for_them():
    known = Vocabulary(("<eos>", "a"))
    model = LanguageModel(Embedding(2, 8), LSTM(8, 8), Softmax(8, 2))
    with pytest.raises(UserError, match=r"^'dog', 'cat': not among"):
        score_text(model, known, [b"a dog a cat\n"])


def test_an_empty_text_has_no_score():
    for text in ("", "\ufeff"):
        assert score(make_model(), text) is None


def test_an_impossible_text_has_an_infinite_perplexity():
    text = describe(TextScore(8000.0, 10, Counter()))
    assert "inf perplexity" in text
    assert "0.00% unknown words" in text


def test_unknown_words_cannot_reach_the_terminal():
    found = score(make_model(), "\x1b[31mred " + "x" * 10**5)
    assert found is not None
    line = describe(found).splitlines()[-1]
    assert line.isprintable()
    assert len(line) < 200


def test_a_score_for_people():
    found = score(make_model(), "a b c\n")
    assert found is not None
    numbers = [line.split()[0] for line in describe(found).splitlines()]
    assert numbers[0] == "4"
    assert math.isclose(float(numbers[1]), found.nats, abs_tol=0.005)
    assert math.isclose(float(numbers[2]), found.nats / 4, abs_tol=5e-5)
    assert math.isclose(float(numbers[3]), math.exp(found.nats / 4), abs_tol=0.005)
