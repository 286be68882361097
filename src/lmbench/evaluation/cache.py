"""Neural cache: words that followed similar hidden states a while ago are more likely now.

Shape letters: N scored targets of a stream, H hidden, W entries of the cache, Q queries at once.

The cache needs nothing of the model but what it left behind, so it is laid over a finished reading,
in the stream's order: its entries are those of the stream even where the model read in columns.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from lmbench.evaluation.reading import Reading

QUERIES_AT_ONCE = 128  # the intermediate results then stay in a processor's cache


@dataclass(frozen=True)
class Cache:
    """Settings of the neural cache with linear interpolation (Grave et al. 2017, arXiv 1612.04426).

    Args:
        window: Entries, the most recent ones; each is a hidden state and the word that followed.
        theta: What products of hidden states are multiplied by before the softmax over entries.
        interpolation: Weight of the cache's distribution; the model's has the rest.
        warmup: As the script of salesforce/awd-lstm-lm (pointer.py): no cache before the window is
            full, and from then on none at the first step of each window that the model reads, of
            2,000 steps there. Otherwise the cache is used as soon as it holds an entry.

    Raises:
        ValueError: A value is out of its range.
    """

    window: int = 3785
    theta: float = 0.662
    interpolation: float = 0.1279
    warmup: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.window, int) or self.window < 1:
            raise ValueError(f"window must be a whole number from 1 on, not {self.window}")
        if not math.isfinite(self.theta):
            raise ValueError(f"theta must be finite, not {self.theta}")
        if not 0.0 <= self.interpolation < 1.0:
            raise ValueError(
                f"interpolation must be at least 0 and less than 1, not {self.interpolation}"
            )


def with_cache(
    reading: Reading,
    cache: Cache,
    *,
    steps_at_once: int,
    device: torch.device | str = "cpu",
    on_queries: Callable[[int], object] = lambda num_done: None,
) -> Reading:
    """A reading with the cache mixed in.

    Args:
        reading: A reading whose outputs were kept.
        cache: Settings.
        steps_at_once: Time steps of the windows in which the model read; ``warmup`` needs it.
        device: Device to compute on.
        on_queries: Called with the number of targets that were done.

    Raises:
        ValueError: The reading has no outputs.
    """
    (of_cache,) = cache_log_probs(
        reading, windows=[cache.window], thetas=[cache.theta], device=device, on_queries=on_queries
    ).values()
    used = in_use(len(of_cache), cache, steps_at_once)
    return reading.with_log_probs(mix(reading.log_probs, of_cache, cache.interpolation, used))


def cache_log_probs(
    reading: Reading,
    *,
    windows: Sequence[int],
    thetas: Sequence[float],
    device: torch.device | str = "cpu",
    on_queries: Callable[[int], object] = lambda num_done: None,
) -> dict[tuple[int, float], Float[Tensor, " N"]]:
    """Log-probabilities that the cache alone gives the targets.

    The entries for target t are the targets before it with the outputs that predicted them:
    p(w) ∝ Σ 1(w = target_i) · exp(theta · output_t · output_i) over t − window ≤ i < t.

    Args:
        reading: A reading whose outputs were kept.
        windows: Numbers of entries.
        thetas: Factors on the products.
        device: Device to compute on.
        on_queries: Called with the number of targets that were done.

    Returns:
        (window, theta) → nats, −inf where the target is not in the cache; nan for the first one,
        whose cache is empty.

    Raises:
        ValueError: The reading has no outputs.
    """
    if reading.outputs is None:
        raise ValueError("the cache needs a reading with its outputs kept")
    num_targets = len(reading.targets)
    outputs = reading.outputs.to(device)
    targets = torch.from_numpy(reading.targets.astype(np.int32)).to(device)
    rising = sorted({min(window, num_targets) for window in windows})
    results = {
        setting: torch.empty(num_targets, dtype=torch.float64)
        for setting in product(rising, thetas)
    }
    for start in range(0, num_targets, QUERIES_AT_ONCE):
        stop = min(start + QUERIES_AT_ONCE, num_targets)
        products, mismatches, missing = _band(outputs, targets, start, stop, rising[-1])
        for theta in thetas:
            scores = products * theta
            if missing is not None:
                scores.masked_fill_(missing, -torch.inf)
            right = total = torch.full((stop - start,), -torch.inf, device=device)
            newer = 0  # entries that are in these sums already
            for window in rising:
                older = slice(rising[-1] - window, rising[-1] - newer)
                right_here, total_here = _sums(scores[:, older], mismatches[:, older])
                right, total = right.logaddexp(right_here), total.logaddexp(total_here)
                results[window, theta][start:stop] = (right - total).cpu().double()
                newer = window
        on_queries(stop - start)
    return {
        (window, theta): results[min(window, num_targets), theta]
        for window, theta in product(sorted(set(windows)), thetas)
    }


def mix(
    log_probs: Float[Tensor, " N"],
    cache_log_probs: Float[Tensor, " N"],
    interpolation: float,
    used: Bool[Tensor, " N"],
) -> Float[Tensor, " N"]:
    """log((1 − interpolation) · p + interpolation · p_cache), and log p where it is not used.

    With an interpolation of 0 it is log p to the last bit.
    """
    weight = torch.tensor(interpolation, dtype=torch.float64)
    mixed = torch.logaddexp(log_probs + (-weight).log1p(), cache_log_probs + weight.log())
    return torch.where(used, mixed, log_probs).clamp(max=0.0)  # rounding may lead above


def in_use(num_targets: int, cache: Cache, steps_at_once: int) -> Bool[Tensor, " N"]:
    """Tells for which targets the cache is in use.

    Args:
        num_targets: N.
        cache: Settings; ``warmup`` decides.
        steps_at_once: See :func:`with_cache`.
    """
    place = torch.arange(num_targets)
    if not cache.warmup:
        return place > 0
    return (place > cache.window) & (place % steps_at_once != 0)


def _band(
    outputs: Float[Tensor, "N H"], targets: Int[Tensor, " N"], start: int, stop: int, window: int
) -> tuple[Float[Tensor, "Q W"], Bool[Tensor, "Q W"], Bool[Tensor, "Q W"] | None]:
    """Products of each query with the entries before it, oldest first, and where words differ.

    Near the stream's start also which entries there are none of.
    """
    first = max(0, start - window)
    num_missing = window - (start - first)
    entries, words = outputs[first : stop - 1], targets[first : stop - 1]
    missing = None
    if num_missing:
        entries = functional.pad(entries, (0, 0, num_missing, 0))
        words = functional.pad(words, (num_missing, 0), value=-1)
        row, entry = torch.arange(stop - start)[:, None], torch.arange(window)
        missing = (row + entry < num_missing).to(outputs.device)
    # Query q meets the entries q to q + window − 1 of these, so one row of products further on is
    # one entry later: the band is a view of the product, and holds nothing else.
    products = outputs[start:stop] @ entries.T
    band = products.as_strided((stop - start, window), (products.shape[1] + 1, 1))
    return band, words.unfold(0, window, 1) != targets[start:stop, None], missing


def _sums(
    scores: Float[Tensor, "Q W"], mismatches: Bool[Tensor, "Q W"]
) -> tuple[Float[Tensor, " Q"], Float[Tensor, " Q"]]:
    """Logarithms of the sums of exp(score), of the matching entries and of all."""
    # exp() over all entries is slow where MKL does not know the processor; softmax() is not. Its
    # largest probability is exp(largest score) / Σ exp(score), and cannot underflow.
    probs = scores.softmax(1)
    largest = scores.amax(1)
    total = torch.where(largest.isinf(), largest, largest - probs.amax(1).log())
    share = probs.masked_fill_(mismatches, 0.0).sum(1)
    return torch.where(largest.isinf(), largest, total + share.log()), total
