"""Running text as words by the Moses tokenizer (Koehn et al. 2007), with repairs around it."""

import re
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from typing import Any, ClassVar
from unicodedata import category, normalize

from lmbench.data.tokenizer.words import WhiteSpace

_CHINESE = "[\u3400-\u9fff\uf900-\ufaff]"
_CURLY = str.maketrans({"\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"'})
_IN_NUMBER = re.compile(r"(?<=\d)([.,])(?=\d)")
_MARK = re.compile(r"@ ([-.,]) @")
_SPECIAL = re.compile(r"< (unk|eos) >")
_FIRST_QUOTE = re.compile(r"^'(?=\S)", re.MULTILINE)
_LAST_QUOTE = re.compile(r"(?<=\S)'$", re.MULTILINE)
_CONTRACTION = re.compile(r"(?<!\S)' (?=(?:s|t|d|m|ll|re|ve)(?!\S))")
_NOT = re.compile(r" ?(n) '(t)(?!\S)", re.IGNORECASE)


@dataclass(frozen=True)
class Moses(WhiteSpace):
    r"""Separates punctuation from words, with the conventions of WikiText.

    These are ``isn 't``, ``red @-@ tipped`` and ``1 @,@ 000``. Curly quotes become straight ones,
    as typed in a prompt. A letter and its accent become one character where there is one (Unicode's
    NFC). Text that is already separated changes little; ``<unk>`` and ``<eos>`` stay whole.

    Args:
        language: Code of the language whose rules it follows.

    Raises:
        ValueError: Moses does not know the language.

    >>> Moses().separate("“It isn't 1,000,” he said.")
    '" It isn \'t 1 @,@ 000 , " he said .'
    """

    language: str = "en"
    version: ClassVar[str] = f"sacremoses {metadata.version('sacremoses')}"

    def __post_init__(self) -> None:
        if self.language != "en" and self.language not in (known := _languages()):
            raise ValueError(f"language must be one of {', '.join(known)}, not {self.language!r}")

    @property
    def name(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        """``moses``, or ``moses-de``."""
        return "moses" if self.language == "en" else f"moses-{self.language}"

    def separate(self, text: str) -> str:
        """The text with white space between its words, line by line."""
        text = _separated(text, self.language, aggressive_dash_splits=True)
        return _MARK.sub(r"@\1@", _IN_NUMBER.sub(r" @\1@ ", text))


@dataclass(frozen=True)
class Penn(WhiteSpace):
    """Separates words as the Penn Treebank does: ``is n't``, ``red-hot``, ``1,000``."""

    name = "penn"
    version: ClassVar[str] = Moses.version

    def separate(self, text: str) -> str:
        """The text with white space between its words, line by line."""
        text = _separated(text, "en", aggressive_dash_splits=False)
        return _NOT.sub(r" \1'\2", text)


def _separated(text: str, language: str, *, aggressive_dash_splits: bool) -> str:
    moses = _moses(language)
    options = {"aggressive_dash_splits": aggressive_dash_splits, "escape": False}
    lines = normalize("NFC", text.translate(_CURLY)).split("\n")
    text = "\n".join(moses.tokenize(line, return_str=True, **options) for line in lines)
    # The library separates a quote that has something on both sides.
    text = _LAST_QUOTE.sub(" '", _FIRST_QUOTE.sub("' ", text))
    # Rejoins what the library takes apart in text that was already separated.
    return _CONTRACTION.sub("'", _SPECIAL.sub(r"<\1>", text))


@cache
def _moses(language: str) -> Any:
    from sacremoses import MosesTokenizer  # slow to import

    moses = MosesTokenizer(language)
    pattern, replacement = moses.PAD_NOT_ISALNUM
    padded = pattern.pattern.replace("[^", f"[^{_more_of_words()}", 1)
    moses.PAD_NOT_ISALNUM = re.compile(padded), replacement
    return moses


def _more_of_words() -> str:
    """What the library takes for punctuation, though it belongs to words.

    Accents, joiners and soft hyphens, Korean, and the letters of rare scripts. Chinese characters
    stay words of their own: there are no spaces between Chinese words.
    """
    characters = map(chr, range(0x20000))
    letters = "".join(x for x in characters if x.isalpha() or category(x).startswith("M"))
    return re.sub(_CHINESE, "", letters) + "\u00ad\u200c\u200d"


def _languages() -> list[str]:
    from sacremoses.tokenize import nonbreaking_prefixes

    return sorted(set(nonbreaking_prefixes.available_langs.values()))
