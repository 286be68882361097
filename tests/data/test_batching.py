import math

import numpy as np
import pytest
import torch

from lmbench.data.batching import EvaluationWindows, TrainingWindows
from lmbench.data.columns import (
    columns_as_awd_lstm_lm,
    columns_for_evaluation,
    columns_for_training,
)
from lmbench.errors import UserError


def stream(length: int) -> np.ndarray:
    """Ids that are their own positions."""
    return np.arange(length, dtype=np.int32)


def test_too_few_tokens_for_the_columns_are_refused_with_a_batch_size_that_fits():
    with pytest.raises(UserError, match=r"11 tokens.* 4 column.*batch_size to 3 or less"):
        columns_for_training(stream(11), batch_size=4)
    assert columns_for_training(stream(12), batch_size=4).read()[0].shape == (2, 4)


@pytest.mark.parametrize(("num_tokens", "lengths"), [(72, [35, 35]), (73, [35, 35, 2])])
def test_fixed_windows_skip_a_last_window_of_one_target(num_tokens: int, lengths: list[int]):
    columns = columns_for_training(stream(num_tokens), batch_size=1)
    windows = TrainingWindows(columns, 35, variable=False, seed=0, epoch=0)
    assert [len(batch.tokens) for batch in windows] == lengths


def test_variable_windows_have_the_published_distribution():
    """Mean .95·70 + .05·35 and variance 25 + .95·.05·35², less the half that truncation takes."""
    columns = columns_for_training(np.zeros(800_000, dtype=np.int32), 1)
    windows = TrainingWindows(columns, 70, variable=True, seed=0, epoch=0)
    lengths = [len(batch.tokens) for batch in windows][:-1]
    mean = 0.95 * 70 + 0.05 * 35 - 0.5
    deviation = math.sqrt(25 + 1 / 12 + 0.95 * 0.05 * 35**2)
    assert abs(np.mean(lengths) - mean) < 4 * deviation / math.sqrt(len(lengths))
    assert np.std(lengths) == pytest.approx(deviation, rel=0.05)
    assert np.mean(np.array(lengths) < 52) == pytest.approx(0.05, abs=0.01)
    assert min(lengths) >= 5


def test_the_last_window_is_cut_by_the_stream_but_keeps_its_drawn_length():
    columns = columns_for_training(stream(50), batch_size=1)
    (batch,) = TrainingWindows(columns, 70, variable=False, seed=0, epoch=0)
    assert len(batch.tokens) == 49
    assert batch.lr_scale == 1.0


def test_windows_are_the_same_whether_they_scale_the_learning_rate_or_not():
    columns = columns_for_training(stream(2000), batch_size=2)
    scaled, unscaled = (
        list(TrainingWindows(columns, 35, variable=True, seed=0, epoch=0, **options))
        for options in ({}, {"scale_lr": False})
    )
    assert {batch.lr_scale for batch in unscaled} == {1.0}
    drawn = [batch.lr_scale * 35 for batch in scaled]
    assert len(set(drawn)) > 3
    assert drawn[:-1] == pytest.approx([len(batch.tokens) for batch in unscaled[:-1]], rel=1e-12)
    for ours, theirs in zip(unscaled, scaled, strict=True):
        assert torch.equal(ours.tokens, theirs.tokens)
        assert torch.equal(ours.targets, theirs.targets)
        assert ours.num_scored == theirs.num_scored


def test_nothing_to_score_is_an_error():
    with pytest.raises(UserError, match=r"1 tokens, too few for 1 column.* at least 2 .*more text"):
        columns_for_evaluation(stream(1), 4, 8)
    assert columns_for_evaluation(stream(2), 4, 8).read()[1].tolist() == [[1]]


@pytest.mark.parametrize(
    ("num_tokens", "columns", "num_scored"), [(217_646, 10, 217_630), (245_569, 1, 245_568)]
)
def test_published_columns_score_as_many_targets_of_wikitext2_as_the_published_code(
    num_tokens: int, columns: int, num_scored: int
):
    windows = EvaluationWindows(columns_as_awd_lstm_lm(stream(num_tokens), columns), window=70)
    assert sum(batch.num_scored for batch in windows) == num_scored


def test_too_few_tokens_for_the_published_columns_are_an_error():
    with pytest.raises(UserError, match=r"19 token.*10 column.*evaluation\.protocol=standard"):
        columns_as_awd_lstm_lm(stream(19), 10)
    assert columns_as_awd_lstm_lm(stream(20), 10).read()[1].tolist() == [list(range(1, 20, 2))]
