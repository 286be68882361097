"""Monte-Carlo dropout against the few thinned models that a small output allows."""

import math
from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from lmbench.errors import UserError
from lmbench.evaluation.cache import Cache
from lmbench.evaluation.dynamic import Dynamic
from lmbench.evaluation.evaluator import Evaluator
from lmbench.evaluation.mc_dropout import MCDropout
from lmbench.model import AWDLSTM, Embedding, LanguageModel, Softmax

MakeEvaluator = Callable[..., Evaluator]


def with_one_dropout() -> LanguageModel:
    """A model with three outputs, which are dropped with a probability of 0.8 in training."""
    torch.manual_seed(0)
    dropouts = {f"{kind}_dropout": 0.0 for kind in ("input", "hidden", "weight")}
    core = AWDLSTM(8, 12, 3, 2, **dropouts, output_dropout=0.8)
    model = LanguageModel(Embedding(50, 8), core, Softmax(3, 50)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.7)
    return model


def test_each_sample_is_from_a_thinned_model_and_the_mean_is_arithmetic(
    make_evaluator: MakeEvaluator, ids: np.ndarray
) -> None:
    model, tokens = with_one_dropout(), torch.from_numpy(ids).long()
    output = model(tokens[:-1, None]).output[:, 0].detach().double()  # (N, 3)
    weight, bias = (p.detach().double() for p in model.head.parameters())
    thinned = []  # by the eight masks of a window as long as the split, with p = 0.8 / 2
    for mask in product([0.0, 1 / 0.6], repeat=3):
        outputs = output * torch.tensor(mask)
        probs = (outputs @ weight.T + bias).softmax(-1).gather(1, tokens[1:, None])
        thinned.append(torch.cat([probs, outputs], 1))
    before, drawn = torch.zeros(()), []
    for samples in range(1, 9):
        modes = [MCDropout(0.5, samples), Cache()]  # with a cache the outputs are kept
        mean = make_evaluator(model, columns=1, window=500, modes=modes).read("valid")
        assert mean.outputs is not None
        sums = torch.cat([mean.log_probs.exp()[:, None], mean.outputs], 1) * samples
        distances = [float((sums - before - one).abs().max()) for one in thinned]
        drawn.append(int(np.argmin(distances)))
        assert min(distances) < 1e-5
        before = sums
    assert len(set(drawn)) > 3


def test_without_dropping_it_is_the_standard_reading(
    make_evaluator: MakeEvaluator, model: LanguageModel
) -> None:
    options: dict[str, Any] = {"columns": 2, "burn_in": 50, "window": 20}
    standard = make_evaluator(model, **options).read("valid")
    one = make_evaluator(model, **options, modes=[MCDropout(0.0, 1)]).read("valid")
    assert torch.equal(one.log_probs, standard.log_probs)
    three = make_evaluator(model, **options, modes=[MCDropout(0.0, 3)]).read("valid")
    assert_close(three.log_probs, standard.log_probs, rtol=1e-12, atol=1e-12)


def test_results_repeat_and_everything_is_restored_afterwards(
    make_evaluator: MakeEvaluator, model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluator = make_evaluator(model, columns=1, window=20, modes=[MCDropout(0.5, 2)])
    built = [dropout.p for dropout in model.dropouts]
    assert 0.5 in built
    first = evaluator.read("valid")
    torch.rand(7)
    generator = torch.get_rng_state()
    second = evaluator.read("valid")
    assert torch.equal(first.log_probs, second.log_probs)
    standard = make_evaluator(model, columns=1, window=20).read("valid")
    assert (first.log_probs - standard.log_probs).abs().mean() > 0.01
    monkeypatch.setattr(model.head, "loss", None)
    with pytest.raises(TypeError):
        evaluator.read("valid")
    assert torch.equal(torch.get_rng_state(), generator)
    assert [dropout.p for dropout in model.dropouts] == built
    assert not any(module.training for module in model.modules())


def test_every_sample_starts_dynamic_evaluation_anew(
    make_evaluator: MakeEvaluator, model: LanguageModel
) -> None:
    def read(*modes: Any) -> torch.Tensor:
        return make_evaluator(model, columns=1, window=20, modes=modes).read("valid").log_probs

    weights = model.weights_sha256()
    dynamic = Dynamic("sgd", lr=0.5)
    assert_close(read(dynamic, MCDropout(0.0, 3)), read(dynamic), rtol=1e-12, atol=1e-12)
    assert (read(dynamic, MCDropout(0.5, 3)) - read(MCDropout(0.5, 3))).abs().mean() > 0.01
    assert model.weights_sha256() == weights


def test_progress_counts_all_samples_and_adds_up_to_their_mean(
    make_evaluator: MakeEvaluator, model: LanguageModel, progress: list[tuple]
) -> None:
    evaluator = make_evaluator(model, columns=1, window=100, modes=[MCDropout(0.5, 3)])
    reading = evaluator.read("valid")
    phase, *windows = progress
    assert phase == ("reading valid 3 times, mc_dropout multiplier 0.5, samples 3", 3 * 399)
    assert sum(num_scored for num_scored, _ in windows) == 3 * 399
    nats = math.fsum(nats for _, nats in windows)
    assert nats == pytest.approx(3 * reading.score.nats, rel=1e-6)


@pytest.mark.parametrize(
    ("mode", "key"),
    [
        (MCDropout(1.25), "multiplier"),
        (MCDropout(0.5, grid={"multipliers": [1.0, 1.25]}), "grid.multipliers"),
    ],
)
def test_a_multiplier_that_drops_everything_is_refused_at_once(
    make_evaluator: MakeEvaluator, mode: MCDropout, key: str
) -> None:
    evaluator = make_evaluator(with_one_dropout(), modes=[mode])
    with pytest.raises(UserError, match=rf"^evaluation\.mc_dropout\.{key}.*Set less than 1\.25\."):
        evaluator.prepare("valid")
    make_evaluator(with_one_dropout(), modes=[MCDropout(1.24)]).prepare("valid")
