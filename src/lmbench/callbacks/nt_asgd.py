"""Averaged SGD from the moment at which validation stalls."""

import copy
import logging
from collections.abc import Callable
from functools import partial
from typing import Any

import lightning as L
import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torch.optim import Optimizer

from lmbench.errors import UserError
from lmbench.optim.asgd import ASGD, swap_averages
from lmbench.training.lightning_internals import replace_optimizer

log = logging.getLogger(__name__)


class NTASGD(L.Callback):
    """Non-monotonically triggered averaged SGD (Merity et al. 2017, section 3, algorithm 1).

    The optimizer of the module is averaged SGD, but training begins with plain SGD of the same
    learning rate and weight decay. Validation stalls when more than n earlier ones are known and
    this one is worse than the best of all but the last n of them. (As in the authors' code; the
    paper's formula is misprinted, they say.) Then averaged SGD takes over from the current weights.
    While it runs, validation scores the averages, a checkpoint's ``state_dict`` holds them, with
    the raw iterate kept in this callback's state, and training continues from the raw iterate.

    With both options set, this is the authors' finetuning.

    Args:
        non_monotone_interval: n, at least 1.
        average_from_start: Average from the first step on, without plain SGD before.
        stop_when_stalled: End the training when the validations of the averages stall, by the
            same rule.

    Attributes:
        history: The validations that the rule compares: those of plain SGD and, after the switch,
            those of the averages if ``stop_when_stalled``.
        triggered_epoch: The epoch after which averaged SGD took over; None if it has not.

    Raises:
        ValueError: ``non_monotone_interval`` is below 1.
    """

    def __init__(
        self,
        non_monotone_interval: int = 5,
        *,
        average_from_start: bool = False,
        stop_when_stalled: bool = False,
    ) -> None:
        if non_monotone_interval < 1:
            raise ValueError(
                f"non_monotone_interval must be at least 1, not {non_monotone_interval}"
            )
        self.non_monotone_interval = non_monotone_interval
        self.average_from_start = average_from_start
        self.stop_when_stalled = stop_when_stalled
        self.history: list[float] = []
        self.triggered_epoch: int | None = None
        self._make_averaged_sgd: Callable[..., Optimizer] | None = None
        self._raw: dict[str, Tensor] | None = None
        self._ended = False

    def on_fit_start(self, trainer, pl_module) -> None:
        """Begins with plain SGD; on a resume, loads the raw iterate to continue training from.

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
        self._make_averaged_sgd = partial(type(optimizer), **optimizer.defaults)
        if self.triggered_epoch is None and not self.average_from_start:
            options = {name: optimizer.defaults[name] for name in ("lr", "weight_decay")}
            _replace_optimizer(trainer, partial(torch.optim.SGD, foreach=True, **options))
        if self._raw is not None:
            pl_module.load_state_dict(self._raw)
            self._raw = None

    def on_train_start(self, trainer, pl_module) -> None:
        """Keeps an ended run ended; not earlier, or Lightning would not count the last epoch."""
        if self._ended:
            trainer.should_stop = True

    def on_validation_start(self, trainer, pl_module) -> None:
        """Puts the averages in place."""
        if _is_averaging(trainer):
            swap_averages(trainer.optimizers[0])

    def on_validation_end(self, trainer, pl_module: Any) -> None:
        """Puts the raw iterate back, and decides whether to switch or to stop."""
        if trainer.state.fn != TrainerFn.FITTING:
            return
        averaging = _is_averaging(trainer)
        if averaging:
            swap_averages(trainer.optimizers[0])
        if averaging and not self.stop_when_stalled:
            return
        value = pl_module.scores["val"].nll
        earlier = self.history[: -self.non_monotone_interval]
        self.history.append(value)
        if not earlier or not value > min(earlier):  # also for nan, as in the published code
            return
        if averaging:
            self._ended = trainer.should_stop = True
        else:
            self._switch(trainer)
        message = (
            f"val/nll {value:.4f} is above {min(earlier):.4f}, the best of those more than "
            f"{self.non_monotone_interval} validations ago: "
            f"{'the training ends' if averaging else 'from here on averaged SGD'}"
        )
        if trainer.is_global_zero:
            log.info(message)

    def on_save_checkpoint(self, trainer, pl_module, checkpoint) -> None:
        """Makes ``state_dict`` hold the weights to evaluate."""
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
        """Restores the trigger, with the raw iterate if averaging had begun."""
        self.history = list(state_dict["history"])
        self.triggered_epoch = state_dict["triggered_epoch"]
        self._raw = state_dict.get("raw")
        self._ended = state_dict["ended"]

    def _switch(self, trainer: L.Trainer) -> None:
        assert self._make_averaged_sgd is not None
        _replace_optimizer(trainer, self._make_averaged_sgd)
        self.triggered_epoch = trainer.current_epoch
        self.history = []


def _is_averaging(trainer: L.Trainer) -> bool:
    fitting = trainer.state.fn == TrainerFn.FITTING
    return fitting and isinstance(trainer.optimizers[0], (ASGD, torch.optim.ASGD))


def _replace_optimizer(trainer: L.Trainer, make: Callable[..., Optimizer]) -> None:
    old = trainer.optimizers[0]
    # What is not an option of the old one was put into the group by a schedule, which looks for it
    # there; of the old one's own options, the new one gets these two.
    taken_over = ("params", "lr", "weight_decay")
    groups = [
        {key: group[key] for key in group if key in taken_over or key not in old.defaults}
        for group in old.param_groups
    ]
    replace_optimizer(trainer, make(groups))
