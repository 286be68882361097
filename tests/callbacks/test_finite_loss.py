import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from trainings import quiet_trainer, random_windows, small_module

from lmbench.callbacks.checkpoints import CheckpointIO, Checkpoints
from lmbench.callbacks.finite_loss import FiniteLoss
from lmbench.errors import UserError
from lmbench.saved.checkpoint import read_checkpoint
from lmbench.training.module import LanguageModelModule

WORDS, NUM_WINDOWS = 9, 8


class Break(L.Callback):
    """Adds a value to the loss of a step, or sets a weight to it after the step."""

    def __init__(self, what: str, step: int, value: float) -> None:
        self._what, self._step, self._value = what, step, value

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        is_now = self._what == "loss" and trainer.global_step + 1 == self._step
        pl_module.extra = self._value if is_now else 0.0

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        if self._what == "weight" and trainer.global_step == self._step:
            with torch.no_grad():
                pl_module.model.embedding.weight[3, 1] = self._value


class Module(LanguageModelModule):
    extra = 0.0

    def training_step(self, batch, batch_idx) -> torch.Tensor:
        return super().training_step(batch, batch_idx) + self.extra


def fit(folder: Path, broken: Break) -> L.Trainer:
    """Two epochs of eight windows, with a checkpoint before each."""
    saving = Checkpoints(folder, interval_minutes=0)
    more = {"plugins": [CheckpointIO()], "enable_checkpointing": True}
    trainer = quiet_trainer(FiniteLoss(), broken, saving, max_epochs=2, **more)
    trainer.fit(small_module(WORDS, kind=Module), datamodule=random_windows(WORDS, 162))
    return trainer


@pytest.mark.parametrize("what", ["loss", "weight"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("step", [3, NUM_WINDOWS, NUM_WINDOWS + 1])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # a validation of such weights
def test_the_run_stops_at_the_step_and_keeps_what_was_saved(
    tmp_path: Path, what: str, step: int, value: float
):
    """Weights that are not finite are saved neither during an epoch nor at its end."""
    message = (
        rf"(step {step} is {value}|after step {step}) \(epoch {(step - 1) // NUM_WINDOWS + 1}, lr"
    )
    with pytest.raises(UserError, match=message):
        fit(tmp_path, Break(what, step, value))
    assert read_checkpoint(tmp_path / "last.ckpt")["global_step"] == step - 1


def test_a_run_whose_losses_are_finite_is_left_alone(tmp_path: Path):
    assert fit(tmp_path, Break("loss", 3, 1e30)).global_step == 2 * NUM_WINDOWS


@pytest.mark.parametrize("interval", [0, 4])
def test_on_a_gpu_only_losses_that_are_logged_are_checked(interval: int):
    """Otherwise the step would have to wait for the GPU."""
    loss: Any = SimpleNamespace(device=torch.device("cuda"), item=lambda: math.nan)
    loss.detach, loss.isfinite = lambda: loss, lambda: False
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    trainer: Any = SimpleNamespace(optimizers=[optimizer], current_epoch=2)
    trainer.log_every_n_steps, callback = interval, FiniteLoss()
    for trainer.global_step in (5, 6, 7):
        callback.on_train_batch_end(trainer, trainer, {"loss": loss}, trainer, 0)
    trainer.global_step = 8
    if interval:
        with pytest.raises(UserError, match=r"step 8 is nan \(epoch 3, lr 0\.5\).*optimizer\.lr"):
            callback.on_train_batch_end(trainer, trainer, {"loss": loss}, trainer, 0)
    else:
        callback.on_train_batch_end(trainer, trainer, {"loss": loss}, trainer, 0)
