"""Windows by example, and of any lengths and sizes in any number of processes."""

from dataclasses import replace
from itertools import groupby
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import event, given
from hypothesis import strategies as st
from trainings import windows_of

from lmbench.data.batching import TrainingWindows
from lmbench.data.columns import AWD_LSTM_LM_COLUMNS
from lmbench.data.corpus import Corpus
from lmbench.data.datamodule import LanguageModelDataModule
from lmbench.data.tokenizer.choice import plain_tokenizer
from lmbench.data.tokenizer.words import WhiteSpace
from lmbench.data.vocabulary import Vocabulary
from lmbench.errors import UserError
from lmbench.perplexity import IGNORE_INDEX

STARTS = {"train": 0, "valid": 10_000, "test": 20_000}


def make_corpus(num_train: int = 400, num_valid: int = 50, num_test: int = 61) -> Corpus:
    """A corpus whose ids are positions; each split starts at a different id."""
    lengths = num_train, num_valid, num_test
    ids = (
        np.arange(start, start + length, dtype=np.int32)
        for start, length in zip(STARTS.values(), lengths, strict=True)
    )
    return Corpus("text", Vocabulary(("a", "b")), *ids)


def make_datamodule(**options) -> LanguageModelDataModule:
    defaults = {"batch_size": 4, "bptt": 10, "columns": 4, "burn_in": 3}
    return windows_of(make_corpus(), **(defaults | options))


def run_by(datamodule, rank: int, epoch: int, num_processes: int) -> LanguageModelDataModule:
    """Attached to what it reads of a trainer."""
    datamodule.trainer = SimpleNamespace(
        world_size=num_processes, global_rank=rank, current_epoch=epoch
    )
    return datamodule


def in_process(rank: int, epoch: int = 0, num_processes: int = 2, **options):
    return run_by(make_datamodule(**options), rank, epoch, num_processes)


def joined(loader) -> tuple[torch.Tensor, torch.Tensor]:
    batches = list(loader)
    return (
        torch.cat([batch.tokens for batch in batches]),
        torch.cat([batch.targets for batch in batches]),
    )


def test_training_windows_depend_on_the_epoch_and_the_seed():
    def lengths(epoch: int, **options) -> list[int]:
        datamodule = in_process(0, epoch, num_processes=1, variable_windows=True, **options)
        return [len(batch.tokens) for batch in datamodule.train_dataloader()]

    assert lengths(0) == lengths(0)
    assert lengths(4) == lengths(4)
    assert lengths(0) != lengths(4)
    assert lengths(0) != lengths(0, seed=1)
    datamodule = make_datamodule(variable_windows=True)
    assert [len(batch.tokens) for batch in datamodule.train_dataloader()] == lengths(0)


def test_a_partial_shuffle_starts_each_column_elsewhere_in_every_epoch():
    def first_rows(epoch: int, **options) -> list[int]:
        options = {"batch_size": 10, "partial_shuffle": True} | options
        datamodule = in_process(0, epoch, num_processes=1, **options)
        tokens, _ = joined(datamodule.train_dataloader())
        return (tokens[0] % 40).tolist()

    assert first_rows(0, partial_shuffle=False) == [0] * 10
    drawn = [first_rows(epoch) for epoch in range(100)]
    assert drawn[7] == first_rows(7)
    assert first_rows(0, seed=1) != drawn[0]
    assert all(len(set(rows)) > 1 for rows in drawn)
    # Not drawn from the random numbers of the windows' lengths.
    assert drawn[3] != np.random.default_rng((0, 3)).integers(39, size=10).tolist()
    counts = np.bincount(np.ravel(drawn), minlength=39)
    assert len(counts) == 39  # the last token of a column is not an input
    assert counts.min() > 0  # misses one by chance with p = 39·(38/39)^1000 = 2e-10
    expected = 1000 / 39
    assert ((counts - expected) ** 2 / expected).sum() < 84  # χ², 38 degrees of freedom: p = 2e-5


def windows_of_articles(epoch: int = 0, **options) -> TrainingWindows:
    """Windows of a text: two words, then thirty articles between 11 and 40 tokens long."""
    words = ("<eos>", "=", *(f"w{index}" for index in range(30)))
    articles = (f"= w{n} = <eos> <eos> {f'w{n} ' * (n + 4)} <eos> <eos> " for n in range(30))
    train = Vocabulary(words).encode(["w3", "w4", "<eos>", "<eos>", *"".join(articles).split()])
    corpus = Corpus("text", Vocabulary(words), train, train[:50], train[:50])
    options = {"batch_size": 1, "bptt": 10, "shuffle_articles": True} | options
    return run_by(windows_of(corpus, **options), 0, epoch, 1).train_dataloader()


def test_each_epoch_reads_all_articles_in_its_own_order():
    plain = joined(windows_of_articles(shuffle_articles=False))[0].flatten().tolist()
    epochs = []
    for epoch in range(3):
        tokens, targets = joined(windows_of_articles(epoch))
        assert tokens[1:].tolist() == targets[:-1].tolist()
        assert tokens[:3].tolist() == [[5], [6], [0]]  # before the first title
        read = [*tokens.flatten().tolist(), int(targets[-1])]
        epochs.append([number - 2 for number in read[2:] if number > 1])
        blocks = [(number, len(list(block))) for number, block in groupby(epochs[-1])]
        # Each article's word is once in its title, and n + 4 times in its text.
        assert sorted(blocks) == [(number, number + 5) for number in range(30)]
        assert read[4:] != plain[4 : len(read)]
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    first, *others = (joined(windows_of_articles(seed=seed))[0].tolist() for seed in (0, 0, 1))
    assert [other == first for other in others] == [True, False]


def test_a_text_without_titles_has_no_articles_to_shuffle():
    with pytest.raises(UserError, match=r"^batching\.shuffle_articles=true needs .* to false\.$"):
        make_datamodule(shuffle_articles=True)


@pytest.mark.parametrize("limit", [None, 1, 3, 10_000, 0.25, 1.0])
def test_the_number_of_training_steps_is_that_of_the_loaders(limit: float | None):
    def limited(length: int) -> int:
        if limit is None:
            return length
        return min(length, limit) if isinstance(limit, int) else int(length * limit)

    options = {"num_processes": 1, "variable_windows": True}
    lengths = [len(in_process(0, epoch, **options).train_dataloader()) for epoch in range(6)]
    assert len(set(lengths)) > 1
    datamodule = make_datamodule(variable_windows=True)
    steps = sum(limited(length) for length in lengths)
    assert datamodule.num_training_steps(6, limit) == steps
    for max_steps in (0, 1, steps - 1, steps, steps + 1):
        assert datamodule.num_training_steps(6, limit, max_steps) == min(steps, max_steps)
    assert datamodule.num_training_steps(10**12, limit, 7) == 7  # does not draw all their windows


def test_a_checkpoint_knows_its_corpus():
    datamodule = make_datamodule()
    state = datamodule.state_dict()
    sha256 = datamodule.corpus.sha256
    tokenizer = plain_tokenizer(WhiteSpace())
    assert state == {"sha256": sha256, "words": ["a", "b"], "tokenizer": tokenizer}


@pytest.mark.parametrize("change", [{"train": np.zeros(1)}, {"vocabulary": Vocabulary(("a", "c"))}])
def test_a_checkpoint_of_another_corpus_is_refused(change: dict):
    corpus, sha256 = replace(make_corpus(), **change), make_corpus().sha256
    with pytest.raises(UserError, match=f"{sha256}.*'text'.*{corpus.sha256}"):
        corpus.require_sha256(sha256)


@pytest.mark.parametrize(
    ("name", "value", "least"),
    [*((name, 0, 1) for name in ("batch_size", "bptt", "columns", "window")), ("burn_in", -1, 0)],
)
def test_wrong_arguments_are_named(name: str, value: int, least: int):
    with pytest.raises(ValueError, match=f"{name} must be at least {least}, not {value}"):
        make_datamodule(**{name: value})
    make_datamodule(**{name: least})
    with pytest.raises(ValueError, match=r"protocol must be .*, not 'exact'"):
        make_datamodule(protocol="exact")


@pytest.mark.parametrize(
    ("options", "columns", "burn_in", "extra_divisor"),
    [
        ({"protocol": "awd_lstm_lm"}, {"valid": 10, "test": 1}, 0, {"val": 10, "test": 1}),
        ({"columns": 4, "burn_in": 3}, 4, 3, {"val": 0, "test": 0}),
        ({}, 1, 512, {"val": 0, "test": 0}),  # too short for several columns
    ],
)
def test_how_the_protocols_read_and_divide(options, columns, burn_in, extra_divisor):
    datamodule = windows_of(make_corpus(), batch_size=4, bptt=10, **options)
    protocol = options.get("protocol", "standard")
    expected = {"protocol": protocol, "columns": columns, "burn_in": burn_in}
    assert datamodule.plain_evaluation == expected
    assert datamodule.extra_divisor == extra_divisor
    assert [len(batch.tokens) for batch in datamodule.train_dataloader()] == [10] * 9 + [9]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 3}, r"train is read in 3 column.* 2 devices.*batching\.batch_size .* of 2"),
        ({"columns": 3}, r"valid is read in 3 column.*evaluation\.columns .* of 2"),
        ({"burn_in": 49}, r"valid is read in 1 column.*evaluation\.burn_in"),
        ({"protocol": "awd_lstm_lm"}, r"test is read in 1 column.*protocol=standard"),
    ],
)
def test_columns_that_cannot_be_shared_are_refused_before_training(options: dict, message: str):
    with pytest.raises(UserError, match=message):
        in_process(0, **options).setup("fit")
    in_process(0).setup("fit")


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


def side_by_side(loaders: list) -> tuple[torch.Tensor, torch.Tensor, int]:
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
    corpus = make_corpus(*lengths.values())
    if is_too_short(lengths, options):
        event("refused: too short")
        with pytest.raises(UserError):
            windows_of(corpus, **options)
        return
    processes = [
        run_by(windows_of(corpus, **options), rank, epoch, num_processes)
        for rank in range(num_processes)
    ]
    if any(columns_of(split, lengths, options) % num_processes for split in STARTS):
        event("refused: not to be shared out")
        with pytest.raises(UserError, match="cannot be divided"):
            processes[0].setup("fit")
        return
    event(f"read by {num_processes}, {options['protocol']}")
    processes[0].setup("fit")
    read = side_by_side([datamodule.train_dataloader() for datamodule in processes])
    assert read[0].shape[1] == options["batch_size"]
    check_training(*read, lengths["train"], options)
    burn_in = options["burn_in"] if options["protocol"] == "standard" else 0
    for split in ("valid", "test"):
        name = "val_dataloader" if split == "valid" else "test_dataloader"
        tokens, targets, _ = side_by_side([getattr(datamodule, name)() for datamodule in processes])
        assert tokens.shape[1] == columns_of(split, lengths, options)
        check_evaluation(tokens, targets, burn_in, expected_targets(split, lengths, options))
