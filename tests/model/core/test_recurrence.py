"""Step-by-step computations against plain loops in autograd."""

import gc

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from lmbench.model.core import mogrifier_lstm, slstm
from lmbench.model.core.mogrifier_lstm import MogrifierLayer
from lmbench.model.core.recurrence import f_pooling, multiply, weight_gradient
from lmbench.model.core.slstm import SLSTMLayer

T, B, H = 6, 3, 4


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64).requires_grad_()


@pytest.mark.parametrize("num_steps", [1, 2, T])
def test_f_pooling_matches_the_loop(num_steps: int) -> None:
    keep, input, start = leaves = normal(num_steps, B, H), normal(num_steps, B, H), normal(B, H)
    hidden, expected = start, []
    for share, x in zip(keep, input, strict=True):
        hidden = share * hidden + (1 - share) * x
        expected.append(hidden)
    output = f_pooling(*leaves)
    assert_close(output, torch.stack(expected))
    factors = normal(num_steps, B, H).detach()
    found = torch.autograd.grad((output * factors).sum(), leaves)
    assert_close(found, torch.autograd.grad((torch.stack(expected) * factors).sum(), leaves))


@pytest.mark.parametrize("heads", [(), (2,)])
def test_a_weights_gradient_is_that_of_autograd(heads: tuple[int, ...]) -> None:
    weight, inputs = normal(*heads, 5, H), [normal(*heads, B, H).detach() for _ in range(T)]
    factors = [normal(*heads, B, 5).detach() for _ in range(T)]
    loss = sum((x @ weight.mT * factor).sum() for x, factor in zip(inputs, factors, strict=True))
    (expected,) = torch.autograd.grad(loss, weight)
    assert_close(weight_gradient(factors, inputs, weight.dtype), expected)


@pytest.mark.parametrize(
    ("module", "layer"), [(mogrifier_lstm, MogrifierLayer(H, H, 2, 2)), (slstm, SLSTMLayer(H, 2))]
)
def test_only_products_are_rounded_under_autocast(module, layer, monkeypatch) -> None:
    types = []

    def spy(input: Tensor, weight: Tensor) -> Tensor:
        types.append((input.dtype, weight.dtype))
        return multiply(input, weight)

    monkeypatch.setattr(module, "multiply", spy)
    with torch.autocast("cpu", torch.bfloat16):
        output, state = layer(torch.randn(T, B, H), None, lambda weight: weight)
    output.square().sum().backward()
    assert set(types) == {(torch.float32, torch.bfloat16)}
    gradients = [parameter.grad for parameter in layer.parameters()]
    assert {tensor.dtype for tensor in (output, *state, *gradients)} == {torch.float32}


def test_a_product_is_rounded_to_its_weights_type() -> None:
    weight, input = torch.randn(H, H).bfloat16(), torch.randn(B, H)
    output = multiply(input, weight)
    assert output.dtype == torch.float32
    assert_close(output, input.bfloat16().float() @ weight.float().T, rtol=2**-8, atol=1e-6)


@pytest.mark.parametrize("layer", [MogrifierLayer(H, H, 2, 2), SLSTMLayer(H, 2)])
def test_only_a_window_that_will_be_learned_from_keeps_its_steps(
    layer, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts, stack = [], torch.stack

    def count(outputs: list[Tensor]) -> Tensor:
        """Runs at a window's end, when it has all that it keeps."""
        counts.append(sum(type(item) is Tensor for item in gc.get_objects()))
        return stack(outputs)

    def per_step() -> float:
        counts.clear()
        for num_steps in (20, 40):
            layer(torch.randn(num_steps, B, H), None, lambda weight: weight)
        short, long = counts
        return (long - short) / 20

    monkeypatch.setattr(torch, "stack", count)
    learning = per_step()
    with torch.no_grad():
        assert per_step() < learning - 5
