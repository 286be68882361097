"""How probable a text is to a model, read in one piece."""

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int32

from lmbench.data.tokenization import tokenize
from lmbench.data.vocabulary import EOS, UNK, Vocabulary
from lmbench.evaluation.text import shown
from lmbench.model import LanguageModel
from lmbench.model.core import State

WINDOW = 1024
"""Tokens that are read at a time; it moves memory and time, not results."""


class TextScore(NamedTuple):
    """What a model scored on a text."""

    nats: float
    """Sum of the negative log-likelihoods of all tokens."""
    num_tokens: int
    """Number of tokens: words, and ``<eos>`` after each line."""
    unknown: Counter[str]
    """How often each word occurs that is not in the vocabulary."""

    @property
    def nll(self) -> float:
        """Nats per token."""
        return self.nats / self.num_tokens

    @property
    def ppl(self) -> float:
        """Perplexity."""
        try:
            return math.exp(self.nll)
        except OverflowError:
            return math.inf


def score_text(
    model: LanguageModel, vocabulary: Vocabulary, parts: Iterable[bytes]
) -> TextScore | None:
    """Scores each token of a text once, the first one after ``<eos>`` and a zero state.

    Args:
        model: The model, in evaluation mode.
        vocabulary: The model's words.
        parts: The text as :func:`lmbench.data.tokenization.read_parts` gives it.

    Returns:
        The score; None for an empty text.

    Raises:
        UserError: There are unknown words, and the vocabulary has no ``<unk>``.
    """
    unknown: Counter[str] = Counter()
    nats, num_tokens = 0.0, 0
    state: State | None = None
    last = int(vocabulary.encode([EOS])[0])
    for ids in _windows(vocabulary, parts, unknown):
        tokens = torch.from_numpy(np.concatenate([[last], ids])).to(model.device)[:, None]
        with torch.no_grad():
            output, _, state = model(tokens[:-1], state)
            of_tokens = model.head.loss(output, tokens[1:], reduction="none")
        nats += float(of_tokens.cpu().double().sum())
        num_tokens += len(ids)
        last = ids[-1]
    return TextScore(nats, num_tokens, unknown) if num_tokens else None


def _windows(
    vocabulary: Vocabulary, parts: Iterable[bytes], unknown: Counter[str]
) -> Iterator[Int32[np.ndarray, " T"]]:
    for part in parts:
        types, places = tokenize(part)
        if not part.endswith(b"\n"):
            places = places[:-1]  # the line goes on in the next part
        counts = np.bincount(places, minlength=len(types))
        for word, count in zip(types, counts.tolist(), strict=True):
            if word not in vocabulary.ids and count:
                unknown[word] += count
        ids = vocabulary.encode(types)[places]
        for start in range(0, len(ids), WINDOW):
            yield ids[start : start + WINDOW]


def describe(score: TextScore) -> str:
    """A score for people, a line for each number."""
    num_unknown = score.unknown.total()
    lines = [
        f"{score.num_tokens:>14,} tokens, each scored once: the first after {EOS}",
        f"{score.nats:>14,.2f} nats",
        f"{score.nll:>14.4f} nats per token",
        f"{score.ppl:>14,.2f} perplexity",
        f"{num_unknown / score.num_tokens:>14.2%} unknown words",
    ]
    if num_unknown:
        most = ", ".join(
            f"{shown(word)} ({count:,})" for word, count in score.unknown.most_common(10)
        )
        lines[-1] += f", read as {UNK}: {most}"
    return "\n".join(lines)
