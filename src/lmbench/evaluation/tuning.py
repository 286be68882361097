"""Settings of the cache and of dynamic evaluation from a grid, by the valid split alone.

Shape letters: N scored targets of a stream.
"""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from typing import Any, TypeAlias, TypeVar

import torch

from lmbench.evaluation.cache import Cache, cache_log_probs, in_use, mix
from lmbench.evaluation.dynamic import Dynamic
from lmbench.evaluation.reading import Reading

log = logging.getLogger(__name__)

Setting = TypeVar("Setting", Cache, Dynamic)


@dataclass(frozen=True)
class CacheGrid:
    """What tuning the cache tries: all combinations.

    Raises:
        ValueError: A list is empty, or a value is none that :class:`Cache` takes.
    """

    windows: Sequence[int]
    thetas: Sequence[float]
    interpolations: Sequence[float]

    def __post_init__(self) -> None:
        _require_values(**asdict(self))
        for values in product(self.windows, self.thetas, self.interpolations):
            Cache(*values)


@dataclass(frozen=True)
class DynamicGrid:
    """What tuning dynamic evaluation tries: the lrs, then the decays at the best lr.

    Args:
        lrs: Learning rates.
        decays: Decays.
        num_tokens: Tokens at the start of valid to tune on; None for all of them.

    Raises:
        ValueError: A list is empty, or a value is none that :class:`Dynamic` takes; there are too
            few tokens.
    """

    lrs: Sequence[float]
    decays: Sequence[float]
    num_tokens: int | None = 20_000

    def __post_init__(self) -> None:
        _require_values(lrs=self.lrs, decays=self.decays)
        for lr, decay in product(self.lrs, self.decays):
            Dynamic(lr=lr, decay=decay)
        if self.num_tokens is not None and self.num_tokens < 2:
            raise ValueError(f"num_tokens must be at least 2, not {self.num_tokens}")


Grids: TypeAlias = tuple[CacheGrid | None, DynamicGrid | None]
"""What the tuning of the cache and of dynamic evaluation tries, where there is such a thing."""


def _require_values(**lists: Sequence[float]) -> None:
    for name, values in lists.items():
        if not values:
            raise ValueError(f"{name} must hold at least one value")


def tune_cache(
    reading: Reading,
    cache: Cache,
    grid: CacheGrid,
    *,
    steps_at_once: int,
    device: torch.device | str = "cpu",
    on_queries: Callable[[int], object] = lambda num_done: None,
) -> tuple[Cache, list[dict[str, Any]]]:
    """The best of a grid of settings, in one pass over the hidden states.

    Args:
        reading: A reading of the valid split whose outputs were kept.
        cache: What the grid does not decide.
        grid: What is tried.
        steps_at_once: See :func:`with_cache`.
        device: Device to compute on.
        on_queries: Called with the number of targets that were done.

    Returns:
        The settings with the fewest nats (of equals, the first), and the whole grid, with
        the nats per token of each.
    """
    by_setting = cache_log_probs(
        reading,
        windows=grid.windows,
        thetas=grid.thetas,
        device=device,
        on_queries=on_queries,
    )
    tried: dict[Cache, float] = {}
    for (window, theta), interpolation in product(by_setting, grid.interpolations):
        setting = replace(cache, window=window, theta=theta, interpolation=interpolation)
        used = in_use(len(reading.log_probs), setting, steps_at_once)
        mixed = mix(reading.log_probs, by_setting[window, theta], interpolation, used)
        tried[setting] = _comparable(reading.with_log_probs(mixed).nll)
    return _best(tried, asdict(grid))


def tune_dynamic(
    read: Callable[[Dynamic], Reading],
    dynamic: Dynamic,
    grid: DynamicGrid,
) -> tuple[Dynamic, list[dict[str, Any]]]:
    """The best of a grid: first the lr, which matters most, then the decay at the best lr.

    Args:
        read: Scores text of the valid split under given settings.
        dynamic: What the grid does not decide, and the decay of the first round.
        grid: What is tried.

    Returns:
        The settings with the fewest nats (of equals, the first), and the nats per token of
        all that were tried, None where they are not finite.
    """
    tried: dict[Dynamic, float] = {}

    def attempt(setting: Dynamic) -> None:
        if setting not in tried:
            tried[setting] = _comparable(read(setting).nll)

    for lr in grid.lrs:
        attempt(replace(dynamic, lr=lr))
    best = min(tried, key=tried.__getitem__)
    for decay in grid.decays:
        attempt(replace(best, decay=decay))
    return _best(tried, {"lrs": grid.lrs, "decays": grid.decays})


def _comparable(nll: float) -> float:
    """The nats per token; infinity for nan, which is neither better nor worse than a number."""
    return nll if math.isfinite(nll) else math.inf


def _best(
    tried: Mapping[Setting, float], grid: Mapping[str, Sequence[float]]
) -> tuple[Setting, list[dict[str, Any]]]:
    best = min(tried, key=tried.__getitem__)
    for name, values in grid.items():
        value = getattr(best, name.removesuffix("s"))
        if len(values) > 2 and value in (min(values), max(values)) and value != 0:  # the least
            log.warning(
                "the best %s, %g, is at the edge of what was tried: a wider grid may find a better",
                name.removesuffix("s"),
                value,
            )
    rows = [
        {**asdict(setting), "nll": nll if math.isfinite(nll) else None}
        for setting, nll in tried.items()
    ]
    return best, rows
