"""Mogrifier LSTM. Shape letters: T time steps, B columns, E embedding, H hidden, R rank."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lmbench.model.core.recurrence import StepProduct
from lmbench.model.core.stack import Stack, exact


class MogrifierLSTM(Stack):
    """LSTM whose input and state gate each other before each step, with the dropouts of AWD-LSTM.

    Source: Melis et al. 2020 (arXiv 1909.01792), with the biases that google-deepmind/lamb
    has. Initial values are those of PyTorch's LSTM, where lamb's forget bias starts at 1; its
    capped input gate and skip connections are left out.

    Args:
        num_rounds: How often input or state is gated, alternately; 6 for WikiText-2.
        rank: Rank of the matrices that make these gates, R; 48 for WikiText-2.
        options: Those of :class:`lmbench.model.core.stack.Stack`.

    Raises:
        ValueError: As there, or if ``num_rounds`` or ``rank`` is less than 1.
    """

    def __init__(self, *sizes: int, num_rounds: int = 6, rank: int = 48, **options: Any) -> None:
        for name, value in (("num_rounds", num_rounds), ("rank", rank)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        self._rounds = num_rounds, rank
        super().__init__(*sizes, **options)

    def make_layer(self, input_size: int, output_size: int) -> nn.Module:
        """A :class:`MogrifierLayer`."""
        return MogrifierLayer(input_size, output_size, *self._rounds)


class MogrifierLayer(nn.LSTM):
    """A Mogrifier LSTM layer, with the weights of an LSTM in addition to its own.

    Its state is ``(h, c)``, each ``(1, B, H)``.
    """

    def __init__(self, input_size: int, hidden_size: int, num_rounds: int, rank: int) -> None:
        super().__init__(input_size, hidden_size)
        sizes = [(hidden_size, input_size), (input_size, hidden_size)]
        self.rounds = nn.ModuleList(
            nn.Sequential(nn.Linear(read, rank, bias=False), nn.Linear(rank, gated))
            for read, gated in (sizes[k % 2] for k in range(num_rounds))
        )

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        input: Float[Tensor, "T B E"],
        state: Sequence[Float[Tensor, "1 B H"]] | None,
        weight_dropout: Callable[[Tensor], Tensor],
    ) -> tuple[Float[Tensor, "T B H"], tuple[Tensor, ...]]:
        """Runs a window, from ``state`` or from zeros."""
        if state is None:
            state = [input.new_zeros(1, input.shape[1], self.hidden_size)] * 2
        hidden, cell = (exact(tensor[0]) for tensor in state)
        input_weight, recurrent_weight, input_bias, recurrent_bias = self.all_weights[0]
        weight = torch.cat([input_weight, weight_dropout(recurrent_weight)], 1)
        product, bias = StepProduct(weight), input_bias + recurrent_bias
        rounds = [
            (StepProduct(narrow.weight), StepProduct(wide.weight), wide.bias)
            for narrow, wide in cast(Iterable[Iterable[nn.Linear]], self.rounds)
        ]
        outputs = []
        for step in exact(input).unbind():
            x = step
            for k, (narrow, wide, gate_bias) in enumerate(rounds):
                reads, gated = (hidden, x) if k % 2 == 0 else (x, hidden)
                gated = 2.0 * torch.sigmoid(wide(narrow(reads)) + gate_bias) * gated
                x, hidden = (gated, hidden) if k % 2 == 0 else (x, gated)
            gates = product(torch.cat([x, hidden], -1)) + bias
            i, f, g, o = gates.chunk(4, -1)
            cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
            hidden = o.sigmoid() * cell.tanh()
            outputs.append(hidden)
        return torch.stack(outputs), (hidden.unsqueeze(0), cell.unsqueeze(0))
