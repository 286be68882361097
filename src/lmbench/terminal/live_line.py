"""One live line in a terminal, below the lines of the log: a bar and figures."""

import logging
import math
import multiprocessing
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

log = logging.getLogger(__name__)

SECONDS_BETWEEN_REFRESHES = 0.5
SECONDS_BETWEEN_LINES = 60
"""Between the log lines that replace the live line where there is no terminal."""

SECONDS_OF_WARM_UP = 5
"""Seconds before the time left is estimated."""


class LiveLine:
    """A line that shows how far something is until it is stopped.

    Without a terminal, and in one of several jobs that would write over each other, a line is
    logged every minute instead.

    Args:
        description: What is being done.
        total: How much there is to do; None if that is not known.
        done: How much of it an earlier part of the run has done.
        stderr: Whether it is on stderr instead of stdout.

    Attributes:
        is_shown: Whether it is in a terminal.
    """

    def __init__(
        self, description: str, total: float | None, *, done: float = 0.0, stderr: bool = False
    ) -> None:
        console = Console(stderr=stderr)
        is_alone = multiprocessing.current_process().name == "MainProcess"  # joblib's jobs are not
        self.is_shown = console.is_terminal and is_alone
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.fields[figures]}", markup=False),
            console=console,
            refresh_per_second=1 / SECONDS_BETWEEN_REFRESHES,
            speed_estimate_period=math.inf,  # validations would make a recent pace jump
            transient=True,
            redirect_stdout=_is_terminal(sys.stdout),  # else the output is not for the terminal
            redirect_stderr=_is_terminal(sys.stderr),
            get_time=time.monotonic,
            disable=not self.is_shown,
        )
        task = self._progress.add_task(description, total=total, figures="")
        self._task = self._progress.tasks[task]
        self._task.completed = done
        self._next_look = 0.0
        self._next_line = time.monotonic() + SECONDS_BETWEEN_LINES
        self._progress.start()
        if self.is_shown:
            console.show_cursor()  # a second Ctrl-C ends the process with no chance to do so

    @property
    def seconds_left(self) -> float | None:
        """Seconds until all is done, at the pace so far; None while that is not known."""
        has_warmed_up = (self._task.elapsed or 0.0) >= SECONDS_OF_WARM_UP
        return self._task.time_remaining if has_warmed_up else None

    @property
    def left(self) -> str:
        """The time left, in words; empty while it is not known."""
        seconds = self.seconds_left
        return f"{duration(seconds)} left" if seconds else ""

    def update(
        self, description: str, done: float | None, figures: Callable[[], Iterable[str]]
    ) -> bool:
        """Shows how far it is, unless it has just done so.

        Args:
            description: What is being done.
            done: How much is done by now; None if no more than before.
            figures: Gives figures to show, the most important ones first. It may take some time:
                it is not called at every update.

        Returns:
            Whether it has shown anything new.
        """
        now = time.monotonic()
        if now < self._next_look:
            return False
        self._next_look = now + SECONDS_BETWEEN_REFRESHES
        self._progress.update(self._task.id, description=description, completed=done)
        shown = list(filter(None, [self.left, *figures()]))
        self._progress.update(self._task.id, figures="  ".join(shown))
        if not self.is_shown and now >= self._next_line:
            self._next_line = now + SECONDS_BETWEEN_LINES
            log.info(", ".join([description, *shown]))
        return True

    def stop(self) -> None:
        """Removes the line."""
        with suppress(OSError):  # of a closed terminal; why the run ends matters more
            self._progress.stop()


def _is_terminal(stream: object) -> bool:
    return stream is not None and stream.isatty()  # pyright: ignore[reportAttributeAccessIssue]


def duration(seconds: float) -> str:
    """A duration in the one or two units that matter.

    >>> [duration(seconds) for seconds in (42.4, 750, 7500, 900_000)]
    ['42 s', '12 min', '2 h 05 min', '10.4 days']
    """
    minutes = int(seconds // 60)
    if minutes < 1:
        return f"{seconds:.0f} s"
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60:02} min"
    return f"{seconds / 86400:.1f} days"
