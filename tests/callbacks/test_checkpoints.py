"""A run that was stopped and goes on, against one that never stopped: the same to the last bit."""

import csv
import errno
import json
import math
import os
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
from torch import Tensor
from torch.optim.lr_scheduler import OneCycleLR

from lmbench.callbacks import checkpoints
from lmbench.callbacks.checkpoint_io import AtomicCheckpointIO
from lmbench.callbacks.checkpoints import Checkpoints
from lmbench.callbacks.finite_loss import FiniteLoss
from lmbench.callbacks.metrics_csv import MetricsCSV
from lmbench.callbacks.nt_asgd import NTASGD
from lmbench.callbacks.progress import Progress
from lmbench.callbacks.results import Results
from lmbench.callbacks.throughput import Throughput
from lmbench.callbacks.time_limit import TimeLimit
from lmbench.data.corpus import Corpus
from lmbench.data.datamodule import LanguageModelDataModule
from lmbench.data.vocabulary import Vocabulary
from lmbench.errors import UserError
from lmbench.model import AWDLSTM, LSTM, Embedding, LanguageModel, Softmax
from lmbench.module import LanguageModelModule
from lmbench.optim import ASGD
from lmbench.saved.checkpoint import read_checkpoint

WORDS = 11
SCORES = [1.0, 0.5, 2.0, 3.0]  # with n = 1 the third validation is the first to switch
BEST, SWITCH, NUM_EPOCHS = 1, 2, 4

Place = tuple[str, int, int]


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


class Killed(BaseException):
    """Nobody catches it."""


class Killer(L.Callback):
    """Lets the time for a checkpoint come at a window, and ends the run at another place.

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


class Scripted(L.Callback):
    """Scores of our choice, epoch by epoch."""

    def on_validation_epoch_end(self, trainer, pl_module) -> None:
        pl_module.log("scripted", SCORES[trainer.current_epoch])


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


def make_datamodule() -> LanguageModelDataModule:
    generator = np.random.default_rng(0)
    train, valid, test = (
        generator.integers(0, WORDS, length, dtype=np.int32) for length in (140, 40, 30)
    )
    vocabulary = Vocabulary(tuple(f"w{index}" for index in range(WORDS)))
    return LanguageModelDataModule(
        Corpus("text", vocabulary, train, valid, test),
        batch_size=2,
        bptt=12,
        variable_windows=True,
        evaluation_columns=1,
        evaluation_window=20,
        seed=5,
    )


def one_cycle(optimizer: torch.optim.Optimizer, total_steps: int) -> OneCycleLR:
    return OneCycleLR(optimizer, 2.0, total_steps, cycle_momentum=True)


def make_module(model: str) -> LanguageModelModule:
    embedding, head = Embedding(WORDS, 4, dropout=0.2), Softmax(4, WORDS)
    if model == "lstm":
        core = LSTM(4, 5, 4, dropout=0.3)
        optimizer = partial(torch.optim.SGD, lr=2.0, momentum=0.9)
        return LanguageModelModule(
            LanguageModel(embedding, core, head, tied=True), optimizer, one_cycle
        )
    core = AWDLSTM(
        4, 5, 4, 2, input_dropout=0.3, hidden_dropout=0.2, output_dropout=0.3, weight_dropout=0.4
    )
    averaged_sgd = partial(ASGD, lr=2.0, weight_decay=1e-3)
    return LanguageModelModule(
        LanguageModel(embedding, core, head, tied=True), averaged_sgd, ar_alpha=2.0, tar_beta=1.0
    )


def run(
    folder: Path,
    model: str,
    *more: L.Callback,
    go_on: bool = False,
    interval_minutes: float = 10.0,
    average_from_start: bool = False,
    **options: Any,
) -> Run:
    """Trains and tests; a run that goes on begins with other weights and other chances."""
    torch.manual_seed(99 if go_on else 0)
    saving = Checkpoints(
        folder / "checkpoints", monitor="scripted", interval_minutes=interval_minutes
    )
    recorder = Recorder()
    results = Results(folder, model_name=model, seed=0, hyperparameters={})
    averaging = NTASGD(1, "scripted", average_from_start=average_from_start)
    switching = [averaging] if model == "awd_lstm" else []
    defaults = {"max_epochs": NUM_EPOCHS, "log_every_n_steps": 2}
    trainer = L.Trainer(
        accelerator="cpu",
        callbacks=[
            *(Scripted(), recorder, Throughput(), Progress(), FiniteLoss()),
            *(saving, *switching, results, *more),
        ],
        plugins=[AtomicCheckpointIO()],
        logger=MetricsCSV(folder),
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        reload_dataloaders_every_n_epochs=1,
        gradient_clip_val=0.25,
        **(defaults | options),
    )
    module, datamodule = make_module(model), make_datamodule()
    last = folder / "checkpoints" / "last.ckpt" if go_on else None
    trainer.fit(module, datamodule=datamodule, ckpt_path=last)
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
    """Runs that are let alone; each is made once."""
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


# Where the last checkpoint is saved, None for that of an epoch's end, and where the run is killed.
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


@pytest.mark.parametrize(
    ("model", "place"),
    [
        *(("awd_lstm", place) for place in PLACES),
        ("lstm", "first epoch"),
        ("lstm", "epoch's first window"),
        ("lstm", "test"),
    ],
)
def test_a_killed_run_goes_on_to_the_last_bit(
    whole: Whole, tmp_path: Path, clock: Clock, model: str, place: str
):
    """Weights, averages, optimizer, schedule, chances, metrics and results."""
    folder, reference = whole(model)
    kill(tmp_path, model, clock, *PLACES[place])
    resumed = run(tmp_path, model, go_on=True)
    assert_same_run(tmp_path, folder)
    number = len(resumed.recorder.weights)
    if place == "test":
        assert number == 0
    else:
        found, expected = resumed.recorder.weights, reference.recorder.weights[-number:]
        assert not unequal(found, expected)  # the raw iterates
    optimizer = reference.trainer.optimizers[0]
    assert type(optimizer) is (ASGD if model == "awd_lstm" else torch.optim.SGD)


def test_there_are_chances_to_go_wrong(whole: Whole):
    """The runs above differ between the models and between epochs, and have what they should."""
    folder, reference = whole("awd_lstm")
    assert len(set(reference.recorder.num_windows)) > 1
    last = read_checkpoint(folder / "checkpoints" / "last.ckpt")
    assert last["callbacks"]["NTASGD"]["triggered_epoch"] == SWITCH
    assert reference.recorder.num_windows[SWITCH + 1] > 5  # and the average is over some of them
    averages, raw = last["state_dict"], last["callbacks"]["NTASGD"]["raw"]
    assert unequal(averages, raw)
    assert not unequal(raw, reference.recorder.weights[-1])
    (process,) = last["processes"]
    assert any(part.abs().max() > 0 for layer in process["stream"]["state"] for part in layer)


def test_a_run_that_is_killed_again_and_again(whole: Whole, tmp_path: Path, clock: Clock):
    folder, _ = whole("awd_lstm")
    go_on = False
    for save_at, die_at in PLACES.values():
        kill(tmp_path, "awd_lstm", clock, save_at, die_at, go_on=go_on)
        go_on = True
    run(tmp_path, "awd_lstm", go_on=True)
    assert_same_run(tmp_path, folder)


@pytest.mark.parametrize("place", ["first epoch", "epoch's first window", "averaging"])
def test_a_killed_finetuning_goes_on_to_the_last_bit(
    whole: Whole, tmp_path: Path, clock: Clock, place: str
):
    """Its averages, which it scores, and the iterates, which it trains."""
    folder, reference = whole("awd_lstm", average_from_start=True)
    kill(tmp_path, "awd_lstm", clock, *PLACES[place], average_from_start=True)
    resumed = run(tmp_path, "awd_lstm", go_on=True, average_from_start=True)
    assert_same_run(tmp_path, folder)
    number = len(resumed.recorder.weights)
    assert not unequal(resumed.recorder.weights, reference.recorder.weights[-number:])


@pytest.mark.parametrize("place", ["first epoch", "epoch's first window", "averaging", "test"])
def test_a_limit_of_steps_that_is_not_reached_changes_nothing(
    whole: Whole, tmp_path: Path, clock: Clock, place: str
):
    """Lightning takes up its loops in another way where there is one."""
    folder, _ = whole("awd_lstm", max_steps=1000)
    kill(tmp_path, "awd_lstm", clock, *PLACES[place], max_steps=1000)
    run(tmp_path, "awd_lstm", go_on=True, max_steps=1000)
    assert_same_run(tmp_path, folder)


@pytest.mark.parametrize(
    ("options", "places"),
    [
        ({"max_steps": 10}, (("train", 1, 1), ("train", 1, 2))),
        ({"max_steps": 10}, (None, ("train", 1, 0))),
        ({"max_steps": 10}, (None, ("test", NUM_EPOCHS, 0))),
        ({"limit_train_batches": 3}, (("train", 1, 1), ("train", 1, 2))),
        ({"limit_train_batches": 3}, (None, ("train", 2, 0))),
    ],
)
def test_epochs_that_are_cut_short(
    whole: Whole, tmp_path: Path, clock: Clock, options: dict, places: tuple
):
    folder, reference = whole("lstm", **options)
    kill(tmp_path, "lstm", clock, *places, **options)
    run(tmp_path, "lstm", go_on=True, **options)
    assert_same_run(tmp_path, folder)
    assert reference.recorder.num_windows[0] > 3 or "limit_train_batches" in options


def test_a_finished_run_that_goes_on_is_as_it_was(whole: Whole, tmp_path: Path):
    folder, _ = whole("lstm")
    run(tmp_path, "lstm")
    files = [tmp_path / "metrics.csv", *(tmp_path / "checkpoints").iterdir()]
    before = {path: path.read_bytes() for path in files}
    run(tmp_path, "lstm", go_on=True)
    assert {path: path.read_bytes() for path in files} == before
    assert_same_run(tmp_path, folder)


def test_more_epochs_are_those_that_a_longer_run_would_have_had(whole: Whole, tmp_path: Path):
    folder, _ = whole("awd_lstm")
    run(tmp_path, "awd_lstm", max_epochs=2)
    run(tmp_path, "awd_lstm", go_on=True)
    assert_same_run(tmp_path, folder)


def test_a_schedule_cannot_be_followed_over_more_or_fewer_steps(tmp_path: Path, clock: Clock):
    kill(tmp_path, "lstm", clock, *PLACES["first epoch"])
    for max_epochs in (NUM_EPOCHS - 1, NUM_EPOCHS + 1):
        with pytest.raises(UserError, match=r"made for \d+ steps, but the run would have \d+"):
            run(tmp_path, "lstm", go_on=True, max_epochs=max_epochs)


def test_fewer_steps_than_a_run_has_had_since_its_validation_are_refused(
    tmp_path: Path, clock: Clock
):
    kill(tmp_path, "awd_lstm", clock, *PLACES["first epoch"])
    for max_steps in (1, 2):
        with pytest.raises(UserError, match=r"had 2 steps already.*Set trainer\.max_steps higher"):
            run(tmp_path, "awd_lstm", go_on=True, max_steps=max_steps)
    resumed = run(tmp_path, "awd_lstm", go_on=True, max_steps=3)
    assert resumed.trainer.global_step == 3
    assert len(resumed.recorder.weights) == 1


def test_a_run_whose_time_is_over_within_an_epoch_validates_what_it_has(
    tmp_path: Path, clock: Clock
):
    kill(tmp_path, "awd_lstm", clock, *PLACES["first epoch"])
    resumed = run(tmp_path, "awd_lstm", TimeLimit({"microseconds": 1}), go_on=True)
    assert resumed.trainer.global_step == 3  # one more than the checkpoint has
    assert len(resumed.recorder.weights) == 1


def test_the_best_checkpoint_is_that_of_the_best_epoch(whole: Whole):
    folder, reference = whole("awd_lstm")
    best = read_checkpoint(folder / "checkpoints" / "best.ckpt")
    assert best["epoch"] == BEST
    assert not unequal(best["state_dict"], reference.recorder.weights[BEST])
    assert unequal(best["state_dict"], reference.recorder.weights[BEST + 1])


@pytest.mark.parametrize(
    ("scores", "best_epoch"),
    [([math.nan, 2.0, math.nan, 1.5], 3), ([2.0, 2.0, math.nan, 3.0], 0), ([math.inf] * 4, None)],
)
def test_a_score_that_is_no_better_or_not_finite_is_not_the_best(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scores: list, best_epoch: int | None
):
    monkeypatch.setattr(f"{__name__}.SCORES", scores)
    best = tmp_path / "checkpoints" / "best.ckpt"
    if best_epoch is None:
        with pytest.raises(UserError, match="cannot be read"):
            run(tmp_path, "lstm")
    else:
        run(tmp_path, "lstm")
        assert read_checkpoint(best)["epoch"] == best_epoch


def test_an_unknown_metric_is_named(tmp_path: Path):
    saving = Checkpoints(tmp_path, monitor="val/acc", interval_minutes=0)
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=1,
        callbacks=[saving],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        reload_dataloaders_every_n_epochs=1,
    )
    with pytest.raises(UserError, match=r"monitor=val/acc is no metric\. .* val/nll, val/ppl"):
        trainer.fit(make_module("lstm"), datamodule=make_datamodule())


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
    assert last[0] == previous[0] == previous[1] == b""  # none before the first window of all
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


def test_another_number_of_processes_is_refused(tmp_path: Path, clock: Clock):
    kill(tmp_path, "lstm", clock, *PLACES["first epoch"])
    last = tmp_path / "checkpoints" / "last.ckpt"
    checkpoint = read_checkpoint(last)
    torch.save(checkpoint | {"processes": checkpoint["processes"] * 2}, last)
    with pytest.raises(
        UserError, match=r"trained by 2 process\(es\), not 1\. Set trainer\.devices"
    ):
        run(tmp_path, "lstm", go_on=True)


def test_rows_that_are_gone_are_missed(tmp_path: Path, clock: Clock):
    kill(tmp_path, "lstm", clock, *PLACES["averaging"])
    path = tmp_path / "metrics.csv"
    lines = path.read_text("utf-8").splitlines(keepends=True)
    path.write_text("".join(lines[:3]), "utf-8")
    with pytest.raises(UserError, match=r"metrics\.csv has 2 rows, but had \d+"):
        run(tmp_path, "lstm", go_on=True)
    assert path.read_text("utf-8") == "".join(lines[:3])


def test_rows_after_the_checkpoint_are_forgotten(tmp_path: Path, clock: Clock):
    kill(tmp_path, "lstm", clock, *PLACES["first epoch"])
    with (tmp_path / "metrics.csv").open(encoding="utf-8") as file:
        assert len(list(csv.DictReader(file))) == 2  # after the second and the fourth window
    (saved,) = read_checkpoint(tmp_path / "checkpoints" / "last.ckpt")["csv"]
    assert saved["metrics"]["num_rows"] == 1


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
    with pytest.raises(UserError, match=r"new\.ckpt cannot be written: No space left"):
        run(tmp_path, "lstm", go_on=True, interval_minutes=0)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_nothing_is_left_of_two_names_for_one_file(tmp_path: Path):
    """As a kill between two renames leaves them."""
    last, previous = tmp_path / "last.ckpt", tmp_path / "previous.ckpt"
    last.write_text("saved")
    for _ in range(2):
        checkpoints._link(last, previous)
        assert previous.read_text() == "saved"
        assert {path.name for path in tmp_path.iterdir()} == {"last.ckpt", "previous.ckpt"}


def test_an_interval_below_zero_is_refused(tmp_path: Path):
    for interval in (-1.0, math.nan):
        with pytest.raises(ValueError, match="interval_minutes must not be negative"):
            Checkpoints(tmp_path, interval_minutes=interval)


def test_a_file_system_without_hard_links_gets_copies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    (tmp_path / "last.ckpt").write_bytes(b"new")
    (tmp_path / "previous.ckpt").write_bytes(b"old")
    checkpoints._link(tmp_path / "last.ckpt", tmp_path / "previous.ckpt")
    assert (tmp_path / "previous.ckpt").read_bytes() == b"new"
    assert {path.name for path in tmp_path.iterdir()} == {"last.ckpt", "previous.ckpt"}


def test_processes_with_other_folders_are_refused_before_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """As of commands that Slurm starts in two seconds, each with the time in its folder's name."""
    folders: list[str] = []

    def all_gather_object(everyone: list, mine: str) -> None:
        everyone[:] = [mine, *folders]

    monkeypatch.setattr(torch.distributed, "all_gather_object", all_gather_object)
    trainer: Any = SimpleNamespace(world_size=2)
    folders[:] = [str(tmp_path / "a")]
    Checkpoints(tmp_path / "a").on_fit_start(trainer, None)  # pyright: ignore
    with pytest.raises(UserError, match=r"different folders: .*/a, .*/b\. .* hydra\.run\.dir=DIR"):
        Checkpoints(tmp_path / "b").on_fit_start(trainer, None)  # pyright: ignore


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL])
def test_a_file_system_without_hard_links_has_all_checkpoints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
):
    def link(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", link)
    run(tmp_path, "lstm")
    names = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert names == {"last.ckpt", "previous.ckpt", "best.ckpt"}
