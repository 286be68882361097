import pytest
import torch
from small import NO_DROPOUT
from torch.testing import assert_close

from lmbench.model.core import MogrifierLSTM

T, B, E, H, OUTPUT = 5, 3, 4, 6, 5


@pytest.mark.parametrize(("num_rounds", "window"), [(1, T), (2, 1), (5, 2), (6, T), (6, 3)])
def test_layers_match_the_formula_however_the_text_is_cut(num_rounds: int, window: int) -> None:
    """Melis et al. 2020, equations 1 to 3, with PyTorch's own cell."""
    torch.manual_seed(0)
    core = MogrifierLSTM(E, H, OUTPUT, num_layers=2, num_rounds=num_rounds, rank=2, **NO_DROPOUT)
    core = core.double()
    input = torch.randn(T, B, E, dtype=torch.float64).requires_grad_()
    outputs, state = [], None
    for part in input.split(window):
        result = core(part, state)
        outputs.append(result.output)
        state = result.state
    output, expected = torch.cat(outputs), input
    for layer, last in zip(core.layers, state, strict=True):
        cell = torch.nn.LSTMCell(layer.input_size, layer.hidden_size).double()
        for name in dict(cell.named_parameters()):
            setattr(cell, name, getattr(layer, f"{name}_l0"))
        h, c = (torch.zeros(B, layer.hidden_size, dtype=torch.float64) for _ in range(2))
        outputs = []
        for x in expected:
            for k, gate in enumerate(layer.rounds):
                if k % 2 == 0:
                    x = 2 * gate(h).sigmoid() * x  # noqa: PLW2901
                else:
                    h = 2 * gate(x).sigmoid() * h
            h, c = cell(x, (h, c))
            outputs.append(h)
        expected = torch.stack(outputs)
        assert_close(last, (h[None], c[None]))
    assert_close(output, expected)
    leaves, factors = [input, *core.parameters()], torch.randn_like(expected)
    gradients = torch.autograd.grad((output * factors).sum(), leaves)
    assert_close(gradients, torch.autograd.grad((expected * factors).sum(), leaves))


def test_weight_dropout_acts_on_the_recurrent_weight() -> None:
    (layer,) = MogrifierLSTM(E, H, num_layers=1, rank=2, **NO_DROPOUT).layers
    given: list[torch.Tensor] = []
    layer(torch.randn(T, B, E), None, lambda weight: given.append(weight) or weight)
    (weight,) = given
    assert weight is layer.weight_hh_l0


@pytest.mark.parametrize("name", ["num_rounds", "rank"])
def test_a_wrong_number_is_named(name: str) -> None:
    with pytest.raises(ValueError, match=f"^{name}"):
        MogrifierLSTM(E, H, **{name: 0}, **NO_DROPOUT)
