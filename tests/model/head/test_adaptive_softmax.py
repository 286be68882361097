import copy

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from lmbench.model import AdaptiveSoftmax

H, V, CUTOFFS = 16, 23, [4, 9, 15]
EXACT = {"rtol": 1e-10, "atol": 1e-14}


def make(
    *,
    tied: bool = False,
    bias: bool = True,
    counts: Tensor | None = None,
    cutoffs: list[int] = CUTOFFS,
) -> AdaptiveSoftmax:
    """A float64 head in which no parameter is zero."""
    torch.manual_seed(0)
    head = AdaptiveSoftmax(H, V, cutoffs=cutoffs, div_value=2.0, bias=bias, counts=counts)
    if tied:
        head.tie(nn.Parameter(torch.empty(V, H)))
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.normal_()
    return head.double()


def shuffled_counts() -> Tensor:
    torch.manual_seed(1)
    return torch.randperm(V) + 1


def problem(*shape: int) -> tuple[Tensor, Tensor]:
    torch.manual_seed(2)
    return torch.randn(*shape, H, dtype=torch.float64), torch.randint(V, shape)


def test_initial_values_and_sizes() -> None:
    head = AdaptiveSoftmax(40, 600, cutoffs=[100, 200, 300])
    shapes = {name: tuple(parameter.shape) for name, parameter in head.named_parameters()}
    assert shapes == {
        "word_weights.0": (100, 40),
        "word_weights.1": (100, 10),
        "word_weights.2": (100, 2),
        "word_weights.3": (300, 1),  # 40 // 64 would be 0
        "projections.0": (10, 40),
        "projections.1": (2, 40),
        "projections.2": (1, 40),
        "cluster_weight": (3, 40),
        "bias": (603,),
    }
    assert head.word_weights[0].var().item() == pytest.approx(0.01 / 3, rel=0.1)
    assert all(0.05 < w.abs().max() <= 0.1 for w in (*head.word_weights, head.cluster_weight))
    assert head.projections[0].var().item() == pytest.approx(1 / 40 / 3, rel=0.2)
    assert not head.bias.any()
    assert torch.equal(head.word_ranks, torch.arange(600))


@pytest.mark.parametrize("bias", [True, False])
def test_it_equals_torchs_with_ids_in_order_of_frequency(bias: bool) -> None:
    counts = shuffled_counts()
    order = counts.argsort(descending=True)
    ours = make(bias=bias, counts=counts)
    theirs = nn.AdaptiveLogSoftmaxWithLoss(
        H, V, CUTOFFS, div_value=2.0, head_bias=bias, dtype=torch.float64
    )
    head_size = CUTOFFS[0] + len(CUTOFFS)
    with torch.no_grad():
        theirs.head.weight.copy_(torch.cat([ours.word_weights[0], ours.cluster_weight]))
        if bias:
            ours.bias[head_size:] = 0.0  # theirs has none there
            theirs.head.bias.copy_(ours.bias[:head_size])
        for k, (projection, words) in enumerate(theirs.tail):
            projection.weight.copy_(ours.projections[k])
            words.weight.copy_(ours.word_weights[k + 1])
    output, targets = problem(40)
    assert_close(ours.loss(output, order[targets]), theirs(output, targets).loss, **EXACT)
    assert_close(ours.log_probs(output)[:, order], theirs.log_prob(output), **EXACT)


def test_tied_rows_of_the_embedding_are_the_words_weights() -> None:
    counts = shuffled_counts()
    head = make(tied=True, counts=counts)
    output, _ = problem(6)
    log_probs = head.log_probs(output)
    order = counts.argsort(descending=True)
    borders = [0, *CUTOFFS, V]
    weight, bias = head.weight, head.bias
    assert torch.equal(head.embedding_rows(order), torch.arange(V))
    # As in the paper: p(word) = p(cluster) · p(word | cluster).
    first = torch.cat([weight[: CUTOFFS[0]], head.cluster_weight])
    top = (output @ first.t() + bias[: len(first)]).softmax(-1)
    for place, word in enumerate(order.tolist()):
        k = sum(place >= cutoff for cutoff in CUTOFFS)
        expected = top[:, place] if k == 0 else top[:, CUTOFFS[0] + k - 1]
        if k > 0:
            start, stop = borders[k], borders[k + 1]
            offset = len(CUTOFFS)
            logits = output @ weight[start:stop].t() + bias[start + offset : stop + offset]
            expected = expected * logits.softmax(-1)[:, place - start]
        assert_close(log_probs[:, word].exp(), expected, **EXACT)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("cutoffs", [CUTOFFS, [V]])  # with clusters, and without any
def test_surprisal_and_entropy_are_those_of_the_whole_distribution(
    tied: bool, cutoffs: list[int]
) -> None:
    head = make(tied=tied, counts=shuffled_counts(), cutoffs=cutoffs)
    output, targets = problem(200)
    log_probs = head.log_probs(output)
    surprisal, entropy = head.surprisal_and_entropy(output, targets)
    assert_close(surprisal, -log_probs[torch.arange(200), targets], **EXACT)
    assert_close(entropy, -(log_probs.exp() * log_probs).sum(-1), **EXACT)
    assert set(targets.tolist()) == set(range(V))  # so every cluster's first and last word


def test_a_unigram_bias_gives_the_distribution_of_the_words_in_training() -> None:
    counts = shuffled_counts()
    counts[5] = 0
    head = AdaptiveSoftmax(H, V, cutoffs=CUTOFFS, counts=counts, unigram_bias=True)
    expected = (counts + 1) / (counts + 1).sum()
    assert_close(head.log_probs(torch.zeros(H)).exp(), expected)
    without = AdaptiveSoftmax(H, V, cutoffs=CUTOFFS, unigram_bias=True)
    assert not without.bias.any()


def test_with_nothing_scored_the_sum_is_zero_and_the_mean_nan() -> None:
    head = make()
    output, targets = problem(5)
    targets.fill_(-100)
    assert head.loss(output, targets, reduction="sum").item() == 0.0
    assert head.loss(output, targets).isnan()


def test_frequent_words_are_in_the_head_and_ties_keep_the_order_of_ids() -> None:
    counts = torch.tensor([0, 5, 1, 9, 5, 0], dtype=torch.int32)
    for given in (counts, counts.numpy()):
        head = AdaptiveSoftmax(4, 6, cutoffs=[2], counts=given)
        assert head.word_ranks.tolist() == [4, 1, 3, 0, 2, 5]
    counts = torch.arange(300) % 3  # short lists are sorted stably in any case
    head = AdaptiveSoftmax(4, 300, counts=counts)
    assert head.word_ranks[counts == 1].tolist() == list(range(100, 200))


@pytest.mark.parametrize("tied", [True, False])
def test_the_order_of_the_words_is_loaded_with_the_weights(tied: bool) -> None:
    head, read = make(tied=tied, counts=shuffled_counts()), make(tied=tied)
    output, _ = problem(4)
    assert not torch.equal(read.log_probs(output), head.log_probs(output))
    read.load_state_dict(head.state_dict())
    assert torch.equal(read.log_probs(output), head.log_probs(output))


def test_the_default_cutoffs_fit_any_vocabulary_and_save_three_quarters_of_a_large_one() -> None:
    for size in range(2, 60):
        AdaptiveSoftmax(4, size)
    assert AdaptiveSoftmax(4, 41).cutoffs == [2, 8]
    with torch.device("meta"):
        head = AdaptiveSoftmax(1024, 267_735)
    assert head.cutoffs == [13_386, 53_547]
    assert sum(parameter.numel() for parameter in head.parameters()) <= 267_735 * 1024 / 4


@pytest.mark.parametrize("tied", [True, False])
def test_half_precision_is_cast_up_and_autocast_ignored(tied: bool) -> None:
    half = make(tied=tied).bfloat16()
    half.autocast = False
    output, targets = problem(12)
    exact = copy.deepcopy(half).double()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, log_probs = half.loss(output.bfloat16(), targets), half.log_probs(output.bfloat16())
    assert loss.dtype == log_probs.dtype == torch.float32
    rounded = output.bfloat16().double()
    assert_close(loss.double(), exact.loss(rounded, targets), rtol=1e-6, atol=1e-6)
    assert_close(log_probs.double(), exact.log_probs(rounded), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("cutoffs", [[V], [V + 1, 100]])
def test_without_cutoffs_below_the_size_it_is_a_plain_softmax(cutoffs: list, tied: bool) -> None:
    counts = shuffled_counts()
    head = AdaptiveSoftmax(H, V, cutoffs=cutoffs, counts=counts, unigram_bias=True)
    if tied:
        head.tie(nn.Parameter(torch.randn(V, H)))
    head.double()
    output, targets = problem(5, 2)
    (weight,) = [head.weight] if tied else head.word_weights
    logits = (output @ weight.T + head.bias)[..., head.word_ranks]
    assert_close(head.log_probs(output), logits.log_softmax(-1), **EXACT)
    assert_close(head.log_probs(output * 0).exp()[0, 0], (counts + 1) / (counts + 1).sum().double())
    loss = head.loss(output, targets)
    expected = nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
    assert_close(loss, expected, **EXACT)
    loss.backward()
    optimizer = torch.optim.Adam(head.parameters(), fused=True)
    optimizer.step()
    again = AdaptiveSoftmax(H, V, cutoffs=cutoffs)
    if tied:
        again.tie(nn.Parameter(torch.randn(V, H)))
    again.double().load_state_dict(head.state_dict())
    assert torch.equal(again.log_probs(output), head.log_probs(output))


def test_cutoffs_that_are_not_below_the_size_are_dropped() -> None:
    assert AdaptiveSoftmax(H, V, cutoffs=[4, V, 50]).cutoffs == [4]
    assert AdaptiveSoftmax(H, V, cutoffs=[4, V - 1]).cutoffs == [4, V - 1]
    assert AdaptiveSoftmax(H, V, cutoffs=[4.0]).cutoffs == [4]  # YAML reads 4e3 as a float


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"cutoffs": []}, "cutoffs"),
        ({"cutoffs": [0, 4]}, "cutoffs"),
        ({"cutoffs": [4, 9.5]}, "cutoffs"),
        ({"cutoffs": [9, 4]}, "cutoffs"),
        ({"cutoffs": [4, 4]}, "cutoffs"),
        ({"bias": False, "unigram_bias": True}, "unigram_bias"),
        ({"div_value": 0.5}, "div_value"),
        ({"div_value": float("nan")}, "div_value"),
    ],
)
def test_wrong_arguments(arguments: dict, name: str) -> None:
    with pytest.raises(ValueError, match=f"^{name}"):
        AdaptiveSoftmax(H, V, **arguments)
