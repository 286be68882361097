import signal
import threading
from contextlib import nullcontext
from pathlib import Path

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from trainings import quiet_trainer, random_windows, small_module

from lmbench.callbacks import stop_on_signal
from lmbench.callbacks.checkpoints import CheckpointIO, Checkpoints
from lmbench.callbacks.stop_on_signal import SIGNALS, StopOnSignal
from lmbench.errors import Interrupted, UserError
from lmbench.saved.checkpoint import read_checkpoint

WORDS, NUM_WINDOWS = 9, 8


class Sender(L.Callback):
    """Sends the process a signal at a place: a stage, an epoch and a window in it."""

    def __init__(self, signum: int, *place: object) -> None:
        self._signum, self._place = signum, place

    def _pass(self, *place: object) -> None:
        if place == self._place:
            signal.raise_signal(self._signum)

    def on_train_start(self, trainer, pl_module) -> None:
        self._pass("start")

    def on_before_optimizer_step(self, trainer, pl_module, optimizer) -> None:
        self._pass("train", trainer.current_epoch, trainer.global_step % NUM_WINDOWS)

    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, *_) -> None:
        self._pass("val", trainer.current_epoch, batch_idx)

    def on_test_batch_start(self, trainer, pl_module, batch, batch_idx, *_) -> None:
        self._pass("test", batch_idx)

    def on_test_end(self, trainer, pl_module) -> None:
        self._pass("end")


def run(folder: Path, stop: StopOnSignal, *callbacks: L.Callback) -> None:
    """Two epochs of eight windows, and a test of two."""
    module = small_module(WORDS)
    datamodule = random_windows(WORDS, 162, window=20)
    more = {"plugins": [CheckpointIO()], "enable_checkpointing": True, "max_epochs": 2}
    trainer = quiet_trainer(*callbacks, Checkpoints(folder), stop, **more)
    with stop:
        trainer.fit(module, datamodule=datamodule)
        trainer.test(module, datamodule=datamodule, verbose=False)


def test_under_nohup_a_closed_terminal_stops_nothing():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopOnSignal():
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            assert signal.getsignal(signal.SIGTERM) != signal.SIG_DFL
    finally:
        signal.signal(signal.SIGHUP, before)


def test_only_the_first_process_ends_with_an_error_when_all_is_done(
    monkeypatch: pytest.MonkeyPatch,
):
    """The others have nothing left to do, while it still writes the results."""
    for rank, ends in ((0, pytest.raises(Interrupted)), (1, nullcontext())):
        monkeypatch.setattr(stop_on_signal.rank_zero_only, "rank", rank)
        with ends, StopOnSignal():
            signal.raise_signal(signal.SIGTERM)


@pytest.mark.parametrize(
    ("signum", "place", "saved_step"),
    [
        (signal.SIGINT, ("start",), None),
        (signal.SIGTERM, ("start",), None),
        *((signum, ("train", 0, 2), 3) for signum in SIGNALS),  # the step under way is finished
        (signal.SIGUSR1, ("train", 1, 0), NUM_WINDOWS + 1),
        # with the validation that belongs to it
        (signal.SIGINT, ("train", 0, NUM_WINDOWS - 1), NUM_WINDOWS),
        (signal.SIGTERM, ("val", 0, 1), NUM_WINDOWS),
        (signal.SIGINT, ("val", 1, 1), 2 * NUM_WINDOWS),
        *((signum, ("test", 0), 2 * NUM_WINDOWS) for signum in SIGNALS),
        # when all is done: it is not forgotten, or a sweep would begin its next job
        (signal.SIGTERM, ("end",), 2 * NUM_WINDOWS),
    ],
)
def test_a_run_is_saved_and_stops_with_the_signals_number(
    tmp_path: Path, signum: signal.Signals, place: tuple, saved_step: int | None
):
    before = [signal.getsignal(each) for each in SIGNALS]
    with pytest.raises(Interrupted) as interrupted:
        run(tmp_path, StopOnSignal(), Sender(signum, *place))
    assert interrupted.value.signum == signum
    last = tmp_path / "last.ckpt"
    assert (read_checkpoint(last)["global_step"] if last.exists() else None) == saved_step
    assert [signal.getsignal(each) for each in SIGNALS] == before


@pytest.mark.parametrize("second", SIGNALS, ids=lambda signum: signum.name)
def test_a_second_signal_ends_the_process_at_once(
    second: signal.Signals, monkeypatch: pytest.MonkeyPatch
):
    codes: list[int] = []
    monkeypatch.setattr(stop_on_signal.os, "_exit", codes.append)

    def send_both() -> None:
        with StopOnSignal():
            signal.raise_signal(signal.SIGTERM)
            assert codes == []
            signal.raise_signal(second)

    with pytest.raises(Interrupted):  # since the patched _exit() does not end the process
        send_both()
    assert codes == [128 + second]


def test_a_run_without_a_signal_ends_as_usual(tmp_path: Path):
    run(tmp_path, StopOnSignal())
    assert read_checkpoint(tmp_path / "last.ckpt")["global_step"] == 2 * NUM_WINDOWS


def test_in_another_thread_signals_are_left_alone():
    """Python lets only the main thread handle them."""
    before = [signal.getsignal(each) for each in SIGNALS]
    entered = []

    def enter() -> None:
        with StopOnSignal():
            entered.append([signal.getsignal(each) for each in SIGNALS])

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert entered == [before]


def test_a_run_is_saved_also_where_a_model_checkpoint_comes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    saved = []
    monkeypatch.setattr(Checkpoints, "save", lambda *_, before_a_window: saved.append(True))

    class Trainer:
        world_size = 1
        checkpoint_callbacks = (ModelCheckpoint(tmp_path), Checkpoints(tmp_path))

    stop = StopOnSignal()
    stop._note(signal.SIGTERM, None)
    with pytest.raises(Interrupted):
        stop.on_train_batch_start(Trainer(), None, None, 3)
    assert saved == [True]


def test_one_process_of_two_gets_the_signal(monkeypatch: pytest.MonkeyPatch):
    """The other one stops at the same step, by the larger of the two signal numbers."""
    seen = []

    def all_reduce(tensor: torch.Tensor, operation: object) -> None:
        assert operation == torch.distributed.ReduceOp.MAX
        seen.append(int(tensor))
        tensor.fill_(max(int(tensor), signal.SIGTERM))

    monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)

    class Trainer:
        world_size, checkpoint_callbacks = 2, ()

    module = torch.nn.Linear(1, 1)
    module.device = torch.device("cpu")
    for hook in ("on_train_batch_start", "on_test_batch_start"):
        at_a_window = getattr(StopOnSignal(), hook)
        at_a_window(Trainer(), module, None, 3)
        assert seen == []  # between two agreements nobody waits for the others
        with pytest.raises(Interrupted) as interrupted:
            at_a_window(Trainer(), module, None, 10)
        assert seen == [0]
        assert interrupted.value.signum == signal.SIGTERM
        seen.clear()


def test_an_error_that_comes_after_a_signal_is_reported():
    def fail() -> None:
        with StopOnSignal():
            signal.raise_signal(signal.SIGTERM)
            raise UserError("The disk is full.")

    with pytest.raises(UserError, match="full"):
        fail()
