import pytest
import torch
from torch.nn import functional
from torch.testing import assert_close

from lmbench.model.dropout import (
    LockedDropout,
    embed_with_dropout,
    require_probabilities,
)

E = 5


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
