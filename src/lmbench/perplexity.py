"""What a model scored: sums first, ratios last."""

import math
from typing import NamedTuple

IGNORE_INDEX = -100
"""Target of a position that is read but not scored, as in ``torch.nn.functional.cross_entropy``."""


class Score(NamedTuple):
    """What a model scored on a text, or on some of its targets."""

    nats: float
    """Sum of the negative log-likelihoods of the scored targets."""
    num_tokens: int
    """Number of scored targets."""
    extra_divisor: int = 0
    """What the divisor of the published code's protocol has on top of that number; else 0."""

    @property
    def nll(self) -> float:
        """Nats per token."""
        return self.nats / (self.num_tokens + self.extra_divisor)

    @property
    def ppl(self) -> float:
        """Perplexity; infinite where it is too large for a float."""
        try:
            return math.exp(self.nll)
        except OverflowError:
            return math.inf

    def plain(self) -> dict[str, float | int]:
        """The score as it is written to files."""
        return {"nll": self.nll, "ppl": self.ppl, "num_tokens": self.num_tokens}
