import torch
from small import NO_DROPOUT
from torch import Tensor
from torch.testing import assert_close

from lmbench.model.core import GRU

T, B, E, H, OUTPUT = 5, 3, 4, 6, 5


def gru_by_hand(layer: torch.nn.GRU, input: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """Cho et al.'s unit; the reset gate acts on the product, bias included."""
    outputs = []
    for x in input:
        of_input = x @ layer.weight_ih_l0.T + layer.bias_ih_l0
        of_hidden = hidden @ layer.weight_hh_l0.T + layer.bias_hh_l0
        reset, update = (of_input + of_hidden)[:, : 2 * layer.hidden_size].sigmoid().chunk(2, -1)
        candidate = of_input.chunk(3, -1)[2] + reset * of_hidden.chunk(3, -1)[2]
        hidden = (1 - update) * candidate.tanh() + update * hidden
        outputs.append(hidden)
    return torch.stack(outputs), hidden


def test_layers_match_the_formula() -> None:
    torch.manual_seed(0)
    core = GRU(E, H, OUTPUT, num_layers=2, **NO_DROPOUT).double()
    input = torch.randn(T, B, E, dtype=torch.float64)
    state = tuple((torch.randn(1, B, size, dtype=torch.float64),) for size in (H, OUTPUT))
    result = core(input, state)
    expected = input
    for layer, (start,), (last,) in zip(core.layers, state, result.state, strict=True):
        expected, hidden = gru_by_hand(layer, expected, start[0])
        assert_close(last[0], hidden)
    assert_close(result.output, expected)
    parameters = list(core.parameters())
    assert_close(
        torch.autograd.grad(result.output.square().sum(), parameters),
        torch.autograd.grad(expected.square().sum(), parameters),
    )


def test_only_recurrent_weights_are_dropped() -> None:
    torch.manual_seed(0)
    core = GRU(E, H, num_layers=1, **{**NO_DROPOUT, "weight_dropout": 0.5})
    input = torch.randn(1, B, E)
    # Starting from zeros, the recurrent weight does nothing in the first step.
    assert_close(core(input).output, core(input).output, rtol=0, atol=0)
    state = ((torch.randn(1, B, H),),)
    assert not torch.equal(core(input, state).output, core(input, state).output)
