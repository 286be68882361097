"""Averaged SGD from the moment at which validation stalls."""

import copy
import logging
from collections.abc import Callable

import lightning as L
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torch.optim import Optimizer

from lmbench.errors import UserError
from lmbench.optim.asgd import ASGD, swap_averages

log = logging.getLogger(__name__)


class NTASGD(L.Callback):
    """Non-monotonically triggered averaged SGD (Merity et al. 2017, section 4.1, algorithm 1).

    After each validation under SGD: if more than n earlier ones are known and this one is worse
    than the best of all but the last n of them, the optimizer becomes averaged SGD, with the
    learning rate and weight decay of the SGD it replaces. (The authors' code; the paper's formula
    has a misprint, as they say.) From then on validation scores the averages, a checkpoint's
    ``state_dict`` holds them, with the raw iterate kept in this callback's state, and training
    goes on from the raw iterate.

    Args:
        non_monotone_interval: n, at least 1.
        monitor: the validation metric to watch; lower is better.
        averaged_sgd: makes the averaged optimizer from parameter groups, ``lr`` and
            ``weight_decay``; it must keep its averages in ``state[parameter]["ax"]``, as
            ``torch.optim.ASGD`` does.

    Raises:
        ValueError: ``non_monotone_interval`` is below 1.
    """

    def __init__(
        self,
        non_monotone_interval: int = 5,
        monitor: str = "val/nll",
        averaged_sgd: Callable[..., Optimizer] = ASGD,
    ) -> None:
        if non_monotone_interval < 1:
            raise ValueError(
                f"non_monotone_interval must be at least 1, not {non_monotone_interval}"
            )
        self.non_monotone_interval = non_monotone_interval
        self.monitor = monitor
        self.history: list[float] = []
        self.triggered_epoch: int | None = None
        self._averaged_sgd = averaged_sgd
        self._raw: dict[str, Tensor] | None = None

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Checks the optimizer; after a resume beyond the switch, switches again.

        Lightning restores the optimizer's state after this hook, and it must find averaged SGD.
        """
        optimizer = trainer.optimizers[0]
        momentum = any(group.get("momentum") for group in optimizer.param_groups)
        if not isinstance(optimizer, torch.optim.SGD) or momentum:
            raise UserError(
                f"callbacks.nt_asgd replaces SGD without momentum, but the optimizer is "
                f"{type(optimizer).__name__}{' with momentum' if momentum else ''}. Set "
                "optimizer=sgd, or leave the callback out with callbacks=default."
            )
        if self.triggered_epoch is not None:
            self._switch(trainer)
        if self._raw is not None:
            pl_module.load_state_dict(self._raw)
            self._raw = None

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Puts the averages in place."""
        if self._averages_in(trainer):
            swap_averages(trainer.optimizers[0])

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Puts the raw iterate back, or decides whether to switch."""
        if self._averages_in(trainer):
            swap_averages(trainer.optimizers[0])
        elif trainer.state.fn == TrainerFn.FITTING:
            self._decide(trainer)

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict
    ) -> None:
        """Lets ``state_dict`` hold the weights to evaluate."""
        if self._averages_in(trainer):
            swap_averages(trainer.optimizers[0])
            checkpoint["state_dict"] = copy.deepcopy(pl_module.state_dict())
            swap_averages(trainer.optimizers[0])
            checkpoint["callbacks"][self.state_key]["raw"] = copy.deepcopy(pl_module.state_dict())

    def state_dict(self) -> dict:
        """The trigger's history, and when it fired."""
        return {"history": list(self.history), "triggered_epoch": self.triggered_epoch}

    def load_state_dict(self, state_dict: dict) -> None:
        """Takes up the trigger where it was, with the raw iterate if averaging had begun."""
        self.history = list(state_dict["history"])
        self.triggered_epoch = state_dict["triggered_epoch"]
        self._raw = state_dict.get("raw")

    def _averages_in(self, trainer: L.Trainer) -> bool:
        return self.triggered_epoch is not None and trainer.state.fn == TrainerFn.FITTING

    def _decide(self, trainer: L.Trainer) -> None:
        value = float(trainer.callback_metrics[self.monitor])
        earlier = self.history[: -self.non_monotone_interval]
        self.history.append(value)
        if not earlier or not value > min(earlier):  # also for nan, as in the published code
            return
        self.triggered_epoch = trainer.current_epoch
        self._switch(trainer)
        message = (
            f"{self.monitor} {value:.4f} is above {min(earlier):.4f}, the best of all but the last "
            f"{self.non_monotone_interval} validations: from here on averaged SGD"
        )
        log.info(message)
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_text("nt_asgd", message, trainer.global_step)

    def _switch(self, trainer: L.Trainer) -> None:
        sgd = trainer.optimizers[0]
        # What is no option of SGD was put into the group by a schedule, which looks for it there.
        taken_over = ("lr", "weight_decay")
        groups = [
            {key: group[key] for key in group if key in taken_over or key not in sgd.defaults}
            for group in sgd.param_groups
        ]
        averaged = self._averaged_sgd(groups, **{key: sgd.defaults[key] for key in taken_over})
        trainer.strategy.optimizers = [averaged]
        for config in trainer.lr_scheduler_configs:
            config.scheduler.optimizer = averaged
