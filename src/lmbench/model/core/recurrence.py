"""What recurrent layers compute step by step. Shape letters: T time steps, B columns, H hidden."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable


def linear_recurrence(
    decay: Float[Tensor, " T *N"], input: Float[Tensor, " T *N"], start: Float[Tensor, "*N"]
) -> Float[Tensor, " T *N"]:
    """All h_t = decay_t · h_(t−1) + input_t, element by element, from h_(−1) = ``start``.

    Forward and backward, each step is one operation on memory already allocated. On a CPU a
    parallel scan, which reads everything several times, would not be faster.

    Args:
        decay: ``(T, …)``.
        input: ``(T, …)``.
        start: ``(…)``.

    Returns:
        ``(T, …)``. It has no second derivative.

    >>> linear_recurrence(torch.full((3,), 0.5), torch.ones(3), torch.tensor(0.0)).tolist()
    [1.0, 1.5, 1.75]
    """
    return _LinearRecurrence.apply(decay, input, start)


class _LinearRecurrence(Function):
    @staticmethod
    def forward(ctx: Any, decay: Tensor, input: Tensor, start: Tensor) -> Tensor:
        output = torch.empty_like(input)
        hidden = start
        for a, b, out in zip(decay.unbind(), input.unbind(), output.unbind(), strict=True):
            hidden = torch.addcmul(b, a, hidden, out=out)
        ctx.save_for_backward(decay, output, start)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        decay, output, start = ctx.saved_tensors
        grad_hidden = grad_output.clone(memory_format=torch.contiguous_format)
        steps = grad_hidden.unbind()
        for t in range(len(steps) - 2, -1, -1):
            steps[t].addcmul_(decay[t + 1], steps[t + 1])
        previous = torch.cat([start.unsqueeze(0), output[:-1]])
        return grad_hidden * previous, grad_hidden, decay[0] * grad_hidden[0]


class StepProduct:
    """Multiplies by the same weight step after step.

    Autograd would add up the weight's gradient, a matrix as large as the weight, at every step.
    Here it is one product over all steps. Under autocast the weight is cast once, and the
    product is cast back to the type of its input.

    Args:
        weight: ``(…, O, I)``.
    """

    def __init__(self, weight: Float[Tensor, "*K O I"]) -> None:
        device_type = weight.device.type
        if torch.is_autocast_enabled(device_type):
            weight = weight.to(torch.get_autocast_dtype(device_type))
        self.weight = weight.detach()
        self.inputs: list[Tensor] = []
        self.gradients: dict[int, Tensor] = {}
        self._anchor = _CollectGradients.apply(weight, self)

    def __call__(self, input: Float[Tensor, "*K B I"]) -> Float[Tensor, "*K B O"]:
        """``input @ weight.mT``."""
        if torch.is_grad_enabled():
            return _Step.apply(input, self._anchor, self)
        return self.multiply(input.to(self.weight.dtype)).to(input.dtype)

    def multiply(self, input: Float[Tensor, "*K B I"]) -> Float[Tensor, "*K B O"]:
        """The same without gradients, in the weight's type."""
        with torch.autocast(input.device.type, enabled=False):
            return input @ self.weight.mT


class _CollectGradients(Function):
    """The weight's gradient; its backward pass runs after those of all steps."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, product: StepProduct) -> Tensor:
        ctx.product = product
        return weight.new_zeros(())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        inputs, found = ctx.product.inputs, ctx.product.gradients
        gradients = torch.cat(list(found.values()), -2)
        read = torch.cat([inputs[t] for t in found], -2)
        found.clear()  # with retain_graph=True another pass may follow
        return gradients.mT @ read, None


class _Step(Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, anchor: Tensor, product: StepProduct) -> Tensor:
        rounded = input.detach().to(product.weight.dtype)
        ctx.product, ctx.index = product, len(product.inputs)
        product.inputs.append(rounded)
        return product.multiply(rounded).to(input.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        weight = ctx.product.weight
        gradient = grad_output.to(weight.dtype)
        ctx.product.gradients[ctx.index] = gradient
        return (gradient @ weight).to(grad_output.dtype), weight.new_zeros(()), None
