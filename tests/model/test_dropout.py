import copy
import io

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.testing import assert_close

from lmbench.model.dropout import (
    LockedDropout,
    embed_with_dropout,
    lstm_with_weight_dropout,
    require_probabilities,
)

T, B, E, H = 4, 3, 5, 6


@pytest.mark.parametrize("p", [-0.1, 1.0, 1.5, float("nan")])
def test_a_probability_outside_the_range_is_named(p: float) -> None:
    with pytest.raises(ValueError, match=r"hidden_dropout must be .*got"):
        require_probabilities(input_dropout=0.0, hidden_dropout=p)
    with pytest.raises(ValueError, match="p must be"):
        LockedDropout(p)


def test_locked_dropout_has_one_mask_for_all_time_steps() -> None:
    torch.manual_seed(0)
    ratio = LockedDropout(0.3)(torch.ones(7, 20, 100, dtype=torch.float64))
    assert torch.equal(ratio, ratio[:1].expand_as(ratio))
    assert_close(ratio.unique(), torch.tensor([0, 1 / 0.7], dtype=torch.float64))
    # 2000 draws: 5 standard errors
    assert abs((ratio[0] == 0).double().mean() - 0.3) < 5 * (0.3 * 0.7 / 2000) ** 0.5
    # columns and features have masks of their own
    assert not torch.equal(ratio[0, 0], ratio[0, 1])
    assert not torch.equal(ratio[0, :, 0], ratio[0, :, 1])


def test_locked_dropout_draws_anew_and_sleeps_in_evaluation() -> None:
    torch.manual_seed(0)
    dropout = LockedDropout(0.5)
    input = torch.ones(2, 10, 10)
    assert not torch.equal(dropout(input), dropout(input))
    assert dropout.eval()(input) is input
    assert LockedDropout(0.0)(input) is input


def test_embedding_dropout_is_a_look_up_in_a_matrix_with_dropped_rows() -> None:
    weight = torch.randn(30, E, dtype=torch.float64, requires_grad=True)
    twin = weight.detach().clone().requires_grad_()
    tokens = torch.randint(30, (8, 9))
    torch.manual_seed(1)
    found = embed_with_dropout(tokens, weight, 0.4)
    torch.manual_seed(1)
    rows = functional.dropout(torch.ones(30, 1, dtype=torch.float64), 0.4)
    expected = (twin * rows)[tokens]
    assert (rows == 0).any()
    assert_close(found, expected, rtol=1e-15, atol=0)
    factors = torch.randn_like(found)
    (found * factors).sum().backward()
    (expected * factors).sum().backward()
    assert_close(weight.grad, twin.grad)


def test_embedding_dropout_drops_words_at_the_given_rate_and_scales_the_rest() -> None:
    torch.manual_seed(0)
    tokens = torch.arange(5000)
    embedded = embed_with_dropout(tokens, torch.ones(5000, 3), 0.1)
    assert_close(embedded, embedded[:, :1].expand_as(embedded))
    assert_close(embedded.unique(), torch.tensor([0, 1 / 0.9]))
    assert abs((embedded[:, 0] == 0).float().mean() - 0.1) < 5 * (0.1 * 0.9 / 5000) ** 0.5


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
    mask = functional.dropout(torch.ones_like(layer.weight_hh_l0), 0.5)
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
