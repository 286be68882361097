"""Text as people write it: as words of a vocabulary, and scored by a model."""

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from jaxtyping import Int, Int32
from torch import Tensor

from lmbench.data.columns import columns_for_evaluation
from lmbench.data.vocabulary import EOS, UNK, Vocabulary
from lmbench.data.words import words_of
from lmbench.errors import UserError
from lmbench.evaluation.progress import progress_of
from lmbench.evaluation.reading import Reading, read_stream
from lmbench.evaluation.sampling import sample
from lmbench.model import LanguageModel
from lmbench.printing import printable
from lmbench.score import Score

WINDOW = 1024
"""Tokens that are read at a time; it moves memory and time, not results."""


def encode_text(text: str, vocabulary: Vocabulary) -> tuple[Int32[np.ndarray, " T"], Counter[str]]:
    r"""Ids of ``<eos>``, as before any line, and of the text's words, ``<eos>`` at its line ends.

    The words are made as those of the training text were, by the vocabulary's tokenizer.

    Returns:
        The ids, and how often each word occurs that is not in the vocabulary.

    Raises:
        UserError: There are unknown words, and the vocabulary has no ``<unk>``.

    >>> encode_text("b a\n", Vocabulary(("<eos>", "a", "b")))
    (array([0, 2, 1, 0], dtype=int32), Counter())
    """
    words = [EOS, *words_of(text, vocabulary.tokenizer)]
    unknown = Counter(word for word in words if word not in vocabulary.ids)
    return vocabulary.encode(words), unknown


def pieces(words: Iterable[str]) -> Iterator[str]:
    r"""Text to print, word by word: spaces between words, line feeds for ``<eos>`` and at the end.

    >>> list(pieces(["a", "b", "<eos>", "c"]))
    ['a', ' b', '\n', 'c', '\n']
    """
    at_start = True
    for word in words:
        yield "\n" if word == EOS else printable(word) if at_start else f" {printable(word)}"
        at_start = word == EOS
    if not at_start:
        yield "\n"


def shown(word: str) -> str:
    """A word in a list for people, no longer than a line."""
    word = printable(word[:41])
    return word if len(word) <= 40 else f"{word[:39]}…"


def read_text(
    model: LanguageModel, vocabulary: Vocabulary, text: str
) -> tuple[Reading | None, Counter[str]]:
    """Scores each token of a text once, the first one after ``<eos>`` and a zero state.

    Args:
        model: The model.
        vocabulary: The model's words.
        text: The text; a last line without a line end is given one.

    Returns:
        What the model made of the tokens, None for an empty text; and how often each word occurs
        that is not in the vocabulary.

    Raises:
        UserError: There are unknown words, and the vocabulary has no ``<unk>``.
    """
    if text and not text.endswith("\n"):
        text += "\n"
    ids, unknown = encode_text(text, vocabulary)
    if len(ids) == 1:
        return None, unknown
    columns = columns_for_evaluation(ids, columns=1, burn_in=0)
    with progress_of("scoring", len(ids) - 1) as on_window:
        return read_stream(model, columns, window=WINDOW, on_window=on_window), unknown


def sample_words(
    model: LanguageModel,
    vocabulary: Vocabulary,
    prompt: Int[Tensor, " T"],
    generator: torch.Generator,
    *,
    allow_unk: bool = False,
    **filters: Any,
) -> Iterator[str]:
    """Continues a prompt without end, word by word.

    Args:
        model: The model, in evaluation mode.
        vocabulary: Its words.
        prompt: Ids of at least one word, ``(T,)``, on the model's device.
        generator: What draws, on the CPU.
        allow_unk: Whether ``<unk>`` may be drawn.
        filters: ``temperature``, ``top_k`` and ``top_p`` of
            :func:`lmbench.evaluation.sampling.filter_log_probs`.

    Raises:
        UserError: ``<unk>`` is the only word, and may not be drawn.
    """
    suppressed = [] if allow_unk or vocabulary.unk_id is None else [vocabulary.unk_id]
    if len(vocabulary) <= len(suppressed):
        raise UserError(
            f"The vocabulary has no word but {UNK}: allow it to be drawn (--allow-unk)."
        )
    drawn = sample(model, prompt, generator, suppressed=suppressed, **filters)
    return (vocabulary.words[word] for word in drawn)


def describe(score: Score, unknown: Counter[str]) -> str:
    """A score and the text's unknown words for people, a line for each number."""
    lines = [
        f"{score.num_tokens:>14,} tokens, each scored once: the first after {EOS}",
        f"{score.nats:>14,.2f} nats",
        f"{score.nll:>14.4f} nats per token",
        f"{score.ppl:>14,.2f} perplexity",
        f"{unknown.total() / score.num_tokens:>14.2%} unknown words",
    ]
    if unknown:
        most = ", ".join(f"{shown(word)} ({count:,})" for word, count in unknown.most_common(10))
        lines[-1] += f", read as {UNK}: {most}"
    return "\n".join(lines)
