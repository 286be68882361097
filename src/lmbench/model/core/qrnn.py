"""Quasi-recurrent network. Shape letters: T time steps, B columns, E embedding, H hidden."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from lmbench.model.core.recurrence import f_pooling
from lmbench.model.core.stack import Stack, to_float32


class QRNN(Stack):
    """Convolutions over time with gated pooling of their outputs and the dropouts of AWD-LSTM.

    Source: Bradbury et al. 2016 (arXiv 1611.01576), fo-pooling, windows of two steps in every
    layer. As in the AWD-QRNN of salesforce/awd-lstm-lm, weight dropout is on the convolution.
    Zoneout and dense connections are left out.
    """

    def make_layer(self, input_size: int, output_size: int) -> nn.Module:
        """A :class:`QRNNLayer`."""
        return QRNNLayer(input_size, output_size)


class QRNNLayer(nn.Module):
    """A QRNN layer; its state is ``(c, x)``, ``(B, H)`` and the last input, ``(1, B, E)``."""

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.conv = nn.Linear(2 * input_size, 3 * hidden_size)

    def forward(
        self,
        input: Float[Tensor, "T B E"],
        state: Sequence[Tensor] | None,
        weight_dropout: Callable[[Tensor], Tensor],
    ) -> tuple[Float[Tensor, "T B H"], tuple[Tensor, ...]]:
        """Runs a window, from ``state`` or from zeros."""
        if state is None:
            num_columns = input.shape[1]
            state = input.new_zeros(num_columns, self.hidden_size), torch.zeros_like(input[:1])
        cell, last = state
        pairs = torch.cat([input, torch.cat([last.to(input.dtype), input[:-1]])], -1)
        gates = functional.linear(pairs, weight_dropout(self.conv.weight), self.conv.bias)
        candidate, forget, out = to_float32(gates).chunk(3, -1)
        cells = f_pooling(forget.sigmoid(), candidate.tanh(), to_float32(cell))
        return (out.sigmoid() * cells).to(input.dtype), (cells[-1], input[-1:])
