"""The dropouts of AWD-LSTM. Shape letters: T time steps, B columns, E embedding, V vocabulary.

Each draws its mask anew at every call in training, and does nothing in evaluation. What survives
is scaled by 1/(1 − p).
"""

import warnings

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional


def require_probabilities(**probabilities: float) -> None:
    """Raise ValueError, naming the argument, unless every value lies in [0, 1)."""
    for name, value in probabilities.items():
        if not 0.0 <= value < 1.0:
            raise ValueError(f"{name} must be at least 0 and less than 1, got {value}")


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
        """Drop the same elements ``(B, E)`` of ``input`` at every time step."""
        if not self.training or self.p == 0.0:
            return input
        return input * functional.dropout(torch.ones_like(input[:1]), self.p)

    def extra_repr(self) -> str:
        """Arguments as ``print(model)`` shows them."""
        return f"p={self.p}"


def embed_with_dropout(
    tokens: Int[Tensor, "*N"], weight: Float[Tensor, "V E"], p: float
) -> Float[Tensor, "*N E"]:
    """Look up embeddings with whole words dropped: every occurrence of a word, or none.

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


def lstm_with_weight_dropout(
    layer: nn.LSTM,
    input: Float[Tensor, "T B E"],
    state: tuple[Float[Tensor, "1 B H"], Float[Tensor, "1 B H"]],
    p: float,
) -> tuple[Float[Tensor, "T B H"], tuple[Float[Tensor, "1 B H"], Float[Tensor, "1 B H"]]]:
    """Run a single-layer LSTM with elements of its recurrent weight dropped (DropConnect).

    One mask serves all time steps. The layer's own weight is only read, and gets the gradient.

    Source: Wan et al. 2013; Merity et al. 2017 (arXiv 1708.02182), section 2.

    Args:
        layer: LSTM of one layer, time-major; in evaluation mode nothing is dropped.
        input: ``(T, B, E)``.
        state: ``(h, c)``, each ``(1, B, H)``.
        p: Probability that an element of the recurrent weight is dropped.

    Returns:
        Output ``(T, B, H)`` and the new state.
    """
    if not layer.training or p == 0.0:
        return layer(input, state)
    input_weight, recurrent_weight, input_bias, recurrent_bias = layer.all_weights[0]
    weights = [input_weight, functional.dropout(recurrent_weight, p), input_bias, recurrent_bias]
    # torch.lstm instead of a weight put into the layer, even for the length of a call: on a GPU
    # nn.LSTM would then move all its parameters to new memory, in place, at every forward pass.
    with warnings.catch_warnings():
        # cuDNN says that it copies the weights together, and that calling flatten_parameters()
        # would help. It cannot: the dropped weight is a new one each time.
        warnings.filterwarnings("ignore", message="RNN module weights are not part of single")
        output, hidden, cell = torch.lstm(
            input,
            state,
            weights,
            has_biases=True,
            num_layers=1,
            dropout=0.0,
            train=True,
            bidirectional=False,
            batch_first=False,
        )
    return output, (hidden, cell)
