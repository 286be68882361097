"""Short names for groups of runs, by what tells their configs apart."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from lmbench.terminal.printing import printable

LONGEST_NAME = 48
NOT_SET = "(not set)"
"""Stands for a value of a key that a config lacks."""

CLASS = "._target_"
"""End of the keys whose value is the dotted name of a class."""


def unique_names(names: Sequence[str], differences: Mapping[str, Sequence[str]]) -> list[str]:
    """Unique names for groups: with settings added where they coincide, cut if long.

    Args:
        names: The groups' names.
        differences: What :func:`differing_values` gives for their configs.
    """
    longer_names = list(names)
    for name in set(names):
        same = [index for index, other in enumerate(names) if other == name]
        columns = {key: [values[index] for index in same] for key, values in differences.items()}
        keys = telling_keys(columns)
        texts = {key: dict(zip(same, _rounded(columns[key]), strict=True)) for key in keys}
        for index in same:
            pairs = [shortened(key, texts[key][index]) for key in keys]
            shorts = [short for short, _ in pairs]
            for key, (short, value) in zip(keys, pairs, strict=True):
                unique = short if shorts.count(short) == 1 else key.removesuffix(CLASS)
                longer = f"{longer_names[index]}, {unique}={value}"
                if len(longer) > LONGEST_NAME:  # then a number tells them apart
                    break
                longer_names[index] = longer
    cut = [x if len(x) <= LONGEST_NAME else f"{x[: LONGEST_NAME - 1]}…" for x in longer_names]
    return [
        name if cut.count(name) == 1 else f"{name} ({cut[: index + 1].count(name)})"
        for index, name in enumerate(cut)
    ]


def differing_values(configs: Sequence[Mapping[str, Any]]) -> dict[str, tuple[str, ...]]:
    """The values that are not the same in all configs, as short texts.

    Args:
        configs: Dotted key → value, of each config.

    Returns:
        Dotted key, short ones first → its text in each config; :data:`NOT_SET` if it is missing.
    """
    keys = sorted({key for config in configs for key in config}, key=lambda key: (len(key), key))
    columns = {key: [config.get(key, NOT_SET) for config in configs] for key in keys}
    return {
        k: tuple(map(value_text, values)) for k, values in columns.items() if len(set(values)) > 1
    }


def telling_keys(columns: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    """A small set of keys whose values together tell configs apart as well as all keys do.

    Args:
        columns: Dotted key → its value in each config.

    Returns:
        A greedy choice, a single key if one is enough; classes and readable keys are
        preferred.
    """

    def unreadable(key: str) -> tuple[bool, bool, bool, int, str]:
        return "[" in key, NOT_SET in columns[key], not key.endswith(CLASS), len(key), key

    def parts(keys: Sequence[str]) -> int:
        return len(set(zip(*(columns[key] for key in keys), strict=True)))

    candidates = sorted(columns, key=unreadable)
    chosen: list[str] = []
    while parts(chosen) < parts(candidates) > 1:
        chosen.append(max(candidates, key=lambda key: parts([*chosen, key])))
    return tuple(chosen)


def shortened(key: str, value: str) -> tuple[str, str]:
    """The last part of a key, and its value; for a class, the last parts of node and name."""
    if key.endswith(CLASS):
        key, value = key.removesuffix(CLASS), value.rpartition(".")[2]
    return key.rpartition(".")[2], value


def value_text(value: Any) -> str:
    """A value of a config as in YAML, shortened in the middle if long."""
    is_word = value is None or isinstance(value, bool)
    text = json.dumps(value) if is_word else printable(str(value))
    return text if len(text) <= LONGEST_NAME else f"{text[:24]}…{text[-23:]}"


def _rounded(values: Sequence[str]) -> list[str]:
    """Numbers to four digits, as a search draws 16; the values as they are if these coincide."""
    is_long = re.compile(r"-?\d+\.\d{5,}(e[-+]\d+)?").fullmatch
    rounded = [f"{float(text):.4g}" if is_long(text) else text for text in values]
    return rounded if len(set(rounded)) == len(set(values)) else list(values)
