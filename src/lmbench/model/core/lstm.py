"""Plain LSTM."""

from torch import nn

from lmbench.model.core._rnn import LSTMLayer
from lmbench.model.core.stack import Stack
from lmbench.model.dropout import require_probabilities


class LSTM(Stack):
    """Stacked LSTM with dropout on its input, between its layers and on its output.

    Source: Zaremba et al. 2014 (arXiv 1409.2329), as in pytorch/examples' word_language_model.

    Args:
        input_size: Size of a step's input.
        hidden_size: Size of every layer but the last.
        output_size: Size of the last layer; None for ``hidden_size``.
        num_layers: Number of layers.
        dropout: Probability that an element is dropped, anew at every time step.

    Raises:
        ValueError: If ``dropout`` is not in [0, 1) or ``num_layers`` is less than 1.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        output_size: int | None = None,
        num_layers: int = 2,
        *,
        dropout: float = 0.0,
    ) -> None:
        require_probabilities(dropout=dropout)
        super().__init__(
            input_size,
            hidden_size,
            output_size,
            num_layers,
            input_dropout=dropout,
            hidden_dropout=dropout,
            output_dropout=dropout,
            weight_dropout=0.0,
            locked_dropout=False,
        )

    def make_layer(self, input_size: int, output_size: int) -> nn.Module:
        """An LSTM layer."""
        return LSTMLayer(input_size, output_size)
