"""A run that is told to stop finishes its step, saves and ends with the signal's number."""

import logging
import os
import signal
import threading
from types import FrameType
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_only

from lmbench.callbacks.checkpoints import STEPS_BETWEEN_AGREEMENTS, Checkpoints
from lmbench.errors import Interrupted

log = logging.getLogger(__name__)

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)


class StopOnSignal(L.Callback):
    """Ends the run with ``Interrupted`` after SIGINT, SIGTERM, SIGUSR1 or SIGHUP.

    As a context manager it handles the signals: the first one is noted, a second one ends the
    process at once, with exit code 128 + its number. If one comes when there is nothing left to
    stop, the context ends with ``Interrupted`` too, so that a sweep does not start its next job.
    """

    def __init__(self) -> None:
        self._signum: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopOnSignal":
        self._before = self._answer()
        return self

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)
        # Other processes have nothing left to do, while the first one still writes the results.
        is_first = getattr(rank_zero_only, "rank", 0) == 0
        if error is None and self._signum is not None and is_first:
            raise Interrupted(self._signum)

    def on_train_start(self, trainer, pl_module) -> None:
        """Takes SIGTERM back from Lightning, which would end the run without saving it."""
        self._answer()
        if trainer.received_sigterm:
            raise Interrupted(signal.SIGTERM)

    on_test_start = on_train_start

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        """Saves and stops. At the first window of an epoch there is nothing new to save."""
        signum = self._agreed(trainer, pl_module, batch_idx)
        if not signum:
            return
        for checkpoints in trainer.checkpoint_callbacks:
            if batch_idx > 0 and isinstance(checkpoints, Checkpoints):
                checkpoints.save(trainer, before_a_window=True)
        raise Interrupted(signum)

    def on_test_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0) -> None:
        """Stops: training has been saved at its end."""
        signum = self._agreed(trainer, pl_module, batch_idx)
        if signum:
            raise Interrupted(signum)

    def _agreed(self, trainer: L.Trainer, pl_module: L.LightningModule, batch_idx: int) -> int:
        """The highest signal that any process has got; 0 if none has, or between agreements."""
        signum = self._signum or 0
        if trainer.world_size == 1:
            return signum
        if batch_idx % STEPS_BETWEEN_AGREEMENTS:
            return 0
        agreed = torch.tensor(signum, device=pl_module.device)
        torch.distributed.all_reduce(agreed, torch.distributed.ReduceOp.MAX)
        return int(agreed)

    def _answer(self) -> dict[int, Any]:
        if threading.current_thread() is not threading.main_thread():  # Python allows no other
            return {}
        is_nohup = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        answered = [x for x in SIGNALS if not (is_nohup and x == signal.SIGHUP)]
        return {signum: signal.signal(signum, self._note) for signum in answered}

    def _note(self, signum: int, frame: FrameType | None) -> None:
        if self._signum is not None:
            os._exit(128 + signum)
        self._signum = signum
        log.info(
            "%s: saving after this step; a second signal ends the run at once",
            signal.Signals(signum).name,
        )
