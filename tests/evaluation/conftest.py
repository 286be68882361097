"""Small models with large dropouts, and streams for them to read."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from lmbench.evaluation.reading import Reading
from lmbench.model import (
    AWDLSTM,
    LSTM,
    AdaptiveSoftmax,
    Embedding,
    LanguageModel,
    Softmax,
)

NUM_WORDS = 50


@pytest.fixture(params=["lstm-softmax", "awd_lstm-softmax", "awd_lstm-adaptive_softmax"])
def model(request: pytest.FixtureRequest) -> LanguageModel:
    return make_model(request.param)


def make_model(name: str) -> LanguageModel:
    torch.manual_seed(0)
    core_name, head_name = name.split("-")
    core = (
        LSTM(8, 12, 8, 2, dropout=0.5)
        if core_name == "lstm"
        else AWDLSTM(
            8,
            12,
            8,
            2,
            input_dropout=0.5,
            hidden_dropout=0.5,
            output_dropout=0.5,
            weight_dropout=0.5,
        )
    )
    head = (
        Softmax(8, NUM_WORDS)
        if head_name == "softmax"
        else AdaptiveSoftmax(8, NUM_WORDS, cutoffs=[10, 25])
    )
    model = LanguageModel(Embedding(NUM_WORDS, 8, dropout=0.5), core, head, tied=True)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.4)
    return model.eval()


@pytest.fixture
def ids() -> np.ndarray:
    return np.random.default_rng(1).integers(0, NUM_WORDS, 400).astype(np.int32)


@pytest.fixture
def make_reading() -> Callable[..., Reading]:
    """Random readings: few words, so that the cache finds them."""

    def make(num_targets: int, *, num_words: int = 7, hidden_size: int = 5) -> Reading:
        generator = np.random.default_rng(num_targets)
        return Reading(
            positions=np.arange(1, num_targets + 1),
            targets=generator.integers(0, num_words, num_targets).astype(np.int32),
            log_probs=torch.from_numpy(np.log(generator.uniform(0.01, 0.9, num_targets))),
            outputs=torch.from_numpy(generator.normal(size=(num_targets, hidden_size))).float(),
        )

    return make


@pytest.fixture
def no_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a device without float64, where a tensor must go to the CPU first."""
    on_cpu: list[Tensor] = []
    cpu, double = Tensor.cpu, Tensor.double

    def move(tensor: Tensor) -> Tensor:
        on_cpu.append(cpu(tensor))
        return on_cpu[-1]

    def convert(tensor: Tensor) -> Tensor:
        if not any(tensor is other for other in on_cpu):
            raise TypeError("This device has no float64")
        return double(tensor)

    monkeypatch.setattr(Tensor, "cpu", move)
    monkeypatch.setattr(Tensor, "double", convert)
