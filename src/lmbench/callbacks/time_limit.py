"""Ends training when its time is up, with the learning rate at its end too."""

from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Timer
from lightning.pytorch.trainer.states import TrainerFn

from lmbench.optim.phased_lr import PhasedLR
from lmbench.training.lightning_internals import resumes_within_epoch


class TimeLimit(Timer):
    """Ends training after ``trainer.max_time``, within an epoch if need be.

    A schedule in phases (:class:`lmbench.optim.PhasedLR`) goes through them as the time passes.
    What counts is the wall-clock time of the fit, validation and saving included, over all parts of
    a run that was stopped and resumed, from the first that had a limit. The steps that fit into the
    time, and so the result, differ from run to run. The main process's clock counts.

    Args:
        max_time: ``"DD:HH:MM:SS"``, or the arguments of a ``timedelta``, e.g. ``{"minutes": 60}``.

    Raises:
        ValueError: ``max_time`` is neither, or not above zero.
    """

    def __init__(self, max_time: str | dict) -> None:
        try:
            super().__init__(max_time, verbose=False)
        except (MisconfigurationException, TypeError) as error:
            raise ValueError(
                f"max_time must be DD:HH:MM:SS (20 minutes: 00:00:20:00), not {max_time!r}"
            ) from error
        self._limit_seconds: float = self.time_remaining() or 0.0
        if not self._limit_seconds > 0:
            raise ValueError(f"max_time must be above zero, not {max_time}")

    @property
    def share(self) -> float:
        """How much of the time has passed, from 0 to 1."""
        return min(1.0, self.time_elapsed() / self._limit_seconds)

    def on_fit_start(self, trainer, *args: Any, **kwargs: Any) -> None:
        """Stops nothing yet: Lightning would leave the last epoch uncounted."""

    def on_train_start(self, trainer, pl_module) -> None:
        """Starts the clock, and stops a resumed run whose time is up already.

        In the middle of an epoch, the run takes one more step, so that it is validated.
        """
        super().on_train_start(trainer, pl_module)
        if not resumes_within_epoch(trainer):
            self.on_train_batch_end(trainer)

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        """Tells the schedule how much of the time has passed."""
        scheduler = pl_module.lr_schedulers()
        if isinstance(scheduler, PhasedLR):
            scheduler.progress = trainer.strategy.broadcast(self.share)

    def on_validation_end(self, trainer, pl_module) -> None:
        """Ends a run whose time ran out during the validation, before it takes another step."""
        super().on_validation_end(trainer, pl_module)
        if trainer.state.fn == TrainerFn.FITTING:
            self.on_train_batch_end(trainer)
