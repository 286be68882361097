"""Dynamic evaluation against a plain loop of the paper's rule."""

import copy
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional
from torch.testing import assert_close

from lmbench.data.columns import Columns, columns_for_evaluation
from lmbench.evaluation.dynamic import Dynamic
from lmbench.evaluation.evaluator import Evaluator
from lmbench.evaluation.reading import Learn, Reading, read_stream
from lmbench.model.language_model import LanguageModel

Read = Callable[..., Reading]


@pytest.fixture
def read(model: LanguageModel, make_evaluator: Callable[..., Evaluator]) -> Read:
    """Reads columns dynamically, with random statistics that can make the decay reach 1.

    They differ in scale from tensor to tensor, and so do the mean of all elements and the mean of
    the tensors' means.
    """
    torch.manual_seed(3)
    gradients = {
        name: torch.rand_like(p) ** 4 / 2**i for i, (name, p) in enumerate(model.named_parameters())
    }

    def read(columns: Columns, dynamic: Dynamic, **options: Any) -> Reading:
        dynamic.gradients = gradients
        with dynamic.during(make_evaluator(model)) as learn:
            return read_stream(model, columns, learn=learn, **options)

    return read


def plain_loop(
    model: LanguageModel, ids: np.ndarray, segment: int, dynamic: Dynamic
) -> torch.Tensor:
    """Krause et al. 2018, section 5, in float64, with autograd and the head's log-probabilities."""
    model = copy.deepcopy(model).double().eval()
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    assert dynamic.gradients is not None
    root_mean_squares = {name: value.double() for name, value in dynamic.gradients.items()}
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


@pytest.mark.parametrize("segment", [20, 200])
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
    read: Read, model: LanguageModel, ids: np.ndarray, dynamic: Dynamic, segment: int
) -> None:
    ids = ids[:120]
    columns = columns_for_evaluation(ids, 1, 0)
    reading = read(columns, dynamic, window=segment)
    expected = plain_loop(model, ids, segment, dynamic)
    assert_close(reading.log_probs, expected, rtol=0, atol=5e-6)
    if segment < len(ids):  # it did learn something in between
        static = read_stream(model, columns, window=segment)
        assert (static.log_probs - reading.log_probs).abs().max() > 2e-3


def test_the_model_is_restored_afterwards(
    read: Read, model: LanguageModel, ids: np.ndarray, make_evaluator: Callable[..., Evaluator]
) -> None:
    before = copy.deepcopy(model.state_dict())
    columns = columns_for_evaluation(ids, 1, 0)
    dynamic = Dynamic("sgd", lr=1.0)

    def stop(learn: Learn, loss: torch.Tensor) -> None:
        learn(loss)
        raise KeyboardInterrupt

    first = read(columns, dynamic, window=20)
    with pytest.raises(KeyboardInterrupt), dynamic.during(make_evaluator(model)) as learn:
        read_stream(model, columns, window=20, learn=partial(stop, learn))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not model.training
    second = read(columns, dynamic, window=20)
    assert torch.equal(first.log_probs, second.log_probs)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("rule", "adam"),
        ("lr", -1.0),
        ("lr", math.inf),
        ("decay", 1.1),
        ("decay", -0.1),
        ("epsilon", 0.0),
        ("epsilon", math.inf),
        ("statistics", {"columns": 0}),
        ("statistics", {"columns": None}),
        ("statistics", {"segments": 0}),
    ],
)
def test_values_out_of_range_are_refused(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"^{name}[.a-z]* must be "):
        Dynamic(**{name: value})


def test_statistics_are_computed_if_tuning_tries_a_rule_that_needs_them(
    make_evaluator: Callable[..., Evaluator],
) -> None:
    dynamic = Dynamic("sgd", statistics={"columns": 4}, grid={"rules": ["sgd", "rms"]})
    evaluator = make_evaluator(modes=[dynamic], columns=1)
    dynamic.prepare(evaluator)
    assert dynamic.gradients.keys() == dict(evaluator.model.named_parameters()).keys()


def test_another_statistic_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^statistics has columns and segments, but no column$"):
        Dynamic(statistics={"column": 4})
