import copy
import io

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from lmbench.model.core import weight_dropout
from lmbench.model.core.weight_dropout import lstm_with_weight_dropout
from lmbench.model.dropout import drop_elements

T, B, E, H = 4, 3, 5, 6


@pytest.mark.parametrize(
    ("device_type", "dtype", "multiplies", "ignored"),
    [
        ("cpu", torch.bfloat16, True, False),
        ("cpu", torch.bfloat16, False, True),
        ("cuda", torch.bfloat16, True, True),  # cuDNN's would be float16
        ("cuda", torch.float16, True, False),
        ("meta", torch.bfloat16, True, False),
    ],
)
def test_where_autocast_is_ignored(monkeypatch, device_type, dtype, multiplies, ignored) -> None:
    monkeypatch.setattr(weight_dropout, "multiplies_bfloat16", lambda: multiplies)
    monkeypatch.setattr(torch, "get_autocast_dtype", lambda _: dtype)
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda _: True)
    assert weight_dropout._ignores_autocast(device_type) == ignored
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda _: False)
    assert not weight_dropout._ignores_autocast(device_type)


def make_layer() -> tuple[nn.LSTM, torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
    torch.manual_seed(0)
    layer = nn.LSTM(E, H, dtype=torch.float64)
    input = torch.randn(T, B, E, dtype=torch.float64)
    state = (torch.randn(1, B, H).double(), torch.randn(1, B, H).double())
    return layer, input, state


def test_weight_dropout_equals_a_layer_whose_weight_was_masked_and_so_does_its_gradient() -> None:
    layer, input, state = make_layer()
    torch.manual_seed(5)
    output, (hidden, cell) = lstm_with_weight_dropout(layer, input, state, 0.5)
    torch.manual_seed(5)
    mask = drop_elements(torch.ones_like(layer.weight_hh_l0), 0.5)
    assert set(mask.unique().tolist()) == {0.0, 2.0}
    twin = copy.deepcopy(layer)
    with torch.no_grad():
        twin.weight_hh_l0.mul_(mask)
    expected, (expected_hidden, expected_cell) = twin(input, state)
    assert_close(output, expected)
    assert_close((hidden, cell), (expected_hidden, expected_cell))

    output.square().sum().backward()
    expected.square().sum().backward()
    assert layer.weight_hh_l0.grad is not None
    assert_close(layer.weight_hh_l0.grad, twin.weight_hh_l0.grad * mask)
    assert_close(layer.weight_ih_l0.grad, twin.weight_ih_l0.grad)
    assert_close(layer.bias_ih_l0.grad, twin.bias_ih_l0.grad)
    assert_close(layer.bias_hh_l0.grad, twin.bias_hh_l0.grad)


def test_weight_dropout_draws_anew_at_every_call_and_drops_nothing_in_evaluation() -> None:
    layer, input, state = make_layer()
    first, _ = lstm_with_weight_dropout(layer, input, state, 0.5)
    second, _ = lstm_with_weight_dropout(layer, input, state, 0.5)
    assert not torch.allclose(first, second)
    layer.eval()
    evaluated, _ = lstm_with_weight_dropout(layer, input, state, 0.5)
    assert_close(evaluated, layer(input, state)[0], rtol=0, atol=0)


def test_weight_dropout_survives_evaluation_and_never_touches_the_weights() -> None:
    layer, input, state = make_layer()
    before = copy.deepcopy(layer.state_dict())
    weight = layer.weight_hh_l0
    for training in (True, False, True):
        layer.train(training)
        layer.zero_grad()
        output, _ = lstm_with_weight_dropout(layer, input, state, 0.5)
        output.sum().backward()
        assert weight.grad is not None
        assert weight.grad.any()
    assert layer.weight_hh_l0 is weight
    assert isinstance(weight, nn.Parameter)
    assert list(before) == ["weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"]
    assert_close(dict(layer.state_dict()), dict(before), rtol=0, atol=0)
    assert all(a is b for a, b in zip(layer.parameters(), layer.all_weights[0], strict=True))


def test_two_windows_before_one_backward_pass() -> None:
    layer, input, state = make_layer()
    first, state = lstm_with_weight_dropout(layer, input, state, 0.5)
    second, _ = lstm_with_weight_dropout(layer, input, state, 0.5)
    (first + second).sum().backward()
    assert layer.weight_hh_l0.grad.isfinite().all()


def test_a_layer_can_be_copied_and_saved_between_training_steps() -> None:
    layer, input, state = make_layer()
    lstm_with_weight_dropout(layer, input, state, 0.5)
    twin = copy.deepcopy(layer)
    torch.save(layer, io.BytesIO())
    assert_close(twin.eval()(input, state), layer.eval()(input, state))


@pytest.mark.parametrize("p", [0.0, 0.5])
@pytest.mark.parametrize("gates_bytes", [1, 2 * B * 4 * H * 8, 3 * B * 4 * H * 8])
def test_a_window_in_parts_is_the_same_window(
    monkeypatch: pytest.MonkeyPatch, p: float, gates_bytes: int
) -> None:
    layer, input, state = make_layer()
    found = []
    lengths: list[list[int]] = []
    for size in (2**30, gates_bytes):
        monkeypatch.setattr(weight_dropout, "GATES_BYTES", size)
        watch = input.clone().requires_grad_()
        torch.manual_seed(5)
        layer.zero_grad()
        num_parts = weight_dropout._num_parts(layer, watch)
        lengths.append([len(part) for part in watch.chunk(num_parts)])
        output, last = lstm_with_weight_dropout(layer, watch, state, p)
        output.square().sum().backward()
        found.append((output, *last, watch.grad, *[w.grad.clone() for w in layer.parameters()]))
    assert lengths[0] == [T]
    assert lengths[1] in ([1] * T, [2, 2])
    assert_close(found[1], found[0], rtol=1e-12, atol=1e-12)


def test_only_training_on_a_cpu_runs_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, input, _ = make_layer()
    monkeypatch.setattr(weight_dropout, "GATES_BYTES", 1)
    with torch.no_grad():
        assert weight_dropout._num_parts(layer, input) == 1
    assert weight_dropout._num_parts(layer, input.to("meta")) == 1


@pytest.mark.parametrize("has_bfloat16", [True, False])
@pytest.mark.parametrize("p", [0.0, 0.5])
def test_autocast_ends_where_the_processor_cannot_multiply_bfloat16(
    monkeypatch: pytest.MonkeyPatch, has_bfloat16: bool, p: float
) -> None:
    if has_bfloat16 and not weight_dropout.multiplies_bfloat16():
        pytest.skip("This processor has no bfloat16.")
    monkeypatch.setattr(weight_dropout, "multiplies_bfloat16", lambda: has_bfloat16)
    layer, input, state = make_layer()
    layer, input, (hidden, cell) = layer.float(), input.float(), [s.float() for s in state]
    torch.manual_seed(5)
    exact, _ = lstm_with_weight_dropout(layer, input, (hidden, cell), p)
    torch.manual_seed(5)
    with torch.autocast("cpu", torch.bfloat16):
        output, _ = lstm_with_weight_dropout(layer, input.bfloat16(), (hidden, cell), p)
    assert output.dtype == (torch.bfloat16 if has_bfloat16 else torch.float32)
    # the input has been rounded to bfloat16's 8 bits in either case
    assert_close(output.float(), exact, rtol=2e-2, atol=2e-2)
