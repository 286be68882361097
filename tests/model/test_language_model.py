import copy
import hashlib

import pytest
import torch
from small import NO_DROPOUT
from torch.testing import assert_close

from lmbench.model import AWDLSTM, LSTM, Embedding, LanguageModel, Softmax

V, E, H = 13, 4, 6


def make(tied: bool) -> LanguageModel:
    torch.manual_seed(0)
    core = AWDLSTM(E, H, E, num_layers=2, **NO_DROPOUT)
    return LanguageModel(Embedding(V, E), core, Softmax(E, V), tied=tied).double()


def test_a_model_runs_its_embedding_and_then_its_core() -> None:
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


def test_a_tied_weight_is_the_embeddings_and_stays_so_when_copied_converted_or_loaded() -> None:
    embedding, head = Embedding(V, E), Softmax(E, V)
    weight = embedding.weight
    model = LanguageModel(embedding, LSTM(E, E), head, tied=True)
    assert model.embedding.weight is model.head.weight is weight
    model = copy.deepcopy(make(tied=True)).float()
    model.load_state_dict(make(tied=True).state_dict())
    assert model.head.weight is model.embedding.weight
    assert len(list(model.parameters())) == 1 + 2 * 4 + 1


@pytest.mark.parametrize(
    ("sizes", "tied", "message"),
    [
        (((V, E), (E, H), (H, V)), True, r"embedding_size \(4\).*_size \(6\)"),
        (((V, E), (5, H), (H, V)), False, r"embedding_size \(4\).*_size \(5\)"),
        (((V, E), (E, H), (7, V)), False, r"output_size \(6\).*_size \(7\)"),
        (((V, H), (H, H), (H, 9)), True, r"vocabulary_size \(13\).*head's \(9\)"),
    ],
)
def test_parts_that_do_not_fit_are_refused(sizes, tied: bool, message: str) -> None:
    embedding, core, head = sizes
    with pytest.raises(ValueError, match=message):
        LanguageModel(Embedding(*embedding), LSTM(*core), Softmax(*head), tied=tied)


def test_the_hash_of_the_weights_changes_with_any_of_them() -> None:
    model = make(tied=True)
    before = model.weights_sha256()
    assert before == copy.deepcopy(model).weights_sha256()
    content = [name.encode() + x.detach().numpy().tobytes() for name, x in model.named_parameters()]
    assert before == hashlib.sha256(b"".join(content)).hexdigest()
    assert before != make(tied=True).bfloat16().weights_sha256()
    for parameter in model.parameters():
        old = parameter.detach().clone()
        with torch.no_grad():
            parameter.view(-1)[-1] += 1e-12
        assert model.weights_sha256() != before
        with torch.no_grad():
            parameter.copy_(old)
    assert model.weights_sha256() == before
