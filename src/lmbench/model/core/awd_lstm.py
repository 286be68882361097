"""AWD-LSTM."""

from torch import nn

from lmbench.model.core._rnn import LSTMLayer
from lmbench.model.core.stack import Stack


class AWDLSTM(Stack):
    """Weight-dropped LSTM with locked dropout around every layer.

    Source: Merity et al. 2017 (arXiv 1708.02182), sections 2 and 4; salesforce/awd-lstm-lm.
    """

    def make_layer(self, input_size: int, output_size: int) -> nn.Module:
        """An LSTM layer."""
        return LSTMLayer(input_size, output_size)
