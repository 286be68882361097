"""The end of a training when its time is over, with the learning rate at its end too."""

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Timer
from lightning.pytorch.trainer.states import TrainerFn

from lmbench.errors import UserError
from lmbench.optim.phased_lr import PhasedLR


class TimeLimit(Timer):
    """Ends the training after ``trainer.max_time``, within an epoch if need be.

    A schedule in phases (:class:`~lmbench.optim.PhasedLR`) goes through them as the time goes on.
    What counts is the wall-clock time of the fit, validation and saving included, over all parts of
    a run that was stopped and resumed, from the first that had a limit. The steps that fit into the
    time, and so the result, differ from run to run.

    Args:
        max_time: ``"DD:HH:MM:SS"``, or the arguments of a ``timedelta``, as ``{"minutes": 60}``.

    Raises:
        MisconfigurationException: ``max_time`` is neither.
        ValueError: ``max_time`` is not above zero.
    """

    def __init__(self, max_time: str | dict) -> None:
        super().__init__(duration=max_time, verbose=False)
        self._seconds = float(self._duration or 0.0)
        if not self._seconds > 0:
            raise ValueError(f"max_time must be above zero, not {max_time}")

    def state_dict(self) -> dict[str, Any]:
        """The time that is over, and the limit."""
        return {**super().state_dict(), "seconds": self._seconds}

    def on_load_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Refuses a resume with another limit, by which a schedule in phases would jump.

        Not at the start of the training, to which a run that has had all its epochs or steps never
        comes.

        Raises:
            UserError: There was another limit, or none.
        """
        before = checkpoint["callbacks"].get(self.state_key, {}).get("seconds")
        follows_time = any("phases" in state for state in checkpoint["lr_schedulers"])
        if follows_time and before != self._seconds:
            made_for = "no limit of time" if before is None else f"{before:g} seconds"
            raise UserError(
                f"The schedule of the learning rate was made for {made_for}, not for "
                f"{self._seconds:g} seconds. Leave trainer.max_time as it was."
            )

    def on_fit_start(self, trainer: L.Trainer, *args: Any, **kwargs: Any) -> None:
        """Nothing: if the run stopped here, Lightning would leave the last epoch uncounted."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Starts the clock, and stops a run that goes on when its time is over already.

        In the middle of an epoch it takes one more step, to be validated.
        """
        super().on_train_start(trainer, pl_module)
        if not trainer.fit_loop.restarted_mid_epoch:
            self._check_time_remaining(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Ends a run whose time was over during the validation, before it takes another step."""
        super().on_validation_end(trainer, pl_module)
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            self._check_time_remaining(trainer)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Tells the schedule how much of the time is over; the main process's clock counts."""
        scheduler = pl_module.lr_schedulers()
        if isinstance(scheduler, PhasedLR):
            share = min(1.0, self.time_elapsed() / self._seconds)
            scheduler.progress = trainer.strategy.broadcast(share)
