"""Text drawn from a language model. Shape letters: N any axes, V vocabulary, T time steps."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from lmbench.evaluation.surprisal import require_numbers
from lmbench.model import LanguageModel
from lmbench.model.contracts import State

TOLERANCE = 1e-6


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


def sample(
    model: LanguageModel,
    prompt: Int[Tensor, " T"],
    generator: torch.Generator,
    *,
    suppressed: Sequence[int] = (),
    **filters: Any,
) -> Iterator[int]:
    """Continues a prompt without end, from a zero state before it.

    Args:
        model: The model, in evaluation mode.
        prompt: Ids of at least one word, ``(T,)``, on the model's device.
        generator: The random generator, on the CPU.
        suppressed: Ids of words that are never drawn.
        filters: ``temperature``, ``top_k`` and ``top_p`` of :func:`filter_log_probs`.

    Yields:
        The ids of the words, as they are drawn.
    """
    tokens, state = prompt, None
    while True:
        log_probs, state = _read(model, tokens, state)
        log_probs[list(suppressed)] = -torch.inf
        log_probs = filter_log_probs(log_probs.log_softmax(-1), **filters)
        word = int(torch.multinomial(log_probs.exp(), 1, generator=generator))
        yield word
        tokens = prompt.new_tensor([word])


@torch.no_grad()
def _read(
    model: LanguageModel, tokens: Int[Tensor, " T"], state: State | None
) -> tuple[Float[Tensor, " V"], State]:
    """Log-probabilities of the word after ``tokens``, and the state there.

    In float64 on the CPU, so that the same words are drawn on every device.
    """
    output, _, new_state = model(tokens[:, None], state)
    log_probs = model.head.log_probs(output[-1, 0]).cpu().double()
    require_numbers(log_probs.exp().numpy())
    return log_probs, new_state
