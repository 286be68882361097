"""How a split was read, in words that are equal where it was read alike."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lmbench.errors import UserError
from lmbench.printing import printable
from lmbench.report.folders import field, optional_field

_WORDS = {"protocol": "protocol", "columns": "columns", "burn_in": "burn-in"}


def protocol_text(values: Mapping[str, Any], path: Path) -> str:
    """Describes the reading behind the scores of a file.

    Settings that were tuned may differ from seed to seed, and are still those of one recipe: of
    them it says what they were tuned on.

    Args:
        values: The content of ``results.json`` or of an ``evaluation-NAME-SPLIT.json``.
        path: The file, for messages.

    Raises:
        UserError: The file is damaged.
    """
    evaluation = field(values, "evaluation", dict, path)
    if "columns" in evaluation:  # files name their protocol since there is more than one
        evaluation = {"protocol": "standard"} | evaluation
    cache, dynamic, statistics = (
        optional_field(evaluation, kind, dict, path) for kind in ("cache", "dynamic", "statistics")
    )
    # Modes that this version does not know by name move results, too.
    others = {
        kind: settings
        for kind, settings in evaluation.items()
        if isinstance(settings, dict) and kind not in (*_WORDS, "cache", "dynamic", "statistics")
    }
    tuned = optional_field(values, "tuned", dict, path) or {}
    parts = [
        f"{words} {_text(evaluation[key], path)}"
        for key, words in _WORDS.items()
        if key in evaluation
    ]
    # Elsewhere it moves memory and time, not results.
    if dynamic or (cache and cache.get("warmup")):
        parts.append(f"window {_text(evaluation.get('window'), path)}")
    modes = {"dynamic": dynamic, "statistics": statistics, "cache": cache, **others}
    for kind, settings in modes.items():
        if settings:
            said = [*_tuning(tuned, kind), *_fixed(settings, tuned.get(kind), path)]
            parts.append(f"{kind} ({', '.join(said)})")
    return printable(", ".join(parts))


def _tuning(tuned: Mapping[str, Any], kind: str) -> Iterator[str]:
    if kind in tuned:
        some = tuned.get("num_tokens")
        part = f"the first {some:,} tokens of " if isinstance(some, int) else ""
        yield f"tuned on {part}valid"


def _fixed(settings: Mapping[str, Any], tried: Any, path: Path) -> Iterator[str]:
    """Settings without those that tuning has chosen among several values."""
    rows = [row for row in tried if isinstance(row, dict)] if isinstance(tried, list) else []
    for key, value in settings.items():
        if value is None or value is False:
            continue
        if all(row.get(key) == value for row in rows):
            yield f"{key} {_text(value, path)}"


def _text(value: Any, path: Path) -> str:
    items = value if isinstance(value, dict) else {None: value}  # split → value
    if any(isinstance(item, (dict, list)) for item in items.values()):
        raise UserError(
            f"{path} is damaged: a setting of its evaluation is no plain value. Copy it anew, or "
            "run again."
        )
    return " and ".join(
        _plain(item) + ("" if key is None else f" ({key})") for key, item in items.items()
    )


def _plain(value: Any) -> str:
    """Numbers that are equal, as 1 and 1.0, in equal words."""
    return str(int(value) if isinstance(value, float) and value.is_integer() else value)
