"""Texts as files, and as Python reads them."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path


def write_splits(folder: Path, texts: Mapping[str, str], pattern: str = "{}.txt") -> Path:
    """A folder with the text of each split."""
    folder.mkdir()
    for split, text in texts.items():
        (folder / pattern.format(split)).write_bytes(text.encode())
    return folder


def reference_tokens(text: str) -> list[str]:
    """Its words, split at white space, with ``<eos>`` after each line."""
    lines = text.removeprefix("\ufeff").split("\n")
    if not lines[-1]:
        lines.pop()
    return [word for line in lines for word in [*line.split(), "<eos>"]]


def limited(tokens: list[str], min_count: int, max_size: int | None) -> list[str]:
    """The text with as many of its most frequent words kept as fit."""
    counts = Counter(tokens)
    frequent = [word for word in counts if counts[word] >= min_count]
    frequent = [word for word in frequent if word not in ("<eos>", "<unk>")]
    frequent.sort(key=lambda word: -counts[word])
    while True:
        kept = {"<eos>", "<unk>", *frequent}
        text = [word if word in kept else "<unk>" for word in tokens]
        if max_size is None or len(set(text)) <= max_size:
            return text
        frequent.pop()
