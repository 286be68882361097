from collections.abc import Iterator
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from lmbench.optim import ASGD, swap_averages

DECAY = 0.01


@pytest.fixture
def float64_scalars() -> Iterator[None]:
    """torch.optim.ASGD keeps its rates in the default type, in which 1/3 has float32's digits."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def parameters(dtype: torch.dtype = torch.float64) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [
        nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype))
        for shape in [(3, 4), (5,), ()]
    ]


def set_gradients(params: list[nn.Parameter], step: int) -> None:
    """Sets the gradients of a function of the parameters that changes with every step."""
    for index, parameter in enumerate(params):
        parameter.grad = torch.cos(parameter.detach() * (step + index + 1))


def averages(optimizer: torch.optim.Optimizer, params: list[nn.Parameter]) -> list[Tensor]:
    return [optimizer.state[parameter]["ax"] for parameter in params]


def values(params: list[nn.Parameter]) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in params]


@pytest.mark.usefixtures("float64_scalars")
@pytest.mark.parametrize("resting", [0, 2], ids=["all move", "one rests for two steps"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_at_a_constant_rate_it_is_as_in_torch(dtype, tolerance: float, resting: int) -> None:
    ours, theirs = parameters(dtype), parameters(dtype)
    before = values(ours)
    optimizer = ASGD(ours, 0.3, weight_decay=DECAY)
    reference = torch.optim.ASGD(theirs, lr=0.3, lambd=0, t0=0, weight_decay=DECAY)
    for step in range(8):
        for params in (ours, theirs):
            set_gradients(params, step)
            if step < resting:
                params[0].grad = None
        optimizer.step()
        reference.step()
        close = {"rtol": tolerance, "atol": tolerance}
        assert_close(values(ours), values(theirs), **close)
        moved = 1 if step < resting else 0  # torch's averages come with the first gradient
        our_averages = averages(optimizer, ours)
        assert_close(our_averages[:moved], before[:moved], rtol=0, atol=0)
        assert_close(our_averages[moved:], averages(reference, theirs[moved:]), **close)


def test_a_changed_rate_takes_effect_in_that_very_step() -> None:
    ours, by_hand = parameters(), values(parameters())
    optimizer = ASGD(ours, 1.0, weight_decay=DECAY)
    iterates = []
    for step, lr in enumerate([0.5, 0.1, 0.7, 0.2]):
        optimizer.param_groups[0]["lr"] = lr
        set_gradients(ours, step)
        optimizer.step()
        by_hand = [
            p - lr * (torch.cos(p * (step + index + 1)) + DECAY * p)
            for index, p in enumerate(by_hand)
        ]
        iterates.append(by_hand)
        assert_close(values(ours), by_hand, rtol=1e-12, atol=1e-12)
        counted = iterates[1:] or iterates
        means = [sum(column) / len(counted) for column in zip(*counted, strict=True)]
        assert_close(averages(optimizer, ours), means, rtol=1e-12, atol=1e-12)


def test_averages_are_there_before_the_first_step() -> None:
    params = parameters()
    optimizer = ASGD(params[:2], 0.1)
    optimizer.add_param_group({"params": params[2:]})
    assert_close(averages(optimizer, params), values(params), rtol=0, atol=0)
    assert all(ax is not p for ax, p in zip(averages(optimizer, params), params, strict=True))


def test_groups_keep_their_own_rates_and_decays() -> None:
    params = parameters()
    first, second = values(params[:2])
    groups = [{"params": params[:1]}, {"params": params[1:2], "lr": 2.0, "weight_decay": 0.5}]
    optimizer = ASGD(groups, 1.0)
    for parameter in params:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert_close(params[0].detach(), first - 1.0)
    assert_close(params[1].detach(), second - 2.0 * (1.0 + 0.5 * second))


def test_gradients_are_read_only_and_may_be_strided() -> None:
    params = parameters()[:1]
    before = params[0].detach().clone()
    gradient = torch.arange(12.0, dtype=torch.float64).reshape(4, 3).t()
    params[0].grad = gradient
    ASGD(params, 0.1, weight_decay=DECAY).step()
    assert_close(params[0].detach(), before - 0.1 * (gradient + DECAY * before))
    assert_close(gradient, torch.arange(12.0, dtype=torch.float64).reshape(4, 3).t())


@pytest.mark.parametrize(
    "make", [partial(ASGD, lr=0.3), partial(torch.optim.ASGD, lr=0.3, lambd=0, t0=0)]
)
def test_swapping_twice_is_the_identity_and_memory_stays_in_place(make) -> None:
    params = parameters(torch.float32)
    optimizer = make(params)
    for step in range(4):
        set_gradients(params, step)
        params[2].grad = None
        optimizer.step()
    raw, mean = values(params), [optimizer.state[p]["ax"].clone() for p in params[:2]]
    assert not torch.equal(raw[0], mean[0])
    addresses = [parameter.data_ptr() for parameter in params]

    swap_averages(optimizer)
    assert_close(values(params), [*mean, raw[2]], rtol=0, atol=0)
    assert_close(averages(optimizer, params[:2]), raw[:2], rtol=0, atol=0)
    swap_averages(optimizer)
    assert_close(values(params), raw, rtol=0, atol=0)
    assert_close(averages(optimizer, params[:2]), mean, rtol=0, atol=0)
    assert [parameter.data_ptr() for parameter in params] == addresses
    assert all(parameter.requires_grad for parameter in params)


def test_swapping_before_a_step_keeps_the_weights_even_if_they_were_loaded_later() -> None:
    params = parameters()
    fresh = [ASGD(params, 0.3), torch.optim.ASGD(params), torch.optim.SGD(params, lr=0.1)]
    with torch.no_grad():
        params[0].fill_(7.0)
    before = values(params)
    for optimizer in fresh:
        swap_averages(optimizer)
        assert_close(values(params), before, rtol=0, atol=0)


def test_wrong_arguments() -> None:
    with pytest.raises(ValueError, match="lr"):
        ASGD(parameters(), -1.0)
    with pytest.raises(ValueError, match="weight_decay"):
        ASGD(parameters(), 1.0, weight_decay=float("nan"))
