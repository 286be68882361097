"""A line per validation, for the console and train.log."""

import logging
import time

import lightning as L
from lightning.pytorch.trainer.states import TrainerFn

log = logging.getLogger(__name__)


class Progress(L.Callback):
    """Logs the figures that matter after each validation; a terminal's bar is Lightning's own."""

    def __init__(self) -> None:
        self._start = 0.0
        self._seconds_before = 0.0
        self._best = float("inf")

    def state_dict(self) -> dict[str, float]:
        """The best validation and the seconds so far."""
        return {"best": self._best, "seconds": time.perf_counter() - self._start}

    def load_state_dict(self, state_dict: dict[str, float]) -> None:
        """The best validation and the seconds so far."""
        self._best = state_dict["best"]
        self._seconds_before = state_dict.get("seconds", 0.0)  # it was not always saved

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Starts the clock."""
        self._start = time.perf_counter() - self._seconds_before

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """One line."""
        if trainer.state.fn != TrainerFn.FITTING:
            return
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        valid = metrics["val/ppl"]
        line = [f"epoch {trainer.current_epoch}", f"step {trainer.global_step:,}"]
        if "train/ppl" in metrics:
            line.append(f"train ppl {metrics['train/ppl']:.1f}")
        line.append(f"valid ppl {valid:.2f}{' (best)' if valid < self._best else ''}")
        if "train/tokens_per_second" in metrics:
            line.append(f"{metrics['train/tokens_per_second']:,.0f} tokens/s")
        line.append(f"{(time.perf_counter() - self._start) / 60:.1f} min")
        if trainer.is_global_zero:
            log.info(" | ".join(line))
        self._best = min(self._best, valid)
