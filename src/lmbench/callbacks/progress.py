"""A line per validation, for the console and train.log."""

import logging
from typing import Any

import lightning as L
from lightning.pytorch.trainer.states import TrainerFn

log = logging.getLogger(__name__)


class Progress(L.Callback):
    """Logs the figures that matter after each validation; a terminal's bar is Lightning's own."""

    def on_validation_end(self, trainer, pl_module: Any) -> None:
        """Logs step, perplexities, speed and time."""
        if trainer.state.fn != TrainerFn.FITTING or not trainer.is_global_zero:
            return
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        is_best = pl_module.best is not None and pl_module.best.epoch == trainer.current_epoch
        line = [f"epoch {trainer.current_epoch}", f"step {trainer.global_step:,}"]
        if "train/ppl" in metrics:
            line.append(f"train ppl {metrics['train/ppl']:.1f}")
        line.append(f"valid ppl {metrics['val/ppl']:.2f}{' (best)' if is_best else ''}")
        if "train/tokens_per_second" in metrics:
            line.append(f"{metrics['train/tokens_per_second']:,.0f} tokens/s")
        if "train/seconds" in metrics:
            line.append(f"{metrics['train/seconds'] / 60:.1f} min")
        log.info(" | ".join(line))
