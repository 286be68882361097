"""The dropouts of AWD-LSTM. Shape letters: T time steps, B columns, E embedding, V vocabulary.

Each draws its mask anew at every call in training, and does nothing in evaluation. What survives
is scaled by 1/(1 − p).
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional


def require_probabilities(**probabilities: float) -> None:
    """Raises ValueError, naming the argument, unless every value lies in [0, 1)."""
    for name, value in probabilities.items():
        if not 0.0 <= value < 1.0:
            raise ValueError(f"{name} must be at least 0 and less than 1, got {value}")


class Dropouts:
    """All dropouts of a model, whose probabilities can be multiplied with a factor.

    Args:
        model: Its modules hold probabilities as ``p``, ``dropout`` and ``weight_dropout``.
    """

    def __init__(self, model: nn.Module) -> None:
        self._built = [
            (module, attribute, value)
            for module in model.modules()
            for attribute in ("p", "dropout", "weight_dropout")
            if isinstance(value := vars(module).get(attribute), float)
        ]

    @property
    def largest(self) -> float:
        """The largest of the probabilities that the model was built with; without any, 0."""
        return max((value for *_, value in self._built), default=0.0)

    def scale(self, factor: float) -> None:
        """Sets every probability to ``factor`` times the one that the model was built with."""
        for module, attribute, value in self._built:
            setattr(module, attribute, factor * value)


class LockedDropout(nn.Module):
    """Dropout with one mask for all time steps (variational dropout).

    Source: Gal and Ghahramani 2016 (arXiv 1512.05287); Merity et al. 2017 (arXiv 1708.02182),
    section 4.2.

    Args:
        p: Probability that an element is dropped.

    Raises:
        ValueError: If ``p`` is not in [0, 1).
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        require_probabilities(p=p)
        self.p = p

    def forward(self, input: Float[Tensor, "T B E"]) -> Float[Tensor, "T B E"]:
        """Drops the same elements ``(B, E)`` of ``input`` at every time step."""
        if not self.training or self.p == 0.0:
            return input
        return input * functional.dropout(torch.ones_like(input[:1]), self.p)

    def extra_repr(self) -> str:
        """Arguments as ``print(model)`` shows them."""
        return f"p={self.p}"


def drop_elements(weight: Float[Tensor, "*N"], p: float) -> Float[Tensor, "*N"]:
    """Dropout of single elements, as :func:`torch.nn.functional.dropout` in training.

    On a CPU each element is dropped by 16 random bits of its own, where PyTorch spends a call of
    its generator on each. So ``p`` is rounded to a multiple of 2^-16, and the scale fits what it
    was rounded to.

    Args:
        weight: Any tensor, ``(*N,)``.
        p: Probability that an element is dropped, in [0, 1).
    """
    if weight.device.type != "cpu":
        return functional.dropout(weight, p)
    num_values = 2**16
    num_kept = max(1, round((1.0 - p) * num_values))  # of the values that 16 bits can have
    bits = torch.empty(-(-weight.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
    values = bits.view(torch.int16)[: weight.numel()].view(weight.shape)
    kept = values <= num_kept - 1 - num_values // 2
    return weight * kept.to(weight.dtype).mul_(num_values / num_kept)


def embed_with_dropout(
    tokens: Int[Tensor, "*N"], weight: Float[Tensor, "V E"], p: float
) -> Float[Tensor, "*N E"]:
    """Looks up embeddings with whole words dropped: every occurrence of a word, or none.

    The same as a look-up in a matrix whose rows were dropped, without that matrix.

    Source: Gal and Ghahramani 2016 (arXiv 1512.05287); Merity et al. 2017 (arXiv 1708.02182),
    section 4.3.

    Args:
        tokens: Word ids, ``(*N,)``.
        weight: Embedding matrix, ``(V, E)``.
        p: Probability that a word is dropped.
    """
    embedded = functional.embedding(tokens, weight)
    if p == 0.0:
        return embedded
    mask = functional.dropout(weight.new_ones(weight.shape[0], 1), p)
    return embedded * functional.embedding(tokens, mask)
