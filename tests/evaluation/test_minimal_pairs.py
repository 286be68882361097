"""Accuracies on minimal pairs against known probabilities."""

import json
import math
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from lmbench.data.minimal_pairs import Pair, PairSet
from lmbench.data.tokenizer.auto import Auto
from lmbench.data.tokenizer.words import WhiteSpace
from lmbench.data.vocabulary import Vocabulary
from lmbench.errors import UserError
from lmbench.evaluation.measure import Outcome, TrainedRun
from lmbench.evaluation.minimal_pairs import MinimalPairs, PairScores, score_pairs
from lmbench.evaluation.surprisal import sentence_surprisals
from lmbench.loaded import Loaded
from lmbench.model import LSTM, Embedding, LanguageModel, Softmax

PROBABILITIES = {"<eos>": 0.1, "<unk>": 0.05, "a": 0.4, "b": 0.3, "C": 0.1, "is": 0.03, "n't": 0.02}
ABOUT = {"model": "lstm", "seed": 1, "weights_sha256": "0", "corpus_sha256": "1"}


def unigram_model(vocabulary: Vocabulary) -> LanguageModel:
    """A model that gives each word its probability, whatever came before."""
    size = len(vocabulary)
    model = LanguageModel(Embedding(size, 3), LSTM(3, 4, 3), Softmax(3, size)).eval()
    with torch.no_grad():
        model.head.weight.zero_()
        weights = [PROBABILITIES.get(word, 0.1) for word in vocabulary.words]
        model.head.bias.copy_(torch.tensor(weights).log())
    return model


@pytest.fixture
def vocabulary() -> Vocabulary:
    return Vocabulary(tuple(PROBABILITIES))


def pairs_of(*pairs: tuple[str, ...]) -> PairSet:
    return PairSet("my pairs", [Pair(*pair) for pair in pairs])


PAIRS = pairs_of(
    ("a b", "b b", "first", "x", "syntax"),  # right
    ("b", "a", "first", "x", "syntax"),  # wrong
    ("a b", "b a", "first", "x", "syntax"),  # the same probability
    ("a dog", "a cat", "second", "y", "syntax"),  # the same words
    ("a dog", "b cat", "second", "y", "syntax"),  # right
    ("a", "a C dog", "third"),  # right
)


def scores_of(model: LanguageModel, vocabulary: Vocabulary, pairs: PairSet) -> PairScores:
    return score_pairs(model, vocabulary, Auto().fit_vocabulary(vocabulary), pairs)


def outcome_of(
    folder: Path, vocabulary: Vocabulary, pairs: PairSet, tokenizer: str = "auto"
) -> Outcome:
    """From a file with the pairs."""
    path = folder / f"{pairs.name}.tsv"
    lines = ("\t".join(value or "" for value in pair) for pair in pairs.pairs)
    path.write_text("\n".join(lines), "utf-8")

    def no_corpus():
        raise AssertionError("pairs need none")

    run = TrainedRun(folder, unigram_model(vocabulary), vocabulary, no_corpus, ABOUT)
    [outcome] = MinimalPairs(path, tokenizer).outcomes(run, ["valid", "test"], "minimal_pairs")
    return outcome


def test_counts(vocabulary: Vocabulary, tmp_path: Path):
    outcome = outcome_of(tmp_path, vocabulary, PAIRS, "none")
    results = outcome.results
    scores = score_pairs(unigram_model(vocabulary), vocabulary, WhiteSpace(), PAIRS)
    assert outcome.figure == results["accuracy"] == 0.5
    counts = {"num_pairs": 6, "num_correct": 3, "num_ties": 2}
    assert counts.items() <= results.items()
    assert results["parts"] == {
        "known": {"num_pairs": 3, "num_correct": 1, "num_ties": 1, "accuracy": 1 / 3},
        "unknown": {"num_pairs": 2, "num_correct": 2, "num_ties": 0, "accuracy": 1.0},
        "identical": {"num_pairs": 1, "num_correct": 0, "num_ties": 1, "accuracy": 0.0},
    }
    assert results["unknown_word_share"] == 5 / 22
    by = {level: {row["name"]: row for row in rows} for level, rows in results["by"].items()}
    assert {level: list(rows) for level, rows in by.items()} == {
        "field": ["syntax"],
        "phenomenon": ["x", "y"],
        "paradigm": ["first", "second", "third"],
    }
    assert by["field"]["syntax"]["accuracy"] == 2 / 5
    assert by["phenomenon"]["y"]["known"]["accuracy"] is None
    assert by["paradigm"]["first"]["num_ties"] == 1
    bits = [-math.log2(0.4 * 0.3), -math.log2(0.3), -math.log2(0.12), -math.log2(0.4 * 0.05)]
    np.testing.assert_allclose(scores.good[:4], bits, rtol=1e-6)
    assert scores.is_correct.tolist() == [True, False, False, False, True, True]


def test_sentences_are_tokenized_and_lowercased_like_the_vocabulary(
    vocabulary: Vocabulary, tmp_path: Path
):
    pairs = pairs_of(("a isn't b", "a isn't a", "p"))
    results = outcome_of(tmp_path, vocabulary, pairs).results
    scores = scores_of(unigram_model(vocabulary), vocabulary, pairs)
    assert results["pairs"]["tokenizer"] == "penn, without unknown punctuation"
    assert scores.good[0] == pytest.approx(-math.log2(0.4 * 0.03 * 0.02 * 0.3), rel=1e-6)
    lower = Vocabulary(tuple(word.lower() for word in PROBABILITIES))
    pairs = pairs_of(("A b", "A A", "p"))
    results = outcome_of(tmp_path, lower, pairs).results
    scores = scores_of(unigram_model(lower), lower, pairs)
    assert results["pairs"]["tokenizer"].startswith("penn, lower case")
    assert scores.good[0] == pytest.approx(-math.log2(0.4 * 0.3), rel=1e-6)
    assert not scores.has_unknown.any()


def test_probabilities_are_those_of_sentences_without_their_end():
    torch.manual_seed(0)
    vocabulary = Vocabulary(("<eos>", *"ABCDEFGH"))
    model = LanguageModel(Embedding(9, 5), LSTM(5, 7, 5), Softmax(5, 9)).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_()
    pairs = pairs_of(("A B C", "A B D", "p"), ("E", "H G A B C D", "p"))
    scores = scores_of(model, vocabulary, pairs)
    for place, pair in enumerate(pairs.pairs):
        for text, found in ((pair.good, scores.good), (pair.bad, scores.bad)):
            words = Loaded(model, vocabulary).score(text)["surp"][:-1]
            assert found[place] == pytest.approx(words.sum(), rel=1e-6)


def test_a_sentence_of_which_no_word_is_left_is_refused(vocabulary: Vocabulary):
    """It would be certain, and so correct."""
    pairs = pairs_of(("a", "b", "p"), ("!", "a b", "p"))
    message = "No word is left to read in one of '!' and 'a b'"
    with pytest.raises(UserError, match=re.escape(message)):
        scores_of(unigram_model(vocabulary), vocabulary, pairs)


def test_sentences_without_words_have_no_surprisal(vocabulary: Vocabulary):
    ids = [np.zeros(1, np.int32), vocabulary.encode(["<eos>", "a", "b"]), np.zeros(1, np.int32)]
    found = sentence_surprisals(unigram_model(vocabulary), ids)
    np.testing.assert_allclose(found, [0, -math.log2(0.12), 0], rtol=1e-6)
    assert sentence_surprisals(unigram_model(vocabulary), []).tolist() == []


def test_files(vocabulary: Vocabulary, tmp_path: Path):
    outcome, folder = outcome_of(tmp_path, vocabulary, PAIRS, "none"), tmp_path / "run"
    folder.mkdir()
    outcome.write(folder)
    names = {f"minimal_pairs-my_pairs.{end}" for end in ("json", "parquet")}
    assert {path.name for path in folder.iterdir()} == names
    content = json.loads((folder / "minimal_pairs-my_pairs.json").read_text("utf-8"))
    assert content == outcome.results
    table = pq.read_table(folder / "minimal_pairs-my_pairs.parquet").to_pydict()
    assert table["paradigm"] == [pair.paradigm for pair in PAIRS.pairs]
    assert table["field"][-1] is None
    assert Counter(table["correct"]) == {True: 3, False: 3}
    assert table["identical"] == [False, False, False, True, False, False]
    outcome_of(tmp_path, vocabulary, PairSet("文" * 80, PAIRS.pairs)).write(folder)  # 240 bytes
    assert len(list(folder.iterdir())) == 4
    lines = outcome.table.splitlines()
    assert lines[0] == "lstm, minimal pairs of my pairs"
    assert lines[2].split() == ["all", "50.0%", "6", "2", "33.3%", "3"]
    assert lines[-1].startswith("22.7% of the words are read as <unk>; pairs identical to ")


def test_a_difference_that_rounding_makes_is_a_tie() -> None:
    good, bad = np.array([30.0, 30.0, 30.0]), np.array([30.00005, 29.99995, 30.0002])
    no = np.zeros(3, bool)
    scores = PairScores(good, bad, no, no, 0.0)
    assert scores.is_tie.tolist() == [True, True, False]
    assert scores.is_correct.tolist() == [False, False, True]
