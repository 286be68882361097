import pytest
import torch
from torch.nn import functional
from torch.testing import assert_close

from lmbench.model import AWDLSTM, LSTM, Embedding, LanguageModel, Softmax
from lmbench.model.dropout import (
    Dropouts,
    LockedDropout,
    drop_elements,
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


@pytest.mark.parametrize("p", [0.35, 0.001, 0.5, 0.999])
def test_elements_are_dropped_each_by_itself_at_the_given_rate(p: float) -> None:
    torch.manual_seed(0)
    size = 400_003  # not a multiple of 4
    ratio = drop_elements(torch.ones(size, dtype=torch.float64), p)
    dropped = ratio == 0
    share = round(p * 2**16) / 2**16
    assert_close(ratio[~dropped].unique(), torch.tensor([1 / (1 - share)], dtype=torch.float64))
    variance = p * (1 - p)
    assert abs(dropped.double().mean() - p) < 5 * (variance / size) ** 0.5
    for start in range(4):  # the four elements that share a draw of the generator
        part = dropped[start::4].double().mean()
        assert abs(part - p) < 5 * (4 * variance / size) ** 0.5
    # Independent, so both are dropped at p². A pair shares an element with two others, by which
    # the variance of their mean is three times that of separate pairs at most.
    for distance in (1, 2, 3, 4, 1000):
        both = (dropped[distance:] & dropped[:-distance]).double().mean()
        assert abs(both - p**2) < 5 * (p**2 * (1 - p**2) * 3 / size) ** 0.5
    assert not torch.equal(ratio, drop_elements(torch.ones_like(ratio), p))


@pytest.mark.parametrize(
    ("p", "num_kept"),
    [(0.0, 2**16), (1e-9, 2**16), (0.35, 42598), (0.5, 2**15), (0.75, 2**14), (1 - 1e-9, 1)],
)
def test_of_all_values_of_16_bits_as_many_are_kept_as_the_rate_says(
    p: float, num_kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def every_value(bits: torch.Tensor, *_: object) -> torch.Tensor:
        values = torch.arange(-(2**15), 2**15, dtype=torch.int16)
        return bits.copy_(values.view(torch.int64))

    monkeypatch.setattr(torch.Tensor, "random_", every_value)
    weight = torch.linspace(1, 2, 2**16, dtype=torch.float64, requires_grad=True)
    found = drop_elements(weight, p)
    kept = found != 0
    assert kept.sum() == num_kept
    expected = torch.where(kept, 2**16 / num_kept, 0.0).double()
    assert_close(found, weight * expected)
    (gradient,) = torch.autograd.grad(found.sum(), weight)
    assert_close(gradient, expected)


def test_elements_on_other_devices_are_dropped_by_pytorch() -> None:
    assert drop_elements(torch.ones(3, 5, device="meta"), 0.5).shape == (3, 5)


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


def test_all_dropouts_of_a_model_are_scaled_from_what_it_was_built_with() -> None:
    probabilities = {
        "input_dropout": 0.4,
        "hidden_dropout": 0.2,
        "output_dropout": 0.3,
        "weight_dropout": 0.45,
    }
    awd_lstm = LanguageModel(
        Embedding(7, E, dropout=0.1), AWDLSTM(E, E, **probabilities), Softmax(E, 7)
    )
    plain = LanguageModel(Embedding(7, E), LSTM(E, E, num_layers=2, dropout=0.25), Softmax(E, 7))
    for model, largest, printed in (
        (awd_lstm, 0.45, ["dropout=0.1", "p=0.4", "p=0.2", "p=0.3", "weight_dropout=0.45"]),
        (plain, 0.25, ["p=0.25"]),
    ):
        dropouts, before = Dropouts(model), repr(model)
        assert all(text in before for text in printed)
        assert dropouts.largest == largest
        dropouts.scale(2.0)
        assert all(text.replace(*_doubled(text)) in repr(model) for text in printed)
        dropouts.scale(0.0)
        model.train()
        tokens = torch.randint(7, (4, 3))
        assert_close(model(tokens).output, model.eval()(tokens).output)
        dropouts.scale(1.0)
        assert repr(model) == before
    assert Dropouts(Softmax(E, 7)).largest == 0.0


def _doubled(text: str) -> tuple[str, str]:
    value = text.partition("=")[2]
    return value, f"{2 * float(value):g}"
