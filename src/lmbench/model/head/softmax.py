"""Full softmax. Shape letters: N tokens (any number of dimensions), H hidden, V vocabulary."""

from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from lmbench.loss.linear_cross_entropy import linear_cross_entropy


class Softmax(nn.Module):
    """Linear layer and softmax over the vocabulary; weight from U(−0.1, 0.1), bias 0.

    Args:
        input_size: Size of what the core gives, H.
        vocabulary_size: Number of words, V.
        bias: Whether there is a bias.
    """

    def __init__(self, input_size: int, vocabulary_size: int, *, bias: bool = True) -> None:
        super().__init__()
        self.input_size = input_size
        self.vocabulary_size = vocabulary_size
        self.weight = nn.Parameter(torch.empty(vocabulary_size, input_size))
        self.bias = nn.Parameter(torch.zeros(vocabulary_size)) if bias else None
        nn.init.uniform_(self.weight, -0.1, 0.1)

    def tie(self, weight: Float[nn.Parameter, "V H"]) -> None:
        """Share the embedding's weight, which takes the place of ours."""
        self.weight = weight

    def loss(
        self,
        output: Float[Tensor, "*N H"],
        targets: Int[Tensor, "*N"],
        *,
        reduction: Literal["mean", "sum", "none"] = "mean",
        ignore_index: int = -100,
    ) -> Float[Tensor, "..."]:
        """Negative log-likelihood of ``targets`` in nats, without ever holding all logits.

        See :func:`lmbench.loss.linear_cross_entropy`, which it is.
        """
        return linear_cross_entropy(
            output,
            self.weight,
            self.bias,
            targets,
            reduction=reduction,
            ignore_index=ignore_index,
        )

    def log_probs(self, output: Float[Tensor, "*N H"]) -> Float[Tensor, "*N V"]:
        """Log-probabilities of all words, in the weight's precision, also under autocast."""
        with torch.autocast(output.device.type, enabled=False):
            logits = functional.linear(output.to(self.weight.dtype), self.weight, self.bias)
            return logits.log_softmax(-1)

    def extra_repr(self) -> str:
        """Arguments as ``print(model)`` shows them."""
        return f"{self.input_size}, {self.vocabulary_size}, bias={self.bias is not None}"
