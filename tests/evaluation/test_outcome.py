"""What an evaluation of a split hands on: to its table by training counts, and to its record."""

from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from lmbench.data.corpus import Corpus
from lmbench.data.vocabulary import EOS, UNK, Vocabulary
from lmbench.evaluation.evaluator import Evaluator
from lmbench.evaluation.outcome import evaluate, write
from lmbench.model import LSTM, Embedding, LanguageModel, Softmax

WORDS = (EOS, UNK, "=", "Title", "rare", "often")
TITLE = [0, 0, 2, 3, 2, 0, 0]  # between empty lines
SPLITS = {
    "train": [5] * 12 + [4] * 3 + TITLE + [5] * 20,
    "valid": [5, 5, *TITLE, 4, 5, *TITLE, 5, 4, 4],
    "test": [*TITLE, 4, 4, 5, 5, 5, *TITLE, 5, 1],
}
SECOND_TITLE = {"valid": 13, "test": 14}


@pytest.mark.parametrize("split", ["valid", "test"])
def test_buckets_and_articles_are_those_of_the_right_splits(tmp_path: Path, split: str) -> None:
    arrays = {name: np.array(ids, dtype=np.int32) for name, ids in SPLITS.items()}
    corpus = Corpus("text", Vocabulary(WORDS), arrays["train"], arrays["valid"], arrays["test"])
    size = len(WORDS)
    model = LanguageModel(Embedding(size, 3), LSTM(3, 3, num_layers=1), Softmax(3, size)).eval()
    evaluator = Evaluator(model, corpus, columns=1)
    outcome = evaluate(evaluator, corpus, split, name="standard", of_run={"model": "lstm"})

    targets, counts = SPLITS[split][1:], Counter(SPLITS["train"])
    buckets = Counter(
        "0" if counts[word] == 0 else "1 to 9" if counts[word] < 10 else "10 to 99"
        for word in targets
    )
    found = outcome.results["perplexity_by"]["training_count"]
    assert {row["bucket"]: row["num_tokens"] for row in found} == buckets

    write(outcome, tmp_path, save_tokens=True)
    record = pq.read_table(tmp_path / f"evaluation-standard-{split}.parquet")
    positions = range(1, len(SPLITS[split]))
    expected = [int(position >= SECOND_TITLE[split]) for position in positions]
    assert record["article"].to_pylist() == expected
