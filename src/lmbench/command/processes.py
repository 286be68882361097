"""Processes of one command, in a run on several devices."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lightning import Trainer


@contextmanager
def processes_end_together(trainer: "Trainer") -> Iterator[None]:
    """Ends the processes that Lightning has started here, if an error ends this one.

    On GPUs they would wait for it as long as NCCL does, half an hour.
    """
    try:
        yield
    except BaseException:
        launcher = trainer.strategy.launcher
        if launcher is not None:
            launcher.kill(signal.SIGKILL)
            # Lightning has a thread that kills this process too when it finds one of them dead.
            getattr(launcher, "procs", []).clear()
        raise
