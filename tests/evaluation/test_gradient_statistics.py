"""Gradient statistics against a plain loop in float64, and the file that keeps them."""

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional
from torch.testing import assert_close

from lmbench.evaluation import dynamic as module
from lmbench.evaluation.dynamic import (
    Statistics,
    gradient_statistics,
    kept_statistics,
)
from lmbench.evaluation.evaluator import Evaluator
from lmbench.model.language_model import LanguageModel

MakeEvaluator = Callable[..., Evaluator]
Progress = list[tuple]


def test_statistics_are_root_mean_squares_of_segments_gradients(
    model: LanguageModel, ids: np.ndarray, make_evaluator: MakeEvaluator, progress: Progress
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


@pytest.fixture
def evaluator(make_evaluator: MakeEvaluator) -> Evaluator:
    return make_evaluator()


def test_statistics_are_computed_once(evaluator: Evaluator, computed: list, tmp_path: Path) -> None:
    for _ in range(2):
        assert kept_statistics(evaluator, 4, None) == computed[0]
    assert len(computed) == 1
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("change", ["weights", "corpus", "window", "columns", "segments"])
def test_a_file_made_from_anything_else_is_made_anew(
    evaluator: Evaluator, computed: list, change: str
) -> None:
    kept_statistics(evaluator, 4, None)
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
    evaluator: Evaluator, computed: list, tmp_path: Path, length: int
) -> None:
    kept_statistics(evaluator, 4, None)
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:length])
    for _ in range(2):
        assert kept_statistics(evaluator, 4, None) == computed[1]


def test_statistics_that_cannot_be_kept_are_computed_all_the_same(
    evaluator: Evaluator, computed: list, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    evaluator.folder = tmp_path / "gone"
    assert kept_statistics(evaluator, 4, None) == computed[0]
    assert "gone/gradient_statistics.safetensors cannot be written: No such file" in caplog.text
