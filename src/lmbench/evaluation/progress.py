"""Progress of an evaluation, with the perplexity so far."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from lmbench.perplexity import Score
from lmbench.terminal.live_line import LiveLine

log = logging.getLogger(__name__)

OnWindow = Callable[[int, float], object]
"""Takes the number of targets scored in a window, and their nats."""


@contextmanager
def progress_of(phase: str, num_targets: int) -> Iterator[OnWindow]:
    """Shows a live line while a phase runs, and logs a line when it ends.

    Args:
        phase: What is being done.
        num_targets: How many targets will be scored.

    Yields:
        What to call after each window.
    """
    start, nats_so_far, done = time.perf_counter(), 0.0, 0
    short = phase.partition(",")[0]  # the rest, its settings, is in the log
    line = LiveLine(short, num_targets, stderr=True)

    def figures() -> list[str]:
        rate = f"{done / max(time.perf_counter() - start, 1e-9):,.0f} tokens/s"
        return [rate, *([f"perplexity {Score(nats_so_far, done).ppl:.5g}"] if nats_so_far else [])]

    def on_window(num_scored: int, nats: float) -> None:
        nonlocal nats_so_far, done
        nats_so_far += nats
        done += num_scored
        line.update(f"{short} {done / num_targets:.0%}", done, figures)

    try:
        yield on_window
    finally:
        line.stop()
    seconds = time.perf_counter() - start
    log.info("%s: %s in %.1f s", phase, ", ".join(figures()), seconds)
