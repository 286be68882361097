"""The synthetic corpus: text from a hidden Markov grammar whose true perplexity is known.

A sentence has a topic and is a Markov chain of word classes; (topic, class) is the hidden state,
and each state prefers different words of its class. Topics outlast sentences, so a model must
remember beyond the sentence to come close to the grammar's own perplexity, the floor.

Letters: N tokens, V vocabulary (the words and ``<eos>``), S = topics × (classes + 1) hidden states.
"""

import math
from bisect import bisect_right
from itertools import islice, product

import numpy as np
from jaxtyping import Float64, Int, Int32

from lmbench.data.corpus import Corpus
from lmbench.data.vocabulary import EOS, Vocabulary

ABOUT = (
    "lmbench's synthetic corpus: text drawn from a hidden Markov grammar. Its words are invented; "
    "it serves to calibrate models."
)
"""What model cards say about it."""

# Class 0 is the end of a sentence: the only class that emits `<eos>`, and it emits nothing else.
_END_CLASS = 0
_EOS_ID = 0

CLASS_EXPONENT = 1.65
"""Zipf exponent of the classes that follow a class."""

WORD_EXPONENT = 1.2
"""Zipf exponent of the words of a (topic, class)."""


class Grammar:
    """A hidden Markov model of text, drawn at random from a seed.

    A stream starts with the first word of a sentence in a topic drawn uniformly. After each word
    the sentence ends with probability 1 / mean_sentence_length; otherwise the next class depends
    on the current one. ``<eos>`` (id 0) is a token like any other; after it the topic changes to
    one of the others with ``topic_change_probability``, then the next sentence's first class is
    drawn. Every word belongs to one class. The next classes of each class, and the words of each
    (topic, class), follow Zipf's law, p ∝ rank^-exponent, each in its own order.

    Only uniform draws are used: NumPy may change its other distributions between versions.

    Attributes:
        initial: (S,) probabilities of the first hidden state.
        transition: (S, S), row to column; state = topic · (classes + 1) + class, class 0 = end.
        emission: (S, V) probabilities of each token.
    """

    def __init__(
        self,
        *,
        num_words: int = 1000,
        num_topics: int = 6,
        num_classes: int = 8,
        topic_change_probability: float = 0.02,
        mean_sentence_length: float = 12.0,
        seed: int = 0,
    ) -> None:
        """Draws the grammar.

        Args:
            num_words: Words in the vocabulary, not counting ``<eos>``.
            num_topics: Topics.
            num_classes: Word classes, not counting the end of a sentence.
            topic_change_probability: Chance that a sentence's topic is not that of the last one; 0
                if there is a single topic.
            mean_sentence_length: Words before ``<eos>``, on average; at least 1.
            seed: Seed of the grammar.

        Raises:
            ValueError: An argument is out of range; the message names it.
        """
        for name, value, least, most in (
            ("num_topics", num_topics, 1, math.inf),
            ("num_classes", num_classes, 1, math.inf),
            ("num_words", num_words, num_classes, math.inf),
            ("topic_change_probability", topic_change_probability, 0, int(num_topics > 1)),
            ("mean_sentence_length", mean_sentence_length, 1, math.inf),
            ("seed", seed, 0, math.inf),
        ):
            if not least <= value <= most:
                raise ValueError(f"{name} must be from {least} to {most}; it is {value}")

        # The leading 0 here and 1 in `sample` keep the two streams apart for equal seeds.
        random = np.random.Generator(np.random.PCG64([0, seed]))
        to_each_other_topic = topic_change_probability / max(1, num_topics - 1)
        topic_transition = np.full((num_topics, num_topics), to_each_other_topic)
        np.fill_diagonal(topic_transition, 1.0 - topic_change_probability)
        class_transition = np.zeros((num_classes + 1, num_classes + 1))
        for row in class_transition:
            row[1:] = _zipf(num_classes, CLASS_EXPONENT, random)
        class_transition[1:] *= 1.0 - 1.0 / mean_sentence_length
        class_transition[1:, _END_CLASS] = 1.0 / mean_sentence_length

        initial = np.tile(class_transition[_END_CLASS] / num_topics, (num_topics, 1))
        transition = np.zeros((num_topics, num_classes + 1, num_topics, num_classes + 1))
        emission = np.zeros((num_topics, num_classes + 1, num_words + 1))
        transition[:, _END_CLASS] = topic_transition[:, :, None] * class_transition[_END_CLASS]
        emission[:, _END_CLASS, _EOS_ID] = 1.0
        words_of_class = np.array_split(np.arange(1, num_words + 1), num_classes)
        for topic in range(num_topics):
            transition[topic, 1:, topic] = class_transition[1:]
            for word_class, words in enumerate(words_of_class, start=1):
                emission[topic, word_class, words] = _zipf(len(words), WORD_EXPONENT, random)

        num_states = initial.size
        self.initial = initial.reshape(num_states)
        self.transition = transition.reshape(num_states, num_states)
        self.emission = emission.reshape(num_states, num_words + 1)

    def sample(self, num_tokens: int, seed: int) -> Int32[np.ndarray, " N"]:
        """Draws a stream of ``num_tokens`` token ids; its last sentence may be cut short."""
        random = np.random.Generator(np.random.PCG64([1, seed]))
        transition = _cumulative(self.transition)
        emission = _cumulative(self.emission)
        next_states = _cumulative(self.initial[None])[0]
        ids = np.empty(num_tokens, dtype=np.int32)
        for position, (draw_state, draw_word) in enumerate(random.random((num_tokens, 2)).tolist()):
            state = bisect_right(next_states, draw_state)
            ids[position] = bisect_right(emission[state], draw_word)
            next_states = transition[state]
        return ids

    def log_probs_of(self, ids: Int[np.ndarray, " N"]) -> Float64[np.ndarray, " N-1"]:
        """The exact log p(x_t | x_0 … x_{t-1}), in nats, for t = 1 … N-1.

        The first token is given and not scored, as for the models; it is known to be the first word
        of a sentence, in any of the topics. Entry t-1 belongs to token t.
        (Scaled forward algorithm: Rabiner 1989, section V.A.)

        Raises:
            ValueError: ``ids`` is empty, or the grammar cannot produce it.
        """
        by_token = np.ascontiguousarray(self.emission.T)
        if len(ids) == 0 or ids.min() < 0 or ids.max() >= len(by_token):
            raise ValueError(f"ids must hold one or more, each from 0 to {len(by_token) - 1}")
        probs = np.empty(len(ids))
        prior = self.initial
        for position, token in enumerate(ids.tolist()):
            joint = prior * by_token[token]
            prob = joint.sum()
            if prob == 0.0:
                raise ValueError(f"ids: the grammar cannot produce token {token} at {position}")
            probs[position] = prob
            prior = (joint / prob) @ self.transition
        return np.log(probs[1:])


def make_corpus(
    *,
    num_words: int = 1000,
    num_topics: int = 6,
    num_classes: int = 8,
    topic_change_probability: float = 0.02,
    mean_sentence_length: float = 12.0,
    num_train_tokens: int = 100_000,
    num_valid_tokens: int = 20_000,
    num_test_tokens: int = 20_000,
    seed: int = 0,
) -> Corpus:
    """Draws a ``Grammar`` and three independent streams from it.

    ``num_{train,valid,test}_tokens`` are the lengths of the streams, including ``<eos>``, at least
    2; ``seed`` determines the grammar and the streams. The other arguments are those of
    ``Grammar``: one made with the same arguments scores the tokens one by one (``log_probs_of``).

    Returns:
        The corpus. All words are in its vocabulary (``<eos>`` is id 0); its ``perplexity_floor``
        is exp of the grammar's own mean nats over the tokens 1 … N-1 of valid and of test.

    Raises:
        ValueError: An argument is out of range; the message names it.
    """
    lengths = {"train": num_train_tokens, "valid": num_valid_tokens, "test": num_test_tokens}
    for split, length in lengths.items():
        if length < 2:
            raise ValueError(f"num_{split}_tokens must be at least 2; it is {length}")
    grammar = Grammar(
        num_words=num_words,
        num_topics=num_topics,
        num_classes=num_classes,
        topic_change_probability=topic_change_probability,
        mean_sentence_length=mean_sentence_length,
        seed=seed,
    )
    ids = {
        split: grammar.sample(length, seed=len(lengths) * seed + index)
        for index, (split, length) in enumerate(lengths.items(), start=1)
    }
    floor = {
        split: math.exp(-grammar.log_probs_of(ids[split]).mean()) for split in ("valid", "test")
    }
    vocabulary = Vocabulary((EOS, *_words(num_words)))
    streams = ids["train"], ids["valid"], ids["test"]
    return Corpus("synthetic", vocabulary, *streams, perplexity_floor=floor)


def _zipf(size: int, exponent: float, random: np.random.Generator) -> np.ndarray:
    """Zipf probabilities whose ranks are dealt out at random."""
    weights = np.arange(1.0, size + 1.0) ** -exponent
    return (weights / weights.sum())[np.argsort(random.random(size), kind="stable")]


def _cumulative(probs: np.ndarray) -> list[list[float]]:
    cumulative = np.cumsum(probs, axis=1)
    # Exactly 1 from the last possible outcome on, so that no draw below 1 falls beyond it.
    return (cumulative / cumulative[:, -1:]).tolist()


def _words(num_words: int) -> list[str]:
    """Distinct pronounceable words of equal length; words of one class begin alike."""
    syllables = [consonant + vowel for consonant in "bdfgklmnprstvz" for vowel in "aeiou"]
    length = 1
    while len(syllables) ** length < num_words:
        length += 1
    return ["".join(word) for word in islice(product(syllables, repeat=length), num_words)]
