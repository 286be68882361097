"""Better settings for a mode, chosen from a grid on the valid split alone."""

import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

from lmbench.perplexity import Score

log = logging.getLogger(__name__)

Grid: TypeAlias = Mapping[str, Any]
"""What tuning tries: the name of a setting plus an s → its values. ``num_tokens`` is the number of
tokens at the start of valid that tuning reads; all of them if it is missing or None."""


def values_to_try(mode: Any) -> dict[str, Any]:
    """The values in a mode's grid, by the settings' names without the s."""
    lists = {name: values for name, values in (mode.grid or {}).items() if name != "num_tokens"}
    return {name.removesuffix("s"): values for name, values in lists.items()}


def require_grid(mode: Any) -> None:
    """Refuses a grid with values that its mode would refuse.

    Raises:
        ValueError: A list is missing or empty, or holds a value that its setting does not allow; or
            ``num_tokens`` is not a whole number of at least 2.
    """
    num_tokens = (mode.grid or {}).get("num_tokens")
    if num_tokens is not None and not (type(num_tokens) is int and num_tokens >= 2):
        raise ValueError(
            f"grid.num_tokens must be a whole number of at least 2, or null, not {num_tokens}"
        )
    for name, values in values_to_try(mode).items():
        if not isinstance(values, Sequence) or not values:
            raise ValueError(f"grid.{name}s must hold at least one value, not {values}")
        for value in values:
            try:
                replace(mode, **{name: value}, grid=None)
            except (TypeError, ValueError) as error:
                raise ValueError(f"grid.{name}s: {error}") from error


def trial(mode: Any, score: Score) -> dict[str, Any]:
    """The settings of a mode with their nats per token, which are None if not finite."""
    nll = score.nll if math.isfinite(score.nll) else None
    return {**mode.settings()[mode.name], "nll": nll}


def tune_in_turn(mode: Any, score: Callable[[], Score]) -> list[dict[str, Any]]:
    """Tunes one setting after another, each at the best values of those before it.

    Args:
        mode: The mode; it has the best settings afterwards.
        score: Scores valid with the settings that the mode has when this is called.

    Returns:
        A :func:`trial` for each combination that was tried.
    """
    tried: dict[tuple[Any, ...], dict[str, Any]] = {}
    for name, values in values_to_try(mode).items():
        for value in values:
            setattr(mode, name, value)
            settings = tuple(mode.settings()[mode.name].values())
            if settings not in tried:
                tried[settings] = trial(mode, score())
        take_best(mode, tried.values())
    return list(tried.values())


def take_best(mode: Any, tried: Iterable[Mapping[str, Any]]) -> None:
    """Gives a mode the settings with the fewest nats, the first if several tie."""
    best = min(tried, key=lambda row: math.inf if row["nll"] is None else row["nll"])
    for name in values_to_try(mode):
        setattr(mode, name, best[name])


def warn_of_edges(mode: Any) -> None:
    """Warns if a tuned setting is not between values that were tried."""
    for name, values in values_to_try(mode).items():
        best = getattr(mode, name)
        is_inside = min(values) < best < max(values)  # the setting before tuning may be outside
        if len(values) > 2 and not is_inside and best != 0:  # 0 is the least
            setting = f"{mode.name}.{name}"
            log.warning(
                "the best %s, %g, is at or beyond the edge of its grid: try a wider one",
                setting,
                best,
            )
