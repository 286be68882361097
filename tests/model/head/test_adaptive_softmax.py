import copy
import io
from functools import partial
from importlib import import_module

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from lmbench.loss import linear_cross_entropy
from lmbench.model import LSTM, AdaptiveSoftmax, Embedding, LanguageModel
from lmbench.model.head import adaptive_softmax

H, V, CUTOFFS = 16, 23, [4, 9, 15]
EXACT = {"rtol": 1e-10, "atol": 1e-14}


def make(*, tied: bool = False, bias: bool = True, counts: Tensor | None = None) -> AdaptiveSoftmax:
    """A float64 head in which no parameter is zero."""
    torch.manual_seed(0)
    head = AdaptiveSoftmax(H, V, cutoffs=CUTOFFS, div_value=2.0, bias=bias, counts=counts)
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


def nats_of(head: AdaptiveSoftmax, output: Tensor, targets: Tensor) -> Tensor:
    """By way of the whole distribution."""
    return -head.log_probs(output).gather(-1, targets.unsqueeze(-1)).squeeze(-1)


def gradients(loss: Tensor, *leaves: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, leaves))


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
def test_equals_torchs_where_ids_are_in_order_of_frequency(bias: bool) -> None:
    ours = make(bias=bias)
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
    output.requires_grad_()
    our_loss, their_loss = ours.loss(output, targets), theirs(output, targets).loss
    assert_close(our_loss, their_loss, **EXACT)
    assert_close(ours.log_probs(output), theirs.log_prob(output), **EXACT)
    our_leaves = [output, *ours.word_weights[1:], *ours.projections]
    their_leaves = [
        output,
        *(words.weight for _, words in theirs.tail),
        *(projection.weight for projection, _ in theirs.tail),
    ]
    head = [ours.word_weights[0], ours.cluster_weight]
    our_gradients = gradients(our_loss, *our_leaves, *head, *([ours.bias] if bias else []))
    their_gradients = gradients(their_loss, *their_leaves, *theirs.head.parameters())
    assert_close(our_gradients[: len(our_leaves)], their_gradients[: len(our_leaves)], **EXACT)
    words, clusters, *bias_gradient = our_gradients[len(our_leaves) :]
    expected = their_gradients[len(our_leaves) :]
    assert_close(torch.cat([words, clusters]), expected[0], **EXACT)
    if bias:
        assert_close(bias_gradient[0][:head_size], expected[1], **EXACT)


def test_tied_rows_of_the_embedding_stand_for_the_words() -> None:
    counts = shuffled_counts()
    head = make(tied=True, counts=counts)
    output, _ = problem(6)
    log_probs = head.log_probs(output)
    order = counts.argsort(descending=True)
    borders = [0, *CUTOFFS, V]
    weight, bias = head.weight, head.bias
    assert torch.equal(head.embedding_rows(order), torch.arange(V))
    # As the paper has it: p(word) = p(cluster) · p(word | cluster).
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


def test_a_word_outside_the_vocabulary_has_no_row() -> None:
    for word in (-1, V):
        with pytest.raises(IndexError):
            make(tied=True).embedding_rows(torch.tensor([[word]]))


def test_a_unigram_bias_is_the_distribution_of_the_words_in_training() -> None:
    counts = shuffled_counts()
    counts[5] = 0
    head = AdaptiveSoftmax(H, V, cutoffs=CUTOFFS, counts=counts, unigram_bias=True)
    expected = (counts + 1) / (counts + 1).sum()
    assert_close(head.log_probs(torch.zeros(H)).exp(), expected)
    without = AdaptiveSoftmax(H, V, cutoffs=CUTOFFS, unigram_bias=True)
    assert not without.bias.any()


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_loss_and_log_probs_are_one_distribution(tied: bool, bias: bool) -> None:
    head = make(tied=tied, bias=bias, counts=shuffled_counts())
    output, targets = problem(30, 2)
    log_probs = head.log_probs(output)
    assert log_probs.shape == (30, 2, V)
    assert_close(log_probs.exp().sum(-1), torch.ones(30, 2, dtype=torch.float64))
    nats = nats_of(head, output, targets)
    assert_close(head.loss(output, targets, reduction="none"), nats)
    assert_close(head.loss(output, targets), nats.mean())
    ignored = int(targets[0, 0])
    kept = targets != ignored
    for reduction, expected in (
        ("none", nats * kept),
        ("sum", nats[kept].sum()),
        ("mean", nats[kept].mean()),
    ):
        found = head.loss(output, targets, reduction=reduction, ignore_index=ignored)
        assert_close(found, expected)
        with torch.no_grad():
            alone = head.loss(output, targets, reduction=reduction, ignore_index=ignored)
        assert_close(alone, expected)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_gradients_are_those_of_log_probs(tied: bool, reduction: str) -> None:
    head = make(tied=tied, counts=shuffled_counts())
    output, targets = problem(10, 3)
    output.requires_grad_()
    targets[::4] = -100
    factors = torch.linspace(-1, 2, 30, dtype=torch.float64).reshape(10, 3)
    found = head.loss(output, targets, reduction=reduction)
    expected = nats_of(head, output, targets.clamp(min=0)) * (targets >= 0)
    if reduction == "none":
        found, expected = (found * factors).sum(), (expected * factors).sum()
    elif reduction == "mean":
        expected = expected.sum() / (targets >= 0).sum()
    else:
        expected = expected.sum()
    leaves = (output, *head.parameters())
    assert_close(gradients(found, *leaves), gradients(expected, *leaves), **EXACT)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_clusters_without_targets_get_gradients_of_zero(tied: bool, reduction: str) -> None:
    head = make(tied=tied)
    output, _ = problem(6)
    targets = torch.tensor([0, 3, 1, 9, 14, 0])  # none in the first and in the last cluster
    loss = head.loss(output, targets, reduction=reduction).sum()
    nats = nats_of(head, output, targets)
    assert_close(loss, nats.mean() if reduction == "mean" else nats.sum())
    loss.backward()
    assert all(parameter.grad is not None for parameter in head.parameters())
    rows = [weight.grad for weight in head.word_weights]
    if tied:
        rows = head.weight.grad.split([4, 5, 6, 8])
    assert [bool(gradient.any()) for gradient in rows] == [True, False, True, False]


def test_nothing_scored_is_a_sum_of_zero_and_a_mean_of_nan() -> None:
    head = make()
    output, targets = problem(5)
    targets.fill_(-100)
    assert head.loss(output, targets, reduction="sum").item() == 0.0
    assert head.loss(output, targets).isnan()


@pytest.mark.parametrize("target", [-1, V])
def test_a_target_outside_the_vocabulary_is_refused(target: int) -> None:
    output, targets = problem(5)
    targets[3] = target
    with pytest.raises((RuntimeError, IndexError), match="out of range"):
        make().loss(output, targets)


@pytest.mark.parametrize("tied", [True, False])
def test_new_ids_for_the_words_of_a_corpus_change_nothing(tied: bool) -> None:
    torch.manual_seed(3)
    new_ids = torch.randperm(V)
    counts = torch.arange(V, 0, -1)
    counts_by_new_id = torch.empty_like(counts)
    counts_by_new_id[new_ids] = counts
    head, relabelled = make(tied=tied), make(tied=tied, counts=counts_by_new_id)
    assert torch.equal(relabelled.word_ranks[new_ids], torch.arange(V))
    if tied:
        assert torch.equal(relabelled.embedding_rows(new_ids), head.embedding_rows(torch.arange(V)))
    output, targets = problem(50)
    losses = head.loss(output, targets, reduction="none")
    assert_close(relabelled.loss(output, new_ids[targets], reduction="none"), losses)
    assert_close(relabelled.log_probs(output)[:, new_ids], head.log_probs(output))


def test_frequent_words_are_in_the_head_and_equals_keep_the_order_of_ids() -> None:
    counts = torch.tensor([0, 5, 1, 9, 5, 0], dtype=torch.int32)
    for given in (counts, counts.numpy()):
        head = AdaptiveSoftmax(4, 6, cutoffs=[2], counts=given)
        assert head.word_ranks.tolist() == [4, 1, 3, 0, 2, 5]
    counts = torch.arange(300) % 3  # short lists are sorted stably in any case
    head = AdaptiveSoftmax(4, 300, counts=counts)
    assert head.word_ranks[counts == 1].tolist() == list(range(100, 200))


@pytest.mark.parametrize("tied", [True, False])
def test_a_checkpoint_reads_by_itself(tied: bool) -> None:
    head = make(tied=tied, counts=shuffled_counts())
    file = io.BytesIO()
    torch.save(head.state_dict(), file)
    file.seek(0)
    read = make(tied=tied)
    output, _ = problem(4)
    assert not torch.equal(read.log_probs(output), head.log_probs(output))
    read.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(read.log_probs(output), head.log_probs(output))


def model(*, tied: bool) -> LanguageModel:
    torch.manual_seed(0)
    head = AdaptiveSoftmax(H, V, cutoffs=CUTOFFS, div_value=2.0, counts=shuffled_counts())
    return LanguageModel(Embedding(V, H), LSTM(H, H, num_layers=1), head, tied=tied)


def test_a_tied_weight_gets_the_gradients_of_both_sides() -> None:
    tied, twin = model(tied=True).double(), model(tied=False).double()
    assert tied.head.weight is tied.embedding.weight
    assert copy.deepcopy(tied).head.weight is not tied.head.weight
    twin.head.tie(nn.Parameter(torch.empty(V, H, dtype=torch.float64)))
    twin.load_state_dict(tied.state_dict())
    ranks = tied.head.word_ranks
    with torch.no_grad():  # a word's vector is the row of its rank in one, of its id in the other
        twin.embedding.weight.copy_(tied.embedding.weight[ranks])
    assert twin.num_parameters - tied.num_parameters == V * H
    tokens, targets = torch.randint(V, (5, 3)), torch.randint(V, (5, 3))
    for one in (tied, twin):
        one.head.loss(one(tokens).output, targets).backward()
    sides = twin.embedding.weight.grad, twin.head.weight.grad[ranks]
    assert all(side.any() for side in sides)
    assert_close(tied.embedding.weight.grad[ranks], sides[0] + sides[1])


@pytest.mark.parametrize("tied", [True, False])
def test_trains(tied: bool) -> None:
    learner = model(tied=tied)
    optimizer = torch.optim.SGD(learner.parameters(), lr=2.0)
    stream = torch.randint(V, (13, 2))
    losses = []
    for _ in range(20):
        loss = learner.head.loss(learner(stream[:-1]).output, stream[1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.5


def test_a_large_vocabulary_takes_a_quarter_of_the_memory_at_most() -> None:
    with torch.device("meta"):
        head = AdaptiveSoftmax(1024, 267_735, counts=torch.ones(267_735, dtype=torch.int64))
    assert head.cutoffs == [13_386, 53_547]
    assert sum(parameter.numel() for parameter in head.parameters()) <= 267_735 * 1024 / 4


def test_the_usual_cutoffs_fit_any_vocabulary() -> None:
    for size in range(2, 60):
        AdaptiveSoftmax(4, size)
    assert AdaptiveSoftmax(4, 41).cutoffs == [2, 8]


class BiggestTensor(TorchDispatchMode):
    """Records the number of elements of the biggest tensor that any operation returns."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, Tensor):
                self.numel = max(self.numel, tensor.numel())
        return result


@pytest.mark.parametrize("tied", [True, False])
def test_never_holds_all_logits(tied: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    n, h, v = 200, 2, 64
    in_chunks = partial(linear_cross_entropy, chunk_bytes=8 * v * 4)
    monkeypatch.setattr(adaptive_softmax, "linear_cross_entropy", in_chunks)
    head = AdaptiveSoftmax(h, v, cutoffs=[20, 40])
    if tied:
        head.tie(nn.Parameter(torch.rand(v, h)))
    output, targets = torch.rand(n, h), torch.randint(v, (n,))
    with BiggestTensor() as biggest:
        head.loss(output, targets).backward()
    assert biggest.numel <= 8 * v  # logits of the head alone: 22 · n; of a cluster: 20 · n / 3


@pytest.mark.parametrize("tied", [True, False])
def test_half_precision_is_cast_up_and_autocast_ignored(tied: bool) -> None:
    half = make(tied=tied).bfloat16()
    output, targets = problem(12)
    exact = copy.deepcopy(half).double()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, log_probs = half.loss(output.bfloat16(), targets), half.log_probs(output.bfloat16())
    assert loss.dtype == log_probs.dtype == torch.float32
    rounded = output.bfloat16().double()
    assert_close(loss.double(), exact.loss(rounded, targets), rtol=1e-6, atol=1e-6)
    assert_close(log_probs.double(), exact.log_probs(rounded), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("tied", [True, False])
def test_autocast_rounds_the_training_loss_and_nothing_else(
    tied: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    loss_module = import_module("lmbench.loss.linear_cross_entropy")  # hidden by its function
    monkeypatch.setattr(loss_module, "multiplies_bfloat16", lambda: True)
    head = make(tied=tied).float()
    exact = copy.deepcopy(head).double()
    head.autocast = True
    output, targets = problem(200)
    expected = exact.loss(output, targets)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = head.loss(output.float(), targets)
        with torch.no_grad():
            assert_close(head.loss(output.float(), targets).double(), expected)
    loss.backward()
    expected.backward()
    assert loss.dtype == torch.float32
    assert 0 < abs(loss.item() / expected.item() - 1) < 2**-8  # half a unit of bfloat16 is 2^-9
    for ours, theirs in zip(head.parameters(), exact.parameters(), strict=True):
        assert ours.grad.dtype == torch.float32
        assert 0 < (ours.grad - theirs.grad).norm() / theirs.grad.norm() < 2**-6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"cutoffs": []}, r"^cutoffs must be .* at most 22 .* not \[\]"),
        ({"cutoffs": [0, 4]}, r"^cutoffs must .* at least 1"),
        ({"cutoffs": [4, V]}, r"^cutoffs must .* at most 22"),
        ({"cutoffs": [9, 4]}, r"^cutoffs must .* rise"),
        ({"cutoffs": [4, 4]}, r"^cutoffs must .* rise"),
        ({"bias": False, "unigram_bias": True}, r"^unigram_bias=True needs bias=True"),
        ({"div_value": 0.5}, r"^div_value must be at least 1, not 0\.5"),
        ({"div_value": float("nan")}, r"^div_value must be at least 1"),
        ({"counts": torch.ones(V + 1, dtype=torch.int64)}, r"^counts must .* 23 words.* \(24,\)"),
        ({"counts": torch.ones(V, 1, dtype=torch.int64)}, r"^counts must .*\(23, 1\)"),
    ],
)
def test_wrong_arguments(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AdaptiveSoftmax(H, V, **arguments)
