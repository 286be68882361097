"""What a tokenizer offers. Shape letters: N pieces of a block."""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int

if TYPE_CHECKING:
    from lmbench.data.vocabulary import Vocabulary

EOS = "<eos>"
UNK = "<unk>"

Unit = Literal["word", "sub-word", "character", "byte"]


@runtime_checkable
class Tokenizer(Protocol):
    """Cuts text into pieces, which a vocabulary numbers, and joins pieces to text again.

    A tokenizer is a frozen dataclass whose fields are plain values: they are saved with the
    vocabulary, and the class is made from them again. A class that inherits from this one needs
    ``name``, ``unit``, ``cut`` and ``join``; the rest has defaults.

    Attributes:
        name: What results and messages call it.
        unit: What one piece is.
        version: Version of a library that may cut differently in another version.
        eos: The piece that stands for a line end.
        unk: The piece that stands for pieces that the vocabulary lacks; None if it lacks none.
    """

    name: str
    unit: ClassVar[Unit]
    version: ClassVar[str] = ""
    eos: ClassVar[str] = EOS
    unk: ClassVar[str | None] = UNK

    def cut(self, text: str) -> list[str]:
        """The pieces of a text, ``eos`` at its line ends; only a line feed ends a line."""
        ...

    def join(self, pieces: Iterable[str]) -> Iterator[str]:
        """The text of pieces, a part for each as soon as it comes; the last line is ended."""
        ...

    def cut_block(self, block: bytes) -> tuple[list[str], Int[np.ndarray, " N"]]:
        """Cuts whole lines of a corpus; the last line is ended if it is not.

        Args:
            block: UTF-8 text.

        Returns:
            The different pieces in order of first appearance, and each piece's place among them.
        """
        if block and not block.endswith(b"\n"):
            block += b"\n"
        places: dict[str, int] = {}
        pieces = [places.setdefault(piece, len(places)) for piece in self.cut(block.decode())]
        return list(places), np.array(pieces, dtype=np.int32)

    def num_characters(self, piece: str) -> int:
        """Length of a piece in the text that it was cut from, without white space."""
        return len(piece)

    def fit(self, blocks: Iterable[bytes]) -> "Tokenizer":
        """The tokenizer of a corpus, which may learn from its training text, in blocks of UTF-8."""
        return self

    def fit_vocabulary(self, vocabulary: "Vocabulary") -> "Tokenizer":
        """The tokenizer of texts for a model that has a vocabulary already."""
        return self
