import torch
from small import NO_DROPOUT
from torch.testing import assert_close

from lmbench.model.core import QRNN

T, B, E, H, OUTPUT = 5, 3, 4, 6, 5


def test_layers_are_convolutions_of_two_steps_and_a_pool() -> None:
    torch.manual_seed(0)
    core = QRNN(E, H, OUTPUT, num_layers=2, **NO_DROPOUT).double()
    input = torch.randn(T, B, E, dtype=torch.float64)
    result = core(input)
    expected = input
    for layer in core.layers:
        size = expected.shape[-1]
        # Bradbury et al., equation 1: one kernel over (x_t, x_(t−1)), here as PyTorch's conv1d.
        kernel = torch.stack([layer.conv.weight[:, size:], layer.conv.weight[:, :size]], -1)
        padded = torch.nn.functional.pad(expected.permute(1, 2, 0), (1, 0))
        convolved = torch.nn.functional.conv1d(padded, kernel, layer.conv.bias).permute(2, 0, 1)
        candidate, forget, out = convolved.chunk(3, -1)
        cell, outputs = torch.zeros_like(candidate[0]), []
        for t in range(T):  # section 2.1, fo-pooling
            f = forget[t].sigmoid()
            cell = f * cell + (1 - f) * candidate[t].tanh()
            outputs.append(out[t].sigmoid() * cell)
        expected = torch.stack(outputs)
    assert_close(result.output, expected)
    parameters = list(core.parameters())
    assert_close(
        torch.autograd.grad(result.output.square().sum(), parameters),
        torch.autograd.grad(expected.square().sum(), parameters),
    )
