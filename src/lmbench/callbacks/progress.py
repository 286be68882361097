"""How far a training is and how long it will take: a live line in a terminal, lines in the log."""

import logging
import time
from typing import Any

import lightning as L
import torch
from lightning.pytorch.trainer.states import TrainerFn

from lmbench.callbacks.time_limit import TimeLimit
from lmbench.terminal.live_line import SECONDS_BETWEEN_REFRESHES, LiveLine, duration
from lmbench.terminal.printing import printable

log = logging.getLogger(__name__)

SECONDS_OF_WARM_UP = 5
"""Seconds of training before the time left is estimated."""


class Progress(L.Callback):
    """Reports what is being done, with a line after each validation.

    In a terminal, there is a live line below those of the log. Elsewhere, there is a line at least
    every minute.
    """

    def __init__(self) -> None:
        self._line = LiveLine()
        self._share: float | None = None
        self._start_share = 0.0
        self._start = 0.0
        self._next_look = 0.0
        self._has_said_how_long = False
        self._num_steps: int | None = None
        self._limit: TimeLimit | None = None

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Reads how long the run may be, before Checkpoints hides that in a resume."""
        self._num_steps = pl_module.num_steps

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Starts the clock and the live line."""
        limits = [callback for callback in trainer.callbacks if isinstance(callback, TimeLimit)]
        self._limit = limits[0] if limits else None
        if trainer.is_global_zero:
            _say_what_begins(trainer, pl_module)
        self._begin(trainer, "training")
        self._start_share = self._share_of_training(trainer) or 0.0

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs, batch, batch_idx) -> None:
        """Notes how far the run is."""
        if time.monotonic() < self._next_look:  # gathering the figures takes time
            return
        self._next_look = time.monotonic() + SECONDS_BETWEEN_REFRESHES
        self._share = self._share_of_training(trainer)
        if trainer.is_global_zero and self._limit is None and not self._has_said_how_long:
            self._say_how_long(trainer)
        of_how_many = f"/{trainer.max_epochs}" if trainer.max_epochs > 0 else ""
        metrics = trainer.callback_metrics
        figures = [f"epoch {trainer.current_epoch + 1}{of_how_many}", self._left()]
        if "train/ppl" in metrics:
            figures.append(f"train ppl {metrics['train/ppl']:.1f}")
        if pl_module.best is not None:
            figures.append(f"best valid {pl_module.best.score.ppl:.2f}")
        if "train/tokens_per_second" in metrics:
            figures.append(f"{metrics['train/tokens_per_second']:,.0f} tokens/s")
        self._line.show(figures, self._share)

    def on_validation_batch_end(
        self, trainer: Any, pl_module: Any, outputs, batch, batch_idx, dataloader_idx=0
    ) -> None:
        """Notes how far the validation is."""
        num_batches = sum(trainer.num_val_batches)
        figures = [f"validation {(batch_idx + 1) / num_batches:.0%}", self._left()]
        self._line.show(figures, self._share)

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Logs the perplexities, the speed and the time left."""
        if trainer.state.fn != TrainerFn.FITTING or not trainer.is_global_zero:
            return
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        is_best = pl_module.best is not None and pl_module.best.epoch == trainer.current_epoch
        of_how_many = f"/{trainer.max_epochs}" if trainer.max_epochs > 0 else ""
        line = []
        if "train/ppl" in metrics:
            line.append(f"train ppl {metrics['train/ppl']:.1f}")
        line.append(f"valid {metrics['val/ppl']:.2f}{' (best)' if is_best else ''}")
        if "train/tokens_per_second" in metrics:
            line.append(f"{metrics['train/tokens_per_second']:,.0f} tokens/s")
        if not self._line.is_shown and self._left():
            line.append(self._left())
        log.info("epoch %d%s: %s", trainer.current_epoch + 1, of_how_many, ", ".join(line))

    def on_test_start(self, trainer: Any, pl_module: Any) -> None:
        """Starts over for the test."""
        self._begin(trainer, "test")
        self._start_share = 0.0

    def on_test_batch_end(
        self, trainer: Any, pl_module: Any, outputs, batch, batch_idx, dataloader_idx=0
    ) -> None:
        """Notes how far the test is."""
        self._share = (batch_idx + 1) / sum(trainer.num_test_batches)
        figures = [f"test of the best epoch {self._share:.0%}", self._left()]
        self._line.show(figures, self._share)

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Removes the live line."""
        self._line.stop()

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Removes the live line."""
        self._line.stop()

    on_test_end = on_train_end

    def _begin(self, trainer: Any, doing: str) -> None:
        self._start = time.monotonic()
        self._share = None
        self._line = LiveLine()
        self._line.figures = [doing]
        if trainer.is_global_zero:
            self._line.start()

    def _say_how_long(self, trainer: Any) -> None:
        seconds = self._seconds_left()
        if seconds is None:
            return
        self._has_said_how_long = True
        log.info("This will take about %s.", duration(seconds))
        if seconds > 86400 and trainer.strategy.root_device.type == "cpu":
            log.info(
                "For WikiText-2 on a CPU there are experiment=cpu_hour and experiment=cpu_night."
            )

    def _share_of_training(self, trainer: Any) -> float | None:
        """How much of the run is done, in steps or in time; None where it has no end."""
        shares = []
        if self._num_steps:
            shares.append(trainer.global_step / self._num_steps)
        if self._limit is not None:
            shares.append(self._limit.share)
        return min(1.0, max(shares)) if shares else None

    def _left(self) -> str:
        seconds = self._seconds_left()
        return f"{duration(seconds)} left" if seconds and seconds >= 1 else ""

    def _seconds_left(self) -> float | None:
        """Seconds until what has begun is done, at its pace so far; None while unknown."""
        seconds = time.monotonic() - self._start
        if self._share is None or seconds < SECONDS_OF_WARM_UP or self._share <= self._start_share:
            return None
        return seconds * (1 - self._share) / (self._share - self._start_share)


def _say_what_begins(trainer: Any, module: Any) -> None:
    corpus, device = trainer.datamodule.corpus, trainer.strategy.root_device
    tokens = ", ".join(f"{number:,} {split}" for split, number in corpus.num_tokens.items())
    words = len(corpus.vocabulary)
    log.info("%s: tokens %s; %s words", printable(corpus.name), tokens, f"{words:,}")
    threads = f" (threads: {torch.get_num_threads()})" if device.type == "cpu" else ""
    log.info(
        "%s parameters on %s%s, %s; %s steps per epoch",
        f"{module.model.num_parameters:,}",
        torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        threads,
        trainer.precision,
        f"{trainer.num_training_batches:,}",
    )
