"""Evaluators from configs."""

from collections.abc import Callable
from pathlib import Path

import pytest

from lmbench.data.synthetic import make_corpus
from lmbench.errors import UserError
from lmbench.evaluation.evaluator import Evaluator
from lmbench.instantiate.evaluator import build_evaluator
from lmbench.model import LSTM, Embedding, LanguageModel, Softmax


@pytest.fixture
def build(tmp_path: Path) -> Callable[..., Evaluator]:
    """Builds an evaluator with one mode of a class."""
    sizes = {f"num_{split}_tokens": 200 for split in ("train", "valid", "test")}
    corpus = make_corpus(num_words=40, **sizes)
    model = LanguageModel(Embedding(41, 8), LSTM(8, 8), Softmax(8, 41))
    return lambda target: build_evaluator(
        {"x": {"_target_": target}}, model, corpus, folder=tmp_path
    )


def test_what_is_not_a_mode_is_refused(build: Callable[..., Evaluator]):
    with pytest.raises(
        UserError, match=r"^evaluation\.x: Counter is neither a ReadingMode .*\.evaluator\.$"
    ):
        build("collections.Counter")


def test_a_mode_is_built(build: Callable[..., Evaluator]):
    (mode,) = build("lmbench.evaluation.cache.Cache").modes
    assert mode.name == "cache"
