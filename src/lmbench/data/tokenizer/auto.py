"""A tokenizer chosen by the text, or by the words of a vocabulary."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from lmbench.data.tokenizer.contract import UNK, Tokenizer
from lmbench.data.tokenizer.moses import Moses, Penn
from lmbench.data.tokenizer.words import WhiteSpace
from lmbench.data.vocabulary import Vocabulary

_PUNCTUATION = re.compile(r"[^\w<>]+")


@dataclass(frozen=True)
class Auto(WhiteSpace):
    """For text of any kind: cuts at white space until it has seen a corpus or a vocabulary."""

    name = "auto"

    def fit(self, blocks: Iterable[bytes]) -> Tokenizer:
        """White space if the training text has ``<unk>``, as prepared corpora do, else Moses."""
        return WhiteSpace() if any(UNK.encode() in block for block in blocks) else Moses()

    def fit_vocabulary(self, vocabulary: Vocabulary) -> Tokenizer:
        """The tokenizer of raw text for a model, whatever its training text was.

        If the training text came with its words separated, as WikiText-2 does, the vocabulary
        shows how. If it has no capital letters, text is read in lower case; if its words were
        separated and it has no full stop, punctuation that it lacks is left out (both as in the
        Penn Treebank of Mikolov et al. 2010).
        """
        tokenizer, words = vocabulary.tokenizer, vocabulary.ids.keys()
        if tokenizer.unit != "word":
            return tokenizer
        if tokenizer == WhiteSpace() and words & {"n't", "'t", "'s", "."}:
            tokenizer = Penn() if "n't" in words and "'t" not in words else Moses()
        # N stands for all numbers in the Penn Treebank.
        lowercase = not any(word != word.lower() for word in words if word != "N")
        drops_punctuation = tokenizer != WhiteSpace() and "." not in words
        if not lowercase and not drops_punctuation:
            return tokenizer
        return _LikeVocabulary(tokenizer, vocabulary, lowercase, drops_punctuation)


@dataclass(frozen=True)
class _LikeVocabulary(WhiteSpace):
    """Another tokenizer's words, closer to those of a vocabulary."""

    tokenizer: Tokenizer
    vocabulary: Vocabulary
    lowercase: bool
    drops_punctuation: bool
    cut_block = Tokenizer.cut_block  # by its own method cut

    @property
    def name(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The other's name, and what is done besides."""
        name = f"{self.tokenizer.name}{', lower case' if self.lowercase else ''}"
        return name + (", without unknown punctuation" if self.drops_punctuation else "")

    def cut(self, text: str) -> list[str]:
        """The words of a text, ``<eos>`` at its line ends."""
        words, known = self.tokenizer.cut(text), self.vocabulary.ids
        if self.lowercase:  # only now: what begins with a capital tells where a sentence ends
            words = [word if word in known else word.lower() for word in words]
        if not self.drops_punctuation:
            return words
        return [word for word in words if word in known or not _PUNCTUATION.fullmatch(word)]
