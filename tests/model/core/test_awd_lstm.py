import pytest
import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional
from torch.testing import assert_close

from lmbench.model import AWDLSTM
from lmbench.model.dropout import WeightDropout

T, B, E, H, OUTPUT = 5, 3, 4, 6, 5
PROBABILITIES = {
    "input_dropout": 0.4,
    "hidden_dropout": 0.2,
    "output_dropout": 0.3,
    "weight_dropout": 0.5,
}


def make() -> tuple[AWDLSTM, Tensor]:
    torch.manual_seed(0)
    core = AWDLSTM(E, H, OUTPUT, num_layers=3, **PROBABILITIES).double()
    return core, torch.randn(T, B, E, dtype=torch.float64)


def locked(input: Tensor, p: float) -> Tensor:
    return input * functional.dropout(torch.ones(1, *input.shape[1:], dtype=input.dtype), p)


def test_every_dropout_is_in_its_place() -> None:
    core, input = make()
    torch.manual_seed(1)
    result = core(input)

    torch.manual_seed(1)
    expected = locked(input, 0.4)
    for index, layer in enumerate(core.layers):
        if index > 0:
            expected = locked(expected, 0.2)
        dropped = {"weight_hh_l0": WeightDropout(0.5)(layer.weight_hh_l0)}
        expected, (hidden, cell) = functional_call(layer, dropped, expected)
        assert_close(result.state[index], (hidden, cell))
    assert_close(result.raw_output, expected)
    assert_close(result.output, locked(expected, 0.3))

    parameters = list(core.parameters())
    assert_close(
        torch.autograd.grad(result.raw_output.square().sum(), parameters),
        torch.autograd.grad(expected.square().sum(), parameters),
    )


def test_ordinary_dropout_can_replace_locked_dropout() -> None:
    core, input = make()
    unlocked = AWDLSTM(E, H, OUTPUT, num_layers=3, **PROBABILITIES, locked_dropout=False).double()
    unlocked.load_state_dict(core.state_dict())
    torch.manual_seed(1)
    result = unlocked(input)

    torch.manual_seed(1)
    expected = functional.dropout(input, 0.4)
    for index, layer in enumerate(unlocked.layers):
        if index > 0:
            expected = functional.dropout(expected, 0.2)
        dropped = {"weight_hh_l0": WeightDropout(0.5)(layer.weight_hh_l0)}
        expected, _ = functional_call(layer, dropped, expected)
    assert_close(result.output, functional.dropout(expected, 0.3))


def test_evaluation_is_exact_and_parameters_are_those_of_plain_layers() -> None:
    core, input = make()
    plain = AWDLSTM(E, H, OUTPUT, num_layers=3, **dict.fromkeys(PROBABILITIES, 0.0)).double()
    plain.load_state_dict(core.state_dict())
    core(input).output.sum().backward()
    assert_close(core.eval()(input), plain(input), rtol=0, atol=0)
    names = ["weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"]
    assert list(core.state_dict()) == [f"layers.{i}.{name}" for i in range(3) for name in names]
    assert core.output_size == OUTPUT
    assert AWDLSTM(E, H, **PROBABILITIES).output_size == H
    assert len(AWDLSTM(E, H, **PROBABILITIES).layers) == 3


@pytest.mark.parametrize("name", list(PROBABILITIES))
def test_a_wrong_probability_is_named(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        AWDLSTM(E, H, **{**PROBABILITIES, name: 1.0})
