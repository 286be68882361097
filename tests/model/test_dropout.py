import pytest
import torch
from torch.nn import functional
from torch.testing import assert_close

from lmbench.model import AWDLSTM, Embedding, LanguageModel, Softmax
from lmbench.model.dropout import (
    Dropout,
    Dropouts,
    EmbeddingDropout,
    LockedDropout,
    WeightDropout,
    require_probabilities,
)

E = 5


@pytest.mark.parametrize("p", [-0.1, 1.0, float("nan")])
def test_a_probability_outside_the_range_is_named(p: float) -> None:
    with pytest.raises(ValueError, match="hidden_dropout"):
        require_probabilities(input_dropout=0.0, hidden_dropout=p)


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


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("p", [0.04, 0.16, 0.24])  # those of cpu_hour
@pytest.mark.parametrize("kind", [Dropout, LockedDropout, EmbeddingDropout, WeightDropout])
def test_in_half_precision_the_mean_stays_the_same(kind, p: float, dtype: torch.dtype) -> None:
    """1 / (1 - p), rounded to bfloat16, is a quarter of a percent too small."""
    torch.manual_seed(0)
    size = 4_000_000
    ones = torch.ones(1, size, 1, dtype=dtype)
    kept = kind(p)(torch.arange(size), ones[0]) if kind is EmbeddingDropout else kind(p)(ones)
    assert abs(kept.double().mean() - 1) < 5 * (p / (1 - p) / size) ** 0.5 < 2e-3


@pytest.mark.parametrize("kind", [Dropout, LockedDropout, WeightDropout])
def test_a_dropout_draws_anew_in_training_and_returns_its_input_in_evaluation(kind) -> None:
    torch.manual_seed(0)
    dropout, input = kind(0.5), torch.ones(2, 10, 10)
    dropped = dropout(input)
    assert set(dropped.unique().tolist()) == {0.0, 2.0}
    assert not torch.equal(dropout(input), dropped)
    assert dropout.eval()(input) is input
    assert kind(0.0)(input) is input


@pytest.mark.parametrize("p", [0.35, 0.001, 0.5, 0.999])
def test_elements_are_dropped_independently_at_the_given_rate(p: float) -> None:
    torch.manual_seed(0)
    size = 400_003  # not a multiple of 4
    dropout, ones = WeightDropout(p), torch.ones(size, dtype=torch.float64)
    ratio = dropout(ones)
    dropped = ratio == 0
    share = round(p * 2**16) / 2**16
    assert_close(ratio[~dropped].unique(), torch.tensor([1 / (1 - share)], dtype=torch.float64))
    variance = p * (1 - p)
    assert abs(dropped.double().mean() - p) < 5 * (variance / size) ** 0.5
    for start in range(4):  # the four elements that share a draw of the generator
        part = dropped[start::4].double().mean()
        assert abs(part - p) < 5 * (4 * variance / size) ** 0.5
    # Independent, so both are dropped at p². A pair shares an element with two others, so the
    # variance of their mean is at most three times that of separate pairs.
    for distance in (1, 2, 3, 4, 1000):
        both = (dropped[distance:] & dropped[:-distance]).double().mean()
        assert abs(both - p**2) < 5 * (p**2 * (1 - p**2) * 3 / size) ** 0.5
    assert not torch.equal(ratio, dropout(ones))


@pytest.mark.parametrize(
    ("p", "num_kept"),
    [(1e-9, 2**16), (0.35, 42598), (0.5, 2**15), (0.75, 2**14), (1 - 1e-9, 1)],
)
def test_as_many_of_all_16_bit_values_are_kept_as_the_rate_says(
    p: float, num_kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def every_value(bits: torch.Tensor, *_: object) -> torch.Tensor:
        values = torch.arange(-(2**15), 2**15, dtype=torch.int16)
        return bits.copy_(values.view(torch.int64))

    monkeypatch.setattr(torch.Tensor, "random_", every_value)
    weight = torch.linspace(1, 2, 2**16, dtype=torch.float64, requires_grad=True)
    found = WeightDropout(p)(weight)
    kept = found != 0
    assert kept.sum() == num_kept
    expected = torch.where(kept, 2**16 / num_kept, 0.0).double()
    assert_close(found, weight * expected)
    (gradient,) = torch.autograd.grad(found.sum(), weight)
    assert_close(gradient, expected)


def test_elements_on_other_devices_are_dropped_by_pytorch() -> None:
    assert WeightDropout(0.5)(torch.ones(3, 5, device="meta")).device.type == "meta"


def test_embedding_dropout_is_a_lookup_in_a_matrix_with_dropped_rows() -> None:
    weight = torch.randn(30, E, dtype=torch.float64, requires_grad=True)
    twin = weight.detach().clone().requires_grad_()
    tokens = torch.randint(30, (8, 9))
    dropout = EmbeddingDropout(0.4)
    torch.manual_seed(1)
    found = dropout(tokens, weight)
    torch.manual_seed(1)
    rows = functional.dropout(torch.ones(30, 1, dtype=torch.float64), 0.4)
    expected = (twin * rows)[tokens]
    assert (rows == 0).any()
    assert_close(found, expected, rtol=1e-15, atol=0)
    factors = torch.randn_like(found)
    (found * factors).sum().backward()
    (expected * factors).sum().backward()
    assert_close(weight.grad, twin.grad)
    assert torch.equal(dropout.eval()(tokens, weight), weight[tokens])


def test_all_dropouts_of_a_model_are_scaled_from_what_it_was_built_with() -> None:
    core = AWDLSTM(
        E, E, input_dropout=0.4, hidden_dropout=0.2, output_dropout=0.3, weight_dropout=0.45
    )
    model = LanguageModel(Embedding(7, E, dropout=0.1), core, Softmax(E, 7))
    dropouts = Dropouts(model.dropouts)
    assert dropouts.largest == 0.45
    for factor in (2.0, 0.0, 1.0):
        dropouts.scale(factor)
        expected = [factor * p for p in (0.1, 0.4, 0.2, 0.3, 0.45)]
        assert [dropout.p for dropout in model.dropouts] == expected
        assert all(f"p={p}" in repr(model) for p in expected)
    assert Dropouts([]).largest == 0.0
