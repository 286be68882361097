"""Words and their ids."""

import reprlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from typing import SupportsIndex

import numpy as np
from jaxtyping import Int, Int32

from lmbench.data.tokenizer.contract import EOS, UNK, Tokenizer
from lmbench.data.tokenizer.words import WhiteSpace
from lmbench.errors import UserError
from lmbench.terminal.printing import printable

COUNTED_TOGETHER = 2**24  # tokens


@dataclass(frozen=True, repr=False)
class Vocabulary:
    """A fixed list of words; a word's place in it is its id.

    Args:
        words: The words in id order, each once.
        tokenizer: What cuts a text into them.

    Raises:
        ValueError: A word occurs twice.
    """

    words: tuple[str, ...]
    tokenizer: Tokenizer = field(default_factory=WhiteSpace)

    def __post_init__(self) -> None:
        if len(self.ids) != len(self.words):
            raise ValueError(f"words must not repeat ({len(self.words) - len(self.ids)} do)")

    @cached_property
    def ids(self) -> dict[str, int]:
        """Word to id."""
        return {word: number for number, word in enumerate(self.words)}

    @property
    def unk_id(self) -> int | None:
        """Id of ``<unk>``, or None where unknown words have no id."""
        return None if self.tokenizer.unk is None else self.ids.get(self.tokenizer.unk)

    @property
    def examples(self) -> str:
        """A few words, to show people what kind of words it has."""
        regular = (word for word in self.words if word[:1].isalpha())
        return ", ".join(printable(word) for word in islice(regular, 8))

    def __len__(self) -> int:
        return len(self.words)

    def __repr__(self) -> str:
        return f"Vocabulary({len(self)} {self.tokenizer.unit}s)"

    def encode(self, words: Sequence[str]) -> Int32[np.ndarray, " N"]:
        """Ids of ``words``; those that are not in the vocabulary become ``<unk>``.

        Raises:
            UserError: There are unknown words, and the vocabulary has no ``<unk>``.
            ValueError: ``words`` is a string, whose elements are letters.
        """
        if isinstance(words, str):
            raise ValueError("encode takes a list of words, not a string: split it first")
        unk_id = self.unk_id
        if unk_id is None and (unknown := [word for word in words if word not in self.ids]):
            names = ", ".join(map(reprlib.repr, unknown[:5]))  # a "word" can be a whole text
            raise UserError(
                f"{names}: not among the {len(self):,} words of the vocabulary, which has no {UNK} "
                f"to stand for unknown words. Use words that it has, such as {self.examples}."
            )
        return np.array([self.ids.get(word, unk_id) for word in words], dtype=np.int32)

    def decode(self, ids: Iterable[SupportsIndex]) -> list[str]:
        """Words of ``ids``."""
        return [self.words[number] for number in ids]


def count_words(ids: Int[np.ndarray, " N"], vocabulary_size: int) -> Int[np.ndarray, " V"]:
    """How often each word occurs in a stream, by id."""
    # In parts, since bincount makes an int64 copy of what it counts.
    counts = np.zeros(vocabulary_size, dtype=np.int64)
    for part in np.array_split(ids, 1 + len(ids) // COUNTED_TOGETHER):
        counts += np.bincount(part, minlength=vocabulary_size)
    return counts


def limit_vocabulary(
    words: Sequence[str],
    counts: Int[np.ndarray, " V"],
    min_count: int,
    max_size: int | None,
    tokenizer: Tokenizer,
) -> tuple[Vocabulary, Int32[np.ndarray, " V"]]:
    """Turns rare words into ``<unk>``.

    Args:
        words: Every type of the training text, in order of first appearance.
        counts: How often each of them occurs.
        min_count: Rarer words become ``<unk>``.
        max_size: Largest vocabulary, ``<eos>`` and ``<unk>`` included; the most frequent words
            stay, and of equally frequent ones those that appear first. None for no limit.
        tokenizer: What has cut the text into these words.

    Returns:
        The vocabulary in order of first appearance in the resulting text (which has an ``<unk>``
        only if something became one, or one was there), and the new id of each of ``words``.
    """
    special = np.array([word in (EOS, UNK) for word in words], dtype=bool)
    kept = special | (counts >= min_count)
    adds_unk = UNK not in words
    if max_size is not None and kept.sum() + (adds_unk and not kept.all()) > max_size:
        room = max_size - special.sum() - adds_unk
        by_frequency = np.argsort(-counts, kind="stable")
        candidates = by_frequency[(kept & ~special)[by_frequency]]
        kept[candidates[room:]] = False
    ids: dict[str, int] = {}
    new_ids = [
        ids.setdefault(word if keep else UNK, len(ids))
        for word, keep in zip(words, kept, strict=True)
    ]
    return Vocabulary(tuple(ids), tokenizer), np.array(new_ids, dtype=np.int32)
