"""A learning rate, Adam's β1 and dropouts that change in phases."""

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

_ANNEALING = {
    "linear": lambda progress: progress,
    "cosine": lambda progress: (1.0 - math.cos(math.pi * progress)) / 2.0,
}


class PhasedLR(LRScheduler):
    """A run cut into phases, in each of which the learning rate goes from one value to another.

    Step s of n lies at s/n of the run. If its time is limited, ``progress`` is the share of it that
    is over, and the larger of the two counts. A phase is a mapping with

    - ``share``: its length, relative to the other phases';
    - ``lr_factor``: what the optimizer's learning rate is multiplied by, ``(from, to)``;
    - ``beta1``: the first of Adam's betas, ``(from, to)``; if left out, it stays where the previous
      phase left it, or is the optimizer's own;
    - ``dropout_factor``: what the model's dropout probabilities are to be multiplied by, ``(from,
      to)``, at most 1; if left out, it stays where the previous phase left it, or is 1;
    - ``anneal``: the path between the two values, ``"linear"`` (the default) or ``"cosine"``.

    Source: the phases of Gugger and Howard 2018 ("AdamW and Super-convergence is now the fastest
    way to train neural nets"), after Smith 2018 (arXiv 1803.09820). Dropout that grows in training:
    Morerio et al. 2017 (arXiv 1703.06229).

    Args:
        optimizer: The optimizer whose learning rate is set.
        total_steps: Steps of the run, n; None if only its time is limited.
        phases: The phases, in order.

    Attributes:
        follows_time: Whether it can be used in a run whose time is limited.
        progress: Share of the run's time that is over, from 0 to 1, set from outside. Dropouts
            follow it at once, learning rate and β1 with the next step of the schedule.

    Raises:
        ValueError: There are no phases or no steps; a phase lacks a key, has an unknown one, or a
            value out of range; the optimizer has no betas for a phase to set.
    """

    follows_time = True

    def __init__(
        self, optimizer: Optimizer, total_steps: int | None, phases: Sequence[Mapping[str, Any]]
    ) -> None:
        if total_steps is not None and total_steps < 1:
            raise ValueError(f"total_steps must be at least 1, not {total_steps}")
        if not phases:
            raise ValueError("phases must hold at least one phase")
        for index, phase in enumerate(phases):
            _check(f"phases[{index}]", phase)
            if "beta1" in phase and any("betas" not in group for group in optimizer.param_groups):
                raise ValueError(
                    f"phases[{index}].beta1 needs an optimizer with betas, as Adam has, not "
                    f"{type(optimizer).__name__}"
                )
        self.total_steps = total_steps
        self.progress = 0.0
        self.phases = [dict(phase) for phase in phases]
        super().__init__(optimizer)

    def get_lr(self) -> list[float | Tensor]:
        """Each parameter group's learning rate; also sets β1, as PyTorch's own schedules do."""
        for group in self.optimizer.param_groups:
            if "betas" in group:
                beta1, beta2 = group["betas"]
                group["betas"] = (self._value("beta1", beta1), beta2)
        factor = self._value("lr_factor", 1.0)
        return [base_lr * factor for base_lr in self.base_lrs]

    @property
    def dropout_factor(self) -> float:
        """What the model's dropout probabilities are to be multiplied by at this step."""
        return self._value("dropout_factor", 1.0)

    def _value(self, key: str, before: float) -> float:
        """The value reached in the phases so far; ``before`` until the first that has the key."""
        index, progress = self._position()
        if key in self.phases[index]:
            start, end = self.phases[index][key]
            anneal = self.phases[index].get("anneal", "linear")
            return start + (end - start) * _ANNEALING[anneal](progress)
        passed = (phase[key] for phase in reversed(self.phases[:index]) if key in phase)
        return next((float(end) for _, end in passed), before)

    def _position(self) -> tuple[int, float]:
        """Index of the phase, and how much of it is over."""
        ends = list(accumulate(phase["share"] for phase in self.phases))
        share_of_steps = 0.0 if self.total_steps is None else self.last_epoch / self.total_steps
        at = min(max(share_of_steps, self.progress), 1.0) * ends[-1]
        for index, end in enumerate(ends):
            if end - at > 1e-9 * ends[-1]:  # a border belongs to the next phase, even if rounded
                return index, max(1.0 - (end - at) / self.phases[index]["share"], 0.0)
        return len(ends) - 1, 1.0


_RANGES: Mapping[str, tuple[Callable[[float], bool], str]] = {
    "lr_factor": (lambda n: 0 <= n < math.inf, "of at least 0"),
    "beta1": (lambda n: 0 <= n < 1, "from 0 to less than 1"),
    "dropout_factor": (lambda n: 0 <= n <= 1, "from 0 to 1"),
}


def _check(name: str, phase: Mapping[str, Any]) -> None:
    known = {"share", "lr_factor", "beta1", "dropout_factor", "anneal"}
    if unknown := set(phase) - known:
        raise ValueError(f"{name} has an unknown key {min(unknown)!r}; known are {sorted(known)}")
    for key in ("share", "lr_factor"):
        if key not in phase:
            raise ValueError(f"{name} must have {key!r}")
    if not (_is_number(phase["share"]) and 0 < phase["share"] < math.inf):
        raise ValueError(f"{name}.share must be positive and finite, not {phase['share']}")
    for key, (fits, what) in _RANGES.items():
        ends = phase.get(key, (0, 0))
        is_pair = isinstance(ends, Sequence) and len(ends) == 2
        if not is_pair or not all(_is_number(n) and fits(n) for n in ends):
            raise ValueError(f"{name}.{key} must be two numbers {what}, not {phase[key]}")
    if phase.get("anneal", "linear") not in list(_ANNEALING):
        raise ValueError(f"{name}.anneal must be linear or cosine, not {phase['anneal']!r}")


def _is_number(value: Any) -> bool:
    return type(value) in (int, float)  # True is not one
