"""Surprisal and entropy against sums over the whole distribution, in float64."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from lmbench.data.vocabulary import Vocabulary
from lmbench.errors import UserError
from lmbench.evaluation import surprisal
from lmbench.evaluation.surprisal import score_sentences, score_stream, sentence_surprisals
from lmbench.evaluation.text import sample_words
from lmbench.model import LSTM, AdaptiveSoftmax, Embedding, LanguageModel, Softmax
from lmbench.model.head import MixtureOfSoftmaxes

V = 40
WORDS = Vocabulary(("<eos>", *(f"w{n}" for n in range(1, V))))


HEADS = {
    "softmax": lambda: Softmax(8, V),
    "adaptive": lambda: AdaptiveSoftmax(8, V, cutoffs=[5, 20], counts=torch.randperm(V)),
    "mixture": lambda: MixtureOfSoftmaxes(8, V, num_components=3),
}


@pytest.fixture(params=HEADS)
def model(request: pytest.FixtureRequest) -> LanguageModel:
    torch.manual_seed(0)
    head = HEADS[request.param]()
    model = LanguageModel(Embedding(V, 6), LSTM(6, 10, 8), head).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(std=0.7)
    return model


def by_hand(model: LanguageModel, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Surprisal and entropy of one sentence, word by word."""
    probabilities, state = [], None
    with torch.no_grad():
        for word in ids[:-1]:
            output, _, state = model(torch.tensor([[word]]), state)
            probabilities.append(model.head.log_probs(output)[0, 0].double().exp().numpy())
    p = np.array(probabilities)
    return -np.log2(p[np.arange(len(p)), ids[1:]]), -(p * np.log2(p)).sum(1)


@pytest.mark.parametrize("batch_tokens", [1, 5, 30, 4096])
@pytest.mark.parametrize("rows", [1, 7, 10**6])
def test_each_sentence_by_itself(model, batch_tokens: int, rows: int, monkeypatch) -> None:
    monkeypatch.setattr(surprisal, "BATCH_TOKENS", batch_tokens)
    monkeypatch.setattr(surprisal, "LOG_PROBS_BYTES", rows * 4 * V)
    generator = np.random.default_rng(0)
    lengths = [6, 2, 1, 9, 2, 13, 1]  # a single token holds no word
    sentences = [generator.integers(0, V, length, np.int32) for length in lengths]
    told = []
    found = score_sentences(model, sentences, lambda *window: told.append(window))
    expected = [by_hand(model, ids) for ids in sentences if len(ids) > 1]
    assert_allclose(found.surprisal, np.concatenate([one for one, _ in expected]), rtol=1e-5)
    assert_allclose(found.entropy, np.concatenate([one for _, one in expected]), rtol=1e-5)
    assert sum(number for number, _ in told) == sum(lengths) - len(lengths)
    assert_allclose(sum(nats for _, nats in told), found.surprisal.sum() * np.log(2))


def test_a_text_in_one_stream(model) -> None:
    ids = np.random.default_rng(1).integers(0, V, 50, np.int32)
    found, expected = score_stream(model, ids), by_hand(model, ids)
    assert_allclose(found.surprisal, expected[0], rtol=1e-5)
    assert_allclose(found.entropy, expected[1], rtol=1e-5)


def test_without_sentences_there_is_nothing(model) -> None:
    for sentences in ([], [np.zeros(1, np.int32)]):
        assert [len(scores) for scores in score_sentences(model, sentences)] == [0, 0]


@pytest.mark.parametrize(
    "read",
    [
        lambda model, ids: score_sentences(model, [ids]),
        lambda model, ids: sentence_surprisals(model, [ids]),
        score_stream,
        lambda model, ids: next(
            sample_words(model, WORDS, torch.from_numpy(ids).long(), torch.Generator())
        ),
    ],
)
def test_no_sum_leaves_out_what_is_not_a_number(model: LanguageModel, read) -> None:
    with torch.no_grad():
        next(model.head.parameters()).fill_(torch.nan)
    with pytest.raises(UserError, match="not numbers"):
        read(model, np.arange(6, dtype=np.int32))
