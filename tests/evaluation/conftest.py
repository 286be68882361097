"""Small models with large dropouts, and streams for them to read."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lmbench.data.columns import EvaluationSettings
from lmbench.data.corpus import Corpus
from lmbench.data.vocabulary import EOS, Vocabulary
from lmbench.evaluation import dynamic, evaluator
from lmbench.evaluation.evaluator import Evaluator
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


MakeModel = Callable[..., LanguageModel]


@pytest.fixture
def make_model() -> MakeModel:
    """Models of a core and a head; the same arguments give the same model."""

    def make(name: str = "lstm-softmax", num_words: int = NUM_WORDS) -> LanguageModel:
        torch.manual_seed(0)
        core_name, head_name = name.split("-")
        if core_name == "lstm":
            core = LSTM(8, 12, 8, 2, dropout=0.5)
        else:
            kinds = ("input", "hidden", "output", "weight")
            core = AWDLSTM(8, 12, 8, 2, **{f"{kind}_dropout": 0.5 for kind in kinds})
        if head_name == "softmax":
            head = Softmax(8, num_words)
        else:
            head = AdaptiveSoftmax(8, num_words, cutoffs=[num_words // 5, num_words // 2])
        model = LanguageModel(Embedding(num_words, 8, dropout=0.5), core, head, tied=True)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.4)
        return model.eval()

    return make


@pytest.fixture(params=["lstm-softmax", "awd_lstm-softmax", "awd_lstm-adaptive_softmax"])
def model(request: pytest.FixtureRequest, make_model: MakeModel) -> LanguageModel:
    return make_model(request.param)


@pytest.fixture
def ids() -> np.ndarray:
    return np.random.default_rng(1).integers(0, NUM_WORDS, 400).astype(np.int32)


@pytest.fixture
def make_evaluator(
    ids: np.ndarray, make_model: MakeModel, tmp_path: Path
) -> Callable[..., Evaluator]:
    """Evaluators for a corpus whose splits are all the same."""

    def make(model: LanguageModel | None = None, **options: Any) -> Evaluator:
        words = Vocabulary((EOS, *map(str, range(1, NUM_WORDS))))
        corpus = Corpus("text", words, ids, ids, ids)
        modes = options.pop("modes", ())
        settings = EvaluationSettings(**options)
        return Evaluator(model or make_model(), corpus, tmp_path, settings, modes)

    return make


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
def progress(monkeypatch: pytest.MonkeyPatch) -> list[tuple]:
    """What is reported: phases, by name and number of targets, and their windows."""
    told: list[tuple] = []

    @contextmanager
    def tell(*phase: Any) -> Iterator[Callable]:
        told.append(phase)
        yield lambda *window: told.append(window)

    for module in (dynamic, evaluator):
        monkeypatch.setattr(module, "progress_of", tell)
    return told
