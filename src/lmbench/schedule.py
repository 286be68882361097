"""The length of a run, which a schedule over the whole of it has to know."""

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Timer

from lmbench.data.datamodule import LanguageModelDataModule
from lmbench.errors import UserError


def num_steps(trainer: L.Trainer) -> int | None:
    """Steps that a run has at most; None where their number is not limited."""
    connected: Any = trainer  # its connectors set what its class does not declare
    datamodule: LanguageModelDataModule = connected.datamodule
    if trainer.max_epochs is None or trainer.max_epochs < 0:
        return trainer.max_steps if trainer.max_steps >= 0 else None
    return datamodule.num_training_steps(
        trainer.max_epochs, connected.limit_train_batches, trainer.max_steps
    )


def require_num_steps(trainer: L.Trainer, made_for: int | None) -> None:
    """Refuses a schedule that a run would not follow to its end.

    Args:
        trainer: The trainer of the run.
        made_for: Steps that the schedule was made for; None for no given number.

    Raises:
        UserError: The run has another number of steps.
    """
    would_have = num_steps(trainer)
    if made_for == would_have:
        return
    before, now = (
        "no given number of steps" if number is None else f"{number:,} steps"
        for number in (made_for, would_have)
    )
    raise UserError(
        f"The schedule of the learning rate was made for {before}, but the run would have {now}. "
        "Leave trainer.max_epochs, max_steps and limit_train_batches as they were."
    )


def require_time_limit(trainer: L.Trainer) -> None:
    """Refuses a run without a limit of time, for a schedule that has followed the time so far.

    Raises:
        UserError: The run has none.
    """
    connected: Any = trainer
    if not any(isinstance(callback, Timer) for callback in connected.callbacks):
        raise UserError(
            "The schedule of the learning rate was made for a limit of time, but the run would "
            "have none. Leave trainer.max_time as it was."
        )
