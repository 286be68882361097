import math

import numpy as np
import pytest
import torch

from lmbench.data.batching import EvaluationWindows, TrainingWindows
from lmbench.data.columns import (
    IGNORE_INDEX,
    columns_as_published,
    columns_for_evaluation,
    columns_for_training,
)
from lmbench.errors import UserError


def stream(length: int) -> np.ndarray:
    """Ids that say where they stand."""
    return np.arange(length, dtype=np.int32)


def test_training_columns_are_consecutive_parts_of_the_stream():
    columns = columns_for_training(stream(23), batch_size=4)
    expected = [[0, 5, 10, 15], [1, 6, 11, 16], [2, 7, 12, 17], [3, 8, 13, 18], [4, 9, 14, 19]]
    tokens, targets = columns.read()
    assert tokens.tolist() == expected[:-1]
    assert targets.tolist() == expected[1:]
    assert tokens.dtype == targets.dtype == torch.int64


def test_columns_share_the_memory_of_the_stream():
    ids = stream(23)
    for columns in (
        columns_for_training(ids, 4),
        columns_for_evaluation(ids, 4, 2),
        columns_as_published(ids, 4),
    ):
        assert columns.ids is ids
        assert columns.share(1, 2).ids is ids


def test_too_few_tokens_for_the_columns_say_what_would_do():
    with pytest.raises(UserError, match=r"11 tokens.*batch_size=4.*to 3 or less"):
        columns_for_training(stream(11), batch_size=4)
    assert columns_for_training(stream(12), batch_size=4).read()[0].shape == (2, 4)


@pytest.mark.parametrize("variable", [False, True])
@pytest.mark.parametrize("length", [3, 37, 38, 71, 72, 500])
def test_training_windows_follow_each_other_without_gap(length: int, variable: bool):
    columns = columns_for_training(stream(length * 2), batch_size=2)
    windows = TrainingWindows(columns, 35, variable=variable, seed=3, epoch=1)
    batches = list(windows)
    assert len(batches) == len(windows)
    assert torch.equal(
        torch.cat([batch.tokens for batch in batches]),
        columns.read(0, sum(len(batch.tokens) for batch in batches))[0],
    )
    for batch in batches:
        assert torch.equal(batch.targets, batch.tokens + 1)
        assert batch.num_scored == batch.targets.numel()
    # All but a last single target are read.
    assert sum(len(batch.tokens) for batch in batches) >= length - 2


def test_fixed_windows_skip_a_last_window_of_one_target():
    columns = columns_for_training(stream(72), batch_size=1)
    assert [
        len(batch.tokens) for batch in TrainingWindows(columns, 35, variable=False, seed=0, epoch=0)
    ] == [35, 35]
    columns = columns_for_training(stream(73), batch_size=1)
    assert [
        len(batch.tokens) for batch in TrainingWindows(columns, 35, variable=False, seed=0, epoch=0)
    ] == [35, 35, 2]


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


def test_windows_depend_on_seed_and_epoch_alone():
    columns = columns_for_training(stream(4000), batch_size=2)

    def lengths(seed: int, epoch: int) -> list[int]:
        windows = TrainingWindows(columns, 70, variable=True, seed=seed, epoch=epoch)
        return [len(batch.tokens) for batch in windows]

    assert lengths(1, 0) == lengths(1, 0)
    assert lengths(1, 0) != lengths(1, 1)
    assert lengths(1, 0) != lengths(2, 0)


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


@pytest.mark.parametrize("num_tokens", [2, 6, 7, 65, 1001, 1063])
@pytest.mark.parametrize("columns", [1, 7, 64])
@pytest.mark.parametrize("burn_in", [0, 5, 512])
@pytest.mark.parametrize("window", [1, 70])
def test_every_target_is_scored_once_after_its_burn_in(num_tokens, columns, burn_in, window):
    arranged = columns_for_evaluation(stream(num_tokens), columns, burn_in)
    tokens, targets = arranged.read()
    scored = targets != IGNORE_INDEX
    assert sorted(targets[scored].tolist()) == list(range(1, num_tokens))
    assert torch.equal(targets[scored], tokens[scored] + 1)
    # What a column reads before it scores is the stream right before, at least burn_in of it.
    for column in range(tokens.shape[1]):
        rows = scored[:, column].nonzero().flatten()
        if len(rows) and column:
            first = int(rows[0])
            assert first == burn_in
            start = int(tokens[first, column])
            assert tokens[:first, column].tolist() == list(range(start - burn_in, start))
    windows = EvaluationWindows(arranged, window=window)
    batches = list(windows)
    assert len(batches) == len(windows)
    assert torch.equal(torch.cat([batch.targets for batch in batches]), targets)
    assert sum(batch.num_scored for batch in batches) == num_tokens - 1
    assert all(batch.num_scored == int((batch.targets != IGNORE_INDEX).sum()) for batch in batches)


def test_one_column_is_the_stream_itself():
    tokens, targets = columns_for_evaluation(stream(100), 1, 512).read()
    assert tokens.flatten().tolist() == list(range(99))
    assert targets.flatten().tolist() == list(range(1, 100))


def test_nothing_to_score_is_an_error():
    with pytest.raises(UserError, match="nothing to score"):
        columns_for_evaluation(stream(1), 4, 8)


@pytest.mark.parametrize("num_tokens", [20, 29, 30, 1001])
@pytest.mark.parametrize("columns", [1, 7, 10])
def test_published_columns_score_what_lies_within_a_column(num_tokens: int, columns: int):
    ids = np.random.default_rng(0).permutation(num_tokens).astype(np.int32)
    tokens, targets = columns_as_published(ids, columns).read()
    length = num_tokens // columns
    pairs = [
        (ids[position], ids[position + 1])
        for position in range(columns * length - 1)
        if (position + 1) % length  # the next token does not begin another column
    ]
    assert tokens.shape == targets.shape == (length - 1, columns)
    read = zip(tokens.T.flatten().tolist(), targets.T.flatten().tolist(), strict=True)
    assert list(read) == pairs


@pytest.mark.parametrize(
    ("num_tokens", "columns", "num_scored"), [(217_646, 10, 217_630), (245_569, 1, 245_568)]
)
def test_published_columns_score_as_many_targets_of_wikitext2_as_the_published_code(
    num_tokens: int, columns: int, num_scored: int
):
    windows = EvaluationWindows(columns_as_published(stream(num_tokens), columns), window=70)
    assert sum(batch.num_scored for batch in windows) == num_scored


def test_too_few_tokens_for_the_published_columns_are_an_error():
    with pytest.raises(UserError, match=r"19 token.*10 columns.*evaluation\.protocol=standard"):
        columns_as_published(stream(19), 10)
    assert columns_as_published(stream(20), 10).read()[1].tolist() == [list(range(1, 20, 2))]
