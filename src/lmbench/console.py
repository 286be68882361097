"""Log lines on the console: above a live bar, with the job's number in a sweep of several."""

import logging
import sys


class ConsoleHandler(logging.StreamHandler):
    """Writes to what ``sys.stdout`` is at the moment: a live bar puts itself there.

    In a terminal a line begins with the time of day, elsewhere with the date too. Warnings and
    errors say that they are one.

    Args:
        job: The number of a sweep's job, whose lines may mix with those of others.
    """

    def __init__(self, job: int | None = None) -> None:
        logging.Handler.__init__(self)  # StreamHandler's would hold on to one stream
        self._job = "" if job is None else f"#{job} "

    @property
    def stream(self):
        """The present ``sys.stdout``."""
        return sys.stdout

    def emit(self, record: logging.LogRecord) -> None:
        """Writes a line, unless stdout is closed."""
        if sys.stdout is not None:
            super().emit(record)

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        day = "" if sys.stdout.isatty() else "%Y-%m-%d "
        level = f"{record.levelname}: " if record.levelno >= logging.WARNING else ""
        style = f"%(asctime)s {self._job}{level}%(message)s"
        return logging.Formatter(style, f"{day}%H:%M:%S").format(record)
