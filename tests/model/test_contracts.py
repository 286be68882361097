"""What is required of every core and head in ``conf/``, whatever it computes."""

import copy
import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from small import SIZE, makers, normal
from torch import Tensor, nn
from torch.testing import assert_close

from lmbench.model import LSTM, Embedding, LanguageModel
from lmbench.model.contracts import Core, detach_state
from lmbench.model.core import stack
from lmbench.model.core._rnn import LSTMLayer
from lmbench.model.core.residual import ResidualStack
from lmbench.model.dropout import Dropouts
from lmbench.model.head import Head, MixtureOfSoftmaxes, base

T, B, V = 7, 3, 23


def of_conf(part: str) -> pytest.MarkDecorator:
    found = makers(part)
    return pytest.mark.parametrize("make", found.values(), ids=found)


def moved(core: Any) -> Any:
    """The core with random weights, also where initial values are zeros."""
    with torch.no_grad():
        for parameter in core.parameters():
            parameter.normal_(std=0.3)
    return core


# Cores --------------------------------------------------------------------------------------------


@of_conf("core")
def test_a_core_has_all_members_and_no_dropout_besides_those_it_names(make) -> None:
    core, input = make().double(), normal(T, B, SIZE)
    assert isinstance(core, Core)
    dropped = core(input)
    assert dropped.output.shape == dropped.raw_output.shape == (T, B, core.output_size)
    if core.dropouts:
        assert not torch.equal(core(input).output, dropped.output)
    Dropouts(core.dropouts).scale(0.0)
    in_training, in_evaluation = core(input), core.eval()(input)
    assert_close(in_training, in_evaluation)
    assert_close(in_training.output, in_training.raw_output)


@of_conf("core")
def test_each_dropout_that_a_core_names_drops_something(make) -> None:
    core, input = moved(make().double()), normal(T, B, SIZE)
    Dropouts(core.dropouts).scale(0.0)
    for index, dropout in enumerate(core.dropouts):
        dropout.p = 0.5
        drops = not torch.equal(core(input).output, core(input).output)
        assert drops, f"dropouts[{index}]"
        dropout.p = 0.0


@pytest.mark.parametrize(
    "make", [make for make in makers("core").values() if issubclass(make.func, ResidualStack)]
)
def test_dropout_between_layers_is_on_all_that_a_block_adds(make) -> None:
    core, input = make().double(), normal(T, B, SIZE)
    Dropouts(core.dropouts).scale(0.0)
    core.hidden_dropout.p = 1.0 - 1e-9
    assert_close(core(input).output, core.project(core.last_norm(core.expand(input))))


@of_conf("core")
def test_one_window_equals_two_that_pass_on_the_state(make) -> None:
    core, input = moved(make().double().eval()), normal(T, B, SIZE)
    whole, first = core(input), core(input[:3])
    second = core(input[3:], detach_state(first.state))
    assert_close(torch.cat([first.output, second.output]), whole.output)
    assert_close(second.state, whole.state)
    assert not torch.allclose(core(input[3:]).output, second.output)


@of_conf("core")
def test_single_steps_of_one_column_equal_a_window_and_change_no_weight(make) -> None:
    """As text is generated; views of tensors of this size are easily written to."""
    core, input = moved(make().double().eval()), normal(T, 1, SIZE)
    whole, weights = core(input), copy.deepcopy(core.state_dict())
    outputs, state = [], None
    for step in input.clone().split(1):
        output, _, state = core(step, state)
        outputs.append(output)
    assert_close(torch.cat(outputs), whole.output)
    assert_close(state, whole.state)
    assert_close(core.state_dict(), weights, rtol=0, atol=0)


@of_conf("core")
def test_an_output_depends_only_on_the_steps_so_far_in_its_column(make) -> None:
    core, input = make().double().eval(), normal(T, B, SIZE).requires_grad_()
    (gradient,) = torch.autograd.grad(core(input).output[3, 1].square().sum(), input)
    reached = [(t, b) for t in range(T) for b in range(B) if gradient[t, b].any()]
    assert reached == [(0, 1), (1, 1), (2, 1), (3, 1)]


@of_conf("core")
def test_every_parameter_of_a_core_learns_but_not_across_a_detached_state(make) -> None:
    core, input = make().double(), normal(T, B, SIZE).requires_grad_()
    first = core(input[:3])
    core(input[3:], detach_state(first.state)).output.square().sum().backward()
    assert all(parameter.grad.any() for parameter in core.parameters())
    assert not input.grad[:3].any()


@of_conf("core")
def test_gradients_match_finite_differences(make) -> None:
    """Also those through the state, which does not start at zero."""
    core, input = moved(make(num_layers=2).double().eval()), normal(5, 2, SIZE).requires_grad_()
    start = detach_state(core(normal(3, 2, SIZE)).state)

    def run(input: Tensor, *_: Tensor) -> Tensor:
        first, _, state = core(input[:3], start)
        return torch.cat([first, core(input[3:], state).output])

    assert torch.autograd.gradcheck(run, (input, *core.parameters()), fast_mode=True)


@pytest.mark.parametrize("multiplies", [True, False])
@of_conf("core")
def test_autocast_is_off_if_the_processor_cannot_multiply_bfloat16(
    make, multiplies: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stack, "multiplies_bfloat16", lambda: multiplies)
    core, input = make().eval(), normal(T, B, SIZE).float()
    has_lstm = any(isinstance(part, LSTMLayer) for part in core.modules())
    if multiplies and has_lstm and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip("oneDNN's LSTM takes no bfloat16 on this processor")
    expected = core(input).output
    with torch.autocast("cpu", torch.bfloat16):
        output = core(input).output
    assert torch.equal(output, expected) != multiplies
    assert (output.float() - expected).norm() < 0.05 * expected.norm()


@of_conf("core")
def test_a_core_with_bfloat16_weights_takes_its_state_in_float32_too(make) -> None:
    """A resumed run passes it on in float32, as some cores keep it."""
    core, input = make(num_layers=2).eval().bfloat16(), normal(T, B, SIZE).bfloat16()
    expected = copy.deepcopy(core).double()(input.double()).output[3:]
    state = detach_state(core(input[:3]).state)
    output = core(input[3:], state).output
    assert (output.double() - expected).norm() < 0.05 * expected.norm()
    in_float32 = tuple(tuple(tensor.float() for tensor in layer) for layer in state)
    assert_close(core(input[3:], in_float32).output, output, rtol=0, atol=0)
    output.float().square().sum().backward()
    assert all(p.grad.isfinite().all() and p.dtype == torch.bfloat16 for p in core.parameters())


@of_conf("core")
def test_a_detached_state_keeps_nothing_of_the_window_but_itself(make) -> None:
    for layer in detach_state(make()(normal(T, B, SIZE).float()).state):
        for tensor in layer:
            assert tensor.untyped_storage().nbytes() == tensor.numel() * tensor.itemsize


def other_values(value: Any) -> list[Any]:
    """Values that an argument could have instead."""
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, (int, float)):
        return [value // 2, 2 * value]
    return [] if isinstance(value, str) else [[2, 5], [3, 9]]  # the clusters of a head


def require_layout_arguments(
    make: Any, build: Callable[..., Any], run: Callable[[Any], Tensor]
) -> None:
    """Those with which the same weights give other outputs, though they fit, must be named."""
    changing = set()
    for name, value in make.keywords.items():
        made = moved(build(**{name: other_values(value)[-1]} if value is None else {}))
        for other in other_values(value):
            try:
                twin = build(**{name: other})
                twin.load_state_dict(made.state_dict())
            except (ValueError, RuntimeError):  # refused, or the weights have other shapes
                continue
            if not torch.allclose(run(made), run(twin)):
                changing.add(name)
    assert changing == set(getattr(make.func, "layout_arguments", ()))


@of_conf("core")
def test_arguments_that_change_what_the_same_weights_mean_are_named(make) -> None:
    input = normal(T, B, SIZE)
    require_layout_arguments(
        make, lambda **other: make(**other).double().eval(), lambda core: core(input).output
    )


@pytest.mark.slow
@of_conf("core")
def test_after_20_000_steps_float32_still_matches_float64(make) -> None:
    core, state = moved(make(num_layers=1).eval()), None
    twin, twin_state = copy.deepcopy(core).double(), None
    with torch.no_grad():
        for _ in range(20):
            input = 3.0 * torch.randn(1000, 1, SIZE)
            output, _, state = core(input, state)
            expected, _, twin_state = twin(input.double(), twin_state)
    assert all(tensor.isfinite().all() for layer in state for tensor in layer)
    assert_close(output.double(), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("core", "place"),
    [("ind_rnn", "layers.0"), ("gru", "layers.1"), ("min_gru", "blocks.1.layer")],
)
def test_a_layer_that_returns_a_tensor_as_its_state_is_refused(core: str, place: str) -> None:
    """Its first column would be taken for the state of all."""

    class WithoutComma(nn.Module):
        def forward(self, input: Tensor, state: Any, weight_dropout: Any) -> tuple[Tensor, Tensor]:
            return input, input[-1]

    made = makers("core")[core]()
    made.set_submodule(place, WithoutComma())
    with pytest.raises(TypeError, match=r"^WithoutComma must return"):
        made(torch.randn(T, B, SIZE))


# Heads --------------------------------------------------------------------------------------------


def make_head(make: Callable[..., Any], *, tied: bool) -> Any:
    """A head in evaluation mode in which no parameter is zero."""
    takes_counts = "counts" in inspect.signature(make).parameters
    counts = {"counts": torch.arange(V) * 7 % V} if takes_counts else {}
    head = make(vocabulary_size=V, **counts).double().eval()
    assert isinstance(head, Head)
    if tied:
        tie(head, nn.Parameter(normal(V, SIZE)))
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.normal_(std=0.3)
    return head


def tie(head: Any, weight: nn.Parameter) -> None:
    try:
        head.tie(weight)
    except ValueError as error:  # as the contract allows; tests/model/head ties each that can be
        pytest.skip(str(error))


def nats_of(head: Any, output: Tensor, targets: Tensor) -> Tensor:
    """Nats of the targets, by way of the whole distribution."""
    return -head.log_probs(output).gather(-1, targets.unsqueeze(-1)).squeeze(-1)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("tied", [True, False])
@of_conf("head")
def test_loss_and_log_probs_agree_and_so_do_their_gradients(
    make, tied: bool, reduction: str
) -> None:
    head, output = make_head(make, tied=tied), normal(2, V, SIZE).requires_grad_()
    words = torch.stack([torch.randperm(V), torch.randperm(V)])
    assert_close(head.log_probs(output).exp().sum(-1), torch.ones(2, V, dtype=torch.float64))

    scored = words != 4
    nats = nats_of(head, output, words) * scored
    expected = {"none": nats, "sum": nats.sum(), "mean": nats.sum() / scored.sum()}[reduction]
    targets = words.where(scored, -100)
    loss = head.loss(output, targets, reduction=reduction)
    assert_close(loss, expected)
    with torch.no_grad():
        assert_close(head.loss(output, targets, reduction=reduction), expected)

    leaves = [output, *head.parameters()]
    factors = torch.linspace(-1, 2, loss.numel(), dtype=torch.float64).view(loss.shape)
    gradients = torch.autograd.grad((loss * factors).sum(), leaves)
    assert_close(gradients, torch.autograd.grad((expected * factors).sum(), leaves))
    assert all(gradient.any() for gradient in gradients)


@of_conf("head")
def test_bfloat16_weights_round_neither_log_probs_nor_loss(make) -> None:
    head, output = make_head(make, tied=False).bfloat16(), normal(V, SIZE).bfloat16()
    words = torch.arange(V)
    expected = nats_of(copy.deepcopy(head).double(), output.double(), words)
    assert_close(nats_of(head, output, words), expected.float(), rtol=1e-5, atol=1e-5)
    loss = head.loss(output, words, reduction="none")
    assert_close(loss, expected.float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("tied", [True, False])
@of_conf("head")
def test_any_single_target_gives_every_parameter_a_gradient(
    make, tied: bool, reduction: str
) -> None:
    head, output = make_head(make, tied=tied), normal(2, SIZE)
    Dropouts(head.dropouts).scale(0.0)
    for word in range(V):
        head.zero_grad()
        targets = torch.tensor([word, word])
        nats = nats_of(head.eval(), output, targets)
        loss = head.train().loss(output, targets, reduction=reduction).sum()
        assert_close(loss, nats.mean() if reduction == "mean" else nats.sum())
        loss.backward()
        assert all(parameter.grad is not None for parameter in head.parameters())


@of_conf("head")
def test_arguments_that_change_what_the_same_words_mean_are_named(make) -> None:
    output, tied = normal(B, SIZE), "cutoffs" in inspect.signature(make).parameters

    def build(**other: Any) -> Any:
        return make_head(partial(make, **other), tied=tied)

    require_layout_arguments(make, build, lambda head: head.log_probs(output))


@pytest.mark.parametrize("chunk_bytes", [4 * 4 * V * 7, 2**20])  # 7 rows, or all at once
@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@of_conf("head")
def test_nats_are_those_of_powers_that_sum_to_one(
    make, temperature: float, chunk_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "CHUNK_BYTES", chunk_bytes)
    head, output = make_head(make, tied=False), normal(2, V, SIZE).requires_grad_()
    words = torch.stack([torch.randperm(V), torch.randperm(V)])
    powers = head.log_probs(output).exp() ** (1 / temperature)
    expected = -(powers / powers.sum(-1, keepdim=True)).log().gather(-1, words[..., None])
    expected = expected.squeeze(-1) * (words != 4)
    head.temperature = temperature
    nats = head.nats(output, words.where(words != 4, -100))
    assert_close(nats, expected)
    leaves = [output, *head.parameters()]
    gradients = torch.autograd.grad(expected.mean(), leaves)
    assert_close(torch.autograd.grad(nats.mean(), leaves), gradients)


@of_conf("head")
def test_surprisal_and_entropy_are_those_of_the_whole_distribution(make) -> None:
    head, output, words = make_head(make, tied=False), normal(V, SIZE), torch.randperm(V)
    surprisal, entropy = head.surprisal_and_entropy(output, words)
    probs = head.log_probs(output).exp()
    expected = -probs.gather(1, words[:, None])[:, 0].log(), -(probs * probs.log()).sum(1)
    assert_close(surprisal.double(), expected[0], rtol=1e-5, atol=1e-5)
    assert_close(entropy.double(), expected[1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("chunk_bytes", [1, 2**30])  # column by column, or all at once
def test_a_heads_dropout_keeps_its_mask_for_a_window(
    chunk_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "CHUNK_BYTES", chunk_bytes)
    head = MixtureOfSoftmaxes(8, 50, num_components=3, latent_dropout=0.5)
    head.temperature = 0.7
    # The same output everywhere, so only the masks can make a difference.
    nats = head.nats(torch.full((20, 4, 8), 3.0), torch.full((20, 4), 7))
    assert_close(nats, nats[:1].expand(20, 4))
    assert len(set(nats[0].tolist())) == 4


@of_conf("head")
def test_a_tied_head_predicts_a_word_by_the_row_that_the_embedding_reads(make) -> None:
    head, embedding = make_head(make, tied=False), Embedding(V, SIZE).double()
    tie(head, embedding.weight)
    model = LanguageModel(embedding, LSTM(SIZE, SIZE), head, tied=True)
    weight, words, output = embedding.weight, torch.arange(V), normal(SIZE)
    assert any(parameter is weight for parameter in head.parameters())
    rows = head.embedding_rows(words)
    assert_close(model.embed(words[None]), weight[rows][None])
    assert_close(rows.sort().values, words)
    for word, row in enumerate(rows):
        (gradient,) = torch.autograd.grad(head.log_probs(output)[word], weight)
        assert gradient.norm(dim=1).argmax() == row
