"""Neural cache: words that recently followed similar hidden states become more likely.

Shape letters: N scored targets of a stream, H hidden, W entries of the cache, Q queries at once.

The cache needs only what the model left behind, so it is applied to a finished reading, in the
stream's order: its entries are in that order even where the model read in columns.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from lmbench.evaluation.evaluator import Evaluator, RescoringMode
from lmbench.evaluation.progress import progress_of
from lmbench.evaluation.reading import Reading
from lmbench.evaluation.tuning import Grid, require_grid, take_best, trial, values_to_try

QUERIES_AT_ONCE = 128  # so that intermediate results stay in the processor's cache


@dataclass
class Cache(RescoringMode):
    """The neural cache with linear interpolation (Grave et al. 2017, arXiv 1612.04426).

    Args:
        window: Number of entries, the most recent ones: hidden states and the words that followed.
        theta: Factor on products of hidden states, before the softmax over entries.
        interpolation: Weight of the cache's distribution; the model's gets the rest.
        warmup: Whether to do as the script of salesforce/awd-lstm-lm does (pointer.py): no cache
            until the window is full, and after that none at the first step of each window that the
            model reads (2,000 steps there). Otherwise the cache is used once it holds an entry.
        grid: What tuning tries: all combinations, in one pass over the hidden states.

    Raises:
        ValueError: A value is out of range.
    """

    name: ClassVar[str] = "cache"
    remedy: ClassVar[str] = "Lower evaluation.cache.theta."

    window: int = 3785
    theta: float = 0.662
    interpolation: float = 0.1279
    warmup: bool = False
    grid: Grid | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if not isinstance(self.window, int) or self.window < 1:
            raise ValueError(f"window must be a whole number of at least 1, not {self.window}")
        if not math.isfinite(self.theta):
            raise ValueError(f"theta must be finite, not {self.theta}")
        if not 0.0 <= self.interpolation < 1.0:
            raise ValueError(
                f"interpolation must be at least 0 and less than 1, not {self.interpolation}"
            )
        require_grid(self)

    @property
    def why_one_column(self) -> str:
        """That of the published script, if it is to be as there."""
        why = "the published script, with warmup=true, reads one column and evaluation.window=2000"
        return why if self.warmup else ""

    def rescored(self, reading: Reading, evaluator: Evaluator) -> Reading:
        """The reading with the cache mixed in."""
        device = evaluator.model.device
        (cache,) = cache_log_probs(reading, [self.window], [self.theta], device).values()
        return self._mixed(reading, cache, evaluator.settings.window)

    def tune(self, reading: Reading, evaluator: Evaluator) -> list[dict[str, Any]]:
        """Adopts the best settings of the whole grid, in one pass over the hidden states."""
        own = {name: [getattr(self, name)] for name in ("window", "theta", "interpolation")}
        grid = own | values_to_try(self)
        device = evaluator.model.device
        by_setting = cache_log_probs(reading, grid["window"], grid["theta"], device)
        tried = []
        for (window, theta), interpolation in product(by_setting, grid["interpolation"]):
            cache = replace(self, window=window, theta=theta, interpolation=interpolation)
            mixed = cache._mixed(reading, by_setting[window, theta], evaluator.settings.window)
            tried.append(trial(cache, mixed.score))
        take_best(self, tried)
        return tried

    def _mixed(self, reading: Reading, cache: Float[Tensor, " N"], steps: int) -> Reading:
        """Mixes the cache's log-probabilities into a reading made in windows of ``steps`` steps.

        With an interpolation of 0 the reading's own stay the same to the last bit.
        """
        place = torch.arange(len(cache))
        used = place > 0
        if self.warmup:
            used = (place > self.window) & (place % steps != 0)
        weight = torch.tensor(self.interpolation, dtype=torch.float64)
        mixed = torch.logaddexp(reading.log_probs + (-weight).log1p(), cache + weight.log())
        mixed = torch.where(used, mixed, reading.log_probs)
        return replace(reading, log_probs=mixed.clamp(max=0.0))  # rounding may exceed 0


def cache_log_probs(
    reading: Reading,
    windows: Sequence[int],
    thetas: Sequence[float],
    device: torch.device | str = "cpu",
) -> dict[tuple[int, float], Float[Tensor, " N"]]:
    """Log-probabilities that the cache alone gives the targets.

    The entries for target t are the targets before it with the outputs that predicted them:
    p(w) ∝ Σ 1(w = target_i) · exp(theta · output_t · output_i) over t − window ≤ i < t.

    Args:
        reading: A reading whose outputs were kept.
        windows: Numbers of entries.
        thetas: Factors on the products.
        device: Device to compute on.

    Returns:
        (window, theta) → log-probabilities in nats, −inf where the target is not in the cache; nan
        for the first target, whose cache is empty.
    """
    assert reading.outputs is not None
    num_targets = len(reading.targets)
    rising = sorted({min(window, num_targets) for window in windows})
    widest = rising[-1]
    # Padded at the front, so that every query has as many rows before it as the widest window.
    outputs = functional.pad(reading.outputs.to(device), (0, 0, widest, 0))
    targets = torch.from_numpy(reading.targets.astype(np.int32)).to(device)
    targets = functional.pad(targets, (widest, 0), value=-1)
    results = {
        setting: torch.empty(num_targets, dtype=torch.float64)
        for setting in product(rising, thetas)
    }
    with progress_of("cache", num_targets) as on_window:
        for start in range(0, num_targets, QUERIES_AT_ONCE):
            stop = min(start + QUERIES_AT_ONCE, num_targets)
            products = _band(outputs, start, stop, widest)
            words = targets[start : widest + stop - 1].unfold(0, widest, 1)
            mismatches = words != targets[widest + start : widest + stop, None]
            for theta in thetas:
                scores = products * theta
                if start < widest:
                    scores.masked_fill_(words == -1, -torch.inf)
                right = total = torch.full((stop - start,), -torch.inf, device=device)
                newer = 0  # entries already in these sums
                for window in rising:
                    older = slice(widest - window, widest - newer)
                    right_here, total_here = _sums(scores[:, older], mismatches[:, older])
                    right, total = right.logaddexp(right_here), total.logaddexp(total_here)
                    results[window, theta][start:stop] = (right - total).cpu().double()
                    newer = window
            on_window(stop - start, 0.0)
    return {
        (window, theta): results[min(window, num_targets), theta]
        for window, theta in product(sorted(set(windows)), thetas)
    }


def _band(
    outputs: Float[Tensor, "rows H"], start: int, stop: int, window: int
) -> Float[Tensor, "Q W"]:
    """Products of the queries with the W rows before each, oldest first."""
    products = outputs[window + start : window + stop] @ outputs[start : window + stop - 1].T
    # Query q, a row of products, needs the columns q to q + window − 1: each row of the band starts
    # one column later than the row before, so the band is a strided view.
    return products.as_strided((stop - start, window), (products.shape[1] + 1, 1))


def _sums(
    scores: Float[Tensor, "Q W"], mismatches: Bool[Tensor, "Q W"]
) -> tuple[Float[Tensor, " Q"], Float[Tensor, " Q"]]:
    """Logarithms of the sums of exp(score) over the matching entries and over all entries."""
    # exp() over all entries is slow where MKL does not know the processor; softmax() is not. Its
    # largest probability is exp(largest score) / Σ exp(score), and cannot underflow.
    probs = scores.softmax(1)
    largest = scores.amax(1)
    total = torch.where(largest.isinf(), largest, largest - probs.amax(1).log())
    share = probs.masked_fill_(mismatches, 0.0).sum(1)
    return torch.where(largest.isinf(), largest, total + share.log()), total
