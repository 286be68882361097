"""minGRU. Shape letters: T time steps, B columns, H hidden, I inner, G = 2I."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from lmbench.model.core.recurrence import f_pooling
from lmbench.model.core.residual import CausalConv, ResidualStack
from lmbench.model.core.stack import to_float32


class MinGRU(ResidualStack):
    """Blocks of a GRU whose gate depends only on the input.

    Source: Feng et al. 2024 (arXiv 2410.01201), section 3.1 and, for positive candidates, appendix
    B.3. A block is that of its language models: a convolution over four steps, minGRU, and a
    feed-forward network four times as wide. Skip connections, norms and minGRU's width, 1.5 times
    the block's, are those of the package minGRU-pytorch. In the package, however, the convolution
    reads the block's input before the norm, mixes features and adds to the stream that the next
    block reads, and the gates have no biases. The paper's parallel scan is left out: see
    :func:`lmbench.model.core.recurrence.f_pooling`.
    """

    def make_layer(self, input_size: int, output_size: int) -> nn.Module:
        """A :class:`MinGRULayer`."""
        return MinGRULayer(input_size)

    def make_feedforward(self, size: int) -> nn.Module:
        """Two linear layers with a GELU between them."""
        return nn.Sequential(nn.Linear(size, 4 * size), nn.GELU(), nn.Linear(4 * size, size))


class MinGRULayer(nn.Module):
    """Convolution, minGRU and a linear map back.

    Its state is ``(x, h)``: three inputs, ``(3, B, H)``, and ``(B, I)``.

    Args:
        size: H.
        num_gates: Number of projections the cell needs: the candidate and the gates.
    """

    def __init__(self, size: int, num_gates: int = 2) -> None:
        super().__init__()
        self.inner_size = 3 * size // 2
        self.conv = CausalConv(size)
        self.gates = nn.Linear(size, num_gates * self.inner_size)
        self.out = nn.Linear(self.inner_size, size, bias=False)

    def forward(
        self,
        input: Float[Tensor, "T B H"],
        state: Sequence[Tensor] | None,
        weight_dropout: Callable[[Tensor], Tensor],
    ) -> tuple[Float[Tensor, "T B H"], tuple[Tensor, ...]]:
        """Runs a window, from ``state`` or from zeros."""
        last, hidden = (None, None) if state is None else state
        convolved, last = self.conv(input, last)
        input = input + convolved
        weight = weight_dropout(self.gates.weight)
        keep, candidate = self.cell(to_float32(functional.linear(input, weight, self.gates.bias)))
        if hidden is None:
            hidden = torch.zeros_like(keep[0])
        output = f_pooling(keep, positive(candidate), to_float32(hidden))
        return self.out(output.to(self.out.weight.dtype)), (last, output[-1])

    def cell(self, gates: Float[Tensor, "T B G"]) -> tuple[Tensor, Tensor]:
        """The share of h that each step keeps and the candidate for the rest, ``(T, B, I)``."""
        update, candidate = gates.chunk(2, -1)
        return (-update).sigmoid(), candidate


def positive(x: Tensor) -> Tensor:
    """The paper's g: x + 0.5 for x ≥ 0, else the sigmoid of x."""
    above = x.relu()
    return above + (x - above).sigmoid()  # on a CPU, where() and clamp() have slow gradients
