"""Averaged stochastic gradient descent whose learning rate takes effect at once."""

# torch.optim's own optimizers are built from these private operations, which are the fast ones.
# pyright: reportPrivateImportUsage=false

from collections.abc import Callable
from typing import Any

import torch
from torch.optim import Optimizer


class ASGD(Optimizer):
    """SGD that keeps a running average of the parameters, in ``state[parameter]["ax"]``.

    The averages are those of ``torch.optim.ASGD(lambd=0, t0=0)``: after n steps the mean of the
    iterates 2 to n, and after one step the first iterate. Two things differ. A changed learning
    rate takes effect in the very next step, whereas ``torch.optim.ASGD`` uses that of the step
    before, which applies a scaling by window length to the wrong window. And the averages exist
    from the start, equal to the parameters.

    A parameter without a gradient is left alone, and so is its average, as in ``torch.optim``.

    Source: Polyak and Juditsky 1992; Merity et al. 2017 (arXiv 1708.02182), section 3.

    Args:
        params: Parameters, or dictionaries of parameter groups.
        lr: Learning rate.
        weight_decay: L2 penalty, added to the gradient.

    Raises:
        ValueError: If ``lr`` or ``weight_decay`` is negative.
    """

    def __init__(self, params: Any, lr: float, *, weight_decay: float = 0.0) -> None:
        for name, value in (("lr", lr), ("weight_decay", weight_decay)):
            if not value >= 0.0:
                raise ValueError(f"{name} must not be negative, got {value}")
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group of parameters, whose averages begin here."""
        super().add_param_group(param_group)
        for parameter in self.param_groups[-1]["params"]:
            self.state[parameter] = {"step": 0, "ax": parameter.detach().clone()}

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Takes one step; a ``closure`` recomputes the gradients, and its loss is returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if not parameters:
                continue
            gradients = [p.grad for p in parameters]
            averages, weights = [], []
            for parameter in parameters:
                state = self.state[parameter]
                state["step"] += 1
                averages.append(state["ax"])
                weights.append(1.0 / max(1, state["step"] - 1))
            if group["weight_decay"]:
                # Adding a parameter to itself takes no memory, unlike a sum with the gradient.
                decay = -group["lr"] * group["weight_decay"]
                torch._foreach_add_(parameters, parameters, alpha=decay)
            torch._foreach_add_(parameters, gradients, alpha=-group["lr"])
            torch._foreach_lerp_(averages, parameters, weights)
        return loss


@torch.no_grad()
def swap_averages(optimizer: Optimizer) -> None:
    """Exchanges the parameters with their averages, in place; a second call undoes the first.

    Values are copied, so that memory which others hold on to (views, cuDNN's weight buffer) stays
    where it is. Parameters that have not taken a step yet keep their values.

    Args:
        optimizer: :class:`ASGD` or ``torch.optim.ASGD``; others have no averages to swap.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            state = optimizer.state.get(parameter, {})
            if "ax" in state and state["step"] > 0:
                held = parameter.clone()
                parameter.copy_(state["ax"])
                state["ax"].copy_(held)
