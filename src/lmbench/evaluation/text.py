"""Text as people write it, and as words of a vocabulary."""

import io
import sys
from collections.abc import Iterable, Iterator

import numpy as np
from jaxtyping import Int32
from rich.console import Console
from rich.progress import Progress

from lmbench.data.vocabulary import EOS, Vocabulary
from lmbench.errors import UserError
from lmbench.report.folders import printable


def read_prompt(prompt: str | None) -> str:
    """The prompt, else what stdin has to say if it is not a terminal.

    Raises:
        UserError: Stdin is not UTF-8.
    """
    if prompt is not None:
        return prompt
    if sys.stdin is None or sys.stdin.isatty():
        return ""
    try:
        return sys.stdin.buffer.read().decode()
    except UnicodeDecodeError as error:
        raise UserError(
            f"The prompt on stdin is not UTF-8: byte {error.object[error.start]:#04x} at byte "
            f"offset {error.start:,}. Convert it to UTF-8."
        ) from error


def encode_prompt(
    prompt: str, vocabulary: Vocabulary
) -> tuple[Int32[np.ndarray, " T"], tuple[str, ...]]:
    r"""Ids of ``<eos>``, as before any line, and of the prompt's words, ``<eos>`` at its line ends.

    Returns:
        The ids, and the words that are not in the vocabulary, each once.

    Raises:
        UserError: There are unknown words, and the vocabulary has no ``<unk>``.

    >>> encode_prompt("b a\n", Vocabulary(("<eos>", "a", "b")))
    (array([0, 2, 1, 0], dtype=int32), ())
    """
    words = [EOS, *prompt.replace("\n", f" {EOS} ").split()]
    unknown = tuple(dict.fromkeys(word for word in words if word not in vocabulary.ids))
    return vocabulary.encode(words), unknown


def pieces(words: Iterable[str]) -> Iterator[str]:
    r"""Text to write, word by word: spaces between words, line feeds for ``<eos>`` and at the end.

    >>> list(pieces(["a", "b", "<eos>", "c"]))
    ['a', ' b', '\n', 'c', '\n']
    """
    at_start = True
    for word in words:
        yield "\n" if word == EOS else word if at_start else f" {word}"
        at_start = word == EOS
    if not at_start:
        yield "\n"


def shown(word: str) -> str:
    """A word for people: no longer than a line, and without what could move a cursor."""
    word = printable(word[:41])
    return word if len(word) <= 40 else f"{word[:39]}…"


def write_words(words: Iterable[str]) -> None:
    """Writes words to stdout as they come."""
    for piece in pieces(words):
        print(piece, end="", flush=True)


def set_up_stdout() -> None:
    """Makes stdout UTF-8, whatever the locale says: so are the texts that the words come from."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8")


def with_progress(parts: Iterable[bytes], size_bytes: int | None) -> Iterator[bytes]:
    """Shows on stderr, if that is a terminal, how much of a text has been read.

    Args:
        parts: The text.
        size_bytes: Size of the whole text; None if it is not known.
    """
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("scoring", total=size_bytes)
        for part in parts:
            yield part
            progress.advance(task, len(part))
