"""minLSTM. Shape letters: T time steps, B columns, I inner, G = 3I."""

from jaxtyping import Float
from torch import Tensor, nn

from lmbench.model.core.min_gru import MinGRU, MinGRULayer


class MinLSTM(MinGRU):
    """Blocks of an LSTM whose gates depend only on the input and add up to 1.

    Source: Feng et al. 2024 (arXiv 2410.01201), section 3.2 and appendix B.3. The block is that of
    :class:`lmbench.model.core.min_gru.MinGRU`.
    """

    def make_layer(self, input_size: int, output_size: int) -> nn.Module:
        """A :class:`MinLSTMLayer`."""
        return MinLSTMLayer(input_size, num_gates=3)


class MinLSTMLayer(MinGRULayer):
    """A minGRU layer with another cell."""

    def cell(self, gates: Float[Tensor, "T B G"]) -> tuple[Tensor, Tensor]:
        """The share of h that each step keeps and the candidate for the rest, ``(T, B, I)``."""
        forget, input, candidate = gates.chunk(3, -1)
        # σ(f) / (σ(f) + σ(i)) is σ(ln σ(f) − ln σ(i)), which cannot become 0 / 0.
        keep = nn.functional.logsigmoid(forget) - nn.functional.logsigmoid(input)
        return keep.sigmoid(), candidate
