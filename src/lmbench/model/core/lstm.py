"""Plain LSTM. Shape letters: T time steps, B columns, E embedding, H hidden."""

from jaxtyping import Float
from torch import Tensor, nn

from lmbench.model.contracts import CoreOutput, State
from lmbench.model.core.rnn import LSTMLayer
from lmbench.model.core.stack import (
    autocast_where_fast,
    require_layers,
    run_layers,
    stack_layers,
)
from lmbench.model.dropout import require_probabilities


class LSTM(nn.Module):
    """Stacked LSTM with dropout on its input, between its layers and on its output.

    Source: Zaremba et al. 2014 (arXiv 1409.2329), as in pytorch/examples' word_language_model.

    Args:
        input_size: Size of a step's input, E.
        hidden_size: Size of every layer but the last.
        output_size: Size of the last layer, H; None for ``hidden_size``.
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
        super().__init__()
        require_probabilities(dropout=dropout)
        require_layers(num_layers)
        self.input_size = input_size
        self.output_size = hidden_size if output_size is None else output_size
        sizes = input_size, hidden_size, self.output_size
        self.layers = stack_layers(LSTMLayer, *sizes, num_layers)
        self.dropout = nn.Dropout(dropout)
        self.dropouts = (self.dropout,)

    def forward(self, input: Float[Tensor, "T B E"], state: State | None = None) -> CoreOutput:
        """Runs a window, from ``state`` or from zeros."""
        with autocast_where_fast(input.device.type):
            raw_output, state = run_layers(
                self.layers, self.dropout(input), state, between=self.dropout
            )  # (T, B, H)
        return CoreOutput(self.dropout(raw_output), raw_output, state)
