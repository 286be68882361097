"""Words between white space."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Int

from lmbench.data.tokenizer.contract import Tokenizer, Unit

_JOINING = re.compile(r"@[-.,]@")


@dataclass(frozen=True)
class WhiteSpace(Tokenizer):
    r"""Words are what ``str.split`` gives: for text whose punctuation is separated.

    Other tokenizers of words inherit from this one, and separate them first.

    >>> tokenizer = WhiteSpace()
    >>> tokenizer.cut("red @-@ hot .\n")
    ['red', '@-@', 'hot', '.', '<eos>']
    >>> list(tokenizer.join(["a", "b", "<eos>", "c"]))
    ['a', ' b', '\n', 'c', '\n']
    >>> tokenizer.num_characters("@-@")
    1
    """

    name = "none"
    unit: ClassVar[Unit] = "word"

    def separate(self, text: str) -> str:
        """The text with white space between its words; its lines stay lines."""
        return text

    def cut(self, text: str) -> list[str]:
        """The words of a text, ``<eos>`` at its line ends."""
        return self.separate(text).replace("\n", f" {self.eos} ").split()

    def cut_block(self, block: bytes) -> tuple[list[str], Int[np.ndarray, " N"]]:
        """As described in the base; Arrow splits 8 million words a second."""
        # Slow to import, and not needed if the corpus is in the cache.
        import pyarrow as pa
        import pyarrow.compute as pc

        block = self.separate(block.decode()).encode()
        if block and not block.endswith(b"\n"):
            block += b"\n"
        # If the text ends with white space, Arrow reads the byte after it, which is not ours; so
        # it ends with a word. White space at the start gives an empty word, unlike in str.split.
        lines = block.replace(b"\n", f" {self.eos} ".encode()).removesuffix(b" ")
        text = pa.array([lines], pa.large_string())
        words = pc.call_function("utf8_split_whitespace", [text]).flatten()
        words = words.filter(pc.call_function("not_equal", [words, ""])).dictionary_encode()
        return words.dictionary.to_pylist(), words.indices.to_numpy()

    def join(self, pieces: Iterable[str]) -> Iterator[str]:
        """The words with spaces between them, line feeds for ``<eos>`` and at the end."""
        at_start = True
        for word in pieces:
            yield "\n" if word == self.eos else word if at_start else f" {word}"
            at_start = word == self.eos
        if not at_start:
            yield "\n"

    def num_characters(self, piece: str) -> int:
        """The length of a word in the text: that of WikiText's ``@-@`` is 1."""
        return 1 if _JOINING.fullmatch(piece) else len(piece)
