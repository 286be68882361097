"""Dynamic evaluation against a plain loop of the paper's rule."""

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional
from torch.testing import assert_close

from lmbench.data.columns import Columns, columns_for_evaluation
from lmbench.evaluation.dynamic import Dynamic, learning
from lmbench.evaluation.gradient_statistics import Statistics, gradient_statistics
from lmbench.evaluation.reading import Reading, read_stream
from lmbench.model.language_model import LanguageModel


def read_dynamically(
    model: LanguageModel,
    columns: Columns,
    dynamic: Dynamic,
    statistics: Statistics | None,
    **options: Any,
) -> Reading:
    with learning(model, dynamic, statistics) as learn:
        return read_stream(model, columns, learn=learn, **options)


def statistics_of(model: LanguageModel) -> Statistics:
    """Random ones, some of them large enough for the decay to reach 1."""
    torch.manual_seed(3)
    return {name: torch.rand_like(p) ** 4 for name, p in model.named_parameters()}


def plain_loop(
    model: LanguageModel, ids: np.ndarray, segment: int, dynamic: Dynamic, statistics: Statistics
) -> torch.Tensor:
    """Krause et al. 2018, section 5, in float64, with logits and autograd's own cross-entropy."""
    model = copy.deepcopy(model).double().eval()
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    root_mean_squares = {name: value.double() for name, value in statistics.items()}
    means = [value.mean() for value in root_mean_squares.values()]
    overall = sum(means) / len(means)
    tokens = torch.from_numpy(ids.astype(np.int64))[:, None]
    state, log_probs = None, []
    for first in range(0, len(ids) - 1, segment):
        last = min(first + segment, len(ids) - 1)
        output, _, state = model(tokens[first:last], state)
        state = tuple(tuple(part.detach() for part in layer) for layer in state)
        scores = model.head.log_probs(output)[:, 0]
        targets = tokens[first + 1 : last + 1, 0]
        log_probs.append(scores[torch.arange(len(targets)), targets].detach())
        model.zero_grad()
        functional.nll_loss(scores, targets).backward()
        with torch.no_grad():
            for name, p in model.named_parameters():
                assert p.grad is not None
                decay = torch.as_tensor(dynamic.decay)
                step = dynamic.lr * p.grad
                if dynamic.rule == "rms":
                    squares = root_mean_squares[name]
                    decay = (dynamic.decay * squares / overall).clamp(max=1)
                    step = dynamic.lr * p.grad / (squares + dynamic.epsilon)
                p.add_(decay * (start[name] - p) - step)
    return torch.cat(log_probs)


@pytest.mark.parametrize("segment", [5, 20, 200])
@pytest.mark.parametrize(
    "dynamic",
    [
        Dynamic(lr=3e-4, decay=0.02),
        Dynamic(lr=3e-4, decay=1.0),
        Dynamic("sgd", lr=0.5, decay=0.01),
        Dynamic("sgd", lr=0.5, decay=0.0),
    ],
)
def test_scores_are_those_of_the_plain_loop(
    model: LanguageModel, ids: np.ndarray, dynamic: Dynamic, segment: int
) -> None:
    ids, statistics = ids[:120], statistics_of(model)
    columns = columns_for_evaluation(ids, 1, 0)
    reading = read_dynamically(model, columns, dynamic, statistics, window=segment)
    expected = plain_loop(model, ids, segment, dynamic, statistics)
    assert_close(reading.log_probs, expected, rtol=1e-4, atol=1e-4)
    if segment < len(ids):  # it did learn something in between
        static = read_stream(model, columns, window=segment)
        assert (static.log_probs - reading.log_probs).abs().max() > 2e-3


@pytest.mark.parametrize("rule", ["rms", "sgd"])
@pytest.mark.parametrize(("num_columns", "window"), [(1, 5), (3, 20)])
def test_lr_zero_equals_the_standard_evaluation_to_the_last_bit(
    model: LanguageModel, ids: np.ndarray, rule: str, num_columns: int, window: int
) -> None:
    columns = columns_for_evaluation(ids[:150], num_columns, 40)
    standard = read_stream(model, columns, window=window, keep_outputs=True)
    dynamic = read_dynamically(
        model,
        columns,
        Dynamic(rule, lr=0.0, decay=0.3),
        statistics_of(model),
        window=window,
        keep_outputs=True,
    )
    assert torch.equal(dynamic.log_probs, standard.log_probs)
    assert dynamic.nll == standard.nll
    assert standard.outputs is not None
    assert dynamic.outputs is not None
    assert torch.equal(dynamic.outputs, standard.outputs)


def test_the_model_is_afterwards_what_it_was(model: LanguageModel, ids: np.ndarray) -> None:
    before = copy.deepcopy(model.state_dict())
    columns = columns_for_evaluation(ids, 1, 0)
    dynamic = Dynamic("sgd", lr=1.0)

    def stop(num_scored: int, nats: float) -> None:
        raise KeyboardInterrupt

    first = read_dynamically(model, columns, dynamic, None, window=20)
    with pytest.raises(KeyboardInterrupt):
        read_dynamically(model, columns, dynamic, None, window=20, on_window=stop)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not model.training
    second = read_dynamically(model, columns, dynamic, None, window=20)
    assert torch.equal(first.log_probs, second.log_probs)


def test_what_recurs_is_learnt(model: LanguageModel) -> None:
    ids = np.tile(np.array([3, 14, 15, 9, 26], dtype=np.int32), 25)
    columns = columns_for_evaluation(ids, 1, 0)
    standard = read_stream(model, columns, window=5).nll
    learnt = read_dynamically(model, columns, Dynamic("sgd", lr=0.3), None, window=5).nll
    assert learnt < standard - 0.5


def test_statistics_are_root_mean_squares_of_segments_gradients(
    model: LanguageModel, ids: np.ndarray
) -> None:
    model.train()  # with all its dropouts
    found = gradient_statistics(model, ids, window=15, num_columns=4)
    exact = copy.deepcopy(model).double().eval()
    tokens = torch.from_numpy(ids.astype(np.int64)).reshape(4, 100).T
    state, sums, number = None, dict.fromkeys(found, 0.0), 0
    for first in range(0, 99, 15):
        last = min(first + 15, 99)
        output, _, state = exact(tokens[first:last], state)
        state = tuple(tuple(part.detach() for part in layer) for layer in state)
        scores = exact.head.log_probs(output)
        exact.zero_grad()
        functional.nll_loss(scores.flatten(0, 1), tokens[first + 1 : last + 1].flatten()).backward()
        for name, p in exact.named_parameters():
            assert p.grad is not None
            sums[name] = sums[name] + p.grad**2
        number += 1
    assert number == 7
    for name, value in found.items():
        expected = (sums[name] / 7).sqrt().float()
        assert_close(value, expected, rtol=1e-4, atol=1e-6)
    assert model.training
    two = gradient_statistics(model, ids, window=15, num_columns=4, num_segments=2)
    short = gradient_statistics(
        model, ids.reshape(4, 100)[:, :31].flatten(), window=15, num_columns=4
    )
    assert all(torch.equal(two[name], short[name]) for name in two)


def test_rms_without_statistics_is_refused(model: LanguageModel, ids: np.ndarray) -> None:
    with pytest.raises(ValueError, match="statistics"):
        read_dynamically(model, columns_for_evaluation(ids, 1, 0), Dynamic(), None, window=5)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("rule", "adam"),
        ("lr", -1.0),
        ("lr", math.inf),
        ("decay", 1.1),
        ("decay", -0.1),
        ("epsilon", 0.0),
    ],
)
def test_values_out_of_range_are_refused(name: str, value: float | str) -> None:
    with pytest.raises(ValueError, match=f"^{name} must be "):
        Dynamic(**{name: value})
