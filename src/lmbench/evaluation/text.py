"""Text as people write it: turned into words of a vocabulary, and continued by a model."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from jaxtyping import Int, Int32
from torch import Tensor

from lmbench.data.vocabulary import Vocabulary
from lmbench.evaluation._sampling import sample
from lmbench.model import LanguageModel
from lmbench.terminal.printing import printable


def encode_text(text: str, vocabulary: Vocabulary) -> tuple[Int32[np.ndarray, " T"], Counter[str]]:
    r"""Ids of an ``<eos>``, as before any line, then of the text, with ``<eos>`` at its line ends.

    The text is cut as the training text was, by the vocabulary's tokenizer.

    Returns:
        The ids, and how often each word that is not in the vocabulary occurs.

    Raises:
        UserError: There are unknown words, and the vocabulary has no ``<unk>``.

    >>> encode_text("b a\n", Vocabulary(("<eos>", "a", "b")))
    (array([0, 2, 1, 0], dtype=int32), Counter())
    """
    tokenizer = vocabulary.tokenizer
    words = [tokenizer.eos, *tokenizer.cut(text)]
    unknown = Counter(word for word in words if word not in vocabulary.ids)
    return vocabulary.encode(words), unknown


def shown(word: str) -> str:
    """A word as lists for people show it, cut if it is long."""
    word = printable(word[:41])
    return word if len(word) <= 40 else f"{word[:39]}…"


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
        generator: The random generator, on the CPU.
        allow_unk: Whether ``<unk>`` may be drawn; it always may if it is the only word.
        filters: ``temperature`` (default 1.0), ``top_k`` (0, all words) and ``top_p`` (1.0).
    """
    unk_id = None if allow_unk or len(vocabulary) == 1 else vocabulary.unk_id
    suppressed = [] if unk_id is None else [unk_id]
    drawn = sample(model, prompt, generator, suppressed=suppressed, **filters)
    return (vocabulary.words[word] for word in drawn)
