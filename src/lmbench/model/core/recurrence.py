"""What recurrent layers compute step by step. Shape letters: T time steps, B columns, H hidden."""

from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable


def f_pooling(
    keep: Float[Tensor, " T *N"], input: Float[Tensor, " T *N"], start: Float[Tensor, "*N"]
) -> Float[Tensor, " T *N"]:
    """All h_t = keep_t · h_(t−1) + (1 − keep_t) · input_t, from h_(−1) = ``start``.

    Forward and backward, each step is one operation on memory already allocated. On a CPU a
    parallel scan, which reads everything several times, would not be faster.

    Args:
        keep: ``(T, …)``, from 0 to 1.
        input: ``(T, …)``.
        start: ``(…)``.

    Returns:
        ``(T, …)``. It has no second derivative.

    >>> f_pooling(torch.full((3,), 0.5), torch.ones(3), torch.tensor(0.0)).tolist()
    [0.5, 0.75, 0.875]
    """
    return _FPooling.apply(keep, input, start)


class _FPooling(Function):
    @staticmethod
    def forward(ctx: Any, keep: Tensor, input: Tensor, start: Tensor) -> Tensor:
        output = torch.empty_like(input, memory_format=torch.contiguous_format)
        hidden = start
        for share, x, out in zip(keep.unbind(), input.unbind(), output.unbind(), strict=True):
            hidden = torch.lerp(x, hidden, share, out=out)
        ctx.save_for_backward(keep, input, start, output)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        keep, input, start, output = ctx.saved_tensors
        grad_hidden = grad_output.clone(memory_format=torch.contiguous_format)
        steps = grad_hidden.unbind()
        for t in range(len(steps) - 2, -1, -1):
            steps[t].addcmul_(keep[t + 1], steps[t + 1])
        grad_keep = torch.empty_like(output)
        torch.sub(start, input[0], out=grad_keep[0])
        torch.sub(output[:-1], input[1:], out=grad_keep[1:])
        grad_input = torch.addcmul(grad_hidden, grad_hidden, keep, value=-1.0)
        return grad_keep.mul_(grad_hidden), grad_input, keep[0] * grad_hidden[0]


@dataclass(eq=False)
class _Steps:
    """What the backward pass needs.

    It must not refer to its product, which refers to it: only the garbage collector frees a cycle,
    perhaps many windows later.
    """

    weight: Tensor
    inputs: list[Tensor] = field(default_factory=list)
    gradients: dict[int, Tensor] = field(default_factory=dict)

    def multiply(self, input: Tensor) -> Tensor:
        """The product without gradients, in the weight's type."""
        with torch.autocast(input.device.type, enabled=False):
            return input @ self.weight.mT


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
        self._steps = _Steps(weight.detach())
        self._anchor = _CollectGradients.apply(weight, self._steps)

    def __call__(self, input: Float[Tensor, "*K B I"]) -> Float[Tensor, "*K B O"]:
        """``input @ weight.mT``."""
        if torch.is_grad_enabled() and (input.requires_grad or self._anchor.requires_grad):
            return _Step.apply(input, self._anchor, self._steps)
        return self._steps.multiply(input.to(self._steps.weight.dtype)).to(input.dtype)


class _CollectGradients(Function):
    """The weight's gradient; its backward pass runs after those of all steps."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, steps: _Steps) -> Tensor:
        ctx.steps = steps
        return weight.new_zeros(())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        inputs, found = ctx.steps.inputs, ctx.steps.gradients
        gradients = torch.cat(list(found.values()), -2)
        read = torch.cat([inputs[t] for t in found], -2)
        found.clear()  # with retain_graph=True another pass may follow
        return gradients.mT @ read, None


class _Step(Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, anchor: Tensor, steps: _Steps) -> Tensor:
        rounded = input.detach().to(steps.weight.dtype)
        ctx.steps, ctx.index = steps, len(steps.inputs)
        steps.inputs.append(rounded)
        return steps.multiply(rounded).to(input.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        weight = ctx.steps.weight
        gradient = grad_output.to(weight.dtype)
        ctx.steps.gradients[ctx.index] = gradient
        return (gradient @ weight).to(grad_output.dtype), weight.new_zeros(()), None
