"""Printing where stdout may be full, closed or of few letters, and where nobody may read it."""

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from lmbench.errors import UserError


@contextmanager
def printing(hint: str = "") -> Iterator[None]:
    """While something is printed, tells errors of stdout from those of files.

    A letter that stdout's encoding does not have becomes a question mark. Where stdout is closed,
    nothing is printed. Where nobody reads it any more, the process ends.

    Args:
        hint: What is not lost, after a space.

    Raises:
        UserError: Stdout cannot be written.
    """
    if sys.stdout is None:
        yield
        return
    try:
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="replace")
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        end_unread()
    except OSError as error:
        _discard_the_rest()
        raise UserError(f"stdout cannot be written: {error.strerror}.{hint}") from error


def end_unread() -> NoReturn:
    """Ends the process where nobody reads stdout any more, as behind ``| head``, and says nothing.

    The exit code is as if SIGPIPE had ended it; Windows has no such signal.
    """
    _discard_the_rest()
    sys.exit(128 + 13)


def _discard_the_rest() -> None:
    """Python flushes stdout once more at the end, and would complain."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
