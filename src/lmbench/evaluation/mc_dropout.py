"""Monte-Carlo dropout: the mean over random dropout masks.

Sources: Gal and Ghahramani 2016 (arXiv 1512.05287, arXiv 1506.02142); Melis et al. 2018, "Pushing
the bounds of dropout" (arXiv 1805.09208), for the multiplier and the arithmetic mean.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch

from lmbench.errors import UserError
from lmbench.evaluation.evaluator import Evaluator, ReadingMode
from lmbench.evaluation.progress import OnWindow
from lmbench.evaluation.reading import Reading
from lmbench.evaluation.tuning import Grid, require_grid, values_to_try
from lmbench.model.dropout import Dropouts

SEED = 0
"""Seed of all masks, so that an evaluation repeats; more samples begin with the masks of fewer."""


@dataclass
class MCDropout(ReadingMode):
    """Monte-Carlo dropout.

    A target's probability is the arithmetic mean over readings of the whole split in which all
    dropouts act, with new masks for each window as in training. A cache sees the mean of the
    readings' outputs.

    Args:
        multiplier: Factor on the dropouts' probabilities in the config; with growing dropout, the
            best epoch may have been trained with lower ones.
        samples: Number of readings.
        grid: What tuning tries.

    Raises:
        ValueError: A value is out of range.
    """

    name: ClassVar[str] = "mc_dropout"
    remedy: ClassVar[str] = "Lower evaluation.mc_dropout.multiplier."

    multiplier: float = 0.5
    samples: int = 32
    grid: Grid | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if not 0.0 <= self.multiplier < math.inf:
            raise ValueError(f"multiplier must be finite and at least 0, not {self.multiplier}")
        if self.samples < 1:
            raise ValueError(f"samples must be at least 1, not {self.samples}")
        require_grid(self)

    def prepare(self, evaluator: Evaluator) -> None:
        """Refuses multipliers, also in the grid, with which a dropout would drop everything."""
        largest = Dropouts(evaluator.model.dropouts).largest
        in_grid = values_to_try(self).get("multiplier", [])
        for key, values in (("multiplier", [self.multiplier]), ("grid.multipliers", in_grid)):
            if max(values, default=0.0) * largest >= 1.0:
                raise UserError(
                    f"evaluation.mc_dropout.{key}: {max(values):g} times the model's largest "
                    f"dropout, {largest:g}, is not less than 1. Set less than {1 / largest:.4g}."
                )

    def repeated(
        self, read: Callable[[float], Reading], evaluator: Evaluator, on_window: OnWindow
    ) -> Reading:
        """The mean over the samples; torch's generators are restored afterwards."""
        device = evaluator.model.device
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(SEED)
            mean = read(self.multiplier)
            total, outputs, reported = mean.log_probs, mean.outputs, mean.score.nats
            for number in range(2, self.samples + 1):
                reading = read(self.multiplier)
                total = total.logaddexp(reading.log_probs)
                mean = replace(reading, log_probs=(total - math.log(number)).clamp(max=0.0))
                if outputs is not None and reading.outputs is not None:
                    outputs += reading.outputs
                # So that the perplexity shown is that of the mean so far.
                reported += reading.score.nats
                on_window(0, number * mean.score.nats - reported)
                reported = number * mean.score.nats
        return replace(mean, outputs=None if outputs is None else outputs / self.samples)
