"""Text as people write it: turned into words of a vocabulary, and continued by a model.

Shape letters: N any axes, V vocabulary, T time steps.
"""

import math
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int, Int32
from torch import Tensor
from torch.nn import functional

from lmbench.data.tokenizer.contract import Tokenizer
from lmbench.data.vocabulary import Vocabulary
from lmbench.evaluation.progress import OnWindow
from lmbench.evaluation.surprisal import require_numbers, score_sentences, score_stream
from lmbench.model import LanguageModel
from lmbench.terminal.printing import printable

if TYPE_CHECKING:
    import pandas as pd

TOLERANCE = 1e-6


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


def cut_lines(text: str, tokenizer: Tokenizer) -> list[str]:
    """The words of a text, with an ``<eos>`` at the end of each line, the last one included."""
    return tokenizer.cut(f"{text}\n" if text and not text.endswith("\n") else text)


def score_words(
    model: LanguageModel,
    vocabulary: Vocabulary,
    words: list[str],
    tokenizer: Tokenizer,
    *,
    stream: bool = False,
    on_window: OnWindow = lambda num_scored, nats: None,
) -> "pd.DataFrame":
    """Surprisal and entropy of each word of a text, and of the ``<eos>`` of each line.

    Args:
        model: The model, in evaluation mode.
        vocabulary: Its words.
        words: What :func:`cut_lines` makes of the text, which has one sentence per line.
        tokenizer: What has cut it.
        stream: Whether the text is read in one stream, as the standard evaluation reads a split.
            Otherwise each sentence is read by itself, after an ``<eos>``.
        on_window: Called after each window.

    Returns:
        One row per word, in the order of the text: ``word``, as the tokenizer leaves it;
        ``sentid`` and ``sentpos``, its sentence and its place in that, from 0; ``wlen``, its
        length in characters, 1 for ``@-@``; ``surp``, its surprisal in bits; ``entropy``, in
        bits, of the distribution that predicted it; ``entred``, by how much that is less than
        for the word before, but at least 0, and 0 for the first word of a sentence;
        ``unknown``, whether it was read as ``<unk>``. The columns up to ``entred`` are those of
        vansky/neural-complexity (van Schijndel and Linzen 2018).

    Raises:
        UserError: The model's probabilities are not numbers; or there are unknown words, and the
            vocabulary has no ``<unk>``.
    """
    import pandas as pd  # slow to import

    ids = vocabulary.encode([tokenizer.eos, *words])
    is_end = np.array([word == tokenizer.eos for word in words], bool)
    ends = np.flatnonzero(is_end) + 1
    starts = np.append(0, ends[:-1])[: len(ends)]
    if stream and words:
        scores = score_stream(model, ids, on_window)
    else:
        sentences = [ids[start : end + 1] for start, end in zip(starts, ends, strict=True)]
        scores = score_sentences(model, sentences, on_window)
    sentence = np.repeat(np.arange(len(ends)), ends - starts)
    position = np.arange(len(words)) - starts[sentence]
    reduction = np.maximum(0.0, -np.diff(scores.entropy, prepend=0.0))
    return pd.DataFrame(
        {
            "word": pd.array(words, "str"),
            "sentid": sentence,
            "sentpos": position,
            "wlen": [tokenizer.num_characters(word) for word in words],
            "surp": scores.surprisal,
            "entropy": scores.entropy,
            "entred": np.where(position == 0, 0.0, reduction),
            "unknown": [word not in vocabulary.ids for word in words],
        }
    )


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
    """Continues a prompt without end, word by word, from a zero state before it.

    Args:
        model: The model, in evaluation mode.
        vocabulary: Its words.
        prompt: Ids of at least one word, ``(T,)``, on the model's device.
        generator: The random generator, on the CPU.
        allow_unk: Whether ``<unk>`` may be drawn; it always may if it is the only word.
        filters: ``temperature``, ``top_k`` and ``top_p`` of :func:`filter_log_probs`.
    """
    never_drawn = None if allow_unk or len(vocabulary) == 1 else vocabulary.unk_id
    tokens, state = prompt, None
    while True:
        with torch.no_grad():
            output, _, state = model(tokens[:, None], state)
            log_probs = model.head.log_probs(output[-1, 0])
        log_probs = log_probs.cpu().double()  # so that all devices draw the same words
        require_numbers(log_probs.exp().numpy())
        if never_drawn is not None:
            log_probs[never_drawn] = -torch.inf
        log_probs = filter_log_probs(log_probs.log_softmax(-1), **filters)
        word = int(torch.multinomial(log_probs.exp(), 1, generator=generator))
        yield vocabulary.words[word]
        tokens = prompt.new_tensor([word])


def filter_log_probs(
    log_probs: Float[Tensor, "*N V"],
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
) -> Float[Tensor, "*N V"]:
    """Sharpens a distribution and cuts off its tail: temperature first, then top-k, then top-p.

    Words are ordered by probability, and equally probable ones by id. Those that are cut off have
    the log-probability −inf; the others keep their proportions and sum to 1 again.

    Source: Fan et al. 2018 (arXiv 1805.04833), section 5.4, for top-k; Holtzman et al. 2020 (arXiv
    1904.09751), section 3.1, for top-p, and 3.3 for the temperature.

    Args:
        log_probs: Log-probabilities of all words, ``(*N, V)``, in nats.
        temperature: What log-probabilities are divided by, at least 0; with 0, only the first word
            is kept.
        top_k: Number of words to keep; 0 for all.
        top_p: Only as many of the first words are kept as reach this probability together, to
            within 1e-6; more than 0 and at most 1.

    Raises:
        ValueError: An argument is out of range.

    >>> log_probs = torch.tensor([0.125, 0.5, 0.125, 0.25]).log()
    >>> filter_log_probs(log_probs, top_p=0.625).exp()
    tensor([0.0000, 0.6667, 0.0000, 0.3333])
    """
    if not 0 <= temperature < math.inf:
        raise ValueError(f"temperature must be finite and at least 0, not {temperature}")
    if top_k < 0:
        raise ValueError(f"top_k must be at least 0, not {top_k}")
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p must be more than 0 and at most 1, not {top_p}")
    if temperature == 0:
        top_k = 1
    elif temperature != 1:
        # The largest becomes 0, which no temperature makes infinite; a subnormal one counts as 0.
        temperature = max(temperature, torch.finfo(log_probs.dtype).tiny)
        log_probs = (log_probs - log_probs.amax(-1, keepdim=True)) / temperature
        log_probs = log_probs.log_softmax(-1)
    if top_k == 0 and top_p == 1:
        return log_probs
    ordered, words = log_probs.sort(dim=-1, descending=True, stable=True)
    if top_k:
        ordered[..., top_k:] = -torch.inf
    if top_p < 1:
        # Adding up thousands of small probabilities needs float64. The tolerance is for their
        # logs, which may have been float32.
        sums = ordered.softmax(-1, dtype=torch.float64).cumsum(-1)
        reached_before = functional.pad(sums[..., :-1] >= top_p - TOLERANCE, (1, 0))
        ordered = ordered.masked_fill(reached_before, -torch.inf)
    return torch.empty_like(ordered).scatter_(-1, words, ordered.log_softmax(-1))
