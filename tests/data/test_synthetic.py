import math
from itertools import pairwise, product

import numpy as np
import pytest

from lmbench.data import synthetic
from lmbench.data.synthetic import Grammar, make_corpus

NUM_CLASSES = 8  # of the default corpus
EOS_ID = 0


@pytest.fixture(scope="module")
def corpus():
    return make_corpus()


@pytest.fixture
def tiny():
    sizes = {"num_words": 5, "num_topics": 2, "num_classes": 2}
    return Grammar(**sizes, topic_change_probability=0.3, mean_sentence_length=2.5, seed=3)


def prob_by_enumeration(grammar, ids):
    """p(ids) as a sum over every hidden path, in plain Python."""
    total = 0.0
    for path in product(range(len(grammar.initial)), repeat=len(ids)):
        prob = float(grammar.initial[path[0]])
        for last, state in pairwise(path):
            prob *= float(grammar.transition[last, state])
        for state, token in zip(path, ids, strict=True):
            prob *= float(grammar.emission[state, token])
        total += prob
    return total


@pytest.mark.parametrize("ids", [[1, 0, 4, 0], [3, 2, 5, 0, 1], [2, 2, 0, 2, 2]])
def test_log_probs_equal_a_sum_over_all_hidden_paths(tiny, ids):
    joint = [prob_by_enumeration(tiny, ids[: length + 1]) for length in range(len(ids))]
    expected = [math.log(joint[t] / joint[t - 1]) for t in range(1, len(ids))]
    np.testing.assert_allclose(tiny.log_probs_of(np.array(ids)), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("ids", [[0, 1], [1, 0, 0], [1, 6], [1, -1], []])
def test_impossible_streams_are_refused(tiny, ids):
    """A sentence has at least one word, and ids are below the vocabulary's size."""
    with pytest.raises(ValueError, match=r"^ids"):
        tiny.log_probs_of(np.array(ids, dtype=np.int64))


def test_a_single_topic_has_the_entropy_rate_of_its_markov_chain():
    """With one topic each token reveals its hidden state, so the entropy rate has a closed form."""
    grammar = Grammar(num_topics=1, topic_change_probability=0.0, seed=1)

    def entropy(probs):
        return -sum(p * math.log(p) for p in probs.tolist() if p > 0)

    stationary = np.linalg.matrix_power(grammar.transition, 1000)[0]
    rate = sum(
        weight * (entropy(grammar.transition[state]) + entropy(grammar.emission[state]))
        for state, weight in enumerate(stationary)
    )
    nats = -grammar.log_probs_of(grammar.sample(20_000, seed=0))
    assert abs(nats.mean() - rate) < 3 * standard_error(nats)


def test_words_and_classes_follow_zipf():
    grammar = Grammar(num_words=20, num_topics=2, num_classes=2, mean_sentence_length=4.0)
    words = np.array([rank**-1.2 for rank in range(1, 11)])
    classes = np.array([1.0, 2**-1.65]) / (1 + 2**-1.65)
    emission = grammar.emission.reshape(2, 3, 21)
    transition = grammar.transition.reshape(2, 3, 2, 3)
    for topic, word_class in product((0, 1), (1, 2)):
        probs = emission[topic, word_class]
        of_class = slice(1, 11) if word_class == 1 else slice(11, 21)
        np.testing.assert_allclose(np.sort(probs[of_class])[::-1], words / words.sum())
        assert probs[of_class].sum() == pytest.approx(probs.sum())
        following = transition[topic, word_class, topic]
        np.testing.assert_allclose(np.sort(following[1:])[::-1], 0.75 * classes)
        assert following[EOS_ID] == 0.25
    orders = {tuple(np.argsort(emission[topic, 1])) for topic in (0, 1)}
    assert len(orders) == 2, "each topic has its own order"


def test_sentence_lengths_and_classes_converge(corpus):
    ends = np.flatnonzero(corpus.train == EOS_ID)
    lengths = np.diff(ends) - 1
    assert lengths.min() >= 1
    assert abs(lengths.mean() - 12.0) < 3 * standard_error(lengths)

    # The class of a word is read off the grammar; all topics share one class transition matrix.
    states = NUM_CLASSES + 1
    classes = (Grammar().emission.argmax(axis=0) % states)[corpus.train]
    counts = np.zeros((states, states))
    np.add.at(counts, (classes[:-1], classes[1:]), 1)
    expected = Grammar().transition.reshape(6, states, 6, states)[0].sum(axis=1)
    visits = counts.sum(axis=1, keepdims=True)
    errors = np.sqrt(expected * (1 - expected) / visits)
    assert np.all(np.abs(counts / visits - expected) <= 4.5 * errors)  # 81 of them


def test_topics_change_at_their_rate(monkeypatch):
    """With practically one word for each (topic, class), the words reveal the topic."""
    monkeypatch.setattr(synthetic, "WORD_EXPONENT", 60.0)
    sizes = {"num_words": 60, "num_topics": 3, "num_classes": 2}
    grammar = Grammar(**sizes, topic_change_probability=0.2, mean_sentence_length=2.0)
    favourites = grammar.emission.reshape(3, 3, -1).argmax(axis=2)[:, 1:]
    topic_of = {int(word): topic for topic in range(3) for word in favourites[topic]}
    assert len(topic_of) == 6, "the favourites must differ for this test"

    ids = grammar.sample(30_000, seed=0)
    topics = np.array([topic_of.get(word, -1) for word in ids.tolist()])
    assert np.all((topics == -1) == (ids == EOS_ID))
    inside = (ids[:-1] != EOS_ID) & (ids[1:] != EOS_ID)
    assert np.all(topics[:-1][inside] == topics[1:][inside])

    ends = np.flatnonzero(ids[1:-1] == EOS_ID) + 1
    steps = (topics[ends + 1] - topics[ends - 1]) % 3
    changed = (steps != 0).astype(float)
    assert abs(changed.mean() - 0.2) < 3 * standard_error(changed)
    upwards = (steps[steps != 0] == 1).astype(float)
    assert abs(upwards.mean() - 0.5) < 3 * standard_error(upwards)


def test_default_corpus_is_pinned(corpus):
    """Perplexities on this corpus can be compared between versions only while this holds."""
    assert corpus.sha256 == "cd94cde012f471e14bbc92420738cd5dfcb6e53bce0d1be7c90f58d779613f5a"


def test_seeds(tiny):
    sizes = {"num_train_tokens": 500, "num_valid_tokens": 50, "num_test_tokens": 50}
    first, again, other = (make_corpus(**sizes, seed=seed).sha256 for seed in (1, 1, 2))
    assert first == again != other
    np.testing.assert_array_equal(tiny.sample(30, seed=5), tiny.sample(50, seed=5)[:30])
    assert np.any(tiny.sample(50, seed=5) != tiny.sample(50, seed=6))


def test_floor_is_the_mean_over_scored_positions(corpus):
    assert corpus.perplexity_floor.keys() == {"valid", "test"}
    for split in ("valid", "test"):
        nats = -Grammar().log_probs_of(getattr(corpus, split))
        assert len(nats) == 19_999
        assert corpus.perplexity_floor[split] == pytest.approx(math.exp(nats.sum() / 19_999))
        assert 90 < corpus.perplexity_floor[split] < 115


def test_floor_is_below_bigram_and_bigram_below_unigram(corpus):
    """Scores test with the counts of train: add-one unigrams, Witten-Bell interpolated bigrams."""
    size = len(corpus.vocabulary)
    unigram = (np.bincount(corpus.train, minlength=size) + 1) / (len(corpus.train) + size)
    counts = np.zeros((size, size))
    np.add.at(counts, (corpus.train[:-1], corpus.train[1:]), 1)
    seen, types = (x.sum(axis=1, keepdims=True) for x in (counts, counts > 0))
    bigram = (counts + types * unigram) / (seen + types)
    np.testing.assert_allclose(bigram.sum(axis=1), 1.0)

    last, following = corpus.test[:-1], corpus.test[1:]
    unigram_perplexity = math.exp(-np.log(unigram[following]).mean())
    bigram_perplexity = math.exp(-np.log(bigram[last, following]).mean())
    # Measured: 103.9, 275, 423.
    assert 2 * corpus.perplexity_floor["test"] < bigram_perplexity < 0.8 * unigram_perplexity


@pytest.mark.parametrize(
    ("options", "argument"),
    [
        ({"num_words": 7}, "num_words"),  # fewer than the classes
        ({"num_topics": 0}, "num_topics"),
        ({"num_topics": 1}, "topic_change_probability"),  # a single topic cannot change
        ({"num_classes": 0}, "num_classes"),
        *(({"topic_change_probability": p}, "topic_change_") for p in (-0.1, 1.1, math.nan)),
        ({"mean_sentence_length": 0.5}, "mean_sentence_length"),
        *(
            ({name: 1}, name)
            for name in ("num_train_tokens", "num_valid_tokens", "num_test_tokens")
        ),
        ({"seed": -1}, "seed"),
    ],
)
def test_errors_name_the_argument(options, argument):
    with pytest.raises(ValueError, match=f"^{argument}.* must be .* it is "):
        make_corpus(**options)


def test_the_smallest_sizes():
    corpus = make_corpus(num_words=8, num_train_tokens=2, num_valid_tokens=2, num_test_tokens=2)
    assert (len(corpus.vocabulary), len(corpus.train)) == (9, 2)


def standard_error(values):
    return values.std(ddof=1) / math.sqrt(len(values))
