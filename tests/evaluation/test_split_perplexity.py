"""What the evaluation of a split passes to its table by training counts, and to its record."""

from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from lmbench.data.columns import EvaluationSettings
from lmbench.data.corpus import Corpus
from lmbench.data.vocabulary import EOS, UNK, Vocabulary
from lmbench.evaluation.cache import Cache
from lmbench.evaluation.measure import TrainedRun
from lmbench.evaluation.split_perplexity import SplitPerplexity
from lmbench.model import LSTM, Embedding, LanguageModel, Softmax

WORDS = (EOS, UNK, "=", "Title", "rare", "often")
TITLE = [0, 0, 2, 3, 2, 0, 0]  # between empty lines
SPLITS = {
    "train": [5] * 12 + [4] * 3 + TITLE + [5] * 20,
    "valid": [5, 5, *TITLE, 4, 5, *TITLE, 5, 4, 4],
    "test": [*TITLE, 4, 4, 5, 5, 5, *TITLE, 5, 1],
}
SECOND_TITLE = {"valid": 13, "test": 14}


@pytest.fixture
def run(tmp_path: Path) -> TrainedRun:
    arrays = [np.array(ids, dtype=np.int32) for ids in SPLITS.values()]
    size = len(WORDS)
    model = LanguageModel(Embedding(size, 3), LSTM(3, 3, num_layers=1), Softmax(3, size)).eval()
    corpus = Corpus("text", Vocabulary(WORDS), *arrays)
    about = {"model": "\x1b[31mred"}
    return TrainedRun(tmp_path, model, corpus.vocabulary, lambda: corpus, about)


@pytest.mark.parametrize("split", ["valid", "test"])
def test_buckets_and_articles_are_those_of_the_right_splits(
    run: TrainedRun, tmp_path: Path, split: str
) -> None:
    measure = SplitPerplexity(EvaluationSettings(columns=1), save_tokens=True)
    [outcome] = measure.outcomes(run, [split], "standard")

    targets, counts = SPLITS[split][1:], Counter(SPLITS["train"])
    buckets = Counter(
        "0" if counts[word] == 0 else "1 to 9" if counts[word] < 10 else "10 to 99"
        for word in targets
    )
    rows = outcome.results["perplexity_by"]["training_count"]
    assert {row["bucket"]: row["num_tokens"] for row in rows} == buckets

    outcome.write(tmp_path)
    record = pq.read_table(tmp_path / f"evaluation-standard-{split}.parquet")
    positions = range(1, len(SPLITS[split]))
    expected = [int(position >= SECOND_TITLE[split]) for position in positions]
    assert record["article"].to_pylist() == expected


def test_the_table_has_a_line_for_each_score(run: TrainedRun) -> None:
    """Whatever the model's name would do to a terminal."""
    measure = SplitPerplexity(EvaluationSettings(columns=1), [Cache(window=5)])
    [outcome] = measure.outcomes(run, ["test"], "mine")
    results = outcome.results
    title, _, *lines = outcome.table.splitlines()
    assert title == "\\x1b[31mred, mine evaluation of test"
    rows = {
        "all": results,
        "all, without the cache": results["without_cache"],
        "in training 1 to 9 times": results["perplexity_by"]["training_count"][1],
        "tokens 0 to 99 of an article": results["perplexity_by"]["article_position"][0],
        UNK: results["perplexity_by"]["unk"][0],
    }
    for name, score in rows.items():
        figures = f"{score['ppl']:.2f} {score['nll']:.4f} {score['num_tokens']}"
        assert f"{name} {figures}" in [" ".join(line.split()) for line in lines]
    assert "1 column(s), windows of 70, cache window 5, theta 0.662" in lines[-1]
