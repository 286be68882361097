import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.testing import assert_close

from lmbench.model import LSTM

T, B, E, H = 5, 3, 4, 6


def test_it_is_nn_lstm_if_nothing_is_dropped() -> None:
    torch.manual_seed(0)
    core = LSTM(E, H, num_layers=2, dropout=0.5).double().eval()
    twin = nn.LSTM(E, H, num_layers=2).double()
    values = [value for layer in core.layers for value in layer.state_dict().values()]
    twin.load_state_dict(dict(zip(twin.state_dict(), values, strict=True)))
    input = torch.randn(T, B, E, dtype=torch.float64)
    result = core(input)
    expected, (hidden, cell) = twin(input)
    assert_close(result.output, expected)
    assert_close(torch.cat([h for h, _ in result.state]), hidden)
    assert_close(torch.cat([c for _, c in result.state]), cell)
    assert result.raw_output is result.output


def test_dropout_on_the_input_between_the_layers_and_on_the_output() -> None:
    torch.manual_seed(0)
    core = LSTM(E, H, 5, num_layers=2, dropout=0.3).double()
    input = torch.randn(T, B, E, dtype=torch.float64)
    torch.manual_seed(1)
    result = core(input)
    torch.manual_seed(1)
    first, _ = core.layers[0](functional.dropout(input, 0.3))
    raw, _ = core.layers[1](functional.dropout(first, 0.3))
    assert_close(result.raw_output, raw)
    assert_close(result.output, functional.dropout(raw, 0.3))


def test_sizes_and_wrong_arguments() -> None:
    assert (LSTM(E, H).output_size, len(LSTM(E, H).layers)) == (H, 2)
    assert {dropout.p for dropout in LSTM(E, H).dropouts} == {0.0}
    with pytest.raises(ValueError, match="dropout"):
        LSTM(E, H, dropout=1.0)
