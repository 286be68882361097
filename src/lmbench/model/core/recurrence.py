"""What recurrent layers compute step by step. Shape letters: T steps, B columns, I in, O out."""

from collections.abc import Sequence
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


def multiply(input: Float[Tensor, "*K B I"], weight: Float[Tensor, "*K O I"]) -> Tensor:
    """``input @ weight.mT`` computed in the weight's type, in the type of ``input``."""
    return (input.to(weight.dtype) @ weight.mT).to(input.dtype)


def autocast_weight(weight: Tensor) -> Tensor:
    """The weight in the type that autocast multiplies in, if it is on: cast once for all steps."""
    device_type = weight.device.type
    if torch.is_autocast_enabled(device_type):
        return weight.to(torch.get_autocast_dtype(device_type))
    return weight


def weight_gradient(
    gradients: Sequence[Float[Tensor, "*K B O"]],
    inputs: Sequence[Float[Tensor, "*K B I"]],
    dtype: torch.dtype,
) -> Float[Tensor, "*K O I"]:
    """The gradient of a weight that each step multiplies by, as one product over all steps.

    Autograd would add up a matrix as large as the weight at every step.

    Args:
        gradients: Those of each step's product.
        inputs: What each step multiplied, in the same order.
        dtype: The weight's.
    """
    return torch.cat(list(gradients), -2).to(dtype).mT @ torch.cat(list(inputs), -2).to(dtype)


def chunks(items: Sequence[Any], size: int) -> list[Sequence[Any]]:
    """The items in groups of ``size``.

    >>> chunks("abcdef", 2)
    ['ab', 'cd', 'ef']
    """
    return [items[start : start + size] for start in range(0, len(items), size)]
