"""Step-by-step computations against plain loops in autograd."""

import gc
import weakref

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from lmbench.model.core.recurrence import StepProduct, f_pooling

T, B, H = 6, 3, 4


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64).requires_grad_()


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


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


def chain(product, input: Tensor) -> Tensor:
    """Every step reads the one before; only the first and the last go into the loss directly."""
    steps = [input]
    for _ in range(T):
        steps.append(product(steps[-1]).tanh())
    return steps[1].sin().sum() + 2.0 * steps[-1].square().sum()


@pytest.mark.parametrize("shape", [(H, H), (2, H, H)])
def test_a_step_product_and_its_gradients_are_those_of_the_product(shape: tuple[int, ...]) -> None:
    weight, input = leaves = normal(*shape), normal(*shape[:-2], B, H)
    expected = chain(lambda x: x @ weight.mT, input)
    loss = chain(StepProduct(weight), input)
    assert_close(loss, expected)
    gradients = torch.autograd.grad(expected, leaves)
    for _ in range(2):
        assert_close(torch.autograd.grad(loss, leaves, retain_graph=True), gradients)


def test_steps_that_reach_no_loss_do_not_count() -> None:
    weight, input = normal(H, H), normal(B, H)
    product = StepProduct(weight)
    product(input)
    product(input).sum().backward()
    assert_close(weight.grad, input.detach().sum(0).expand(H, H))


def test_only_products_are_rounded_under_autocast() -> None:
    weight, input = torch.randn(H, H).requires_grad_(), torch.randn(B, H).requires_grad_()
    rounded = [leaf.detach().bfloat16().float().requires_grad_() for leaf in (weight, input)]
    with torch.autocast("cpu", torch.bfloat16):
        output = StepProduct(weight)(input)
    expected = rounded[1] @ rounded[0].T
    assert output.dtype == torch.float32
    assert_close(output, expected, rtol=2**-8, atol=1e-6)
    (output * output.detach()).sum().backward()
    (expected * expected.detach()).sum().backward()
    for ours, theirs in zip((weight, input), rounded, strict=True):
        assert ours.grad.dtype == torch.float32
        assert_close(ours.grad, theirs.grad, rtol=2**-6, atol=2**-6)


@pytest.mark.parametrize("is_frozen", [True, False])
def test_nothing_is_kept_if_no_gradient_is_wanted(is_frozen: bool) -> None:
    """Evaluation reads with frozen weights, or without gradients."""
    weight, input = normal(H, H), normal(B, H).detach()
    weight.requires_grad_(not is_frozen)
    with torch.set_grad_enabled(is_frozen):
        product = StepProduct(weight)
        seen = weakref.ref(product(input))
    assert product._steps.inputs == []
    assert seen() is None


def test_a_products_memory_is_freed_without_the_garbage_collector() -> None:
    weight, input = normal(H, H), normal(B, H)
    gc.disable()
    try:
        product = StepProduct(weight)
        steps = weakref.ref(product._steps)
        product(product(input)).sum().backward()
        del product
        assert steps() is None
    finally:
        gc.enable()
