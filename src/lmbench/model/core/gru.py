"""Gated recurrent units with the dropouts of AWD-LSTM."""

from torch import nn

from lmbench.model.core._rnn import GRULayer
from lmbench.model.core.stack import Stack


class GRU(Stack):
    """Gated recurrent units with locked dropout around every layer and weight dropout.

    Source: Cho et al. 2014 (arXiv 1406.1078). As in cuDNN, the reset gate acts after the product
    with the recurrent weight.
    """

    def make_layer(self, input_size: int, output_size: int) -> nn.Module:
        """A layer of PyTorch's GRU."""
        return GRULayer(input_size, output_size)
