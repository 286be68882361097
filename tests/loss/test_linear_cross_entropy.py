from itertools import product

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

from lmbench.loss import linear_cross_entropy as module
from lmbench.loss.linear_cross_entropy import (
    autocast_dtype,
    linear_cross_entropy,
    mixture_cross_entropy,
)
from lmbench.perplexity import IGNORE_INDEX

N, H, V = 12, 5, 11
ROW = V * 8  # bytes of one token's logits in float64


def problem(
    n: int = N,
    h: int = H,
    v: int = V,
    *,
    bias: bool = True,
    dtype: torch.dtype = torch.float64,
    scale: float = 1.0,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        values = torch.randn(*shape, generator=generator, dtype=torch.float64) * scale
        return values.to(dtype).requires_grad_()

    targets = torch.randint(v, (n,), generator=generator)
    return normal(n, h), normal(v, h), normal(v) if bias else None, targets


def reference(input, weight, bias, targets, **options) -> Tensor:
    return functional.cross_entropy(functional.linear(input, weight, bias), targets, **options)


def gradients(loss: Tensor, *leaves: Tensor | None) -> list[Tensor]:
    return list(torch.autograd.grad(loss, [leaf for leaf in leaves if leaf is not None]))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("rows", [1, 4, 5, 12, 100])
def test_value_and_gradients_at_every_chunk_border(
    rows: int, reduction: str, bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CHUNK_BYTES", rows * ROW)
    *leaves, targets = problem(bias=bias)
    targets[::3] = IGNORE_INDEX
    ours = linear_cross_entropy(*leaves, targets, reduction=reduction)
    theirs = reference(*leaves, targets, reduction=reduction)
    assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    # A factor on the loss must reach the gradients that the forward pass prepared.
    factors = torch.linspace(3.5, -1, ours.numel(), dtype=torch.float64).view(ours.shape)
    found, expected = (gradients((loss * factors).sum(), *leaves) for loss in (ours, theirs))
    assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("wanted", list(product([True, False], repeat=3)))
def test_only_leaves_that_require_gradients_get_them(wanted: tuple[bool, bool, bool]) -> None:
    *leaves, targets = problem()
    expected = gradients(reference(*leaves, targets), *leaves)
    asked = [leaf.detach().requires_grad_(want) for leaf, want in zip(leaves, wanted, strict=True)]
    loss = linear_cross_entropy(*asked, targets)
    assert loss.requires_grad == any(wanted)
    if any(wanted):
        loss.backward()
    for leaf, want, gradient in zip(asked, wanted, expected, strict=True):
        if want:
            assert_close(leaf.grad, gradient)
        else:
            assert leaf.grad is None


def test_strided_arguments_of_time_and_columns() -> None:
    *leaves, targets = problem()
    input = leaves[0].t().contiguous().t()
    weight = leaves[1].t().contiguous().t()
    assert not input.is_contiguous()
    columns = input.unflatten(0, (4, 3)), weight, leaves[2], targets.reshape(4, 3)
    ours = linear_cross_entropy(*columns, reduction="none")
    theirs = reference(*leaves, targets, reduction="none")
    assert_close(ours, theirs.reshape(4, 3))
    assert_close(gradients(ours.mean(), *leaves), gradients(theirs.mean(), *leaves))


def test_float32_gradients_have_float32_accuracy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK_BYTES", 70 * 1000 * 4)
    shape = {"n": 300, "h": 64, "v": 1000}
    *leaves, targets = problem(**shape, dtype=torch.float32, scale=0.5)
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    ours = linear_cross_entropy(*leaves, targets)
    theirs = reference(*exact, targets)
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-6)
    for found, expected in zip(gradients(ours, *leaves), gradients(theirs, *exact), strict=True):
        assert (found.double() - expected).norm() / expected.norm() <= 2e-6


def test_a_logit_gap_of_200_stays_finite_and_exact() -> None:
    input = torch.tensor([[1.0], [-1.0]], requires_grad=True)
    weight = torch.tensor([[100.0], [-100.0]], requires_grad=True)
    loss = linear_cross_entropy(input, weight, None, torch.tensor([1, 1]), reduction="none")
    assert loss.tolist() == [200.0, 0.0]
    loss.sum().backward()
    assert_close(input.grad, torch.tensor([[200.0], [0.0]]))


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_cast_up_and_autocast_ignored(dtype: torch.dtype, reduction: str) -> None:
    input, weight, bias, targets = problem(dtype=torch.float32)
    half = input.detach().to(dtype).requires_grad_()
    exact = [leaf.detach().double().requires_grad_() for leaf in (half, weight, bias)]
    with torch.autocast("cpu", dtype=dtype):
        ours = linear_cross_entropy(half, weight, bias, targets, reduction=reduction).sum()
        ours.backward()
    theirs = reference(*exact, targets, reduction=reduction).sum()
    theirs.backward()
    assert ours.dtype == weight.grad.dtype == torch.float32
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-6)
    assert_close(weight.grad.double(), exact[1].grad, rtol=1e-5, atol=1e-6)
    assert bias.grad.dtype == torch.float32
    assert_close(bias.grad.double(), exact[2].grad, rtol=1e-5, atol=1e-6)
    assert_close(half.grad, exact[0].grad.to(dtype))


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [1000, 9])
def test_another_dtype_rounds_products_but_not_sums_over_chunks(
    rows: int, bias: bool, reduction: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CHUNK_BYTES", rows * 300 * 2)
    *leaves, targets = problem(n=1000, h=40, v=300, bias=bias, dtype=torch.float32, scale=0.3)
    targets[5:900:3] = -100
    exact = [leaf if leaf is None else leaf.detach().double().requires_grad_() for leaf in leaves]
    ours = linear_cross_entropy(*leaves, targets, dtype=torch.bfloat16, reduction=reduction)
    theirs = reference(*exact, targets, reduction=reduction)
    if reduction == "none":
        assert ours.shape == targets.shape
        assert ((ours - theirs).abs() < 2**-6 * theirs.abs() + 1e-9).all()
        ours, theirs = ours.mean(), theirs.mean()
    # Half a unit of bfloat16 is 2^-9 of a value. Summed in it, 112 chunks would be off by more.
    assert ours.dtype == torch.float32
    assert 0 < abs(ours.item() / theirs.item() - 1) < 2**-11
    for found, expected in zip(gradients(ours, *leaves), gradients(theirs, *exact), strict=True):
        assert found.dtype == torch.float32
        assert 0 < (found - expected).norm() / expected.norm() < 2**-7


@pytest.mark.parametrize(
    ("dtype", "expected"), [(torch.bfloat16, torch.bfloat16), (torch.float16, None)]
)
def test_only_bfloat16_with_gradients_follows_autocast(
    dtype: torch.dtype, expected: torch.dtype | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "multiplies_bfloat16", lambda: True)
    assert autocast_dtype("cpu") is None
    with torch.autocast("cpu", dtype=dtype):
        assert autocast_dtype("cpu") == expected
        with torch.no_grad():
            assert autocast_dtype("cpu") is None
        monkeypatch.setattr(module, "multiplies_bfloat16", lambda: False)
        assert autocast_dtype("cpu") is None


def test_with_nothing_scored_the_sum_is_zero_and_the_mean_nan() -> None:
    *leaves, targets = problem()
    targets.fill_(-100)
    assert linear_cross_entropy(*leaves, targets, reduction="sum").item() == 0.0
    assert linear_cross_entropy(*leaves, targets).isnan()
    total = linear_cross_entropy(*leaves, targets, reduction="sum")
    assert all(not gradient.any() for gradient in gradients(total, *leaves))


def test_backward_twice_through_a_kept_graph() -> None:
    *leaves, targets = problem()
    loss = linear_cross_entropy(*leaves, targets)
    first = torch.autograd.grad(loss, leaves, retain_graph=True)
    second = torch.autograd.grad(loss, leaves)
    assert_close(first, second, rtol=0, atol=0)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_a_second_derivative_is_refused_instead_of_wrong(reduction: str) -> None:
    *leaves, targets = problem()
    loss = linear_cross_entropy(*leaves, targets, reduction=reduction).square().sum()
    (gradient,) = torch.autograd.grad(loss, leaves[:1], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_without_gradients_only_the_logits_are_multiplied_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "CHUNK_BYTES", 2 * ROW)
    *leaves, targets = problem()
    with torch.no_grad(), FlopCounterMode(display=False) as evaluation:
        loss = linear_cross_entropy(*leaves, targets)
    assert_close(loss, reference(*leaves, targets).detach())
    assert not loss.requires_grad
    assert evaluation.get_total_flops() == 2 * N * H * V


# Mixtures -----------------------------------------------------------------------------------------

K = 3


def mixture(**options: bool) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor]:
    rows, weight, bias, targets = problem(n=N * K, **options)
    log_priors = torch.linspace(-2, 1, N * K, dtype=torch.float64).sin().view(N, K).log_softmax(1)
    input = rows.detach().view(N, K, H).requires_grad_()
    return input, log_priors.requires_grad_(), weight, bias, targets[:N]


def mixture_reference(input, log_priors, weight, bias, targets, **options) -> Tensor:
    """Adds up probabilities."""
    logits = input @ weight.t() + (0 if bias is None else bias)
    probabilities = (log_priors.exp().unsqueeze(-1) * logits.softmax(-1)).sum(-2)
    return functional.nll_loss(probabilities.log(), targets, **options)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("tokens", [0, 1, 5, 100])
def test_value_and_gradients_of_a_mixture_at_every_chunk_border(
    tokens: int, reduction: str, bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CHUNK_BYTES", tokens * K * ROW)
    *leaves, targets = mixture(bias=bias)
    targets[::3] = IGNORE_INDEX
    ours = mixture_cross_entropy(*leaves, targets, reduction=reduction)
    theirs = mixture_reference(*leaves, targets, reduction=reduction)
    assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    factors = torch.linspace(3.5, -1, ours.numel(), dtype=torch.float64).view(ours.shape)
    found, expected = (gradients((loss * factors).sum(), *leaves) for loss in (ours, theirs))
    assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_a_mixture_of_strided_rows(reduction: str) -> None:
    """As from a head whose components come first."""
    rows, *leaves, targets = mixture()
    strided = rows.detach().transpose(0, 1).contiguous().transpose(0, 1).requires_grad_()
    assert not strided.is_contiguous()
    found, expected = (
        gradients(mixture_cross_entropy(x, *leaves, targets, reduction=reduction).sum(), x, *leaves)
        for x in (strided, rows)
    )
    assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_a_component_that_makes_the_target_impossible_takes_no_part(reduction: str) -> None:
    """exp(-200) is 0 in float32; even if both components have it, nothing is lost."""
    input = torch.tensor([[[1.0], [0.0]], [[1.0], [1.0]]], requires_grad=True)
    weight = torch.tensor([[100.0], [-100.0]])
    log_priors = torch.tensor([[0.75, 0.25]] * 2).log().requires_grad_()
    targets = torch.tensor([1, 1])
    loss = mixture_cross_entropy(input, log_priors, weight, None, targets, reduction=reduction)
    expected = torch.tensor([8.0, 1.0]).log() + torch.tensor([0.0, 200.0])
    assert_close(loss, expected if reduction == "none" else expected.mean())
    loss.sum().backward()
    scale = 1.0 if reduction == "none" else 0.5
    # The shares come from numbers near 200 nats, which have five digits after the point.
    digits = {"rtol": 2e-5, "atol": 1e-30}
    assert_close(log_priors.grad, -scale * torch.tensor([[0.0, 1.0], [0.75, 0.25]]), **digits)
    assert_close(input.grad[..., 0], scale * torch.tensor([[0.0, 100.0], [150.0, 50.0]]), **digits)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_bfloat16_scales_no_gradient(reduction: str) -> None:
    """1/1800, the factor of a mean, is 0.24% off in bfloat16."""
    *leaves, targets = problem(1800, 16, 50, dtype=torch.float32, scale=0.3)
    nats = functional.cross_entropy(functional.linear(*leaves), targets)
    expected = torch.autograd.grad(nats, leaves)
    loss = linear_cross_entropy(*leaves, targets, dtype=torch.bfloat16, reduction=reduction)
    found = torch.autograd.grad(loss if reduction == "mean" else loss / 1800, leaves)
    for ours, exact in zip(found, expected, strict=True):
        assert float((ours * exact).sum() / exact.square().sum()) == pytest.approx(1, abs=1e-3)
