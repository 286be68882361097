"""How far a training is and how long it will take: a live line in a terminal, lines in the log."""

import logging
from typing import Any

import lightning as L
import torch
from lightning.pytorch.trainer.states import TrainerFn

from lmbench.callbacks.time_limit import TimeLimit
from lmbench.terminal.live_line import LiveLine, duration
from lmbench.terminal.printing import printable

log = logging.getLogger(__name__)


class Progress(L.Callback):
    """Reports what is being done, with a line after each validation.

    In a terminal, there is a live line below those of the log. Elsewhere, there is a line at least
    every minute.
    """

    def __init__(self) -> None:
        self._line: LiveLine | None = None  # in the first process, while it trains or tests
        self._has_said_how_long = False
        self._num_steps: int | None = None
        self._limit: TimeLimit | None = None

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Reads how long the run may be, before Checkpoints hides that in a resume."""
        self._num_steps = pl_module.num_steps

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Says what begins, and starts the live line."""
        self._limit = next((x for x in trainer.callbacks if isinstance(x, TimeLimit)), None)
        if trainer.is_global_zero:
            _say_what_begins(trainer, pl_module)
            share = self._share_of_training(trainer)
            total = None if share is None else 1.0
            self._line = LiveLine("training", total, done=share or 0.0)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs, batch, batch_idx) -> None:
        """Shows how far the run is."""
        if self._line is None:
            return

        def figures() -> list[str]:
            best = pl_module.best
            shown = [f"best valid {best.score.ppl:.2f}"] if best is not None else []
            return [*_train_ppl(trainer), *shown, *_speed(trainer)]

        is_new = self._line.update(_epoch(trainer), self._share_of_training(trainer), figures)
        if is_new and self._limit is None and not self._has_said_how_long:
            self._say_how_long(trainer)

    def on_validation_batch_end(
        self, trainer: Any, pl_module: Any, outputs, batch, batch_idx, dataloader_idx=0
    ) -> None:
        """Shows how far the validation is."""
        if self._line is not None:
            share = (batch_idx + 1) / sum(trainer.num_val_batches)
            self._line.update(f"validation {share:.0%}", None, list)

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Logs the perplexities, the speed and the time left."""
        if trainer.state.fn != TrainerFn.FITTING or not trainer.is_global_zero:
            return
        is_best = pl_module.best is not None and pl_module.best.epoch == trainer.current_epoch
        valid = f"valid {trainer.callback_metrics['val/ppl']:.2f}{' (best)' if is_best else ''}"
        line = [*_train_ppl(trainer), valid, *_speed(trainer)]
        if self._line is not None and not self._line.is_shown and self._line.left:
            line.append(self._line.left)
        log.info("%s: %s", _epoch(trainer), ", ".join(line))

    def on_test_start(self, trainer: Any, pl_module: Any) -> None:
        """Starts over for the test."""
        if trainer.is_global_zero:
            self._line = LiveLine("test", 1.0)

    def on_test_batch_end(
        self, trainer: Any, pl_module: Any, outputs, batch, batch_idx, dataloader_idx=0
    ) -> None:
        """Shows how far the test is."""
        if self._line is not None:
            share = (batch_idx + 1) / sum(trainer.num_test_batches)
            self._line.update(f"test of the best epoch {share:.0%}", share, list)

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Removes the live line."""
        self._stop()

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Removes the live line."""
        self._stop()

    on_test_end = on_train_end

    def _stop(self) -> None:
        if self._line is not None:
            self._line.stop()
            self._line = None

    def _say_how_long(self, trainer: Any) -> None:
        seconds = self._line.seconds_left if self._line is not None else None
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


def _epoch(trainer: Any) -> str:
    last = f"/{trainer.max_epochs}" if trainer.max_epochs > 0 else ""
    return f"epoch {trainer.current_epoch + 1}{last}"


def _train_ppl(trainer: Any) -> list[str]:
    ppl = trainer.callback_metrics.get("train/ppl")
    return [] if ppl is None else [f"train ppl {ppl:.1f}"]


def _speed(trainer: Any) -> list[str]:
    speed = trainer.callback_metrics.get("train/tokens_per_second")
    return [] if speed is None else [f"{speed:,.0f} tokens/s"]


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
