import math
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lmbench.evaluation import sampling
from lmbench.evaluation.sampling import draw, filter_log_probs, sample
from lmbench.model import AWDLSTM, AdaptiveSoftmax, Embedding, LanguageModel, Softmax

WORDS = 23


def logs(*probabilities: float) -> Tensor:
    return torch.tensor(probabilities).log()


def reference(log_probs: np.ndarray, temperature: float, top_k: int, top_p: float) -> np.ndarray:
    """Probabilities, word by word as the papers say it."""
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
def test_the_words_that_stay_and_their_probabilities(temperature: float, top_k: int, top_p: float):
    generator = torch.Generator().manual_seed(0)
    log_probs = (2 * torch.randn(3, 5, WORDS, generator=generator)).log_softmax(-1)
    found = filter_log_probs(log_probs, temperature=temperature, top_k=top_k, top_p=top_p).exp()
    for place in np.ndindex(3, 5):
        expected = reference(log_probs[place].numpy(), temperature, top_k, top_p)
        assert np.array_equal(found[place].numpy() > 0, expected > 0)
        np.testing.assert_allclose(found[place].numpy(), expected, rtol=1e-5)


def test_the_defaults_change_nothing():
    log_probs = torch.randn(4, WORDS).log_softmax(-1)
    assert filter_log_probs(log_probs) is log_probs
    assert torch.equal(filter_log_probs(log_probs, top_k=WORDS).exp() > 0, log_probs.exp() > 0)
    everything = filter_log_probs(log_probs, top_k=WORDS + 1, top_p=1.0)
    torch.testing.assert_close(everything, log_probs)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"top_k": 1}, [0]),
        ({"top_k": 2}, [0, 1]),
        ({"top_k": 4}, [0, 1, 2, 4]),
        ({"temperature": 0.0}, [0]),
        ({"top_p": 0.25}, [0]),
        ({"top_p": 0.250002}, [0, 1]),
        ({"top_p": 0.5}, [0, 1]),
        ({"top_p": 0.75}, [0, 1, 2]),
        ({"top_p": 1e-9}, [0]),
        ({"top_p": 0.9999}, [0, 1, 2, 3, 4]),
    ],
)
def test_of_equally_probable_words_the_first_stay(options: dict[str, Any], expected: list[int]):
    """Where the mass is reached exactly, no word more; as few as can be."""
    found = filter_log_probs(logs(0.25, 0.25, 0.25, 0.05, 0.2), **options).exp()
    assert found.nonzero().flatten().tolist() == expected
    assert math.isclose(float(found.sum()), 1.0, rel_tol=1e-6)


@pytest.mark.parametrize("share", [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_ten_equal_words_are_cut_where_their_sum_is_reached(share: float, dtype: torch.dtype):
    """Though neither 0.1 nor its logarithm is a number of the computer's."""
    found = filter_log_probs(torch.full((10,), 0.1, dtype=dtype).log(), top_p=share)
    assert int((found > -torch.inf).sum()) == round(10 * share)


def test_the_order_of_the_filters():
    """Temperature first: 0.5, 0.3, 0.2 squared are 0.658, 0.237, 0.105."""
    log_probs = logs(0.5, 0.3, 0.2)
    for top_p, expected in ((0.65, 1), (0.67, 2), (0.89, 2), (0.9, 3)):
        found = filter_log_probs(log_probs, temperature=0.5, top_p=top_p)
        assert int((found > -torch.inf).sum()) == expected
    # Top-k before top-p: of 0.5 and 0.3 the first has 0.625.
    assert int((filter_log_probs(log_probs, top_k=2, top_p=0.62) > -torch.inf).sum()) == 1
    assert int((filter_log_probs(log_probs, top_p=0.62) > -torch.inf).sum()) == 2


@pytest.mark.parametrize("temperature", [1e-40, 1e-6, 1e6, 1e38])
def test_extreme_temperatures(temperature: float):
    found = filter_log_probs(logs(0.5, 0.3, 0.2, 0.0), temperature=temperature).exp()
    expected = [1.0, 0, 0, 0] if temperature < 1 else [1 / 3, 1 / 3, 1 / 3, 0]
    torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-4, atol=0)


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -0.1},
        {"temperature": math.nan},
        {"temperature": math.inf},
        {"top_k": -1},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"top_p": math.nan},
    ],
    ids=str,
)
def test_options_that_cannot_be(wrong: dict[str, Any]):
    with pytest.raises(ValueError, match=rf"^{next(iter(wrong))} must be "):
        filter_log_probs(logs(0.5, 0.5), **wrong)


def chi_square_survival(statistic: float, degrees: int) -> float:
    """P(χ² > statistic) for an even number of degrees of freedom, in closed form."""
    assert degrees % 2 == 0
    half = statistic / 2
    return math.exp(-half) * sum(half**i / math.factorial(i) for i in range(degrees // 2))


def test_words_are_drawn_as_often_as_they_should():
    """All of them, the last as well as the first."""
    generator = torch.Generator().manual_seed(1)
    log_probs = torch.randn(WORDS, generator=generator).log_softmax(-1)
    num_draws = 20_000
    drawn = [draw(log_probs, generator) for _ in range(num_draws)]
    expected = log_probs.double().exp().numpy() * num_draws
    counts = np.bincount(drawn, minlength=WORDS)
    assert counts.min() > 0
    statistic = float(((counts - expected) ** 2 / expected).sum())
    assert 0.001 < chi_square_survival(statistic, WORDS - 1) < 0.999
    # The test can fail: against a distribution that is only a little other.
    other = expected[::-1]
    assert chi_square_survival(float(((counts - other) ** 2 / other).sum()), WORDS - 1) < 1e-9


def make_model(head: str = "softmax") -> LanguageModel:
    torch.manual_seed(0)
    rates = dict.fromkeys(
        ("input_dropout", "hidden_dropout", "output_dropout", "weight_dropout"), 0.5
    )
    core = AWDLSTM(8, 10, 8, 2, **rates)
    heads = {"softmax": Softmax, "adaptive": AdaptiveSoftmax}
    model = LanguageModel(Embedding(WORDS, 8), core, heads[head](8, WORDS), tied=True).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_()
    return model


def greedy(model: LanguageModel, words: list[int], num: int, memory: int = 10**6) -> list[int]:
    """Without a state: the whole text, or the last words of it, are read anew for each word."""
    for _ in range(num):
        log_probs = model.head.log_probs(model(torch.tensor(words[-memory:])[:, None]).output)
        words = [*words, int(log_probs[-1, 0].argmax())]
    return words[-num:]


@pytest.mark.parametrize("head", ["softmax", "adaptive"])
def test_the_state_stands_for_all_that_was_read(head: str):
    model, generator = make_model(head), torch.Generator()
    for prompt in ([3], [1, 2, 3, 4, 5]):
        expected = greedy(model, prompt, 30)
        assert expected != greedy(model, prompt, 30, memory=1)
        for options in ({"temperature": 0.0}, {"top_k": 1}, {"top_p": 1e-9}):
            words = sample(model, torch.tensor(prompt), generator, **options)
            assert list(islice(words, 30)) == expected


def test_a_prompt_longer_than_a_window(monkeypatch: pytest.MonkeyPatch):
    model, prompt = make_model(), torch.tensor([1, 2, 3, 4, 5, 6, 7])
    expected = greedy(model, prompt.tolist(), 30)
    assert expected != greedy(model, prompt.tolist(), 30, memory=3)
    for window in (1, 2, 3, 7):
        monkeypatch.setattr(sampling, "WINDOW", window)
        words = sample(model, prompt, torch.Generator(), temperature=0.0)
        assert list(islice(words, 30)) == expected


def test_a_seed_gives_the_same_text():
    model, prompt = make_model(), torch.tensor([0])

    def words(seed: int) -> list[int]:
        return list(islice(sample(model, prompt, torch.Generator().manual_seed(seed)), 40))

    assert words(1) == words(1)
    assert words(1) != words(2)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_each_word_is_drawn_from_the_models_distribution(dtype: torch.dtype):
    """First words only, of many texts; those suppressed never come."""
    model = make_model().to(dtype)
    prompt, suppressed = torch.tensor([4, 9]), [2, 7]
    generator = torch.Generator().manual_seed(3)
    drawn = [
        next(sample(model, prompt, generator, suppressed=suppressed, temperature=2.0))
        for _ in range(1500)
    ]
    with torch.no_grad():
        log_probs = model.head.log_probs(model(prompt[:, None]).output)[-1, 0].double().numpy()
    weights = np.exp(log_probs / 2)
    weights[suppressed] = 0
    expected = weights / weights.sum() * len(drawn)
    counts = np.bincount(drawn, minlength=WORDS)
    assert counts[suppressed].tolist() == [0, 0]
    kept = expected > 0
    statistic = float(((counts - expected)[kept] ** 2 / expected[kept]).sum())
    assert 0.001 < chi_square_survival(statistic, WORDS - 3) < 0.999


@pytest.mark.usefixtures("no_float64")
def test_a_device_without_float64_can_sample():
    assert filter_log_probs(torch.randn(3, WORDS), top_p=0.5).shape == (3, WORDS)
    words = sample(make_model(), torch.tensor([4]), torch.Generator(), temperature=2.0, top_p=0.5)
    assert len(list(islice(words, 3))) == 3


def test_an_empty_prompt_is_refused():
    with pytest.raises(ValueError, match="at least one word"):
        next(sample(make_model(), torch.tensor([], dtype=torch.int64), torch.Generator()))
