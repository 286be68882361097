"""Mogrifier LSTM. Shape letters: T time steps, B columns, E embedding, H hidden, R rank."""

import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from lmbench.model.core.recurrence import autocast_weight, chunks, multiply, weight_gradient
from lmbench.model.core.stack import Stack, to_float32


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
        hidden, cell = (to_float32(tensor[0]) for tensor in state)
        input_weight, recurrent_weight, input_bias, recurrent_bias = self.all_weights[0]
        weight = autocast_weight(torch.cat([input_weight, weight_dropout(recurrent_weight)], 1))
        rounds = [
            (autocast_weight(narrow.weight), autocast_weight(wide.weight), to_float32(wide.bias))
            for narrow, wide in cast(Iterable[Iterable[nn.Linear]], self.rounds)
        ]
        bias = to_float32(input_bias + recurrent_bias)
        with torch.autocast(input.device.type, enabled=False):
            outputs, hidden, cell = _Window.apply(
                torch.is_grad_enabled(),
                to_float32(input),
                hidden,
                cell,
                weight,
                bias,
                *itertools.chain(*rounds),
            )
        return outputs, (hidden.unsqueeze(0), cell.unsqueeze(0))


class _Window(Function):
    """All steps. Its backward pass is written out: autograd takes longer for so many small ones."""

    @staticmethod
    def forward(
        ctx: Any,
        is_learning: bool,
        input: Tensor,
        hidden: Tensor,
        cell: Tensor,
        weight: Tensor,
        bias: Tensor,
        *rounds: Tensor,
    ) -> tuple[Tensor, ...]:
        by_round = chunks(rounds, 3)
        outputs, saved = [], []
        for x in input.unbind():
            pair, in_rounds = [x, hidden], []
            for k, (narrow, wide, gate_bias) in enumerate(by_round):
                read = pair[1 - k % 2]
                low = multiply(read, narrow)
                scale = (multiply(low, wide) + gate_bias).sigmoid_().mul_(2.0)
                gated = scale * pair[k % 2]
                pair[k % 2] = gated
                in_rounds += [read, low, scale, gated]
            both = torch.cat(pair, -1)
            gates = multiply(both, weight) + bias
            i, f, g, o = gates.chunk(4, -1)
            g.tanh_()
            for gate in (i, f, o):
                gate.sigmoid_()
            last, cell = cell, f * cell + i * g
            squashed = cell.tanh()
            hidden = o * squashed
            outputs.append(hidden)
            if is_learning:
                saved += [*in_rounds, both, gates, last, squashed]
        ctx.save_for_backward(weight, *rounds, *saved)
        ctx.num_rounds = len(by_round)
        return torch.stack(outputs), hidden, cell

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, grad_outputs: Tensor, grad_hidden: Tensor, grad_cell: Tensor
    ) -> tuple[Tensor | None, ...]:
        num_rounds, (weight, *others) = ctx.num_rounds, ctx.saved_tensors
        rounds = chunks(others[: 3 * num_rounds], 3)
        steps = chunks(chunks(others[3 * num_rounds :], 4), num_rounds + 1)
        in_gates, in_rounds = [], [[] for _ in rounds]
        grad_input = []
        for grad_output, (*saved_rounds, (both, gates, last, squashed)) in zip(
            reversed(grad_outputs.unbind()), reversed(steps), strict=True
        ):
            i, f, g, o = gates.chunk(4, -1)
            grad_hidden = grad_hidden + grad_output
            grad_cell = grad_cell + grad_hidden * o * (1.0 - squashed.square())
            grad_gates = torch.cat(
                [
                    grad_cell * g * i * (1.0 - i),
                    grad_cell * last * f * (1.0 - f),
                    grad_cell * i * (1.0 - g.square()),
                    grad_hidden * squashed * o * (1.0 - o),
                ],
                -1,
            )
            grad_cell = grad_cell * f
            in_gates.append((grad_gates, both))
            size = both.shape[-1] - last.shape[-1], last.shape[-1]
            pair = list(multiply(grad_gates, weight.mT).split(size, -1))
            for k in reversed(range(num_rounds)):
                (narrow, wide, _), (read, low, scale, gated) = rounds[k], saved_rounds[k]
                grad_wide = pair[k % 2] * gated * (1.0 - 0.5 * scale)
                grad_low = multiply(grad_wide, wide.mT)
                pair[k % 2] = pair[k % 2] * scale
                pair[1 - k % 2] = pair[1 - k % 2] + multiply(grad_low, narrow.mT)
                in_rounds[k].append((grad_low, read, grad_wide, low))
            grad_x, grad_hidden = pair
            grad_input.append(grad_x)
        gate_grads, read = zip(*in_gates, strict=True)
        gradients = [weight_gradient(gate_grads, read, weight.dtype), torch.cat(gate_grads).sum(0)]
        for (narrow, wide, _), in_round in zip(rounds, in_rounds, strict=True):
            low_grads, read, wide_grads, low = zip(*in_round, strict=True)
            gradients += [
                weight_gradient(low_grads, read, narrow.dtype),
                weight_gradient(wide_grads, low, wide.dtype),
                torch.cat(wide_grads).sum(0),
            ]
        return None, torch.stack(grad_input[::-1]), grad_hidden, grad_cell, *gradients
