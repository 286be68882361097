"""The stack of layers against an LSTM written by hand."""

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from lmbench.model.core import detach_state
from lmbench.model.core.stack import run_layers, stack_layers

T, B = 6, 2


def lstm_by_hand(
    layer: nn.LSTM, input: Tensor, hidden: Tensor, cell: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Hochreiter and Schmidhuber's cell with a forget gate; gates in PyTorch's order i, f, g, o."""
    outputs = []
    for x in input:
        gates = x @ layer.weight_ih_l0.t() + layer.bias_ih_l0
        gates = gates + hidden @ layer.weight_hh_l0.t() + layer.bias_hh_l0
        i, f, g, o = gates.chunk(4, dim=-1)
        cell = torch.sigmoid(f) * cell + torch.sigmoid(i) * torch.tanh(g)
        hidden = torch.sigmoid(o) * torch.tanh(cell)
        outputs.append(hidden)
    return torch.stack(outputs), hidden, cell


def make(*sizes: int, num_layers: int) -> tuple[nn.ModuleList, Tensor]:
    torch.manual_seed(0)
    layers = stack_layers(*sizes, num_layers=num_layers).double()
    return layers, torch.randn(T, B, sizes[0], dtype=torch.float64)


@pytest.mark.parametrize("num_layers", [1, 2, 3])
@pytest.mark.parametrize("given", [True, False])
def test_outputs_states_and_gradients_match_the_formula(num_layers: int, given: bool) -> None:
    layers, input = make(3, 5, 4, num_layers=num_layers)
    sizes = [layer.hidden_size for layer in layers]
    assert sizes == [5] * (num_layers - 1) + [4]
    start = [torch.randn(2, 1, B, h, dtype=torch.float64) * given for h in sizes]
    state = tuple((h, c) for h, c in start) if given else None
    output, new_state = run_layers(layers, input, state, between=torch.sin)

    expected = input
    expected_state = []
    for index, (layer, (h, c)) in enumerate(zip(layers, start, strict=True)):
        expected = expected if index == 0 else expected.sin()
        expected, hidden, cell = lstm_by_hand(layer, expected, h[0], c[0])
        expected_state.append((hidden[None], cell[None]))
    assert_close(output, expected)
    assert_close(new_state, tuple(expected_state))

    parameters = list(layers.parameters())
    loss = output.square().sum() + sum(c.sum() for _, c in new_state)
    reference = expected.square().sum() + sum(c.sum() for _, c in expected_state)
    assert_close(torch.autograd.grad(loss, parameters), torch.autograd.grad(reference, parameters))


def test_two_windows_are_one_long_window() -> None:
    layers, input = make(3, 5, 4, num_layers=2)
    whole, whole_state = run_layers(layers, input, None, between=torch.sin)
    first, state = run_layers(layers, input[:2], None, between=torch.sin)
    second, state = run_layers(layers, input[2:], state, between=torch.sin)
    assert_close(torch.cat([first, second]), whole)
    assert_close(state, whole_state)


def test_a_detached_state_ends_backpropagation_but_not_the_memory() -> None:
    layers, input = make(3, 5, 4, num_layers=2)
    input.requires_grad_()
    _, state = run_layers(layers, input[:2], None, between=torch.sin)
    output, _ = run_layers(layers, input[2:], detach_state(state), between=torch.sin)
    assert_close(output, run_layers(layers, input[2:], state, between=torch.sin)[0])
    output.sum().backward()
    assert not input.grad[:2].any()
    assert input.grad[2:].any()


def test_wrong_arguments() -> None:
    with pytest.raises(ValueError, match="num_layers must be at least 1, got 0"):
        stack_layers(3, 5, 4, num_layers=0)
    layers, input = make(3, 5, 4, num_layers=2)
    _, state = run_layers(layers, input, None, between=torch.sin)
    with pytest.raises(ValueError, match="state must have 2 layers, got 1"):
        run_layers(layers, input, state[:1], between=torch.sin)
