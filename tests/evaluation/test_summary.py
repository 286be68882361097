"""Parts of a perplexity against plain loops over the targets and the written text."""

import math

import numpy as np
import pytest
import torch

from lmbench.data.vocabulary import EOS, UNK, Vocabulary
from lmbench.evaluation._summary import articles, summarize
from lmbench.evaluation.reading import Reading

WORDS = Vocabulary((EOS, UNK, "naïve", "x", "猫"))
COUNTS = np.array([10_000, 99, 100, 1, 0])


@pytest.fixture
def reading() -> Reading:
    generator = np.random.default_rng(0)
    positions = np.setdiff1d(np.arange(1, 3000), [17, 1500])  # two places were not scored
    targets = generator.integers(0, 5, len(positions)).astype(np.int32)
    log_probs = torch.from_numpy(np.log(generator.uniform(0.01, 1, len(positions))))
    return Reading(positions, targets, log_probs)


def expected(reading: Reading, belongs) -> tuple[int, float]:
    nats = [
        -float(log_prob)
        for position, target, log_prob in zip(
            reading.positions.tolist(), reading.targets.tolist(), reading.log_probs, strict=True
        )
        if belongs(position, target)
    ]
    return len(nats), sum(nats) / len(nats)


def test_buckets_are_those_of_a_plain_loop(reading: Reading) -> None:
    starts = np.array([3, 1200, 1800])
    by = summarize(reading, WORDS, counts=COUNTS, article_starts=starts)["perplexity_by"]

    def into_article(position: int) -> int:
        before = [start for start in starts.tolist() if start <= position]
        return position - before[-1] if before else -1

    tests = {
        "training_count": {
            "0": lambda _, target: COUNTS[target] == 0,
            "1 to 9": lambda _, target: COUNTS[target] == 1,
            "10 to 99": lambda _, target: COUNTS[target] == 99,
            "100 to 999": lambda _, target: COUNTS[target] == 100,
            "10,000 and more": lambda _, target: COUNTS[target] == 10_000,
        },
        "article_position": {
            "0 to 99": lambda position, _: 0 <= into_article(position) < 100,
            "100 to 499": lambda position, _: 100 <= into_article(position) < 500,
            "500 to 999": lambda position, _: 500 <= into_article(position) < 1000,
            "1,000 to 1,999": lambda position, _: 1000 <= into_article(position) < 2000,
        },
        "unk": {
            "<unk>": lambda _, target: target == 1,
            "other words": lambda _, target: target != 1,
        },
    }
    assert by.keys() == tests.keys()
    for name, buckets in tests.items():
        assert [bucket["bucket"] for bucket in by[name]] == list(buckets)
        for bucket in by[name]:
            number, nll = expected(reading, buckets[bucket["bucket"]])
            assert bucket["num_tokens"] == number
            assert bucket["nll"] == pytest.approx(nll, rel=1e-12)
            assert bucket["ppl"] == pytest.approx(math.exp(nll), rel=1e-12)
        left_out = {"article_position": 2}.get(name, 0)  # positions 1 and 2 precede all titles
        total = sum(bucket["num_tokens"] for bucket in by[name])
        assert total + left_out == len(reading.positions)


def test_bits_per_character_counts_the_written_text(reading: Reading) -> None:
    words = WORDS.decode(reading.targets)
    text = "".join("\n" if word == EOS else word + " " for word in words)
    bits = -sum(math.log2(math.exp(float(log_prob))) for log_prob in reading.log_probs)
    found = summarize(reading, WORDS, counts=COUNTS, article_starts=None)
    assert found["bits_per_character"] == pytest.approx(bits / len(text), rel=1e-9)


def test_what_a_corpus_lacks_is_left_out(reading: Reading) -> None:
    words = Vocabulary((EOS, "a", "b", "c", "d"))
    by = summarize(reading, words, counts=COUNTS, article_starts=None)["perplexity_by"]
    assert by.keys() == {"training_count"}


def test_positions_are_numbered_by_article(reading: Reading) -> None:
    found = articles(reading, np.array([3, 1200, 1800]))
    expected = [sum(s <= p for s in (1200, 1800)) for p in reading.positions.tolist()]
    assert found.tolist() == expected
