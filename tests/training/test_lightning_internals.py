"""Canaries: the Lightning internals that lmbench uses still exist and mean the same.

Each is small and runs against the real Lightning. If one fails after an update, the function of the
same name in ``lightning_internals.py`` has to be changed.
"""

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies.launchers.subprocess_script import _SubprocessScriptLauncher
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.optim.lr_scheduler import StepLR
from trainings import quiet_trainer, random_windows, small_module

from lmbench.errors import UserError
from lmbench.training import lightning_internals as internals
from lmbench.training.module import LanguageModelModule

WORDS, NUM_WINDOWS = 9, 8


class At(L.Callback):
    """Does something when a window of the first epoch is about to begin."""

    def __init__(self, window: int, act: Any) -> None:
        self._window, self._act = window, act

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        if (trainer.current_epoch, batch_idx) == (0, self._window):
            self._act(trainer)


def fit(*callbacks: L.Callback, module: Any = None, path: Path | None = None, **options) -> Any:
    saves = any(isinstance(callback, ModelCheckpoint) for callback in callbacks)
    defaults = {"max_epochs": 2, "enable_checkpointing": saves}
    trainer = quiet_trainer(*callbacks, **(defaults | options))
    module, datamodule = module or small_module(WORDS), random_windows(WORDS, 162)
    trainer.fit(module, datamodule=datamodule, ckpt_path=path, weights_only=False)
    return trainer


def test_forget_logged():
    class Module(LanguageModelModule):
        def on_train_batch_end(self, outputs, batch, batch_idx) -> None:
            self.log("of_this_step", float(batch_idx))
            self.log("of_epoch", float(batch_idx), on_step=False, on_epoch=True, batch_size=1)
            if batch_idx > 0:
                internals.forget_logged(self.trainer)

    trainer = fit(module=small_module(WORDS, kind=Module), max_steps=3, log_every_n_steps=1)
    assert trainer.logged_metrics["of_this_step"] == 0.0
    assert trainer.logged_metrics["of_epoch"] == 1.0  # the mean of 0, 1 and 2


@pytest.mark.parametrize(("max_steps", "expected"), [(-1, 2 * NUM_WINDOWS), (7, 7)])
def test_set_max_steps(max_steps: int, expected: int):
    changed = At(0, lambda trainer: internals.set_max_steps(trainer, max_steps))
    trainer = fit(changed, max_steps=5)
    assert (trainer.max_steps, trainer.global_step) == (max_steps, expected)


def test_resumes_within_epoch_after_uncount_window(tmp_path: Path):
    """A resume from before the fourth window continues with that window, and counts it once."""
    within, end = tmp_path / "within.ckpt", tmp_path / "end.ckpt"

    class Saves(L.Callback):
        def on_save_checkpoint(self, trainer, pl_module, checkpoint) -> None:
            if checkpoint["global_step"] == 3:
                internals.uncount_window(checkpoint)

        def on_train_epoch_end(self, trainer, pl_module) -> None:
            trainer.save_checkpoint(end)

    fit(At(3, lambda trainer: trainer.save_checkpoint(within)), Saves(), max_epochs=1)
    for path, is_within in ((within, True), (end, False)):
        seen, windows = [], []

        class Notes(L.Callback):
            def on_train_start(self, trainer, pl_module, seen=seen) -> None:
                seen.append(internals.resumes_within_epoch(trainer))

            def on_train_batch_start(self, trainer, *args, windows=windows) -> None:
                windows.append((trainer.current_epoch, args[-1]))

        trainer = fit(Notes(), path=path)
        assert seen == [is_within]
        assert windows[0] == ((0, 3) if is_within else (1, 0))
        assert trainer.global_step == 2 * NUM_WINDOWS


@pytest.mark.parametrize(("max_steps", "expected"), [(-1, [8, 8]), (11, [8, 3])])
def test_num_windows_done(max_steps: int, expected: list[int]):
    seen = []

    class Notes(L.Callback):
        def on_train_epoch_end(self, trainer, pl_module) -> None:
            seen.append(internals.num_windows_done(trainer))

    fit(Notes(), max_steps=max_steps)
    assert seen == expected


def test_replace_optimizer():
    """From the fourth window on no weight moves: the new optimizer steps, at a rate of 0."""
    weights = []

    def replace(trainer: L.Trainer) -> None:
        new = torch.optim.SGD(trainer.lightning_module.parameters(), lr=0.0)
        internals.replace_optimizer(trainer, new)
        assert trainer.optimizers == [new]
        (config,) = trainer.lr_scheduler_configs
        assert config.scheduler.optimizer is new
        weights.append(trainer.lightning_module.model.head.bias.clone())

    module = small_module(WORDS)
    start = module.model.head.bias.clone()
    module._make_scheduler = lambda optimizer, total_steps: StepLR(optimizer, 1, 1.0)
    fit(At(3, replace), module=module)
    assert not torch.equal(start, weights[0])
    assert torch.equal(module.model.head.bias, weights[0])


def test_purge_tensorboard(tmp_path: Path):
    """Steps from the given one on are forgotten, even those in another process's file."""
    for numbers, first_step in (((1, 2, 3), None), ((9,), 2)):
        logger = TensorBoardLogger(tmp_path, name="", version="")
        if first_step is not None:
            internals.purge_tensorboard(quiet_trainer(logger=logger), first_step)
        for step, number in enumerate(numbers, start=first_step or 1):
            logger.log_metrics({"value": float(number)}, step)
        logger.finalize("success")
        if first_step is None:  # files of one second may be read in the wrong order: 10 before 9
            next(tmp_path.glob("events*")).rename(tmp_path / "events.out.tfevents.0")
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("value")] == [(1, 1.0), (2, 9.0)]


def started_process(trainer: L.Trainer) -> subprocess.Popen:
    """A process that waits forever, as if Lightning had started it for this trainer."""
    launcher = trainer.strategy.launcher
    assert isinstance(launcher, _SubprocessScriptLauncher)
    process = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
    launcher.procs.append(process)
    return process


@pytest.mark.parametrize("is_alone", [True, False])
def test_processes_ending_together(is_alone: bool):
    """An error in one process ends those that would wait for it; success leaves them alone."""
    several = {} if is_alone else {"devices": 2, "strategy": "ddp"}
    trainer = quiet_trainer(**several)
    if not is_alone:
        trainer.strategy._configure_launcher()
    process = None if is_alone else started_process(trainer)
    with internals.processes_ending_together(trainer):
        pass
    assert process is None or process.poll() is None
    with pytest.raises(UserError, match="full"), internals.processes_ending_together(trainer):
        raise UserError("The disk is full.")
    if process is not None:
        assert process.wait(20) == -signal.SIGKILL
        assert trainer.strategy.launcher.procs == []  # or its thread would kill this process too
