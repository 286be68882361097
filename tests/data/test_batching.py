import math
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

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


@pytest.mark.parametrize(
    ("arrange", "num_tokens", "targets", "message"),
    [
        (partial(columns_for_training, batch_size=4), 12, 8, r"batching\.batch_size to 3 or less"),
        (partial(columns_for_evaluation, columns=4, burn_in=8), 2, 1, r"more text"),
        (partial(columns_as_awd_lstm_lm, columns=10), 20, 10, r"evaluation\.protocol=standard"),
    ],
)
def test_the_shortest_stream_and_one_that_is_too_short(arrange, num_tokens, targets, message):
    assert arrange(stream(num_tokens)).read()[1].numel() == targets
    with pytest.raises(UserError, match=f"has {num_tokens - 1} tokens, too few for .*{message}"):
        arrange(stream(num_tokens - 1))


@pytest.mark.parametrize(
    ("num_tokens", "bptt", "lengths"), [(72, 35, [35, 35]), (73, 35, [35, 35, 2]), (50, 70, [49])]
)
def test_fixed_windows_skip_a_last_window_of_one_target(num_tokens, bptt, lengths):
    """The last one is cut by the stream, but keeps its share of the learning rate."""
    columns = columns_for_training(stream(num_tokens), batch_size=1)
    windows = list(TrainingWindows(columns, bptt, variable=False, seed=0, epoch=0))
    assert [len(batch.tokens) for batch in windows] == lengths
    assert {batch.lr_scale for batch in windows} == {1.0}


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


@pytest.mark.parametrize(
    ("num_tokens", "columns", "num_scored"), [(217_646, 10, 217_630), (245_569, 1, 245_568)]
)
def test_published_columns_score_as_many_targets_of_wikitext2_as_the_published_code(
    num_tokens: int, columns: int, num_scored: int
):
    windows = EvaluationWindows(columns_as_awd_lstm_lm(stream(num_tokens), columns), window=70)
    assert sum(batch.num_scored for batch in windows) == num_scored


@given(
    length=st.integers(3, 600),
    bptt=st.integers(1, 80),
    variable=st.booleans(),
    scale_lr=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
    data=st.data(),
)
def test_from_any_window_on_the_rest_is_the_same(length, bptt, variable, scale_lr, seed, data):
    def make() -> TrainingWindows:
        columns = columns_for_training(stream(2 * length), 2)
        return TrainingWindows(
            columns, bptt, variable=variable, seed=seed, epoch=3, scale_lr=scale_lr
        )

    def content(batches) -> list:
        return [(b.tokens.tolist(), b.targets.tolist(), b.lr_scale, b.num_scored) for b in batches]

    windows = make()
    whole = content(windows)
    assert windows.state_dict() == {"num_done": 0}  # an epoch is over, the next one starts anew
    given_last = data.draw(st.integers(0, len(whole) - 1))
    iterator = iter(windows)
    for _ in range(given_last + 1):
        next(iterator)
    state = windows.state_dict()
    assert state == {"num_done": given_last}
    for resumed in (make(), windows):
        resumed.load_state_dict(state)
        assert len(resumed) == len(whole)
        assert content(resumed) == whole[given_last:]
        assert content(resumed) == whole
