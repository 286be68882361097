"""Layers of LSTM against an LSTM written by hand, and one layer by itself."""

import copy
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from lmbench.model import LSTM
from lmbench.model.core import _rnn as rnn
from lmbench.model.core._rnn import LSTMLayer, run_rnn
from lmbench.model.dropout import WeightDropout

T, B, E, H = 4, 3, 5, 6


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


def make(*sizes: int, num_layers: int) -> tuple[LSTM, Tensor]:
    torch.manual_seed(0)
    core = LSTM(*sizes, num_layers=num_layers).double()
    return core, torch.randn(T, B, sizes[0], dtype=torch.float64)


@pytest.mark.parametrize("num_layers", [1, 2, 3])
@pytest.mark.parametrize("given", [True, False])
def test_outputs_states_and_gradients_match_the_formula(num_layers: int, given: bool) -> None:
    core, input = make(3, 5, 4, num_layers=num_layers)
    sizes = [layer.hidden_size for layer in core.layers]
    assert sizes == [5] * (num_layers - 1) + [4]
    start = [torch.randn(2, 1, B, h, dtype=torch.float64) * given for h in sizes]
    state = tuple((h, c) for h, c in start) if given else None
    output, new_state = core.run(input, state)

    expected = input
    expected_state = []
    for layer, (h, c) in zip(core.layers, start, strict=True):
        expected, hidden, cell = lstm_by_hand(layer, expected, h[0], c[0])
        expected_state.append((hidden[None], cell[None]))
    assert_close(output, expected)
    assert_close(new_state, tuple(expected_state))

    parameters = list(core.parameters())
    loss = output.square().sum() + sum(c.sum() for _, c in new_state)
    reference = expected.square().sum() + sum(c.sum() for _, c in expected_state)
    assert_close(torch.autograd.grad(loss, parameters), torch.autograd.grad(reference, parameters))


def test_wrong_arguments() -> None:
    with pytest.raises(ValueError, match="num_layers"):
        LSTM(3, 5, 4, num_layers=0)
    core, input = make(3, 5, 4, num_layers=2)
    _, state = core.run(input, None)
    with pytest.raises(ValueError, match="argument 2 is shorter"):
        core.run(input, state[:1])


@pytest.mark.parametrize(
    ("device_type", "dtype", "ignored"),
    [
        ("cpu", torch.bfloat16, False),
        ("cuda", torch.bfloat16, True),  # cuDNN would use float16
        ("cuda", torch.float16, False),
        ("meta", torch.bfloat16, False),
    ],
)
def test_where_autocast_is_ignored(monkeypatch, device_type, dtype, ignored) -> None:
    monkeypatch.setattr(torch, "get_autocast_dtype", lambda _: dtype)
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda _: True)
    assert rnn._becomes_float16(device_type) == ignored
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda _: False)
    assert not rnn._becomes_float16(device_type)


def make_layer() -> tuple[nn.LSTM, torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
    torch.manual_seed(0)
    layer = nn.LSTM(E, H, dtype=torch.float64)
    input = torch.randn(T, B, E, dtype=torch.float64)
    state = (torch.randn(1, B, H).double(), torch.randn(1, B, H).double())
    return layer, input, state


def dropped(layer: nn.LSTM, p: float) -> torch.Tensor:
    """The recurrent weight with the same elements dropped every time; with p = 0, itself."""
    torch.manual_seed(5)
    return WeightDropout(p)(layer.weight_hh_l0)


def test_another_recurrent_weight_acts_as_if_the_layer_had_it() -> None:
    layer, input, state = make_layer()
    before = copy.deepcopy(layer.state_dict())
    output, last = run_rnn(torch.lstm, layer, input, state, dropped(layer, 0.5))
    twin = copy.deepcopy(layer)
    mask = dropped(layer, 0.5) / layer.weight_hh_l0
    with torch.no_grad():
        twin.weight_hh_l0.mul_(mask)
    expected, expected_last = twin(input, state)
    assert_close(output, expected)
    assert_close(last, expected_last)

    output.square().sum().backward()
    expected.square().sum().backward()
    for (name, parameter), theirs in zip(layer.named_parameters(), twin.parameters(), strict=True):
        factor = mask if name == "weight_hh_l0" else 1.0
        assert_close(parameter.grad, theirs.grad * factor)
    assert_close(dict(layer.state_dict()), dict(before), rtol=0, atol=0)
    assert all(a is b for a, b in zip(layer.parameters(), layer.all_weights[0], strict=True))


@pytest.mark.parametrize("p", [0.0, 0.5])
@pytest.mark.parametrize("gates_bytes", [1, 2 * B * 4 * H * 8, 3 * B * 4 * H * 8])
def test_a_window_gives_the_same_in_parts(
    monkeypatch: pytest.MonkeyPatch, p: float, gates_bytes: int
) -> None:
    layer, input, state = make_layer()
    found = []
    lengths: list[list[int]] = []
    for size in (2**30, gates_bytes):
        monkeypatch.setattr(rnn, "GATES_BYTES", size)
        watch = input.clone().requires_grad_()
        layer.zero_grad()
        lengths.append([])

        def kernel(part: Tensor, *args: Any, of_run: list[int] = lengths[-1], **kwargs: Any) -> Any:
            of_run.append(len(part))
            return torch.lstm(part, *args, **kwargs)

        output, last = run_rnn(kernel, layer, watch, state, dropped(layer, p))
        output.square().sum().backward()
        found.append((output, *last, watch.grad, *[w.grad.clone() for w in layer.parameters()]))
    assert lengths[0] == [T]
    assert lengths[1] in ([1] * T, [2, 2])
    assert_close(found[1], found[0], rtol=1e-12, atol=1e-12)


def test_a_warning_is_shown_once_although_layers_run_in_between() -> None:
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("default")
        layer, input = LSTMLayer(2, 3), torch.zeros(1, 1, 2)
        for _ in range(3):
            layer(input)
            warnings.warn("mine", stacklevel=1)
    assert len(shown) == 1


def test_only_training_on_a_cpu_runs_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, input, _ = make_layer()
    monkeypatch.setattr(rnn, "GATES_BYTES", 1)
    with torch.no_grad():
        assert rnn._num_parts(layer, input) == 1
    assert rnn._num_parts(layer, input.to("meta")) == 1
