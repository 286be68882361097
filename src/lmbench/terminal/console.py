"""Log lines on the console: above a live bar, with the job's number in a sweep of several."""

import logging
import shutil
import sys
from textwrap import TextWrapper


class ConsoleHandler(logging.Handler):
    """Writes to whatever ``sys.stdout`` is at the moment: a live bar puts itself there.

    In a terminal a line begins with the time of day, elsewhere with the date too. Errors go to
    stderr, without a time.

    Args:
        job: The number of a sweep's job, whose lines may mix with those of others.
    """

    def __init__(self, job: int | None = None) -> None:
        super().__init__()
        self._job = "" if job is None else f"#{job} "

    def emit(self, record: logging.LogRecord) -> None:
        """Writes a line."""
        is_error = record.levelno >= logging.ERROR
        stream = sys.stderr if is_error else sys.stdout
        day = "" if stream.isatty() else "%Y-%m-%d "
        level = "Warning: " if record.levelno == logging.WARNING else ""
        style = f"{'' if is_error else '%(asctime)s '}{self._job}{level}%(message)s"
        try:
            text = logging.Formatter(style, f"{day}%H:%M:%S").format(record)
            stream.write((_wrapped(text) if stream.isatty() else text) + "\n")
            stream.flush()
        except Exception:  # as logging does: a full disk must not end a training run
            self.handleError(record)


def _wrapped(text: str) -> str:
    """Lines broken at spaces where the terminal ends, but for indented commands and tables."""
    width = shutil.get_terminal_size().columns
    wrap = TextWrapper(width, break_long_words=False, break_on_hyphens=False)
    lines = text.split("\n")
    return "\n".join(x if len(x) <= width or x[:1] in " │┃" else wrap.fill(x) for x in lines)
