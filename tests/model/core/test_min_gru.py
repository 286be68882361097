"""minGRU and minLSTM, step by step from the paper's own equations."""

import pytest
import torch
from small import NO_DROPOUT
from torch import Tensor, nn
from torch.nn import functional
from torch.testing import assert_close

from lmbench.model.core import MinGRU, MinLSTM

T, B, E, H = 7, 3, 4, 6


def g(x: Tensor) -> Tensor:
    """Feng et al. 2024, appendix B.3."""
    return x.relu() + 0.5 * (x >= 0) + x.sigmoid() * (x < 0)


def min_gru(x: Tensor, hidden: Tensor) -> Tensor:
    z, candidate = x.chunk(2, -1)
    return (1 - z.sigmoid()) * hidden + z.sigmoid() * g(candidate)


def min_lstm(x: Tensor, hidden: Tensor) -> Tensor:
    f, i, candidate = x.chunk(3, -1)
    total = f.sigmoid() + i.sigmoid()
    return f.sigmoid() / total * hidden + i.sigmoid() / total * g(candidate)


@pytest.mark.parametrize(("kind", "cell"), [(MinGRU, min_gru), (MinLSTM, min_lstm)])
def test_blocks_match_the_formula(kind, cell) -> None:
    torch.manual_seed(0)
    core = kind(E, H, E, num_layers=2, **NO_DROPOUT).double()
    input = torch.randn(T, B, E, dtype=torch.float64)
    result = core(input)

    stream = input @ core.expand.weight.T
    for block in core.blocks:
        layer = block.layer
        x = functional.rms_norm(stream, [H], block.norm.weight, 1e-5)
        conv = nn.Conv1d(H, H, 4, groups=H).double()
        conv.weight, conv.bias = nn.Parameter(layer.conv.weight.T[:, None]), layer.conv.bias
        x = x + conv(functional.pad(x.permute(1, 2, 0), (3, 0))).permute(2, 0, 1)
        hidden, outputs = torch.zeros(B, 9, dtype=torch.float64), []
        for step in layer.gates(x):
            hidden = cell(step, hidden)
            outputs.append(hidden)
        stream = stream + torch.stack(outputs) @ layer.out.weight.T
        x = functional.rms_norm(stream, [H], block.feedforward_norm.weight, 1e-5)
        first, _, second = block.feedforward
        stream = stream + second(functional.gelu(first(x)))
    expected = functional.rms_norm(stream, [H], core.last_norm.weight, 1e-5) @ core.project.weight.T
    assert_close(result.output, expected)


@pytest.mark.parametrize("kind", [MinGRU, MinLSTM])
def test_weight_dropout_acts_on_what_makes_the_gates(kind) -> None:
    layer, given = kind(E, H, **NO_DROPOUT).blocks[0].layer, []
    layer(torch.randn(T, B, H), None, lambda weight: given.append(weight) or weight)
    (weight,) = given
    assert weight is layer.gates.weight


@pytest.mark.parametrize("kind", [MinGRU, MinLSTM])
@pytest.mark.parametrize("bias", [-200.0, 200.0])
def test_gates_that_are_shut_or_open_give_no_nan(kind, bias: float) -> None:
    layer = kind(H, H, **NO_DROPOUT)
    layer = layer.blocks[0].layer
    nn.init.constant_(layer.gates.bias, bias)
    output, _ = layer(torch.randn(T, B, H), None, nn.Identity())
    output.sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in layer.parameters())
