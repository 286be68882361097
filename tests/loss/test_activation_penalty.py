import pytest
import torch
from torch.testing import assert_close

from lmbench.loss.activation_penalty import (
    activation_regularization,
    temporal_activation_regularization,
)


def test_ar_is_the_mean_square_and_its_gradient_is_twice_the_mean() -> None:
    output = torch.tensor([[[1.0, -2.0]], [[3.0, 0.0]]], requires_grad=True)
    penalty = activation_regularization(output)
    penalty.backward()
    assert penalty.item() == (1 + 4 + 9 + 0) / 4
    assert_close(output.grad, output.detach() / 2)


def test_tar_is_the_mean_square_difference_along_time_only() -> None:
    raw = torch.tensor([[[1.0], [10.0]], [[2.0], [10.0]], [[4.0], [7.0]]], requires_grad=True)
    penalty = temporal_activation_regularization(raw)
    penalty.backward()
    assert penalty.item() == (1 + 4 + 0 + 9) / 4
    # d/dh_t of sum of squares: 2 (h_t − h_{t−1}) − 2 (h_{t+1} − h_t), divided by 4 differences
    expected = torch.tensor([[[-2.0], [0.0]], [[-2.0], [6.0]], [[4.0], [-6.0]]]) / 4
    assert_close(raw.grad, expected)


def test_tar_of_a_single_step_is_zero_with_a_zero_gradient() -> None:
    raw = torch.ones(1, 2, 3, requires_grad=True)
    penalty = temporal_activation_regularization(raw)
    penalty.backward()
    assert penalty.item() == 0.0
    assert_close(raw.grad, torch.zeros(1, 2, 3))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_neither_penalty_leaves_the_range_of_a_narrow_type(dtype: torch.dtype) -> None:
    """The sums of these squares are 65,536; float16 ends at 65,504."""
    output = torch.tensor([0.0, 1.0]).repeat(65_536).reshape(2, 1, 65_536).to(dtype)
    alternating = torch.stack([output[0], 1 - output[0]])
    for penalty, expected in (
        (activation_regularization(output), 0.5),
        (temporal_activation_regularization(alternating), 1.0),
    ):
        assert penalty.dtype == max(dtype, torch.float32, key=lambda of: of.itemsize)
        assert penalty.item() == expected
