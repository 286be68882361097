"""Texts as words; words drawn from distributions that are cut off as in the papers."""

import math
from collections import Counter
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import chi2
from torch import Tensor

from lmbench.data.corpus import load_text
from lmbench.data.tokenizer.choice import make_tokenizer
from lmbench.data.vocabulary import Vocabulary
from lmbench.evaluation.text import encode_text, filter_log_probs, sample_words, shown
from lmbench.model import LanguageModel

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


WORDS = 23
NUMBERS = Vocabulary(tuple(map(str, range(WORDS))))
MakeModel = Callable[..., LanguageModel]


def logs(*probabilities: float) -> Tensor:
    return torch.tensor(probabilities).log()


def reference(log_probs: np.ndarray, temperature: float, top_k: int, top_p: float) -> np.ndarray:
    """Probabilities, word by word, as in the papers."""
    if temperature == 0:
        kept = [int(np.argmax(log_probs))]
        weights = np.ones_like(log_probs)
    else:
        weights = np.exp(log_probs.astype(np.float64)) ** (1 / temperature)
        order = sorted(range(len(weights)), key=lambda word: (-weights[word], word))
        kept = order[:top_k] if top_k else order
        if top_p < 1:
            total, nucleus = 0.0, []
            for word in kept:
                nucleus.append(word)
                total += weights[word] / sum(weights[other] for other in kept)
                if total >= top_p:
                    break
            kept = nucleus
    result = np.zeros(len(weights))
    result[kept] = weights[kept] / sum(weights[word] for word in kept)
    return result


@pytest.mark.parametrize("temperature", [0.0, 0.3, 1.0, 2.5])
@pytest.mark.parametrize("top_k", [0, 1, 4, WORDS, 99])
@pytest.mark.parametrize("top_p", [0.05, 0.5, 0.9, 0.999, 1.0])
def test_which_words_are_kept_and_their_probabilities(temperature: float, top_k: int, top_p: float):
    generator = torch.Generator().manual_seed(0)
    log_probs = (2 * torch.randn(3, 5, WORDS, generator=generator)).log_softmax(-1)
    found = filter_log_probs(log_probs, temperature=temperature, top_k=top_k, top_p=top_p).exp()
    for place in np.ndindex(3, 5):
        expected = reference(log_probs[place].numpy(), temperature, top_k, top_p)
        assert np.array_equal(found[place].numpy() > 0, expected > 0)
        np.testing.assert_allclose(found[place].numpy(), expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"top_k": 2}, [0, 1]),
        ({"top_k": 4}, [0, 1, 2, 4]),
        ({"temperature": 0.0}, [0]),
        ({"top_p": 0.25}, [0]),
        ({"top_p": 0.250002}, [0, 1]),
        ({"top_p": 0.5}, [0, 1]),
        ({"top_p": 1e-9}, [0]),
        ({"top_p": 0.9999}, [0, 1, 2, 3, 4]),
    ],
)
def test_of_equally_probable_words_the_first_are_kept(options: dict[str, Any], expected: list[int]):
    """As few as possible: once the mass is reached exactly, not one word more."""
    found = filter_log_probs(logs(0.25, 0.25, 0.25, 0.05, 0.2), **options).exp()
    assert found.nonzero().flatten().tolist() == expected
    assert math.isclose(float(found.sum()), 1.0, rel_tol=1e-6)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("temperature", value) for value in (-1.0, math.inf, math.nan)),
        ("top_k", -1),
        *(("top_p", value) for value in (0.0, 1.1, math.nan)),
    ],
)
def test_values_out_of_range_are_refused(name: str, value: float):
    with pytest.raises(ValueError, match=f"^{name} must be "):
        filter_log_probs(logs(0.5, 0.5), **{name: value})


@pytest.mark.parametrize("share", [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_ten_equal_words_are_cut_where_their_sum_is_reached(share: float, dtype: torch.dtype):
    """Though floating point represents neither 0.1 nor its logarithm exactly."""
    found = filter_log_probs(torch.full((10,), 0.1, dtype=dtype).log(), top_p=share)
    assert int((found > -torch.inf).sum()) == round(10 * share)


@pytest.mark.parametrize("temperature", [1e-40, 1e-6, 1e6, 1e38])
def test_extreme_temperatures(temperature: float):
    torch.set_flush_denormal(True)  # as the commands do
    try:
        found = filter_log_probs(logs(0.5, 0.3, 0.2, 0.0), temperature=temperature).exp()
    finally:
        torch.set_flush_denormal(False)
    expected = [1.0, 0, 0, 0] if temperature < 1 else [1 / 3, 1 / 3, 1 / 3, 0]
    torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-4, atol=0)


def wild(model: LanguageModel) -> LanguageModel:
    """Gives the model weights so large that it forgets little."""
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_()
    return model


def greedy(model: LanguageModel, words: list[int], num: int, memory: int = 10**6) -> list[int]:
    """Keeps no state: reads the whole text, or its last words, again for each word."""
    for _ in range(num):
        log_probs = model.head.log_probs(model(torch.tensor(words[-memory:])[:, None]).output)
        words = [*words, int(log_probs[-1, 0].argmax())]
    return words[-num:]


@pytest.mark.parametrize("head", ["softmax", "adaptive_softmax"])
def test_the_state_carries_everything_that_was_read(make_model: MakeModel, head: str):
    model = wild(make_model(f"awd_lstm-{head}", WORDS))
    for prompt in ([3], [1, 2, 3, 4, 5, 6, 7]):
        expected = greedy(model, prompt, 30)
        assert expected != greedy(model, prompt, 30, memory=3)
        for options in ({"temperature": 0.0}, {"top_k": 1}, {"top_p": 1e-9}):
            given = torch.tensor(prompt), torch.Generator()
            words = islice(sample_words(model, NUMBERS, *given, **options), 30)
            assert list(words) == [str(number) for number in expected]


@pytest.mark.parametrize(
    "dtype", [torch.float64, pytest.param(torch.bfloat16, marks=pytest.mark.slow)]
)
def test_each_word_is_drawn_from_the_models_distribution(make_model: MakeModel, dtype: torch.dtype):
    """First words only, of many texts; ``<unk>`` never occurs unless it is allowed."""
    model = make_model("awd_lstm-softmax", WORDS).to(dtype)
    prompt, generator = torch.tensor([4, 9]), torch.Generator().manual_seed(3)
    vocabulary = Vocabulary((*NUMBERS.words[:7], "<unk>", *NUMBERS.words[8:]))

    def draw(**options: Any) -> str:
        given = model, vocabulary, prompt, generator
        return next(sample_words(*given, temperature=2.0, **options))

    counts = Counter(draw() for _ in range(1500))
    with torch.no_grad():
        log_probs = model.head.log_probs(model(prompt[:, None]).output)[-1, 0].double().numpy()
    weights = np.exp(log_probs / 2)
    weights[7] = 0
    expected = weights / weights.sum() * 1500
    drawn = np.array([counts[word] for word in vocabulary.words])
    assert drawn[7] == 0
    statistic = float(((drawn - expected) ** 2 / np.where(expected, expected, 1)).sum())
    assert 0.001 < chi2.sf(statistic, WORDS - 2) < 0.999
    assert "<unk>" in [draw(allow_unk=True) for _ in range(500)]
