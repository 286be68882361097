"""Better settings for a mode, chosen from a grid on the valid split alone."""

import json
import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

from lmbench.errors import UserError
from lmbench.files import read_json, reading, replace_text
from lmbench.perplexity import Score
from lmbench.terminal.live_line import duration

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
    lists = values_to_try(mode)
    num_left = sum(map(len, lists.values()))
    log.info("tuning %s: at most %d readings", mode.name, num_left)
    for name, values in lists.items():
        for value in values:
            setattr(mode, name, value)
            settings = tuple(mode.settings()[mode.name].values())
            num_left -= 1
            if settings not in tried:
                start = time.perf_counter()
                tried[settings] = trial(mode, score())
                seconds = time.perf_counter() - start
                if num_left and seconds > 0.1:  # else the score was kept
                    left = duration(num_left * seconds)
                    log.info("tuning %s: at most %d more in %s", mode.name, num_left, left)
        take_best(mode, tried.values())
    return list(tried.values())


class KeptScores:
    """Scores of a tuning's readings, kept in a file, so that an interrupted tuning loses none.

    Args:
        path: The file. One that is damaged, or was made from anything else, is replaced.
        made_from: What all the readings have in common, such as the weights and the text.
    """

    def __init__(self, path: Path, made_from: Mapping[str, Any]) -> None:
        self._path = path
        self._made_from = dict(made_from)
        self._scores: dict[str, Score] = {}
        with suppress(UserError), reading(path):
            content = read_json(path)
            if content["made_from"] == self._made_from:
                rows = content["scores"].items()
                self._scores = {key: Score(float(nats), int(n)) for key, (nats, n) in rows}

    def score(self, settings: Sequence[Mapping[str, Any]], read: Callable[[], Score]) -> Score:
        """The score of a reading with these settings, which is read if it is not in the file."""
        key = json.dumps(settings, sort_keys=True)
        if key not in self._scores:
            self._scores[key] = read()
            rows = {key: (score.nats, score.num_tokens) for key, score in self._scores.items()}
            content = {"made_from": self._made_from, "scores": rows}
            try:
                replace_text(self._path, json.dumps(content, indent=1) + "\n")
            except OSError as error:  # only an interrupted tuning takes longer
                log.warning("%s cannot be written: %s.", self._path, error.strerror or error)
        return self._scores[key]


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
