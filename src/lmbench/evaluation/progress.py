"""How far an evaluation has come, with the perplexity so far."""

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from lmbench.score import Score

log = logging.getLogger(__name__)


@contextmanager
def progress_of(phase: str, num_targets: int) -> Iterator[Callable[[int, float], object]]:
    """Shows a bar in a terminal while a phase runs, and logs a line when it ends.

    Args:
        phase: What is done.
        num_targets: How many targets will be scored.

    Yields:
        To be called after each window, with the number of targets scored in it and their nats.
    """
    start, nats_so_far, done = time.perf_counter(), 0.0, 0
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.percentage:3.0f}%  {task.fields[figures]}"),
        TimeRemainingColumn(),
    )

    def figures() -> str:
        rate = f"{done / max(time.perf_counter() - start, 1e-9):,.0f} tokens/s"
        perplexity = f", perplexity {Score(nats_so_far, done).ppl:.5g}" if nats_so_far else ""
        return rate + perplexity

    console = Console(stderr=True)
    hidden = not console.is_terminal
    both = sys.stdout is not None and sys.stdout.isatty()  # else what is printed is not for it
    with Progress(
        *columns, console=console, transient=True, disable=hidden, redirect_stdout=both
    ) as progress:
        task = progress.add_task(phase, total=num_targets, figures="")

        def on_window(num_scored: int, nats: float) -> None:
            nonlocal nats_so_far, done
            nats_so_far += nats
            done += num_scored
            progress.update(task, advance=num_scored, figures=figures())

        yield on_window
    log.info("%s: %s in %.1f s", phase, figures(), time.perf_counter() - start)
