"""The neural cache against its formula, entry by entry, and against the published script."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from lmbench.errors import UserError
from lmbench.evaluation.cache import Cache, cache_log_probs
from lmbench.evaluation.evaluator import Evaluator
from lmbench.evaluation.reading import Reading

MakeReading = Callable[..., Reading]
MakeEvaluator = Callable[..., Evaluator]


def probability(reading: Reading, target: int, entries: Sequence[int], theta: float) -> float:
    """Probability of a target under a cache of these entries: Grave et al. 2017."""
    assert reading.outputs is not None
    outputs, entries = reading.outputs.double().numpy(), list(entries)
    weights = np.exp(theta * (outputs[entries] @ outputs[target]))
    return float(weights[reading.targets[entries] == reading.targets[target]].sum() / weights.sum())


@pytest.mark.parametrize("num_targets", [1, 2, 40, 300, 700])
def test_probabilities_are_those_of_the_formula(
    make_reading: MakeReading, num_targets: int
) -> None:
    reading = make_reading(num_targets)
    windows, thetas = [30, 1, 290, 5000], [0.0, 0.7, -0.4]
    found = cache_log_probs(reading, windows=windows, thetas=thetas)
    assert found.keys() == {(window, theta) for window in windows for theta in thetas}
    for (window, theta), log_probs in found.items():
        assert math.isnan(log_probs[0])
        expected = [
            probability(reading, target, range(max(0, target - window), target), theta)
            for target in range(1, num_targets)
        ]
        exact = torch.tensor(expected, dtype=torch.float64)
        assert_close(log_probs[1:].exp(), exact, rtol=1e-5, atol=1e-7)
        assert torch.equal(log_probs[1:].isinf(), exact == 0)


def test_products_too_large_for_exp_still_give_probabilities(make_reading: MakeReading) -> None:
    reading = make_reading(60)
    assert reading.outputs is not None
    reading.outputs.mul_(40)  # products up to some ten thousands
    found = cache_log_probs(reading, windows=[5, 40], thetas=[1.0])
    for window in (5, 40):
        assert not found[window, 1.0][1:].isnan().any()
        assert (found[window, 1.0][1:] <= 1e-5).all()


def test_the_mixture_is_of_probabilities(
    make_reading: MakeReading, make_evaluator: MakeEvaluator
) -> None:
    reading = make_reading(50)
    cache = Cache(window=20, theta=0.3, interpolation=0.25)
    mixed = cache.rescored(reading, make_evaluator())
    for target in range(1, 50):
        of_cache = probability(reading, target, range(max(0, target - 20), target), 0.3)
        expected = 0.75 * math.exp(reading.log_probs[target]) + 0.25 * of_cache
        assert math.exp(mixed.log_probs[target]) == pytest.approx(expected, rel=1e-5)
    assert mixed.log_probs[0] == reading.log_probs[0]  # nothing to look up yet
    assert np.array_equal(mixed.targets, reading.targets)


def test_warmup_reproduces_the_published_script(
    make_reading: MakeReading, make_evaluator: MakeEvaluator
) -> None:
    """pointer.py's own bookkeeping: histories cut to the window after each batch of steps."""
    window, steps, theta, interpolation = 25, 10, 0.4, 0.2
    reading = make_reading(97)
    expected = []
    history: list[int] = []
    for start in range(0, 97, steps):
        batch = list(range(start, min(start + steps, 97)))
        start_index = len(history)
        history += batch
        for index, target in enumerate(batch):
            p = math.exp(reading.log_probs[target])
            if start_index + index > window:
                entries = history[start_index + index - window : start_index + index]
                of_cache = probability(reading, target, entries, theta)
                p = interpolation * of_cache + (1 - interpolation) * p
            expected.append(p)
        history = history[-window:]
    evaluator = make_evaluator(window=steps)
    cache = Cache(window, theta, interpolation, warmup=True)
    with pytest.raises(UserError, match=r"^evaluation\.cache: .* evaluation\.columns=1, not 2"):
        make_evaluator(columns=2, burn_in=8, modes=[cache]).prepare("valid")
    mixed = cache.rescored(reading, evaluator)
    exact = torch.tensor(expected, dtype=torch.float64)
    assert_close(mixed.log_probs.exp(), exact, rtol=1e-5, atol=0.0)
    without = Cache(window, theta, interpolation).rescored(reading, evaluator)
    assert (without.log_probs != mixed.log_probs).sum() > window


def test_no_probability_is_above_one_or_below_zero(
    make_reading: MakeReading, make_evaluator: MakeEvaluator
) -> None:
    reading = make_reading(400, num_words=1)  # so that the cache is certain, except for rounding
    reading.log_probs.fill_(0.0)
    for weight in (0.1, 0.1279, 0.3, 0.7):
        mixed = Cache(interpolation=weight).rescored(reading, make_evaluator())
        assert (mixed.log_probs <= 0.0).all()
        assert (mixed.log_probs > -1e-6).all()
    hopeless = replace(reading, targets=np.arange(400, dtype=np.int32))
    hopeless.log_probs.fill_(-math.inf)
    mixed = Cache(interpolation=0.5).rescored(hopeless, make_evaluator())
    assert (mixed.log_probs == -math.inf).all()
