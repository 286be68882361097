"""A running average of the weights, kept alongside any optimizer and evaluated in their place."""

import math
from collections.abc import Sequence
from typing import Any

from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor


class WeightAverage(WeightAveraging):
    """Validates, saves and tests an average of the weights, which training itself does not see.

    Step n moves the average by the share (eta + 1) / (n + eta) of the way to the weights. With
    ``eta`` 0 it is the mean of all of them; otherwise the weights of step t count in proportion to
    about t^eta, so that their mean age is n / (eta + 2) steps. It thus reaches as far back as suits
    the length of the training so far: no length has to be known in advance, and a run may end, or
    go on, at any time.

    Source: polynomial-decay averaging (Shamir and Zhang 2013, arXiv 1212.1824, section 4).

    Args:
        eta: At least 0.

    Raises:
        ValueError: ``eta`` is negative or not finite.
    """

    def __init__(self, eta: float) -> None:
        if not 0.0 <= eta < math.inf:
            raise ValueError(f"eta must be finite and at least 0, not {eta}")
        # Buffers hold no weights, and are copied.
        super().__init__(multi_avg_fn=self._move, use_buffers=False)
        self.eta = eta

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Keeps the average where, and in the precision in which, the weights will be.

        Lightning itself moves and converts them only afterwards.
        """
        trainer.precision_plugin.convert_module(pl_module.to(trainer.strategy.root_device))
        super().setup(trainer, pl_module, stage)

    def _move(
        self, averages: Sequence[Tensor], weights: Sequence[Tensor], num_averaged: Tensor | int
    ) -> None:
        share = (self.eta + 1) / (int(num_averaged) + 1 + self.eta)
        for average, weight in zip(averages, weights, strict=True):
            average.lerp_(weight, share)
