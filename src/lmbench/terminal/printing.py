"""Prints what comes from files to a stdout that may be full, closed or limited in characters."""

import io
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from lmbench.errors import UserError

_UNSAFE = re.compile(
    "[\x00-\x1f\x7f-\x9f"  # control characters, which command terminals
    "\u2028\u2029"  # ends of lines and paragraphs
    "\u202a-\u202e\u2066-\u2069"  # change the direction of writing
    "\ud800-\udfff]"  # from file names that are not UTF-8; no encoding accepts them
)


def printable(text: str) -> str:
    """The text with what could move a cursor or change the direction of writing made visible."""
    return _UNSAFE.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


@contextmanager
def printing(hint: str = "", *, encoding: str | None = None) -> Iterator[None]:
    """While something is printed, tells errors of stdout from those of files.

    A character that stdout's encoding lacks becomes a question mark. If nobody reads stdout any
    more, the process ends.

    Args:
        hint: What is not lost, with a leading space.
        encoding: What stdout's encoding is changed to; None leaves it.

    Raises:
        UserError: Stdout cannot be written.
    """
    try:
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(encoding=encoding, errors="replace")
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        end_unread()
    except OSError as error:
        _discard_the_rest()
        raise UserError(f"stdout cannot be written: {error.strerror}.{hint}") from error


def tell(text: str) -> None:
    """Prints to stderr, unless that is closed: ``print`` would take stdout instead."""
    if sys.stderr is not None:
        print(text, file=sys.stderr)


def end_unread() -> NoReturn:
    """Ends the process silently when nobody reads stdout any more, as with ``| head``.

    The exit code is as if SIGPIPE had ended it; Windows has no such signal.
    """
    _discard_the_rest()
    sys.exit(128 + 13)


def _discard_the_rest() -> None:
    """Python flushes stdout once more at the end, and would complain."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
