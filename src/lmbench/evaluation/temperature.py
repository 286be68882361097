"""Softmax temperature: flatter or sharper distributions than the model's own.

Source: Melis et al. 2018, "Pushing the bounds of dropout" (arXiv 1805.09208), who tune it on valid.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import ClassVar

from lmbench.evaluation.evaluator import Evaluator, ReadingMode
from lmbench.evaluation.tuning import Grid, require_grid


@dataclass
class Temperature(ReadingMode):
    """A softmax temperature T.

    The probabilities are p(w)^(1/T), divided by their sum over all words. Dynamic evaluation learns
    from these, too; the statistics of its gradients are those at T = 1.

    Args:
        value: T; below 1, likely words become likelier. With 1 nothing changes.
        grid: What tuning tries.

    Raises:
        ValueError: ``value`` is not finite, or not more than 0.
    """

    name: ClassVar[str] = "temperature"
    remedy: ClassVar[str] = "Set evaluation.temperature.value higher."

    value: float = 1.0
    grid: Grid | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if not 0.0 < self.value < math.inf:
            raise ValueError(f"value must be finite and more than 0, not {self.value}")
        require_grid(self)

    @contextmanager
    def during(self, evaluator: Evaluator) -> Iterator[None]:
        """Sets the head's temperature, and resets it afterwards."""
        head = evaluator.model.head
        head.temperature = self.value
        try:
            yield
        finally:
            head.temperature = 1.0
