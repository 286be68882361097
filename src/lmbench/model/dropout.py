"""The dropouts of AWD-LSTM. Shape letters: T time steps, B columns, E embedding, V vocabulary.

Each is a module with a probability ``p``, draws a new mask at every call in training, and does
nothing in evaluation. What survives is scaled by 1/(1 − p). The modules that take ``p`` from a
config check that it is at least 0 and less than 1, since they know its name there. In bfloat16 the
scale is rounded and p with it, by up to 0.004, so that the mean stays right.
"""

from collections.abc import Iterable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from lmbench.model import contracts


def require_probabilities(**probabilities: float) -> None:
    """Raises ValueError, naming the argument, unless every value lies in [0, 1)."""
    for name, value in probabilities.items():
        if not 0.0 <= value < 1.0:
            raise ValueError(f"{name} must be at least 0 and less than 1, got {value}")


class Dropouts:
    """Dropouts whose probabilities are scaled together.

    Args:
        dropouts: All dropouts of a model; a factor multiplies the probabilities they have now.
    """

    def __init__(self, dropouts: Iterable[contracts.Dropout]) -> None:
        self._built = [(dropout, dropout.p) for dropout in dropouts]

    @property
    def largest(self) -> float:
        """The largest probability at a factor of 1; 0 without dropouts."""
        return max((p for _, p in self._built), default=0.0)

    def scale(self, factor: float) -> None:
        """Sets every probability to ``factor`` times its original value."""
        for dropout, p in self._built:
            dropout.p = factor * p


class _Dropout(nn.Module):
    """What the dropouts below share."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def _p_in(self, dtype: torch.dtype) -> float:
        """``p``, but in half precision the probability that belongs to the rounded scale.

        1 / (1 - p) is rounded in bfloat16, by up to 0.4%; so the mean stays that of the input.
        """
        if dtype.itemsize >= 4:
            return self.p
        return 1.0 - 1.0 / torch.tensor(1.0 / (1.0 - self.p), dtype=dtype).item()

    def extra_repr(self) -> str:
        """Arguments as ``print(model)`` shows them."""
        return f"p={self.p}"


class Dropout(_Dropout):
    """Ordinary dropout: a mask of its own for every step.

    Args:
        p: Probability that an element is dropped.
    """

    def forward(self, input: Float[Tensor, "T B E"]) -> Float[Tensor, "T B E"]:
        """Drops elements of ``input``."""
        return functional.dropout(input, self._p_in(input.dtype), self.training)


class LockedDropout(_Dropout):
    """Dropout with one mask for all time steps (variational dropout).

    Source: Gal and Ghahramani 2016 (arXiv 1512.05287); Merity et al. 2017 (arXiv 1708.02182),
    section 4.2.

    Args:
        p: Probability that an element is dropped.
    """

    def forward(self, input: Float[Tensor, "T B E"]) -> Float[Tensor, "T B E"]:
        """Drops the same elements ``(B, E)`` of ``input`` at every time step."""
        if not self.training or self.p == 0.0:
            return input
        return input * functional.dropout(torch.ones_like(input[:1]), self._p_in(input.dtype))


class EmbeddingDropout(_Dropout):
    """A look-up of embeddings in which whole words are dropped: every occurrence, or none.

    The same as a look-up in a matrix whose rows were dropped, without that matrix.

    Source: Gal and Ghahramani 2016 (arXiv 1512.05287); Merity et al. 2017 (arXiv 1708.02182),
    section 4.3.

    Args:
        p: Probability that a word is dropped.
    """

    def forward(
        self, tokens: Int[Tensor, "*N"], weight: Float[Tensor, "V E"]
    ) -> Float[Tensor, "*N E"]:
        """Looks up the rows ``tokens`` of the embedding matrix ``weight``."""
        embedded = functional.embedding(tokens, weight)
        if not self.training or self.p == 0.0:
            return embedded
        mask = functional.dropout(weight.new_ones(weight.shape[0], 1), self._p_in(weight.dtype))
        return embedded * functional.embedding(tokens, mask)


class WeightDropout(_Dropout):
    """Dropout of individual elements of a weight (DropConnect).

    On a CPU 16 random bits decide on each element, where PyTorch calls its generator for each. So
    ``p`` is rounded to a multiple of 2^-16, and the scale matches the rounded value.

    Source: Wan et al. 2013; Merity et al. 2017 (arXiv 1708.02182), section 2.

    Args:
        p: Probability that an element is dropped.
    """

    def forward(self, weight: Float[Tensor, "*N"]) -> Float[Tensor, "*N"]:
        """A new tensor with elements of ``weight`` dropped; ``weight`` itself if none are."""
        if not self.training or self.p == 0.0:
            return weight
        p = self._p_in(weight.dtype)
        if weight.device.type != "cpu":
            return functional.dropout(weight, p)
        num_values = 2**16
        num_kept = max(1, round((1.0 - p) * num_values))  # of the values that 16 bits can have
        bits = torch.empty(-(-weight.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
        values = bits.view(torch.int16)[: weight.numel()].view(weight.shape)
        kept = values <= num_kept - 1 - num_values // 2
        return weight * kept.to(weight.dtype).mul_(num_values / num_kept)
