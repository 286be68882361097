import signal
import threading
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch

from lmbench.callbacks import stop_on_signal
from lmbench.callbacks.checkpoint_io import AtomicCheckpointIO
from lmbench.callbacks.checkpoints import Checkpoints
from lmbench.callbacks.stop_on_signal import SIGNALS, StopOnSignal
from lmbench.data.corpus import Corpus
from lmbench.data.datamodule import LanguageModelDataModule
from lmbench.data.vocabulary import Vocabulary
from lmbench.errors import Interrupted, UserError
from lmbench.model import LSTM, Embedding, LanguageModel, Softmax
from lmbench.module import LanguageModelModule
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


def run(folder: Path, stop: StopOnSignal, *callbacks: L.Callback) -> None:
    """Two epochs of eight windows, and a test of two."""
    torch.manual_seed(0)
    ids = np.random.default_rng(0).integers(0, WORDS, 162, dtype=np.int32)
    corpus = Corpus("text", Vocabulary(tuple("abcdefghi")), ids, ids[:40], ids[40:80])
    datamodule = LanguageModelDataModule(
        corpus, batch_size=2, bptt=10, evaluation_columns=1, evaluation_window=20
    )
    model = LanguageModel(Embedding(WORDS, 4), LSTM(4, 4), Softmax(4, WORDS))
    module = LanguageModelModule(model, lambda parameters: torch.optim.SGD(parameters, lr=0.1))
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=2,
        callbacks=[*callbacks, Checkpoints(folder), stop],
        plugins=[AtomicCheckpointIO()],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        reload_dataloaders_every_n_epochs=1,
    )
    with stop:
        trainer.fit(module, datamodule=datamodule)
        trainer.test(module, datamodule=datamodule, verbose=False)


@pytest.mark.parametrize("signum", SIGNALS, ids=lambda signum: signum.name)
@pytest.mark.parametrize(
    ("place", "saved_step"),
    [
        (("train", 0, 2), 3),  # the step that is under way is finished
        (("train", 1, 0), NUM_WINDOWS + 1),
        (("train", 0, NUM_WINDOWS - 1), NUM_WINDOWS),  # with the validation that belongs to it
        (("val", 0, 1), NUM_WINDOWS),
        (("val", 1, 1), 2 * NUM_WINDOWS),
        (("test", 0), 2 * NUM_WINDOWS),
    ],
)
def test_a_run_is_saved_and_stops_with_the_signals_number(
    tmp_path: Path, signum: signal.Signals, place: tuple, saved_step: int
):
    before = [signal.getsignal(each) for each in SIGNALS]
    with pytest.raises(Interrupted) as interrupted:
        run(tmp_path, StopOnSignal(), Sender(signum, *place))
    assert interrupted.value.signum == signum
    assert read_checkpoint(tmp_path / "last.ckpt")["global_step"] == saved_step
    assert [signal.getsignal(each) for each in SIGNALS] == before


@pytest.mark.parametrize("signum", SIGNALS, ids=lambda signum: signum.name)
def test_before_the_first_step_there_is_nothing_to_save(tmp_path: Path, signum: signal.Signals):
    with pytest.raises(Interrupted):
        run(tmp_path, StopOnSignal(), Sender(signum, "start"))
    assert not (tmp_path / "last.ckpt").exists()


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

    with pytest.raises(Interrupted):  # as that _exit() does not end anything
        send_both()
    assert codes == [128 + second]


def test_a_run_without_a_signal_ends_as_ever(tmp_path: Path):
    run(tmp_path, StopOnSignal())
    assert read_checkpoint(tmp_path / "last.ckpt")["global_step"] == 2 * NUM_WINDOWS


def test_in_another_thread_signals_are_left_alone():
    """Python lets only the main thread answer them."""
    before = [signal.getsignal(each) for each in SIGNALS]
    entered = []

    def enter() -> None:
        with StopOnSignal():
            entered.append([signal.getsignal(each) for each in SIGNALS])

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert entered == [before]


def test_one_process_of_two_gets_the_signal(monkeypatch: pytest.MonkeyPatch):
    """And the other one stops at the same step, by the largest of both numbers."""
    seen = []

    def all_reduce(tensor: torch.Tensor, operation: object) -> None:
        assert operation == torch.distributed.ReduceOp.MAX
        seen.append(int(tensor))
        tensor.fill_(max(int(tensor), signal.SIGTERM))

    monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)

    class Trainer:
        world_size, checkpoint_callback = 2, None

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


def test_a_signal_that_comes_when_all_is_done_is_not_forgotten(tmp_path: Path):
    """A sweep would go on to its next job."""

    class AtTheEnd(L.Callback):
        def on_test_end(self, trainer, pl_module) -> None:
            signal.raise_signal(signal.SIGTERM)

    before = [signal.getsignal(each) for each in SIGNALS]
    with pytest.raises(Interrupted) as interrupted:
        run(tmp_path, StopOnSignal(), AtTheEnd())
    assert interrupted.value.signum == signal.SIGTERM
    assert [signal.getsignal(each) for each in SIGNALS] == before


def test_an_error_that_comes_after_a_signal_is_told():

    def fail() -> None:
        with StopOnSignal():
            signal.raise_signal(signal.SIGTERM)
            raise UserError("The disk is full.")

    with pytest.raises(UserError, match="full"):
        fail()
