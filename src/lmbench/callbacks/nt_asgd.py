"""Averaged SGD from the moment at which validation stalls."""

import copy
import logging
import warnings
from collections.abc import Callable
from typing import Any

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
    """Non-monotonically triggered averaged SGD (Merity et al. 2017, section 3, algorithm 1).

    The optimizer of the module is averaged SGD, but training begins with plain SGD of the same
    learning rate and weight decay. Validation stalls when more than n earlier ones are known and
    this one is worse than the best of all but the last n of them. (The authors' code; the paper's
    formula has a misprint, as they say.) Then averaged SGD takes over from the current weights.
    While it runs, validation scores the averages, a checkpoint's ``state_dict`` holds them, with
    the raw iterate kept in this callback's state, and training goes on from the raw iterate.

    With both options set, this is the authors' finetuning.

    Args:
        non_monotone_interval: n, at least 1.
        monitor: The validation metric to watch; lower is better.
        average_from_start: Average from the first step on, without plain SGD before.
        stop_when_stalled: End the training when the validations of the averages stall, by the
            same rule.

    Attributes:
        history: The validations that the rule compares: of plain SGD, and after the switch of the
            averages where ``stop_when_stalled``.
        triggered_epoch: The epoch after which averaged SGD took over; None if it has not.

    Raises:
        ValueError: ``non_monotone_interval`` is below 1.
    """

    def __init__(
        self,
        non_monotone_interval: int = 5,
        monitor: str = "val/nll",
        *,
        average_from_start: bool = False,
        stop_when_stalled: bool = False,
    ) -> None:
        if non_monotone_interval < 1:
            raise ValueError(
                f"non_monotone_interval must be at least 1, not {non_monotone_interval}"
            )
        self.non_monotone_interval = non_monotone_interval
        self.monitor = monitor
        self.average_from_start = average_from_start
        self.stop_when_stalled = stop_when_stalled
        self.history: list[float] = []
        self.triggered_epoch: int | None = None
        self._averaged_sgd: tuple[type[Optimizer], dict[str, Any]] | None = None
        self._raw: dict[str, Tensor] | None = None
        self._ended = False

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Puts plain SGD first; after a resume, lays the raw iterate where training goes on.

        Lightning restores the optimizer's state after this hook, and must find the optimizer whose
        state it was: averaged SGD after the switch, SGD before.
        """
        optimizer = trainer.optimizers[0]
        if not isinstance(optimizer, (ASGD, torch.optim.ASGD)):
            raise UserError(
                f"callbacks.nt_asgd needs averaged SGD, but the optimizer is "
                f"{type(optimizer).__name__}. Set optimizer=asgd, or leave the callback out with "
                "callbacks.nt_asgd=null."
            )
        parameters = [weight for group in optimizer.param_groups for weight in group["params"]]
        if any(parameter.dtype.itemsize < 4 for parameter in parameters):
            raise UserError(
                f"callbacks.nt_asgd does not go with trainer.precision={trainer.precision}: in so "
                "few bits an average stands still after some hundred steps. Set "
                "trainer.precision=bf16-mixed."
            )
        self._averaged_sgd = type(optimizer), optimizer.defaults
        if self.triggered_epoch is None and not self.average_from_start:
            decay = optimizer.defaults["weight_decay"]
            sgd = {"lr": optimizer.defaults["lr"], "weight_decay": decay, "foreach": True}
            _replace_optimizer(trainer, torch.optim.SGD, sgd)
        if self._raw is not None:
            pl_module.load_state_dict(self._raw)
            self._raw = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stays ended. Not earlier: Lightning would leave the last epoch uncounted."""
        if self._ended:
            trainer.should_stop = True

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Puts the averages in place."""
        if _is_averaging(trainer):
            swap_averages(trainer.optimizers[0])

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Puts the raw iterate back, and decides whether to switch or to stop."""
        if trainer.state.fn != TrainerFn.FITTING:
            return
        averaging = _is_averaging(trainer)
        if averaging:
            swap_averages(trainer.optimizers[0])
        if averaging and not self.stop_when_stalled:
            return
        metrics = trainer.callback_metrics
        if self.monitor not in metrics:
            raise UserError(
                f"callbacks.nt_asgd.monitor={self.monitor} is no metric. There are "
                f"{', '.join(sorted(metrics))}."
            )
        value = float(metrics[self.monitor])
        earlier = self.history[: -self.non_monotone_interval]
        self.history.append(value)
        if not earlier or not value > min(earlier):  # also for nan, as in the published code
            return
        stalled = (
            f"{self.monitor} {value:.4f} is above {min(earlier):.4f}, the best of all but the last "
            f"{self.non_monotone_interval} validations"
        )
        if averaging:
            self._ended = trainer.should_stop = True
            _announce(trainer, f"{stalled}: the training ends")
        else:
            self._switch(trainer)
            _announce(trainer, f"{stalled}: from here on averaged SGD")

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict
    ) -> None:
        """Lets ``state_dict`` hold the weights to evaluate."""
        if _is_averaging(trainer):
            swap_averages(trainer.optimizers[0])
            checkpoint["state_dict"] = copy.deepcopy(pl_module.state_dict())
            swap_averages(trainer.optimizers[0])
            checkpoint["callbacks"][self.state_key]["raw"] = copy.deepcopy(pl_module.state_dict())

    def state_dict(self) -> dict:
        """The trigger's history, and when it fired."""
        return {
            "history": list(self.history),
            "triggered_epoch": self.triggered_epoch,
            "ended": self._ended,
        }

    def load_state_dict(self, state_dict: dict) -> None:
        """Takes up the trigger where it was, with the raw iterate if averaging had begun."""
        self.history = list(state_dict["history"])
        self.triggered_epoch = state_dict["triggered_epoch"]
        self._raw = state_dict.get("raw")
        self._ended = state_dict["ended"]

    def _switch(self, trainer: L.Trainer) -> None:
        assert self._averaged_sgd is not None
        _replace_optimizer(trainer, *self._averaged_sgd)
        self.triggered_epoch = trainer.current_epoch
        self.history = []


def _is_averaging(trainer: L.Trainer) -> bool:
    fitting = trainer.state.fn == TrainerFn.FITTING
    return fitting and isinstance(trainer.optimizers[0], (ASGD, torch.optim.ASGD))


def _replace_optimizer(
    trainer: L.Trainer, kind: Callable[..., Optimizer], defaults: dict[str, Any]
) -> None:
    old = trainer.optimizers[0]
    # What is no option of the old one was put into the group by a schedule, which looks for it
    # there; of the old one's own options, the new one has these two.
    taken_over = ("params", "lr", "weight_decay")
    groups = [
        {key: group[key] for key in group if key in taken_over or key not in old.defaults}
        for group in old.param_groups
    ]
    new = kind(groups, **defaults)
    trainer.strategy.optimizers = [new]
    for config in trainer.lr_scheduler_configs:
        config.scheduler.optimizer = new
        # A schedule counts the steps of the optimizer it was made with, to warn of a wrong order.
        warnings.filterwarnings("ignore", message=r"Seems like `optimizer\.step\(\)` has been")


def _announce(trainer: L.Trainer, message: str) -> None:
    if trainer.is_global_zero:
        log.info(message)
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            # As metrics count, from 0: a resume drops the steps that its checkpoint has not seen.
            logger.experiment.add_text("nt_asgd", message, trainer.global_step - 1)
