"""One live line in a terminal, below the lines of the log: figures, and a bar."""

import logging
import math
import multiprocessing
import sys
import time

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

log = logging.getLogger(__name__)

SECONDS_BETWEEN_REFRESHES = 0.5
SECONDS_BETWEEN_LINES = 60
"""Between the log lines that replace the live line where there is no terminal."""


class LiveLine:
    """A line that is redrawn again and again until it is removed.

    Without a terminal, its figures are logged every minute instead.

    Args:
        stderr: Whether it is on stderr instead of stdout.

    Attributes:
        figures: What it shows, the most important figure first; those that do not fit are left out.
        share: How much is done, for the bar; None for no bar.
    """

    def __init__(self, *, stderr: bool = False) -> None:
        self.figures: list[str] = []
        self.share: float | None = None
        self._console = Console(stderr=stderr)
        self._live: Live | None = None
        self._next_line = math.inf

    @property
    def is_shown(self) -> bool:
        """Whether the line is there now."""
        return self._live is not None

    def start(self) -> None:
        """Shows it in a terminal, unless this is one of several jobs that would overwrite it."""
        self._next_line = time.monotonic() + SECONDS_BETWEEN_LINES
        is_alone = multiprocessing.current_process().name == "MainProcess"  # joblib's jobs are not
        if not (self._console.is_terminal and is_alone):
            return
        self._live = Live(
            console=self._console,
            get_renderable=lambda: self.line(self._console.width),
            refresh_per_second=1 / SECONDS_BETWEEN_REFRESHES,
            transient=True,
            redirect_stdout=_is_terminal(sys.stdout),  # else the output is not for the terminal
            redirect_stderr=_is_terminal(sys.stderr),
        )
        self._live.start()
        self._console.show_cursor()  # a second Ctrl-C ends the process with no chance to do so

    def show(self, figures: list[str], share: float | None) -> None:
        """Sets figures and share, and logs the figures where the line is not shown and it is time.

        A line that was not started logs nothing.
        """
        self.figures, self.share = figures, share
        if not self.is_shown and time.monotonic() >= self._next_line:
            self._next_line = time.monotonic() + SECONDS_BETWEEN_LINES
            log.info(", ".join(filter(None, figures)))

    def stop(self) -> None:
        """Removes the line."""
        self._next_line = math.inf
        if self._live is not None:
            self._live.stop()
            self._live = None

    def line(self, width: int) -> Table:
        """The figures that fit into a width in characters, and the bar in what is left."""
        figures = [figure for figure in self.figures if figure]
        while len(figures) > 1 and len("  ".join(figures)) > width:
            figures = figures[:-1]
        grid = Table.grid(padding=(0, 2))
        cells: list[Text | ProgressBar] = [Text("  ".join(figures))]
        room = width - len("  ".join(figures)) - 3
        if self.share is not None and room >= 5:
            cells.append(ProgressBar(total=1.0, completed=self.share, width=min(room, 40)))
        grid.add_row(*cells)
        return grid


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
