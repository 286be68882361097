"""What lies behind a perplexity: which targets are easy and which are hard.

Shape letters: N scored targets of a stream, V vocabulary, A articles.
"""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Int

from lmbench.data.tokenizer.contract import Tokenizer
from lmbench.data.vocabulary import UNK, Vocabulary
from lmbench.evaluation.reading import Reading
from lmbench.perplexity import Score

COUNT_BORDERS = (1, 10, 100, 1_000, 10_000)
"""Numbers of occurrences in training at which a new bucket begins."""

ARTICLE_BORDERS = (100, 500, 1_000, 2_000)
"""Tokens into an article at which a new bucket begins."""


def summarize(
    reading: Reading,
    vocabulary: Vocabulary,
    *,
    counts: Int[np.ndarray, " V"],
    article_starts: Int[np.ndarray, " A"] | None,
) -> dict[str, Any]:
    """Perplexities of parts of the targets, and bits per character of the whole.

    Args:
        reading: What was scored.
        vocabulary: The words of its targets.
        counts: How often each word occurs in training, by id.
        article_starts: Where articles begin in the stream, if it has any.

    Returns:
        A plain dict: ``bits_per_character`` and, under ``perplexity_by``, a list of buckets for
        each of ``training_count``, ``article_position`` (where there are articles) and ``unk``: a
        bucket's name, number of targets, nats per token and perplexity. Empty buckets are left out;
        targets before the first title are in no bucket of ``article_position``.

        Characters are those of the tokenized text: a word and the space behind it, and one line
        feed for ``<eos>``. A word that is not in the vocabulary therefore counts as the six
        characters of ``<unk> ``, however long it was. That is how WikiText-2 is written; your own
        text, whose rare words became ``<unk>``, had other characters there.
    """
    lengths = np.array([_length(word, vocabulary.tokenizer) for word in vocabulary.words])
    num_characters = int(lengths[reading.targets].sum())
    nats = -reading.log_probs.numpy()
    groups = {"training_count": _buckets(counts[reading.targets], COUNT_BORDERS)}
    if article_starts is not None:
        into_article = reading.positions - article_starts[articles(reading, article_starts)]
        groups["article_position"] = (
            # Targets before the first title belong to an article whose start is not in the text.
            (name, here & (into_article >= 0))
            for name, here in _buckets(into_article, ARTICLE_BORDERS)
        )
    if vocabulary.unk_id is not None:
        is_unk = reading.targets == vocabulary.unk_id
        groups["unk"] = iter([(UNK, is_unk), ("other words", ~is_unk)])
    return {
        "bits_per_character": reading.score.nats / math.log(2) / num_characters,
        "perplexity_by": {
            name: [
                {"bucket": bucket, **Score(math.fsum(nats[here].tolist()), int(here.sum())).plain()}
                for bucket, here in buckets
                if here.any()
            ]
            for name, buckets in groups.items()
        },
    }


def _length(piece: str, tokenizer: Tokenizer) -> int:
    """Characters that a piece adds to a text: those of a word and a space, or one line feed."""
    once, twice = ("".join(tokenizer.join([piece] * count)) for count in (1, 2))
    return len(twice) - len(once)


def articles(reading: Reading, article_starts: Int[np.ndarray, " A"]) -> Int[np.ndarray, " N"]:
    """The number of the article that each target is in, from 0.

    What comes before the first title belongs to the first article.
    """
    return np.maximum(np.searchsorted(article_starts, reading.positions, side="right") - 1, 0)


def _buckets(values: np.ndarray, borders: tuple[int, ...]) -> Iterator[tuple[str, np.ndarray]]:
    """Name and mask of each bucket; the first one is below all borders."""
    bucket = np.searchsorted(borders, values, side="right")
    for index, start in enumerate((0, *borders)):
        if index == len(borders):
            name = f"{start:,} and more"
        else:
            last = borders[index] - 1
            name = f"{start:,} to {last:,}" if last > start else f"{start:,}"
        yield name, bucket == index
