"""Any lengths and sizes at all are read as documented, in any number of processes, or refused."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import event, given
from hypothesis import strategies as st
from trainings import windows_of

from lmbench.data.batching import TrainingWindows
from lmbench.data.columns import AWD_LSTM_LM_COLUMNS, columns_for_training
from lmbench.data.corpus import Corpus
from lmbench.data.vocabulary import Vocabulary
from lmbench.errors import UserError
from lmbench.perplexity import IGNORE_INDEX

STARTS = {"train": 0, "valid": 10_000, "test": 20_000}  # of ids that are positions


@st.composite
def cases(draw) -> tuple[dict[str, int], dict[str, Any], int]:
    """Lengths, options and a number of processes that often fit together."""
    protocol = draw(st.sampled_from(["standard", "awd_lstm_lm"]))
    num_processes = draw(st.integers(1, 4 if protocol == "standard" else 2))
    columns = st.integers(1, 6).map(lambda number: number * num_processes) | st.integers(1, 70)
    burn_in = draw(st.integers(0, 60))
    some_length = st.one_of(
        st.integers(20, 500), st.integers(0, 500), st.integers(burn_in, burn_in + 3)
    )
    lengths = {split: draw(some_length) for split in STARTS}
    options = {
        "batch_size": draw(columns),
        "bptt": draw(st.integers(1, 80)),
        "variable_windows": draw(st.booleans()),
        "scale_lr": draw(st.booleans()),
        "partial_shuffle": draw(st.booleans()),
        "protocol": protocol,
        "columns": draw(columns),
        "burn_in": burn_in,
        "window": draw(st.integers(1, 80)),
        "seed": draw(st.integers(0, 2**32 - 1)),
    }
    return lengths, options, num_processes


def make_corpus(lengths: dict[str, int]) -> Corpus:
    ids = {
        split: np.arange(start, start + lengths[split], dtype=np.int32)
        for split, start in STARTS.items()
    }
    return Corpus("text", Vocabulary(("a",)), **ids)


def columns_of(split: str, lengths: dict[str, int], options: dict) -> int:
    """In how many columns a split is read."""
    if split == "train":
        return options["batch_size"]
    if options["protocol"] == "awd_lstm_lm":
        return AWD_LSTM_LM_COLUMNS[split]
    short = lengths[split] - 1 <= options["burn_in"]
    return 1 if short else options["columns"]


def is_too_short(lengths: dict[str, int], options: dict) -> bool:
    columns = 1 if options["protocol"] == "standard" else AWD_LSTM_LM_COLUMNS["valid"]
    least = {"train": 3 * options["batch_size"], "valid": 2 * columns, "test": 2}
    return any(lengths[split] < least[split] for split in least)


def expected_targets(split: str, lengths: dict[str, int], options: dict) -> list[int]:
    """The scored targets: all, or all but the first tokens of the published columns."""
    length, start = lengths[split], STARTS[split]
    if options["protocol"] == "standard":
        return list(range(start + 1, start + length))
    columns = AWD_LSTM_LM_COLUMNS[split]
    rows = length // columns
    return [start + place for place in range(rows * columns) if place % rows]


def joined(loaders: list) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Tokens and targets of all processes side by side, and the shortest window's length.

    Windows are stacked one below the other.
    """
    batches = [list(loader) for loader in loaders]
    for loader, ours in zip(loaders, batches, strict=True):
        assert len(loader) == len(ours)
        for batch, other in zip(ours, batches[0], strict=True):
            assert batch.tokens.shape == batch.targets.shape == other.tokens.shape
            assert batch.num_scored == int((batch.targets != IGNORE_INDEX).sum())
            assert batch.lr_scale == other.lr_scale
    tokens, targets = (
        torch.cat([torch.cat([batch[part] for batch in ours]) for ours in batches], dim=1)
        for part in range(2)
    )
    return tokens, targets, min(len(batch.tokens) for batch in batches[0])


def check_training(tokens, targets, shortest: int, length: int, options: dict) -> None:
    """Checks that each column's rows come in order and once, less a last window of one target.

    After a partial shuffle, the order starts anywhere and wraps around to the first row.
    """
    rows = length // options["batch_size"]
    start, columns = STARTS["train"], options["batch_size"]
    stream = torch.arange(start, start + rows * columns).view(columns, rows).T
    assert len(tokens) in (rows - 2, rows - 1)
    assert shortest >= 2 or (options["bptt"] == 1 and len(tokens) == rows - 2)
    assert torch.equal(targets, tokens + 1)
    if options["partial_shuffle"]:
        for column, read in zip(stream[:-1].T, tokens.T, strict=True):
            first = int(read[0] - column[0])
            assert torch.equal(read, column.roll(-first)[: len(read)])
    else:
        assert torch.equal(tokens, stream[: len(tokens)])


def check_evaluation(tokens, targets, burn_in: int, expected: list[int]) -> None:
    scored = targets != IGNORE_INDEX
    assert sorted(targets[scored].tolist()) == expected
    assert torch.equal(targets[scored], tokens[scored] + 1)
    for column in range(tokens.shape[1]):
        read, rows = tokens[:, column], scored[:, column].nonzero().flatten()
        if len(rows):
            # One stretch of the stream without a gap, scored from the end of the burn-in on.
            first, last = int(rows[0]), int(rows[-1])
            assert first == (burn_in if column else 0)
            assert read[: last + 1].tolist() == list(range(int(read[0]), int(read[0]) + last + 1))
            assert len(rows) == last + 1 - first


@given(cases(), st.integers(0, 1000))
def test_all_is_read_as_documented_or_refused(case, epoch):
    lengths, options, num_processes = case
    corpus = make_corpus(lengths)
    if is_too_short(lengths, options):
        event("refused: too short")
        with pytest.raises(UserError):
            windows_of(corpus, **options)
        return
    processes = []
    for rank in range(num_processes):
        datamodule = windows_of(corpus, **options)
        datamodule.trainer = SimpleNamespace(
            world_size=num_processes, global_rank=rank, current_epoch=epoch
        )
        processes.append(datamodule)
    if any(columns_of(split, lengths, options) % num_processes for split in STARTS):
        event("refused: not to be shared out")
        with pytest.raises(UserError, match="cannot be divided"):
            processes[0].setup("fit")
        return
    event(f"read by {num_processes}, {options['protocol']}")
    processes[0].setup("fit")
    read = joined([datamodule.train_dataloader() for datamodule in processes])
    assert read[0].shape[1] == options["batch_size"]
    check_training(*read, lengths["train"], options)
    burn_in = options["burn_in"] if options["protocol"] == "standard" else 0
    for split in ("valid", "test"):
        name = "val_dataloader" if split == "valid" else "test_dataloader"
        tokens, targets, _ = joined([getattr(datamodule, name)() for datamodule in processes])
        assert tokens.shape[1] == columns_of(split, lengths, options)
        check_evaluation(tokens, targets, burn_in, expected_targets(split, lengths, options))


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
        columns = columns_for_training(np.arange(2 * length, dtype=np.int32), 2)
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
