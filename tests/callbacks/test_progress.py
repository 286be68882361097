import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.trainer.states import TrainerFn
from trainings import Scripted, quiet_trainer, random_windows, small_module

from lmbench.callbacks import progress
from lmbench.callbacks.checkpoints import Checkpoints
from lmbench.callbacks.progress import Progress
from lmbench.callbacks.time_limit import TimeLimit
from lmbench.terminal import live_line


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The lines that the callback has logged so far."""
    messages: list[str] = []
    log = SimpleNamespace(
        info=lambda text, *values: messages.append(text % values if values else text)
    )
    for module in (progress, live_line):
        monkeypatch.setattr(module, "log", log)
    return messages


def tick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes each look at the clock take ten seconds."""
    now = iter(range(0, 10**6, 10))
    monkeypatch.setattr(live_line, "time", SimpleNamespace(monotonic=lambda: float(next(now))))


def after_validation(*, is_global_zero: bool = True) -> Any:
    figures = {"train/ppl": 101.26, "train/tokens_per_second": 45_678.9, "train/seconds": 90.0}
    metrics = figures | {"val/nll": math.log(98.7654), "val/ppl": 98.7654}
    return SimpleNamespace(
        is_global_zero=is_global_zero,
        state=SimpleNamespace(fn=TrainerFn.FITTING),
        current_epoch=3,
        max_epochs=20,
        callback_metrics={name: torch.tensor(value) for name, value in metrics.items()},
    )


def test_only_the_first_of_several_processes_logs_it(lines: list[str]):
    Progress().on_validation_end(after_validation(is_global_zero=False), small_module(9))
    assert lines == []


def test_training_logs_what_begins_and_a_line_per_validation(lines: list[str]):
    module, datamodule = small_module(9, kind=Scripted), random_windows(9, 80)
    module.script = [3.0, 3.0, 2.0]
    trainer = quiet_trainer(Progress(), max_epochs=3, log_every_n_steps=2)
    trainer.fit(module, datamodule=datamodule)
    ppl = float(trainer.callback_metrics["val/ppl"])
    trainer.validate(module, datamodule=datamodule, verbose=False)
    trainer.test(module, datamodule=datamodule, verbose=False)
    corpus, model, *epochs = lines
    assert corpus.endswith(" 80 train, 40 valid, 40 test; 9 words")
    assert model.startswith(f"{module.model.num_parameters:,} parameters on cpu (threads: ")
    assert model.endswith(", 32-true; 4 steps per epoch")
    assert [line.partition(":")[0] for line in epochs] == [f"epoch {k}/3" for k in (1, 2, 3)]
    assert ["(best)" in line for line in epochs] == [True, False, True]
    assert f"valid {ppl:.2f} (best)" in epochs[2]


def test_without_a_terminal_there_is_a_line_every_minute(
    lines: list[str], monkeypatch: pytest.MonkeyPatch
):
    """The time left is known from the start."""
    tick(monkeypatch)
    trainer = quiet_trainer(Progress(), max_epochs=2)
    trainer.fit(small_module(9), datamodule=random_windows(9, 400))
    assert any(line.startswith("This will take about ") for line in lines)
    within = [line for line in lines if line.startswith("epoch 2/2, ")]
    assert len(within) >= 2
    assert all(" left" in line for line in within[:-1])


def test_a_resumed_run_with_a_limit_of_steps_says_what_is_left(
    lines: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    tick(monkeypatch)
    datamodule, last = random_windows(9, 400), None
    for max_steps in (2, 12):
        checkpoints = Checkpoints(tmp_path)
        limits = {"max_epochs": -1, "max_steps": max_steps, "enable_checkpointing": True}
        trainer = quiet_trainer(Progress(), checkpoints, **limits)
        trainer.fit(small_module(9), datamodule=datamodule, ckpt_path=last)
        last = tmp_path / "last.ckpt"
    within = [line for line in lines if line.startswith("epoch 2, ")]
    assert len(within) >= 2
    assert all(" left" in line for line in within[:-1])


def test_a_run_with_a_time_limit_says_how_much_of_it_is_left(
    lines: list[str], monkeypatch: pytest.MonkeyPatch
):
    """Whichever limit is nearer: the time, or the steps."""
    tick(monkeypatch)
    for max_epochs, spent in ((-1, 0.5), (4, 0.125)):
        shown, limit = Progress(), TimeLimit("00:01:00:00")
        monkeypatch.setattr(TimeLimit, "share", spent)
        trainer = quiet_trainer(shown, limit, max_epochs=max_epochs, max_steps=4)
        trainer.fit(small_module(9), datamodule=random_windows(9, 400))
        shown._num_steps = 16
        assert shown._share_of_training(trainer) == max(spent, 4 / 16)
