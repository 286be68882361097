"""Running text as words: punctuation separated from the words, as in WikiText.

Tokenizers go by name. ``none`` splits at white space. ``moses`` is the Moses tokenizer (Koehn et
al. 2007) for English, and ``moses-de`` the one for German. ``penn`` is ``moses`` with the
contractions of the Penn Treebank, and without the marks that WikiText has in ``red @-@ hot``.
"""

import re
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from typing import Any
from unicodedata import category, normalize

from lmbench.data.vocabulary import EOS, Vocabulary

NONE = "none"
PENN = "penn"

_CHINESE = "[\u3400-\u9fff\uf900-\ufaff]"
_CURLY = str.maketrans({"\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"'})
_IN_NUMBER = re.compile(r"(?<=\d)([.,])(?=\d)")
_MARK = re.compile(r"@ ([-.,]) @")
_JOINING = re.compile(r"@[-.,]@")
_SPECIAL = re.compile(r"< (unk|eos) >")
_FIRST_QUOTE = re.compile(r"^'(?=\S)", re.MULTILINE)
_LAST_QUOTE = re.compile(r"(?<=\S)'$", re.MULTILINE)
_CONTRACTION = re.compile(r"(?<!\S)' (?=(?:s|t|d|m|ll|re|ve)(?!\S))")
_PUNCTUATION = re.compile(r"[^\w<>]+")
_NOT = re.compile(r" ?(n) '(t)(?!\S)", re.IGNORECASE)


def require_tokenizer(name: str) -> None:
    """Refuses an unknown tokenizer.

    Raises:
        ValueError: The name is not ``none``, ``penn``, ``moses``, or ``moses-`` and the code of a
            language.
    """
    if name in (NONE, PENN):
        return
    kind, _, language = name.partition("-")
    if kind != "moses" or name == "moses-" or (language and language not in _languages()):
        raise ValueError(
            "tokenizer must be none, penn, moses, or moses- and the code of a language that Moses "
            f"knows ({', '.join(_languages())}), not {name!r}"
        )


def version_of(tokenizer: str) -> str:
    """The version of a tokenizer's library, which may change the words it gives."""
    return "" if tokenizer == NONE else f"sacremoses {version('sacremoses')}"


def separate(text: str, tokenizer: str) -> str:
    r"""The text with spaces between its words, line by line.

    Moses' conventions are those of WikiText: ``isn 't``, ``red @-@ tipped``, ``1 @,@ 000``. Curly
    quotes become straight ones, as typed in a prompt. A letter and its accent become one character
    where there is one (Unicode's NFC). Text that is already separated changes little; ``<unk>`` and
    ``<eos>`` stay whole.

    Args:
        text: Any text; only a line feed ends a line.
        tokenizer: See :func:`require_tokenizer`.

    >>> separate("“It isn't 1,000,” he said.\n", "moses")
    '" It isn \'t 1 @,@ 000 , " he said .\n'
    """
    if tokenizer == NONE:
        return text
    _, _, language = tokenizer.partition("-")
    moses = _moses(language or "en")
    is_penn = tokenizer == PENN
    lines = (
        moses.tokenize(line, aggressive_dash_splits=not is_penn, return_str=True, escape=False)
        for line in normalize("NFC", text.translate(_CURLY)).split("\n")
    )
    text = "\n".join(lines)
    if not is_penn:
        text = _IN_NUMBER.sub(r" @\1@ ", text)
        text = _MARK.sub(r"@\1@", text)
    # The library separates a quote that has something on both sides.
    text = _LAST_QUOTE.sub(" '", _FIRST_QUOTE.sub("' ", text))
    # Rejoins what the library takes apart in text that was already separated.
    text = _CONTRACTION.sub("'", _SPECIAL.sub(r"<\1>", text))
    return _NOT.sub(r" \1'\2", text) if is_penn else text


def words_of(text: str, tokenizer: str) -> list[str]:
    r"""The words of a text, ``<eos>`` at its line ends.

    >>> words_of("Well, well.\nYes", "moses")
    ['Well', ',', 'well', '.', '<eos>', 'Yes']
    """
    return separate(text, tokenizer).replace("\n", f" {EOS} ").split()


def num_characters(word: str) -> int:
    """The length of a word in the text: that of ``@-@`` is 1.

    >>> num_characters("red"), num_characters("@-@")
    (3, 1)
    """
    return 1 if _JOINING.fullmatch(word) else len(word)


@dataclass(frozen=True)
class WordSplitter:
    """Splits text into the kind of words that a vocabulary has.

    Args:
        vocabulary: The words.
        tokenizer: See :func:`require_tokenizer`.
        is_lowercase: Whether text is read in lower case.
        drops_punctuation: Whether punctuation that is not in the vocabulary is left out.

    Raises:
        ValueError: The tokenizer is unknown.
    """

    vocabulary: Vocabulary
    tokenizer: str
    is_lowercase: bool = False
    drops_punctuation: bool = False

    def __post_init__(self) -> None:
        require_tokenizer(self.tokenizer)

    @classmethod
    def of(cls, vocabulary: Vocabulary, tokenizer: str | None = None) -> "WordSplitter":
        """The splitter of text for a model.

        Args:
            vocabulary: The model's words.
            tokenizer: A tokenizer; None for that of the training text, which is ``none`` if
                that came separated, as WikiText-2 does. ``auto`` is for raw text, whatever the
                training text was: the vocabulary shows how its words were separated. If it has no
                capital letters, text is read in lower case; if its words were separated and it has
                no full stop, punctuation that it lacks is left out (both as in the Penn Treebank of
                Mikolov et al. 2010).

        Raises:
            ValueError: The tokenizer is unknown.
        """
        if tokenizer != "auto":
            return cls(vocabulary, vocabulary.tokenizer if tokenizer is None else tokenizer)
        ids, tokenizer = vocabulary.ids.keys(), vocabulary.tokenizer
        if tokenizer == NONE and ids & {"n't", "'t", "'s", "."}:
            tokenizer = PENN if "n't" in ids and "'t" not in ids else "moses"
        # N stands for all numbers in the Penn Treebank.
        is_lowercase = not any(word != word.lower() for word in ids if word != "N")
        return cls(vocabulary, tokenizer, is_lowercase, tokenizer != NONE and "." not in ids)

    def words(self, text: str) -> list[str]:
        """The words of a text, ``<eos>`` at its line ends."""
        words = words_of(text, self.tokenizer)
        ids = self.vocabulary.ids
        if self.is_lowercase:  # only now: what begins with a capital tells where a sentence ends
            words = [word if word in ids else word.lower() for word in words]
        if not self.drops_punctuation:
            return words
        return [word for word in words if word in ids or not _PUNCTUATION.fullmatch(word)]

    def continued(self, context: str, text: str) -> tuple[list[str], list[str]]:
        """The words of a context, and those with which a text continues it.

        They are split together, as they would be in one text, unless a word spans the place where
        they meet: then each is split alone.
        """
        before, words = self.words(context), self.words(context + text)
        if words[: len(before)] == before:
            return before, words[len(before) :]
        return before, self.words(text)


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
