import copy

import pytest
import torch
from torch.testing import assert_close

from lmbench.model import AWDLSTM, LSTM, Embedding, LanguageModel, Softmax

V, E, H = 13, 4, 6
NO_DROPOUT = dict.fromkeys(
    ("input_dropout", "hidden_dropout", "output_dropout", "weight_dropout"), 0.0
)


def make(tied: bool) -> LanguageModel:
    torch.manual_seed(0)
    core = AWDLSTM(E, H, E, num_layers=2, **NO_DROPOUT)
    return LanguageModel(Embedding(V, E), core, Softmax(E, V), tied=tied).double()


def test_published_sizes_have_the_published_number_of_parameters() -> None:
    with torch.device("meta"):
        core = AWDLSTM(400, 1150, 400, num_layers=3, **NO_DROPOUT)
        model = LanguageModel(Embedding(33278, 400), core, Softmax(400, 33278), tied=True)
    assert model.num_parameters == 33_556_078


def test_an_untied_lstm_counts_both_matrices() -> None:
    core = LSTM(E, H, num_layers=2)
    model = LanguageModel(Embedding(V, E), core, Softmax(H, V))
    layers = 4 * H * (E + H + 2) + 4 * H * (H + H + 2)
    assert model.num_parameters == V * E + layers + V * H + V


def test_reads_embedding_core_and_head_in_turn() -> None:
    model = make(tied=False)
    tokens = torch.randint(V, (5, 3))
    result = model(tokens)
    expected = model.core(model.embedding.weight[tokens])
    assert_close(result, expected)
    continued = model(tokens, result.state)
    assert_close(continued.output, model.core(model.embedding.weight[tokens], result.state).output)
    assert not torch.allclose(continued.output, result.output)


def test_a_tied_weight_is_one_parameter_with_the_gradients_of_both_sides() -> None:
    tied, twin = make(tied=True), make(tied=False)
    twin.load_state_dict(copy.deepcopy(tied.state_dict()))
    assert tied.head.weight is tied.embedding.weight
    assert twin.head.weight is not twin.embedding.weight
    assert twin.num_parameters - tied.num_parameters == V * E
    tokens = torch.randint(V, (5, 3))
    targets = torch.randint(V, (5, 3))
    for model in (tied, twin):
        model.head.loss(model(tokens).output, targets).backward()
    assert_close(tied.embedding.weight.grad, twin.embedding.weight.grad + twin.head.weight.grad)
    assert_close(tied.head.bias.grad, twin.head.bias.grad)


def test_a_tied_model_keeps_the_weight_of_the_embedding() -> None:
    embedding, head = Embedding(V, E), Softmax(E, V)
    weight = embedding.weight
    model = LanguageModel(embedding, LSTM(E, E), head, tied=True)
    assert model.embedding.weight is weight
    assert model.head.weight is weight


def test_a_tied_weight_stays_tied_when_copied_converted_or_loaded() -> None:
    model = copy.deepcopy(make(tied=True)).float()
    model.load_state_dict(make(tied=True).state_dict())
    assert model.head.weight is model.embedding.weight
    assert len(list(model.parameters())) == 1 + 2 * 4 + 1


def test_gradients_of_a_tied_model_match_finite_differences() -> None:
    model = make(tied=True)
    tokens, targets = torch.randint(V, (4, 2)), torch.randint(V, (4, 2))
    model.head.loss(model(tokens).output, targets).backward()
    for parameter in (model.embedding.weight, model.core.layers[0].weight_hh_l0):
        direction = torch.randn_like(parameter)
        losses = []
        for step in (1e-5, -2e-5):
            with torch.no_grad():
                parameter.add_(direction, alpha=step)
                losses.append(model.head.loss(model(tokens).output, targets))
        with torch.no_grad():
            parameter.add_(direction, alpha=1e-5)
        slope = (losses[0] - losses[1]) / 2e-5
        assert_close((parameter.grad * direction).sum(), slope, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(
    ("embedding", "core", "head", "tied", "message"),
    [
        (Embedding(V, E), LSTM(E, H), Softmax(H, V), True, r"embedding_size \(4\).*_size \(6\)"),
        (Embedding(V, E), LSTM(5, H), Softmax(H, V), False, r"embedding_size \(4\).*_size \(5\)"),
        (Embedding(V, E), LSTM(E, H), Softmax(7, V), False, r"output_size \(6\).*_size \(7\)"),
        (Embedding(V, H), LSTM(H, H), Softmax(H, 9), True, r"vocabulary_size \(13\).*_size \(9\)"),
    ],
)
def test_parts_that_do_not_fit(
    embedding: Embedding, core: LSTM, head: Softmax, tied: bool, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        LanguageModel(embedding, core, head, tied=tied)


def test_the_hash_of_the_weights_changes_with_any_of_them() -> None:
    model = make(tied=True)
    before = model.weights_sha256()
    assert before == copy.deepcopy(model).weights_sha256()
    assert before != make(tied=True).bfloat16().weights_sha256()
    for parameter in model.parameters():
        old = parameter.detach().clone()
        with torch.no_grad():
            parameter.view(-1)[-1] += 1e-12
        assert model.weights_sha256() != before
        with torch.no_grad():
            parameter.copy_(old)
    assert model.weights_sha256() == before
