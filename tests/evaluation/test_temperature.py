"""The temperature against its formula for all words, in float64."""

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from lmbench.evaluation.dynamic import Dynamic
from lmbench.evaluation.evaluator import Evaluator
from lmbench.evaluation.temperature import Temperature
from lmbench.model import LanguageModel, Softmax

MakeEvaluator = Callable[..., Evaluator]


def tempered(probs: Tensor, value: float) -> Tensor:
    """Log-probabilities of all words."""
    powers = probs ** (1 / value)
    return (powers / powers.sum(-1, keepdim=True)).log()


def exact(model: LanguageModel) -> LanguageModel:
    return copy.deepcopy(model).double().eval()


@pytest.mark.parametrize("value", [0.5, 0.9, 2.0])
def test_probabilities_are_powers_that_sum_to_one(
    make_evaluator: MakeEvaluator,
    model: LanguageModel,
    ids: np.ndarray,
    value: float,
) -> None:
    tokens = torch.from_numpy(ids).long()
    with torch.no_grad():
        head, output = exact(model).head, exact(model)(tokens[:-1, None]).output[:, 0]
        log_probs = tempered(head.log_probs(output).exp(), value)
        if isinstance(head, Softmax):
            logits = output @ head.weight.T + head.bias
            assert_close(log_probs, (logits / value).log_softmax(-1))
    expected = log_probs.gather(1, tokens[1:, None])[:, 0]
    reading = make_evaluator(model, columns=1, modes=[Temperature(value)]).read("valid")
    assert_close(reading.log_probs, expected, rtol=1e-5, atol=1e-5)
    columns = make_evaluator(model, columns=3, burn_in=60, modes=[Temperature(value)])
    assert_close(columns.read("valid").log_probs, expected, rtol=0.02, atol=0.02)


def test_dynamic_evaluation_learns_from_the_tempered_loss(
    make_evaluator: MakeEvaluator, model: LanguageModel, ids: np.ndarray
) -> None:
    modes = [Dynamic("sgd", lr=0.5, decay=0.0), Temperature(1.5)]
    reading = make_evaluator(model, columns=1, window=100, modes=modes).read("valid")
    twin, tokens = exact(model), torch.from_numpy(ids).long()
    state, expected = None, []
    for part in torch.arange(399).split(100):
        output, _, state = twin(tokens[part, None], state)
        state = tuple(tuple(tensor.detach() for tensor in layer) for layer in state)
        log_probs = tempered(twin.head.log_probs(output[:, 0]).exp(), 1.5)
        expected.append(log_probs.gather(1, tokens[part + 1, None])[:, 0])
        parameters = list(twin.parameters())
        gradients = torch.autograd.grad(-expected[-1].mean(), parameters)
        with torch.no_grad():
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.sub_(gradient, alpha=0.5)
    assert_close(reading.log_probs, torch.cat(expected).detach(), rtol=1e-4, atol=1e-4)


def test_the_head_is_as_before_afterwards(
    make_evaluator: MakeEvaluator, model: LanguageModel
) -> None:
    evaluator = make_evaluator(model, modes=[Temperature(0.7)])
    del model.core
    with pytest.raises(AttributeError):
        evaluator.read("valid")
    assert model.head.temperature == 1.0
