"""Dynamic evaluation and its gradient statistics against plain loops of the paper's rule."""

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional
from torch.testing import assert_close

from lmbench.data.columns import Columns, columns_for_evaluation
from lmbench.evaluation import dynamic as module
from lmbench.evaluation.dynamic import Dynamic, Statistics, gradient_statistics, kept_statistics
from lmbench.evaluation.evaluator import Evaluator
from lmbench.evaluation.reading import Learn, Reading, read_stream
from lmbench.model.language_model import LanguageModel

Read = Callable[..., Reading]
MakeEvaluator = Callable[..., Evaluator]


@pytest.fixture
def read(model: LanguageModel, make_evaluator: MakeEvaluator) -> Read:
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
    read: Read, model: LanguageModel, ids: np.ndarray, make_evaluator: MakeEvaluator
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


def test_statistics_are_computed_if_tuning_tries_a_rule_that_needs_them(
    make_evaluator: MakeEvaluator,
) -> None:
    dynamic = Dynamic("sgd", statistics={"columns": 4}, grid={"rules": ["sgd", "rms"]})
    evaluator = make_evaluator(modes=[dynamic], columns=1)
    dynamic.prepare(evaluator)
    assert dynamic.gradients.keys() == dict(evaluator.model.named_parameters()).keys()


def test_statistics_are_root_mean_squares_of_segments_gradients(
    model: LanguageModel, ids: np.ndarray, make_evaluator: MakeEvaluator, progress: list[tuple]
) -> None:
    model.train()  # with all its dropouts
    evaluator = make_evaluator(model, window=15)
    found = gradient_statistics(evaluator, 4, None)
    exact = copy.deepcopy(model).double().eval()
    tokens = torch.from_numpy(ids.astype(np.int64)).reshape(4, 100).T
    state, sums, windows = None, dict.fromkeys(found, 0.0), []
    for first in range(0, 99, 15):
        last = min(first + 15, 99)
        output, _, state = exact(tokens[first:last], state)
        state = tuple(tuple(part.detach() for part in layer) for layer in state)
        scores = exact.head.log_probs(output)
        exact.zero_grad()
        loss = functional.nll_loss(scores.flatten(0, 1), tokens[first + 1 : last + 1].flatten())
        loss.backward()
        num_targets = 4 * (last - first)
        windows.append((num_targets, pytest.approx(loss.item() * num_targets, rel=1e-5)))
        for name, p in exact.named_parameters():
            assert p.grad is not None
            sums[name] = sums[name] + p.grad**2
    assert progress == [("gradient statistics of train", 4 * 99), *windows]
    assert len(windows) == 7
    for name, value in found.items():
        expected = (sums[name] / 7).sqrt().float()
        assert_close(value, expected, rtol=1e-4, atol=1e-6)
    progress.clear()
    two = gradient_statistics(evaluator, 4, 2)
    assert progress[0] == ("gradient statistics of train", 4 * 30)
    for num_tokens in (31, 32):  # two windows of 15 targets; and a third one of one, left out
        corpus = replace(evaluator.corpus, train=ids.reshape(4, 100)[:, :num_tokens].flatten())
        short = gradient_statistics(replace(evaluator, corpus=corpus), 4, None)
        assert all(torch.equal(two[name], short[name]) for name in two)


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[Statistics]:
    """All statistics that were computed, each with different values."""
    found: list[Statistics] = []

    def compute(evaluator: Evaluator, columns: int, segments: int | None) -> Statistics:
        found.append({"head.bias": torch.tensor(float(len(found)))})
        return found[-1]

    monkeypatch.setattr(module, "gradient_statistics", compute)
    return found


@pytest.mark.parametrize("change", ["weights", "corpus", "window", "columns", "segments"])
def test_statistics_are_computed_once_and_again_if_anything_changes(
    make_evaluator: MakeEvaluator, computed: list, change: str
) -> None:
    evaluator = make_evaluator()
    for _ in range(2):
        assert kept_statistics(evaluator, 4, None) == computed[0]
    assert len(list(evaluator.folder.iterdir())) == 1
    if change == "weights":
        next(evaluator.model.parameters()).data[0] += 1
    elif change == "corpus":
        corpus = evaluator.corpus
        evaluator = replace(evaluator, corpus=replace(corpus, train=corpus.train[:-1]))
    elif change == "window":
        evaluator = replace(evaluator, settings=replace(evaluator.settings, window=7))
    arguments = {"columns": (8, None), "segments": (4, 3)}.get(change, (4, None))
    assert kept_statistics(evaluator, *arguments) == computed[1]


@pytest.mark.parametrize("length", [0, 4, 50, -1])
def test_a_damaged_file_is_made_anew(
    make_evaluator: MakeEvaluator, computed: list, tmp_path: Path, length: int
) -> None:
    evaluator = make_evaluator()
    kept_statistics(evaluator, 4, None)
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:length])
    for _ in range(2):
        assert kept_statistics(evaluator, 4, None) == computed[1]


def test_statistics_that_cannot_be_kept_are_computed_all_the_same(
    make_evaluator: MakeEvaluator, computed: list, caplog: pytest.LogCaptureFixture
) -> None:
    evaluator = make_evaluator()
    evaluator.folder /= "gone"
    assert kept_statistics(evaluator, 4, None) == computed[0]
    assert "gone/gradient_statistics.safetensors cannot be written: No such file" in caplog.text
