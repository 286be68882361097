"""Sums of nats and tokens over windows and processes.

Apart from ``perplexity.py``, because torchmetrics takes seconds to import.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import Module
from torchmetrics import Metric


class ScoreSums(Metric):
    """Nats and number of tokens over windows and processes."""

    nats: Tensor
    num_tokens: Tensor

    def __init__(self) -> None:
        super().__init__()
        # float64: a split's nats, added up window by window, need more than float32's 24 bits.
        self.add_state("nats", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("num_tokens", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, nats: Tensor, num_tokens: int) -> None:
        """Adds the nats and the number of tokens of a window."""
        self.nats += nats
        self.num_tokens += num_tokens

    def _apply(self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = "") -> Module:
        """Moves the sums, but keeps their types: precision=bf16-true converts every submodule."""
        return super()._apply(lambda tensor: tensor.to(fn(tensor).device), exclude_state)

    def compute(self) -> tuple[Tensor, Tensor]:
        """Sum of nats and number of tokens."""
        return self.nats, self.num_tokens
