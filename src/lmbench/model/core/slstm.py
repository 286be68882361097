"""sLSTM. Shape letters: T time steps, B columns, H hidden, N heads, D = H/N, G = 4D."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional

from lmbench.model.core.recurrence import autocast_weight, chunks, multiply, weight_gradient
from lmbench.model.core.residual import CausalConv, GatedFeedForward, ResidualStack
from lmbench.model.core.stack import to_float32


class SLSTM(ResidualStack):
    """Blocks of an LSTM whose input gate is exponential and whose output is normalized by it.

    Source: Beck et al. 2024 (arXiv 2405.04517), forget gates with a sigmoid, and the post
    up-projection block: a convolution over four steps for input and forget gates, heads that read
    no other head's features, and a gated feed-forward network. As in the package xlstm, linear
    layers have no biases, and the cell has that package's initial values: zeros in its recurrent
    weight. The feed-forward network starts as PyTorch's layers do, not as the package's. There are
    no mLSTM blocks.

    Args:
        num_heads: Number of heads, N.
        options: Those of :class:`lmbench.model.core.stack.Stack`.

    Raises:
        ValueError: As there, or if ``num_heads`` does not divide ``hidden_size``.
    """

    norm = partial(nn.LayerNorm, bias=False)

    def __init__(self, *sizes: int, num_heads: int = 4, **options: Any) -> None:
        self._num_heads = num_heads
        super().__init__(*sizes, **options)

    def build(self, hidden_size: int, num_layers: int) -> None:
        """Makes everything that has weights; higher layers start with longer memories."""
        super().build(hidden_size, num_layers)
        layers = [module for module in self.modules() if isinstance(module, SLSTMLayer)]
        for index, layer in enumerate(layers):
            layer.spread_forget_gates(0.3 + 1.3 * index / max(1, num_layers - 1))

    def make_layer(self, input_size: int, output_size: int) -> nn.Module:
        """An :class:`SLSTMLayer`."""
        return SLSTMLayer(input_size, self._num_heads)

    def make_feedforward(self, size: int) -> nn.Module:
        """A GEGLU, 4/3 times as wide."""
        return GatedFeedForward(size, 4 * size // 3, functional.gelu)


class SLSTMLayer(nn.Module):
    """Convolution, cell and norms of its heads.

    Its state is ``(x, h, c, n, m)``: three inputs, ``(3, B, H)``; the output, ``(N, B, D)``; and,
    divided by the exponential of m, the cell and its normalizer, all of the same shape.
    """

    def __init__(self, size: int, num_heads: int) -> None:
        if num_heads < 1 or size % num_heads != 0:
            raise ValueError(f"num_heads must divide {size}, got {num_heads}")
        super().__init__()
        self.num_heads = num_heads
        head_size = size // num_heads
        self.conv = CausalConv(size)
        # Rows are those of the input and forget gate, or of candidate and output gate.
        std = math.sqrt(0.4 / size)
        self.gates_of_conv, self.gates_of_input = (
            nn.Parameter(torch.empty(num_heads, 2 * head_size, head_size).normal_(std=std))
            for _ in range(2)
        )
        self.recurrent = nn.Parameter(torch.zeros(num_heads, 4 * head_size, head_size))
        self.bias = nn.Parameter(torch.zeros(num_heads, 4 * head_size))
        self.norm = nn.Parameter(torch.ones(size))

    def spread_forget_gates(self, power: float) -> None:
        """Sets forget biases from 5 down to -7; a larger ``power`` makes more of them large."""
        _, forget, _, _ = self.bias.detach().chunk(4, -1)
        forget.copy_(5.0 - 12.0 * torch.linspace(0.0, 1.0, forget.shape[-1]) ** power)

    def forward(
        self,
        input: Float[Tensor, "T B H"],
        state: Sequence[Tensor] | None,
        weight_dropout: Callable[[Tensor], Tensor],
    ) -> tuple[Float[Tensor, "T B H"], tuple[Tensor, ...]]:
        """Runs a window, from ``state`` or from zeros."""
        last, *cell = (None,) if state is None else state
        convolved, last = self.conv(input, last)
        gates = torch.cat(
            [
                self._by_head(functional.silu(convolved), self.gates_of_conv),
                self._by_head(input, self.gates_of_input),
            ],
            -1,
        )
        hidden, cell = self.cell(
            to_float32(gates) + self.bias[:, None, None],
            [to_float32(tensor) for tensor in cell],
            weight_dropout(self.recurrent),
        )
        hidden = functional.layer_norm(hidden, hidden.shape[-1:])  # (T, N, B, D)
        return hidden.transpose(1, 2).flatten(-2) * self.norm, (last, *cell)

    def _by_head(self, input: Tensor, weight: Tensor) -> Tensor:
        heads = input.unflatten(-1, (self.num_heads, -1)).flatten(0, 1).transpose(0, 1)
        return (heads @ weight.mT).unflatten(1, input.shape[:2])  # (N, T, B, 2D)

    def cell(
        self,
        gates: Float[Tensor, "N T B G"],
        state: Sequence[Float[Tensor, "N B D"]],
        weight: Float[Tensor, "N G D"],
    ) -> tuple[Float[Tensor, "T N B D"], tuple[Tensor, ...]]:
        """Outputs and the new state."""
        num_heads, _, num_columns, num_gates = gates.shape
        if state:
            hidden, cell, normalizer, stabilizer = state
        else:
            hidden = gates.new_zeros(num_heads, num_columns, num_gates // 4)
            cell, normalizer, stabilizer = hidden, hidden, torch.full_like(hidden, -math.inf)
        weight = autocast_weight(weight)
        with torch.autocast(gates.device.type, enabled=False):
            outputs, *state = _Window.apply(
                torch.is_grad_enabled(), gates, weight, hidden, cell, normalizer, stabilizer
            )
        return outputs, tuple(state)


class _Window(Function):
    """All steps. Its backward pass is written out: autograd takes longer for so many small ones."""

    @staticmethod
    def forward(
        ctx: Any,
        is_learning: bool,
        gates: Tensor,
        weight: Tensor,
        hidden: Tensor,
        cell: Tensor,
        normalizer: Tensor,
        stabilizer: Tensor,
    ) -> tuple[Tensor, ...]:
        outputs, saved = [], []
        for step in gates.unbind(1):
            i, f, z, o = (step + multiply(hidden, weight)).chunk(4, -1)
            kept = functional.logsigmoid(f) + stabilizer
            stabilizer = torch.maximum(i, kept)
            i, keep = (i - stabilizer).exp(), (kept - stabilizer).exp()
            z, o = z.tanh(), o.sigmoid()
            before = hidden, cell, normalizer
            cell = keep * cell + i * z
            normalizer = keep * normalizer + i
            ratio = cell / normalizer
            hidden = o * ratio
            if is_learning:
                saved += [*before, i, f, keep, z, o, normalizer, ratio]
            outputs.append(hidden)
        ctx.save_for_backward(weight, *saved)
        ctx.mark_non_differentiable(stabilizer)  # the outputs do not depend on it
        return torch.stack(outputs), hidden, cell, normalizer, stabilizer

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any,
        grad_outputs: Tensor,
        grad_hidden: Tensor,
        grad_cell: Tensor,
        grad_normalizer: Tensor,
        _: Tensor,
    ) -> tuple[Tensor | None, ...]:
        weight, *saved = ctx.saved_tensors
        grad_gates, read = [], []
        for grad_output, step in zip(
            reversed(grad_outputs.unbind()), reversed(chunks(saved, 10)), strict=True
        ):
            hidden, last_cell, last_normalizer, i, f, keep, z, o, normalizer, ratio = step
            grad_hidden = grad_hidden + grad_output
            grad_sum = grad_hidden * o / normalizer
            grad_cell = grad_cell + grad_sum
            grad_normalizer = grad_normalizer - grad_sum * ratio
            grad_keep = grad_cell * last_cell + grad_normalizer * last_normalizer
            grad_step = torch.cat(
                [
                    (grad_cell * z + grad_normalizer) * i,
                    grad_keep * keep * torch.sigmoid(-f),
                    grad_cell * i * (1.0 - z.square()),
                    grad_hidden * ratio * o * (1.0 - o),
                ],
                -1,
            )
            grad_gates.append(grad_step)
            read.append(hidden)
            grad_hidden = multiply(grad_step, weight.mT)
            grad_cell, grad_normalizer = grad_cell * keep, grad_normalizer * keep
        return (
            None,
            torch.stack(grad_gates[::-1], 1),
            weight_gradient(grad_gates, read, weight.dtype),
            grad_hidden,
            grad_cell,
            grad_normalizer,
            None,
        )
