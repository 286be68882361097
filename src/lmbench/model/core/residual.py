"""Cores made of residual blocks. Shape letters: T time steps, B columns, E embedding, H hidden."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from lmbench.model.contracts import State
from lmbench.model.core.stack import Stack, run_layer, to_float32


class ResidualStack(Stack):
    """Blocks of size ``hidden_size``, each of which adds to what it reads.

    A block is a norm and a layer, then a norm and a feed-forward network, if the core has one. A
    final norm follows. If the input or output has another size, a linear map converts it. Dropout
    between layers is on what a block adds. Blocks are summed in float32 at least.
    """

    # PyTorch's default epsilon depends on the type of the numbers.
    norm: Callable[[int], nn.Module] = partial(nn.RMSNorm, eps=1e-5)

    def make_feedforward(self, size: int) -> nn.Module | None:
        """The second half of a block."""
        return None

    def layer_arguments(self) -> Sequence[Mapping[str, Tensor]]:
        """Keyword arguments of each layer, besides what every layer is given."""
        return [{}] * len(self.blocks)

    def build(self, hidden_size: int, num_layers: int) -> None:
        """Makes everything that has weights."""
        self.expand = _linear(self.input_size, hidden_size)
        self.blocks = nn.ModuleList(
            _Block(
                type(self).norm,
                hidden_size,
                self.make_layer(hidden_size, hidden_size),
                self.make_feedforward(hidden_size),
            )
            for _ in range(num_layers)
        )
        self.last_norm = type(self).norm(hidden_size)
        self.project = _linear(hidden_size, self.output_size)

    def run(
        self, input: Float[Tensor, "T B E"], state: State | None
    ) -> tuple[Float[Tensor, "T B H"], State]:
        """Everything between the dropouts of input and output."""
        states = [None] * len(self.blocks) if state is None else state
        stream, new_state = to_float32(self.expand(input)), []
        arguments = self.layer_arguments()
        for block, own, more in zip(self.blocks, states, arguments, strict=True):
            stream, last = block(stream, own, self.hidden_dropout, self.weight_dropout, more)
            new_state.append(last)
        return self.project(_normalized(stream, self.last_norm)), tuple(new_state)


class _Block(nn.Module):
    def __init__(
        self,
        norm: Callable[[int], nn.Module],
        size: int,
        layer: nn.Module,
        feedforward: nn.Module | None,
    ) -> None:
        super().__init__()
        self.norm, self.layer = norm(size), layer
        self.feedforward_norm = None if feedforward is None else norm(size)
        self.feedforward = feedforward

    def forward(
        self,
        stream: Tensor,
        state: Sequence[Tensor] | None,
        dropout: Callable[[Tensor], Tensor],
        weight_dropout: Callable[[Tensor], Tensor],
        arguments: Mapping[str, Tensor],
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        read = _normalized(stream, self.norm)
        added, last = run_layer(self.layer, read, state, weight_dropout, **arguments)
        stream = stream + dropout(added)
        if self.feedforward is not None and self.feedforward_norm is not None:
            read = _normalized(stream, self.feedforward_norm)
            stream = stream + dropout(self.feedforward(read))
        return stream, last


def _normalized(stream: Tensor, norm: nn.Module) -> Tensor:
    return norm(stream.to(next(norm.parameters()).dtype))


def _linear(input_size: int, output_size: int) -> nn.Module:
    if input_size == output_size:
        return nn.Identity()
    return nn.Linear(input_size, output_size, bias=False)


class GatedFeedForward(nn.Module):
    """Two linear layers with a gate between them, applied to each step separately.

    Source: Shazeer 2020 (arXiv 2002.05202): SwiGLU, with SiLU, or GEGLU, with GELU.

    Args:
        size: Number of features, H.
        inner_size: Number of features between the layers. With 8/3 of ``size``, there are as
            many weights as in a network without a gate and with 4 times ``size``.
        activation: Activation of the gate.
    """

    def __init__(self, size: int, inner_size: int, activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.gates = nn.Linear(size, 2 * inner_size, bias=False)
        self.out = nn.Linear(inner_size, size, bias=False)
        self.activation = activation

    def forward(self, input: Float[Tensor, "T B H"]) -> Float[Tensor, "T B H"]:
        """Runs a window."""
        gate, value = self.gates(input).chunk(2, -1)
        return self.out(self.activation(gate) * value)


class CausalConv(nn.Module):
    """A convolution over the last four steps, separate for each feature.

    Args:
        size: Number of features, H.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        bound = 4**-0.5  # nn.Conv1d's
        self.weight = nn.Parameter(torch.empty(4, size).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(size).uniform_(-bound, bound))

    def forward(
        self, input: Float[Tensor, "T B H"], last: Float[Tensor, "3 B H"] | None
    ) -> tuple[Float[Tensor, "T B H"], Float[Tensor, "3 B H"]]:
        """Outputs, and the inputs that the next window needs as its ``last``.

        Args:
            input: ``(T, B, H)``.
            last: The last inputs of the window before, ``(3, B, H)``; None for zeros.
        """
        num_last, size = len(self.weight) - 1, input.shape[-1]
        input = input.to(self.weight.dtype)
        if last is None:
            last = input.new_zeros(num_last, input.shape[1], size)
        last = last.to(input.dtype)
        output = _CausalConv.apply(input, last, self.weight, self.bias)
        return output, torch.cat([last, input[-num_last:]])[-num_last:]


class _CausalConv(Function):
    """Step by step, so that what a step needs is still in the cache."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, last: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(input, last, weight)
        # Not contiguous(): for one step of one column that is the bias itself.
        output = bias.repeat(*input.shape[:2], 1)
        steps, weights = [*last.unbind(), *input.unbind()], weight.unbind()
        for t, out in enumerate(output.unbind()):
            for k, w in enumerate(weights):
                out.addcmul_(steps[t + k], w)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        input, last, weight = ctx.saved_tensors
        grad_input, grad_last = torch.zeros_like(input), torch.zeros_like(last)
        # The sum over steps would lose digits in bfloat16.
        grad_weight = to_float32(input.new_zeros(len(weight), *input.shape[1:]))
        steps, weights = [*last.unbind(), *input.unbind()], weight.unbind()
        grad_steps = [*grad_last.unbind(), *grad_input.unbind()]
        grad_weights = grad_weight.unbind()
        for t, gradient in enumerate(grad_output.unbind()):
            for k, w in enumerate(weights):
                grad_steps[t + k].addcmul_(gradient, w)
                grad_weights[k].addcmul_(gradient, steps[t + k])
        return grad_input, grad_last, grad_weight.sum(1).to(weight.dtype), grad_output.sum((0, 1))
