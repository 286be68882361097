"""AWD-LSTM. Shape letters: T time steps, B columns, E embedding, H hidden."""

from jaxtyping import Float
from torch import Tensor, nn

from lmbench.model.contracts import CoreOutput, State
from lmbench.model.core.stack import run_layers, stack_layers
from lmbench.model.dropout import LockedDropout, WeightDropout, require_probabilities


class AWDLSTM(nn.Module):
    """Weight-dropped LSTM with locked dropout around every layer.

    Source: Merity et al. 2017 (arXiv 1708.02182), sections 2 and 4; salesforce/awd-lstm-lm.

    Args:
        input_size: Size of a step's input, E.
        hidden_size: Size of every layer but the last.
        output_size: Size of the last layer, H; None for ``hidden_size``.
        num_layers: Number of layers.
        input_dropout: Probability that an element of the input is dropped for a whole window.
        hidden_dropout: The same between layers.
        output_dropout: The same on the last layer's output.
        weight_dropout: Probability that an element of a recurrent weight is dropped for a window.

    Raises:
        ValueError: If a probability is not in [0, 1) or ``num_layers`` is less than 1.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        output_size: int | None = None,
        num_layers: int = 3,
        *,
        input_dropout: float,
        hidden_dropout: float,
        output_dropout: float,
        weight_dropout: float,
    ) -> None:
        super().__init__()
        require_probabilities(
            input_dropout=input_dropout,
            hidden_dropout=hidden_dropout,
            output_dropout=output_dropout,
            weight_dropout=weight_dropout,
        )
        self.input_size = input_size
        self.output_size = hidden_size if output_size is None else output_size
        self.layers = stack_layers(input_size, hidden_size, self.output_size, num_layers)
        self.input_dropout = LockedDropout(input_dropout)
        self.hidden_dropout = LockedDropout(hidden_dropout)
        self.output_dropout = LockedDropout(output_dropout)
        self.weight_dropout = WeightDropout(weight_dropout)
        self.dropouts = (
            self.input_dropout,
            self.hidden_dropout,
            self.output_dropout,
            self.weight_dropout,
        )

    def forward(self, input: Float[Tensor, "T B E"], state: State | None = None) -> CoreOutput:
        """Runs a window, from ``state`` or from zeros."""
        raw_output, state = run_layers(
            self.layers,
            self.input_dropout(input),
            state,
            between=self.hidden_dropout,
            weight_dropout=self.weight_dropout,
        )  # (T, B, H)
        return CoreOutput(self.output_dropout(raw_output), raw_output, state)
