"""Running text as words: punctuation separated from the words, as WikiText has it.

A tokenizer is known by its name. ``none`` takes what white space separates. ``moses`` is the Moses
tokenizer (Koehn et al. 2007) for English, and ``moses-de`` that for German. ``penn`` is ``moses``
with the contractions of the Penn Treebank.
"""

import re
from functools import cache
from importlib.metadata import version
from typing import Any

from lmbench.data.vocabulary import EOS, Vocabulary

NONE = "none"
PENN = "penn"

_CURLY = str.maketrans({"\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"'})
_IN_NUMBER = re.compile(r"(?<=\d)([.,])(?=\d)")
_MARK = re.compile(r"@ ([-.,]) @")
_SPECIAL = re.compile(r"< (unk|eos) >")
_CONTRACTION = re.compile(r"(?<= )' (?=(?:s|t|d|m|ll|re|ve)(?: |$))")
_NOT = re.compile(r" ?n 't(?!\S)")


def require_tokenizer(name: str) -> None:
    """Refuses what is not the name of a tokenizer.

    Raises:
        ValueError: It is not ``none``, ``penn``, ``moses``, or ``moses-`` and the code of a
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
    """What may change the words that a tokenizer gives: its library."""
    return "" if tokenizer == NONE else f"sacremoses {version('sacremoses')}"


def separate(text: str, tokenizer: str) -> str:
    r"""The text with spaces between its words, line by line.

    Moses' conventions are those of WikiText: ``isn 't``, ``red @-@ tipped``, ``1 @,@ 000``. Curly
    quotes become straight ones, as they are typed in a prompt. Of text that is separated already,
    little changes; ``<unk>`` and ``<eos>`` stay whole.

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
    lines = (
        moses.tokenize(line, aggressive_dash_splits=True, return_str=True, escape=False)
        for line in text.translate(_CURLY).split("\n")
    )
    text = _IN_NUMBER.sub(r" @\1@ ", "\n".join(lines))
    # What the library takes apart though it was separated before.
    text = _MARK.sub(r"@\1@", text)
    text = _CONTRACTION.sub("'", _SPECIAL.sub(r"<\1>", text))
    return _NOT.sub(" n't", text) if tokenizer == PENN else text


def words_of(text: str, tokenizer: str) -> list[str]:
    r"""The words of a text, ``<eos>`` at its line ends.

    >>> words_of("Well, well.\nYes", "moses")
    ['Well', ',', 'well', '.', '<eos>', 'Yes']
    """
    return separate(text, tokenizer).replace("\n", f" {EOS} ").split()


def tokenizer_like(vocabulary: Vocabulary) -> str:
    """The tokenizer that makes such words as a vocabulary has, of text that is not separated.

    Args:
        vocabulary: One that was made of running text knows its tokenizer. Of others, such as
            WikiText-2's, whose text came separated, the words show it.
    """
    if vocabulary.tokenizer != NONE:
        return vocabulary.tokenizer
    if "n't" in vocabulary.ids:
        return PENN
    return "moses" if {"'t", "'s", "."} & vocabulary.ids.keys() else NONE


@cache
def _moses(language: str) -> Any:
    from sacremoses import MosesTokenizer  # slow to import

    return MosesTokenizer(language)


def _languages() -> list[str]:
    from sacremoses.tokenize import nonbreaking_prefixes

    return sorted(set(nonbreaking_prefixes.available_langs.values()))
