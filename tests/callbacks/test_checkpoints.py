"""A run that was stopped and resumed, against one that never stopped: the same to the last bit."""

import errno
import json
import math
import os
import shutil
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import lightning as L
import numpy as np
import pytest
import torch
from chaos import unequal
from small import SIZE, makers
from torch import Tensor
from torch.optim.lr_scheduler import LinearLR, OneCycleLR
from trainings import Clock, Scripted, quiet_trainer, random_corpus, random_windows, windows_of

from lmbench.callbacks import checkpoints
from lmbench.callbacks.checkpoints import CheckpointIO, Checkpoints
from lmbench.callbacks.finite_loss import FiniteLoss
from lmbench.callbacks.metrics_csv import MetricsCSV
from lmbench.callbacks.nt_asgd import NTASGD
from lmbench.callbacks.progress import Progress
from lmbench.callbacks.results import Results
from lmbench.callbacks.throughput import Throughput
from lmbench.callbacks.time_limit import TimeLimit
from lmbench.callbacks.weight_average import WeightAverage
from lmbench.data.corpus import Corpus
from lmbench.data.vocabulary import Vocabulary
from lmbench.errors import UserError
from lmbench.model import AWDLSTM, LSTM, Embedding, LanguageModel, Softmax
from lmbench.optim import ASGD
from lmbench.saved.checkpoint import DATA, read_checkpoint

WORDS = 11
CORES = {f"core={name}": make for name, make in makers("core").items()}
CONFIG = {"seed": 0, "init_from": None, "callbacks": {}}
SCORES = [1.0, 0.5, 2.0, 3.0]  # with n = 1 the third validation is the first to switch
BEST, SWITCH, NUM_EPOCHS = 1, 2, 4

Place = tuple[str, int, int]


class Killed(BaseException):
    """An error that nothing catches."""


class Killer(L.Callback):
    """Makes a checkpoint due at one place, and ends the run at another.

    A place is a stage, an epoch and a window in it; -1 is the last one.
    """

    def __init__(self, clock: Clock, save_at: Place | None, die_at: Place) -> None:
        self._clock, self._save_at, self._die_at = clock, save_at, die_at

    def _pass(self, stage: str, epoch: int, index: int, num_windows: int) -> None:
        places = (stage, epoch, index), (stage, epoch, index - num_windows)
        if self._save_at in places:
            self._clock.now += 3600
        if self._die_at in places:
            raise Killed

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        self._pass("train", trainer.current_epoch, batch_idx, trainer.num_training_batches)

    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, *_) -> None:
        self._pass("val", trainer.current_epoch, batch_idx, trainer.num_val_batches[0])

    def on_test_batch_start(self, trainer, pl_module, batch, batch_idx, *_) -> None:
        self._pass("test", NUM_EPOCHS, batch_idx, trainer.num_test_batches[0])


class Recorder(L.Callback):
    """The weights after each epoch, and the number of windows in it."""

    def __init__(self) -> None:
        self.weights: list[dict[str, Tensor]] = []
        self.num_windows: list[int] = []

    def on_train_epoch_end(self, trainer, pl_module) -> None:
        state = pl_module.state_dict()
        self.weights.append({name: value.clone() for name, value in state.items()})
        self.num_windows.append(trainer.num_training_batches)


class Run(NamedTuple):
    trainer: L.Trainer
    recorder: Recorder


def one_cycle(optimizer: torch.optim.Optimizer, total_steps: int) -> OneCycleLR:
    return OneCycleLR(optimizer, 2.0, total_steps, cycle_momentum=True)


def warmup(optimizer: torch.optim.Optimizer, total_steps: int) -> LinearLR:
    return LinearLR(optimizer, 0.1, total_iters=5)


def make_module(model: str) -> Scripted:
    embedding, head = Embedding(WORDS, 4, dropout=0.2), Softmax(4, WORDS)
    if model == "lstm":
        core = LSTM(4, 5, 4, dropout=0.3)
        optimizer = partial(torch.optim.SGD, lr=2.0, momentum=0.9)
        return Scripted(LanguageModel(embedding, core, head, tied=True), optimizer, one_cycle)
    if model == "averaged":
        core = LSTM(4, 5, 4, dropout=0.3)
        adam = partial(torch.optim.Adam, lr=0.1)
        return Scripted(LanguageModel(embedding, core, head, tied=True), adam, warmup)
    if model in CORES:
        embedding, head = Embedding(WORDS, SIZE, dropout=0.2), Softmax(SIZE, WORDS)
        adam = partial(torch.optim.Adam, lr=0.1)
        return Scripted(LanguageModel(embedding, CORES[model](), head, tied=True), adam, warmup)
    core = AWDLSTM(
        4, 5, 4, 2, input_dropout=0.3, hidden_dropout=0.2, output_dropout=0.3, weight_dropout=0.4
    )
    awd_lstm = LanguageModel(embedding, core, head, tied=True)
    averaged_sgd = partial(ASGD, lr=2.0, weight_decay=1e-3)
    return Scripted(awd_lstm, averaged_sgd, ar_alpha=2.0, tar_beta=1.0)


def articles() -> Corpus:
    """Articles of ten tokens each, of which three are a title between two empty lines."""
    corpus = random_corpus(WORDS, 140)
    train = corpus.train.clip(2).reshape(14, 10)
    train[:, :7] = [0, 0, 1, 5, 1, 0, 0]  # = w5 =
    vocabulary = Vocabulary(("<eos>", "=", *corpus.vocabulary.words[2:]))
    return Corpus("text", vocabulary, train.ravel(), corpus.valid, corpus.test)


def run(
    folder: Path,
    model: str,
    *more: L.Callback,
    resumes: bool = False,
    interval_minutes: float = 10.0,
    average_from_start: bool = False,
    shuffle_articles: bool = False,
    **options: Any,
) -> Run:
    """Trains and tests; a resumed run begins with other weights and another random state."""
    torch.manual_seed(99 if resumes else 0)
    averaging = NTASGD(1, average_from_start=average_from_start)
    last, recorder, plugin = folder / "checkpoints/last.ckpt", Recorder(), CheckpointIO()
    trainer = quiet_trainer(
        *(recorder, Throughput(), Progress(), FiniteLoss()),
        Checkpoints(folder / "checkpoints", interval_minutes=interval_minutes),
        *([averaging] if model == "awd_lstm" else []),
        *([WeightAverage(3.0)] if model == "averaged" else []),
        Results(folder, CONFIG | {"model": {"name": model}}),
        *more,
        plugins=[plugin],
        logger=MetricsCSV(folder),
        enable_checkpointing=True,
        gradient_clip_val=0.25,
        **({"max_epochs": NUM_EPOCHS, "log_every_n_steps": 2} | options),
    )
    windows = {"bptt": 12, "variable_windows": True, "window": 20, "seed": 5}
    if shuffle_articles:
        shuffles = {"shuffle_articles": True, "partial_shuffle": True}
        datamodule = windows_of(articles(), batch_size=2, **windows, **shuffles)
    else:
        datamodule = random_windows(WORDS, 140, 40, 30, **windows)
    module = make_module(model)
    module.script = SCORES
    trainer.fit(module, datamodule=datamodule, ckpt_path=last if resumes else None)
    best = read_checkpoint(folder / "checkpoints" / "best.ckpt")
    module.load_state_dict(best["state_dict"])
    trainer.test(module, datamodule=datamodule, verbose=False)
    return Run(trainer, recorder)


def assert_same_run(folder: Path, other: Path) -> None:
    assert (folder / "metrics.csv").read_bytes() == (other / "metrics.csv").read_bytes()
    for name in ("last", "best"):
        contents = [read_checkpoint(run / f"checkpoints/{name}.ckpt") for run in (folder, other)]
        assert not unequal(contents[0], contents[1]), name
    results = [json.loads((run / "results.json").read_text("utf-8")) for run in (folder, other)]
    assert not unequal(results[0], results[1])
    files = [{path.name for path in (run / "checkpoints").iterdir()} for run in (folder, other)]
    assert files == [{"last.ckpt", "best.ckpt", "previous.ckpt"}] * 2


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(checkpoints, "time", clock)
    return clock


Whole = Callable[..., tuple[Path, Run]]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """Runs that are never interrupted; each is made once."""
    runs: dict[str, tuple[Path, Run]] = {}

    def make(model: str, **options: Any) -> tuple[Path, Run]:
        key = f"{model} {options}"
        if key not in runs:
            folder = tmp_path_factory.mktemp("whole")
            runs[key] = folder, run(folder, model, **options)
        return runs[key]

    return make


def kill(
    folder: Path, model: str, clock: Clock, save_at: Place | None, die_at: Place, **options: Any
) -> None:
    with pytest.raises(Killed):
        run(folder, model, Killer(clock, save_at, die_at), **options)


# Where the last checkpoint is saved (None: at an epoch's end), and where the run is killed.
PLACES: dict[str, tuple[Place | None, Place]] = {
    "first epoch": (("train", 0, 2), ("train", 0, 4)),
    "epoch's first window": (None, ("train", 1, 0)),
    "epoch's second window": (("train", 1, 1), ("train", 1, 1)),
    "epoch's last window": (("train", 1, -1), ("val", 1, 0)),
    "validation that switches": (("train", SWITCH, 3), ("val", SWITCH, 1)),
    "after the switch": (None, ("train", SWITCH + 1, 0)),
    "averaging": (("train", SWITCH + 1, 4), ("train", SWITCH + 1, -1)),
    "test": (None, ("test", NUM_EPOCHS, 0)),
}


FINETUNING = {"average_from_start": True}
SHUFFLED = {"shuffle_articles": True}
LIMITED = {"max_steps": 1000}  # with a limit, Lightning restores its loops differently
CUT_SHORT = {"max_steps": 10}, {"limit_train_batches": 3}


RUNS: list[tuple[str, str, dict[str, Any]]] = [
    ("awd_lstm", "first epoch", {}),
    ("awd_lstm", "validation that switches", {}),
    ("awd_lstm", "averaging", {}),
    ("lstm", "epoch's first window", {}),
    ("averaged", "epoch's last window", {}),
    ("awd_lstm", "test", LIMITED),
]
MORE_RUNS: list[tuple[str, str, dict[str, Any]]] = [
    *(("awd_lstm", place, {}) for place in PLACES),
    *(("lstm", place, {}) for place in ("first epoch", "test")),
    *(("awd_lstm", place, FINETUNING) for place in ("first epoch", "averaging")),
    *(("lstm", place, SHUFFLED) for place in ("averaging", "epoch's last window")),
    *(("averaged", place, {}) for place in ("first epoch", "epoch's first window", "test")),
    *((core, "first epoch", {}) for core in CORES),
    *(("awd_lstm", place, LIMITED) for place in ("first epoch", "averaging")),
    *(("awd_lstm", "epoch's first window", options) for options in (FINETUNING, LIMITED)),
    *(("lstm", "epoch's second window", options) for options in CUT_SHORT),
    *(("lstm", "epoch's first window", options) for options in CUT_SHORT),
    ("lstm", "test", CUT_SHORT[0]),
]


@pytest.mark.parametrize(
    ("model", "place", "options"),
    [
        *RUNS,
        *(pytest.param(*one, marks=pytest.mark.slow) for one in MORE_RUNS if one not in RUNS),
    ],
)
def test_a_killed_run_continues_to_the_last_bit(
    whole: Whole, tmp_path: Path, clock: Clock, model: str, place: str, options: dict
):
    """Weights, averages, iterates, optimizer, schedule, random state, metrics and results."""
    folder, reference = whole(model, **options)
    kill(tmp_path, model, clock, *PLACES[place], **options)
    resumed = run(tmp_path, model, resumes=True, **options)
    assert_same_run(tmp_path, folder)
    number = len(resumed.recorder.weights)
    assert (number == 0) == (place == "test")
    found, expected = resumed.recorder.weights, reference.recorder.weights
    assert not unequal(found, expected[len(expected) - number :])  # the raw iterates


def test_the_runs_have_enough_that_could_go_wrong(whole: Whole):
    """The runs above differ between models and epochs, and switch and average as they should."""
    folder, reference = whole("awd_lstm")
    assert len(set(reference.recorder.num_windows)) > 1
    last = read_checkpoint(folder / "checkpoints" / "last.ckpt")
    assert last["callbacks"]["NTASGD"]["triggered_epoch"] == SWITCH
    assert reference.recorder.num_windows[SWITCH + 1] > 5  # and the average is over some of them
    averages, raw = last["state_dict"], last["callbacks"]["NTASGD"]["raw"]
    assert unequal(averages, raw)
    assert not unequal(raw, reference.recorder.weights[-1])
    assert type(reference.trainer.optimizers[0]) is ASGD
    assert type(whole("lstm")[1].trainer.optimizers[0]) is torch.optim.SGD
    (process,) = last["processes"]
    assert any(part.abs().max() > 0 for layer in process["stream"]["state"] for part in layer)


def test_a_run_killed_again_and_again_ends_the_same(whole: Whole, tmp_path: Path, clock: Clock):
    folder, _ = whole("awd_lstm")
    resumes = False
    for save_at, die_at in PLACES.values():
        kill(tmp_path, "awd_lstm", clock, save_at, die_at, resumes=resumes)
        resumes = True
    run(tmp_path, "awd_lstm", resumes=True)
    assert_same_run(tmp_path, folder)


def test_a_finished_run_that_is_resumed_stays_as_it_was(whole: Whole, tmp_path: Path):
    folder, _ = whole("lstm")
    run(tmp_path, "lstm")
    files = [tmp_path / "metrics.csv", *(tmp_path / "checkpoints").iterdir()]
    before = {path: path.read_bytes() for path in files}
    run(tmp_path, "lstm", resumes=True)
    assert {path: path.read_bytes() for path in files} == before
    assert_same_run(tmp_path, folder)


@pytest.mark.parametrize("model", ["awd_lstm", "averaged"])
def test_more_epochs_are_those_that_a_longer_run_would_have_had(
    model: str, whole: Whole, tmp_path: Path
):
    folder, _ = whole(model)
    run(tmp_path, model, max_epochs=2)
    run(tmp_path, model, resumes=True)
    assert_same_run(tmp_path, folder)


def test_an_epoch_cut_short_counts_by_its_share_in_a_longer_run_too(tmp_path: Path):
    def num_epochs() -> float:
        return json.loads((tmp_path / "results.json").read_text("utf-8"))["train"]["epochs"]

    trainer = run(tmp_path, "averaged", max_epochs=-1, max_steps=2).trainer
    steps_of_epoch = trainer.num_training_batches
    assert steps_of_epoch > 2
    assert num_epochs() == 2 / steps_of_epoch
    run(tmp_path, "averaged", resumes=True, max_epochs=-1, max_steps=2 + steps_of_epoch)
    assert num_epochs() == 2 / steps_of_epoch + 1  # continues with the next epoch


def test_fewer_steps_than_a_run_has_had_since_its_validation_are_refused(
    tmp_path: Path, clock: Clock
):
    kill(tmp_path, "awd_lstm", clock, *PLACES["first epoch"])
    for max_steps in (1, 2):
        with pytest.raises(UserError, match=r"reached step 2 already.*max_steps to 3"):
            run(tmp_path, "awd_lstm", resumes=True, max_steps=max_steps)
    resumed = run(tmp_path, "awd_lstm", resumes=True, max_steps=3)
    assert resumed.trainer.global_step == 3
    assert len(resumed.recorder.weights) == 1


@pytest.mark.parametrize("limit", ["max_epochs", "max_steps"])
def test_a_run_is_not_made_shorter_than_it_has_been(limit: str, tmp_path: Path):
    trainer = run(tmp_path, "lstm").trainer
    had = {"max_epochs": trainer.current_epoch, "max_steps": trainer.global_step}[limit]
    before = (tmp_path / "results.json").read_bytes()
    for number in (1, had - 1):
        with pytest.raises(
            UserError, match=rf"{limit}={number}: .* {had} already.*{limit} to {had}"
        ):
            run(tmp_path, "lstm", resumes=True, **{limit: number})
    assert (tmp_path / "results.json").read_bytes() == before
    speed = json.loads(before)["train"]["tokens_per_second"]
    assert run(tmp_path, "lstm", resumes=True, **{limit: had}).trainer.global_step > 1
    results = json.loads((tmp_path / "results.json").read_text())
    assert speed == results["train"]["tokens_per_second"] > 0


def test_a_run_whose_time_is_over_within_an_epoch_validates_what_it_has(
    tmp_path: Path, clock: Clock
):
    kill(tmp_path, "awd_lstm", clock, *PLACES["first epoch"])
    resumed = run(tmp_path, "awd_lstm", TimeLimit({"microseconds": 1}), resumes=True)
    assert resumed.trainer.global_step == 3  # one more than the checkpoint has
    assert len(resumed.recorder.weights) == 1


def test_the_best_checkpoint_is_that_of_the_best_epoch(whole: Whole):
    folder, reference = whole("awd_lstm")
    best = read_checkpoint(folder / "checkpoints" / "best.ckpt")
    assert best["epoch"] == BEST
    assert not unequal(best["state_dict"], reference.recorder.weights[BEST])
    assert unequal(best["state_dict"], reference.recorder.weights[BEST + 1])


class Watch(L.Callback):
    """Moves the clock by some minutes a window, and notes what is on disk before each."""

    def __init__(self, folder: Path, clock: Clock, minutes: float) -> None:
        self._folder, self._clock, self._seconds = folder / "checkpoints", clock, 60 * minutes
        self.seen: dict[str, list[bytes]] = {"last": [], "previous": []}
        self.saved_at: list[tuple[int, int]] = []

    def _look(self, place: tuple[int, int]) -> None:
        for name, contents in self.seen.items():
            path = self._folder / f"{name}.ckpt"
            contents.append(path.read_bytes() if path.exists() else b"")
        if self.seen["last"][-1] != (self.seen["last"][-2:-1] or [b""])[0]:
            self.saved_at.append(place)

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        self._clock.now += self._seconds

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self._look((trainer.current_epoch, batch_idx))

    def on_test_start(self, trainer, pl_module) -> None:
        self._look((NUM_EPOCHS, 0))


def test_the_previous_checkpoint_is_the_one_before(tmp_path: Path, clock: Clock):
    watch = Watch(tmp_path, clock, 1)
    run(tmp_path, "awd_lstm", watch, interval_minutes=0)
    # One checkpoint lies between two looks: before a window, or after an epoch.
    last, previous = watch.seen["last"], watch.seen["previous"]
    assert last[0] == previous[0] == previous[1] == b""  # none before the very first window
    assert len(set(last)) == len(last) > 20
    assert previous[1:] == last[:-1]


@pytest.mark.parametrize(("minutes", "windows_between"), [(4, 3), (10, 1), (0.25, 40)])
def test_it_saves_when_it_is_time_and_after_each_validation(
    tmp_path: Path, clock: Clock, minutes: float, windows_between: int
):
    watch = Watch(tmp_path, clock, minutes)
    recorder = run(tmp_path, "lstm", watch, interval_minutes=10).recorder
    expected, since = [], 0
    for epoch, num_windows in enumerate(recorder.num_windows):
        for window in range(num_windows):
            since += 1
            # An epoch's first window comes right after the checkpoint of the validation.
            if window == 0 and epoch > 0:
                expected.append((epoch, 0))
            elif window > 0 and since >= windows_between:
                expected.append((epoch, window))
                since = 0
        since = 0
    assert watch.saved_at == [*expected, (NUM_EPOCHS, 0)]


class SaveAfterWindow(L.Callback):
    """Saves a checkpoint as a ``ModelCheckpoint`` does: after a window."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        if (trainer.current_epoch, batch_idx) == (0, 2):
            trainer.save_checkpoint(self._path)


def test_a_checkpoint_of_another_callback_counts_the_window_that_it_follows(
    tmp_path: Path, clock: Clock
):
    """Whether or not a checkpoint has just been saved before that window, without it."""
    loops = []
    for minutes in (0, 60):
        path = tmp_path / f"{minutes}/mine.ckpt"
        run(path.parent, "lstm", SaveAfterWindow(path), interval_minutes=minutes)
        loops.append(read_checkpoint(path)["loops"])
    assert loops[0] == loops[1]


@pytest.mark.parametrize("first_process_is_due", [True, False])
def test_the_first_of_several_processes_says_when_it_is_time(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch, first_process_is_due: bool
):
    saving = Checkpoints(tmp_path, interval_minutes=5)
    saved_at = []
    monkeypatch.setattr(saving, "save", lambda *_, **__: saved_at.append(batch_idx))
    strategy = SimpleNamespace(broadcast=lambda _: first_process_is_due)
    trainer: Any = SimpleNamespace(world_size=2, strategy=strategy)
    clock.now += 0 if first_process_is_due else 3600  # this process thinks otherwise
    for batch_idx in range(25):
        saving.on_train_batch_start(trainer, None, None, batch_idx)  # pyright: ignore
    assert saved_at == ([10, 20] if first_process_is_due else [])


def test_each_of_several_processes_gets_its_own_state_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(checkpoints, "set_max_steps", lambda *_: None)
    monkeypatch.setattr(checkpoints, "resumes_within_epoch", lambda _: True)
    random = [torch.random.manual_seed(seed).get_state() for seed in (0, 1)]
    saving, streams = Checkpoints(tmp_path), []
    saving._processes = [
        {"stream": f"stream {rank}", "random": {"cpu": random[rank]}} for rank in (0, 1)
    ]
    trainer: Any = SimpleNamespace(world_size=2, global_rank=1, global_step=5, max_steps=-1)
    saving._max_steps = -1
    with torch.random.fork_rng([]):
        saving.on_train_start(trainer, SimpleNamespace(load_stream_state=streams.append))
        assert torch.equal(torch.get_rng_state(), random[1])
    assert streams == ["stream 1"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["processes"].append(None), r"trained by 2 process\(es\).*trainer\.devices"),
        (lambda c: c["callbacks"].clear(), "Throughput|Results|NTASGD"),
        (lambda c: c["callbacks"].pop("NTASGD"), "NTASGD"),
        (lambda c: c["loops"].clear(), "fit_loop"),
    ],
)
def test_a_checkpoint_that_lacks_what_the_run_needs_is_refused(
    tmp_path: Path, clock: Clock, change: Callable, message: str
):
    kill(tmp_path, "awd_lstm", clock, *PLACES["first epoch"])
    last = tmp_path / "checkpoints" / "last.ckpt"
    checkpoint = read_checkpoint(last)
    change(checkpoint)
    torch.save(checkpoint, last)
    with pytest.raises((UserError, KeyError), match=message):
        run(tmp_path, "awd_lstm", resumes=True)


def test_a_save_that_fails_leaves_all_checkpoints_as_they_were(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
):
    kill(tmp_path, "lstm", clock, *PLACES["averaging"])
    folder = tmp_path / "checkpoints"
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert set(before) == {"last.ckpt", "best.ckpt", "previous.ckpt"}

    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space left"):
        run(tmp_path, "lstm", resumes=True, interval_minutes=0)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize("number", [None, errno.EPERM, errno.ENOTSUP, errno.ENOSPC])
def test_a_file_gets_a_second_name_or_a_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int | None
) -> None:
    """A copy on a file system without hard links; on a full disk, all stays as it was."""

    def refuse(*args: object) -> None:
        raise OSError(number, os.strerror(number))

    if number is not None:
        monkeypatch.setattr(os, "link", refuse)
    if number == errno.ENOSPC:
        monkeypatch.setattr(shutil, "copyfile", refuse)
    last, previous = tmp_path / "last.ckpt", tmp_path / "previous.ckpt"
    last.write_text("new")
    previous.write_text("old")
    for _ in range(2):  # a kill between two renames leaves both names on one file
        if number == errno.ENOSPC:
            with pytest.raises(OSError, match="No space left"):
                checkpoints._link(last, previous)
        else:
            checkpoints._link(last, previous)
        assert previous.read_text() == ("old" if number == errno.ENOSPC else "new")
        assert {path.name for path in tmp_path.iterdir()} == {"last.ckpt", "previous.ckpt"}


def test_an_interval_below_zero_is_refused(tmp_path: Path):
    for interval in (-1.0, math.nan):
        with pytest.raises(ValueError, match="interval_minutes must not be negative"):
            Checkpoints(tmp_path, interval_minutes=interval)


def test_processes_with_different_folders_are_refused_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """As when Slurm starts commands in different seconds, which are in their folders' names."""
    folders: list[str] = []

    def all_gather_object(everyone: list, mine: str) -> None:
        everyone[:] = [mine, *folders]

    monkeypatch.setattr(torch.distributed, "all_gather_object", all_gather_object)
    trainer: Any = SimpleNamespace(world_size=2)
    folders[:] = [str(tmp_path / "a")]
    Checkpoints(tmp_path / "a").on_fit_start(trainer, None)  # pyright: ignore
    with pytest.raises(UserError, match=r"different folders: .*/a, .*/b\. .* hydra\.run\.dir=DIR"):
        Checkpoints(tmp_path / "b").on_fit_start(trainer, None)  # pyright: ignore


def content(seed: int = 0) -> dict[str, Any]:
    weights = torch.rand(50, generator=torch.Generator().manual_seed(seed))
    return {
        "state_dict": {"weight": weights, "tied": weights, "counts": torch.arange(3)},
        DATA: {"sha256": "", "words": ["naïve", "猫", "<eos>"], "tokenizer": "none"},
        "loops": {"step": 7, "best": None, "scores": [1.5, math.inf], "done": False},
    }


def save(path: Path, checkpoint: dict[str, Any]) -> bytes:
    CheckpointIO().save_checkpoint(checkpoint, path)
    return path.read_bytes()


def test_a_state_that_could_not_be_read_is_refused_when_it_is_first_saved(tmp_path: Path):
    path, plugin = tmp_path / "last.ckpt", CheckpointIO()
    checkpoint = content() | {"callbacks": {"Mine": {"best": np.float64(3)}}}
    with pytest.raises(UserError, match=r"has a numpy\S+ in its state, but .* only tensors and"):
        plugin.save_checkpoint(checkpoint, path)
    assert not list(tmp_path.iterdir())
    plugin.save_checkpoint(content(), path)
    assert read_checkpoint(path)["loops"]["step"] == 7


def test_the_file_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """And the name is, before the method returns."""
    path = tmp_path / "last.ckpt"
    before = save(path, content())
    happened: list[str] = []
    replace = Path.replace

    def note_flush(descriptor: int) -> None:
        file = Path(f"/proc/self/fd/{descriptor}")
        happened.append(f"flush {file.readlink().name if sys.platform == 'linux' else '?'}")

    def note_replace(self: Path, target: Path) -> Path:
        assert path.read_bytes() == before
        happened.append(f"{self.name} -> {target.name}")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", note_flush)
    monkeypatch.setattr(Path, "replace", note_replace)
    save(path, content(1))
    if sys.platform == "linux":
        name = f"last.ckpt.{os.getpid()}.tmp"
        assert happened == [f"flush {name}", f"{name} -> last.ckpt", f"flush {tmp_path.name}"]


@pytest.mark.parametrize("fails", ["pickling", "writing", "flushing", "renaming"])
def test_a_failure_leaves_what_was_there(
    tmp_path: Path, fails: str, monkeypatch: pytest.MonkeyPatch
):
    path = tmp_path / "last.ckpt"
    before = save(path, content())
    checkpoint = content(1)

    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    def torchs_writer(checkpoint: Any, file: Any) -> None:
        file.write(b"PK")
        try:
            full()
        finally:
            raise RuntimeError("[enforce fail] unexpected pos 64\nfrom its C++\n")

    if fails == "pickling":
        checkpoint["function"] = lambda: None
    elif fails == "writing":
        monkeypatch.setattr(torch, "save", torchs_writer)
    elif fails == "flushing":
        monkeypatch.setattr(os, "fsync", full)
    else:
        monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(Exception, match="lambda" if fails == "pickling" else "No space"):
        save(path, checkpoint)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]
