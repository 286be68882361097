"""Readings against the model's own log-probabilities, target by target, in float64."""

import math

import numpy as np
import pytest
import torch
from small import exact_log_probs
from torch import nn
from torch.testing import assert_close

from lmbench.data.columns import columns_as_awd_lstm_lm, columns_for_evaluation
from lmbench.evaluation.reading import Reading, read_stream, scaled_dropouts
from lmbench.model.language_model import LanguageModel


@pytest.mark.parametrize("window", [7, 70, 1000])
def test_one_column_scores_every_target_exactly(
    model: LanguageModel, ids: np.ndarray, window: int
) -> None:
    reading = read_stream(
        model, columns_for_evaluation(ids, 1, 0), window=window, keep_outputs=True
    )
    expected = exact_log_probs(model, ids)
    assert_close(reading.log_probs, expected, rtol=1e-5, atol=1e-5)
    assert reading.score.nll == pytest.approx(-expected.mean().item(), rel=1e-6)
    assert np.array_equal(reading.positions, np.arange(1, 400))
    assert np.array_equal(reading.targets, ids[1:])
    assert reading.outputs is not None
    with torch.no_grad():
        output = model(torch.from_numpy(ids[:-1].astype(np.int64))[:, None]).output[:, 0]
    assert_close(reading.outputs, output, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("num_columns", "window"), [(4, 9), (3, 70)])
def test_columns_are_put_back_into_the_order_of_the_stream(
    model: LanguageModel, ids: np.ndarray, num_columns: int, window: int
) -> None:
    # A burn-in this long leaves no trace of where a column began.
    reading = read_stream(
        model, columns_for_evaluation(ids, num_columns, 60), window=window, keep_outputs=True
    )
    assert np.array_equal(reading.positions, np.arange(1, 400))
    assert np.array_equal(reading.targets, ids[1:])
    whole = read_stream(model, columns_for_evaluation(ids, 1, 0), window=window, keep_outputs=True)
    assert_close(reading.log_probs, whole.log_probs, rtol=0.02, atol=0.02)
    assert reading.outputs is not None
    assert whole.outputs is not None
    assert_close(reading.outputs, whole.outputs, rtol=0.02, atol=0.02)


def test_the_published_columns_leave_targets_out(model: LanguageModel, ids: np.ndarray) -> None:
    reading = read_stream(model, columns_as_awd_lstm_lm(ids, 10), window=7, keep_outputs=True)
    borders = np.arange(40, 400, 40)  # first token of each column but the first
    assert np.array_equal(reading.positions, np.setdiff1d(np.arange(1, 400), borders))
    assert np.array_equal(reading.targets, ids[reading.positions])
    assert reading.outputs is not None
    assert len(reading.outputs) == len(reading.log_probs) == 390
    assert reading.score.nll == pytest.approx(-float(reading.log_probs.sum()) / 400, rel=1e-12)


def test_reading_reports_each_window_and_leaves_the_model_as_it_was(
    model: LanguageModel, ids: np.ndarray
) -> None:
    model.head.requires_grad_(False)
    requires_grad = [parameter.requires_grad for parameter in model.parameters()]
    columns = columns_for_evaluation(ids, 1, 0)
    windows: list[tuple[int, float]] = []
    reading = read_stream(model, columns, window=100, on_window=lambda *it: windows.append(it))
    assert [number for number, _ in windows] == [100, 100, 100, 99]
    assert math.fsum(nats for _, nats in windows) == pytest.approx(399 * reading.score.nll)
    assert not any(module.training for module in model.modules())
    assert [parameter.requires_grad for parameter in model.parameters()] == requires_grad
    assert all(parameter.grad is None for parameter in model.parameters())
    assert reading.outputs is None


def test_nll_is_the_exact_sum_whatever_the_order() -> None:
    log_probs = torch.tensor([-1e16, -1.0, -1e16, -1.0, -1.0, -1.0], dtype=torch.float64)
    places = np.arange(1, 7)
    forward = Reading(places, places, log_probs)
    backward = Reading(places, places, log_probs.flip(0))
    assert forward.score.nll == backward.score.nll == (2e16 + 4) / 6


def test_a_users_multilayer_lstm_drops_nothing(model: LanguageModel) -> None:
    lstm = nn.LSTM(8, 8, num_layers=2, dropout=0.9).eval()
    model.core.add_module("more", lstm)
    with scaled_dropouts(model, 0.0):
        assert lstm.training  # as cuDNN requires
        first, second = (lstm(torch.ones(3, 1, 8))[0] for _ in range(2))
    assert torch.equal(first, second)
    assert lstm.dropout == 0.9
    assert not lstm.training


def test_a_learner_is_given_the_mean_of_the_scored_targets(
    model: LanguageModel, ids: np.ndarray
) -> None:
    losses: list[torch.Tensor] = []
    columns = columns_for_evaluation(ids, 2, 50)
    reading = read_stream(model, columns, window=25, learn=losses.append)
    # the second column is burning in during the first two windows
    first = reading.log_probs[:25]
    assert_close(losses[0].double(), -first.mean(), rtol=1e-6, atol=0.0)
    assert all(loss.requires_grad for loss in losses)
    plain = read_stream(model, columns, window=25)
    assert torch.equal(reading.log_probs, plain.log_probs)  # it learnt nothing
