"""Parts of residual blocks."""

import pytest
import torch
from torch import nn

from lmbench.model.core.residual import CausalConv


def test_the_convolution_starts_with_the_range_of_pytorchs() -> None:
    torch.manual_seed(0)
    for module in (CausalConv(300), nn.Conv1d(300, 300, 4, groups=300)):
        for parameter in (module.weight, module.bias):
            assert parameter is not None
            assert 0.45 < parameter.abs().max() <= 0.5


@pytest.mark.parametrize("num_steps", [70, 2000])
def test_gradients_of_a_bfloat16_convolution_are_exact_to_its_digits(num_steps: int) -> None:
    """Summed over steps in bfloat16, they would be off by 5% of their size after 2,000."""
    torch.manual_seed(0)
    conv = CausalConv(16).bfloat16()
    input, factors = torch.randn(2, num_steps, 4, 16).bfloat16()
    exact = CausalConv(16).double()
    exact.load_state_dict(conv.state_dict())
    output, _ = conv(input, None)
    output.backward(factors)
    exact(input.double(), None)[0].backward(factors.double())
    for found, expected in zip(conv.parameters(), exact.parameters(), strict=True):
        assert found.grad is not None
        assert expected.grad is not None
        error = (found.grad.double() - expected.grad).norm() / expected.grad.norm()
        assert error < 2**-8
