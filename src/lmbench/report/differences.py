"""What tells configs apart: the keys whose values differ, and the few of them that are enough."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from typing import Any

from lmbench.printing import printable

NOT_SET = "(not set)"

_LONGEST_VALUE = 60
_MOST_CANDIDATES = 40


def differing_values(configs: Sequence[Mapping[str, Any]]) -> dict[str, tuple[str, ...]]:
    """The values that are not the same in all configs, as short texts.

    Args:
        configs: Dotted key → value, of each config.

    Returns:
        Dotted key, short ones first → its text in each config: two texts are equal exactly where
        the values are, and a config without the key has :data:`NOT_SET`.
    """
    keys = sorted({key for config in configs for key in config}, key=lambda key: (len(key), key))
    columns = {key: [config.get(key, NOT_SET) for config in configs] for key in keys}
    return {key: tuple(_texts(values)) for key, values in columns.items() if len(set(values)) > 1}


def telling_keys(columns: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    """A small set of keys whose values together tell configs apart as far as all keys do.

    Args:
        columns: Dotted key → its value in each config.

    Returns:
        A smallest such set if few keys are enough, readable ones before others; else those that a
        greedy choice finds.
    """
    candidates: dict[tuple[int, ...], str] = {}  # one key of those that part the configs alike
    for key in sorted(columns, key=lambda key: _unreadable(key, columns[key])):
        kinds = tuple(map(columns[key].index, columns[key]))
        if any(kinds):
            candidates.setdefault(kinds, key)

    def parts(kinds: Iterable[tuple[int, ...]]) -> int:
        return len(set(zip(*kinds, strict=True)))

    if not candidates:
        return ()
    most = parts(candidates)
    for size in range(1, 4 if len(candidates) <= _MOST_CANDIDATES else 2):
        for chosen in combinations(candidates, size):
            if parts(chosen) == most:
                return tuple(candidates[kinds] for kinds in chosen)
    greedy: list[tuple[int, ...]] = []
    while not greedy or parts(greedy) < most:
        greedy.append(max(candidates, key=lambda kinds: parts([*greedy, kinds])))
    return tuple(candidates[kinds] for kinds in greedy)


def _unreadable(key: str, values: Sequence[str]) -> tuple[bool, bool, int, str]:
    """Ranks keys: short ones that all groups have first, classes last."""
    return key.endswith("_target_"), NOT_SET in values, len(key), key


def _texts(values: Sequence[Any]) -> list[str]:
    """The values as texts, numbers only as long as needed to tell them apart."""
    floats = {value for value in values if isinstance(value, float)}
    digits = next(
        (n for n in range(6, 17) if len({f"{value:.{n}g}" for value in floats}) == len(floats)), 17
    )
    texts = [_text(value, digits) for value in values]
    # Cut short, two long values may look alike.
    return [
        text if texts.count(text) == values.count(value) else f"{text}({values.index(value) + 1})"
        for text, value in zip(texts, values, strict=True)
    ]


def _text(value: Any, digits: int) -> str:
    if isinstance(value, float):
        return f"{value:.{digits}g}"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    text = printable(str(value))
    half = _LONGEST_VALUE // 2
    return text if len(text) <= _LONGEST_VALUE else f"{text[:half]}…{text[-half:]}"
